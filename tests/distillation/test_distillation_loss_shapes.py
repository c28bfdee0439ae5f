"""Distillation losses between maps of other sizes, and of sequences with padding."""

import keras
import numpy as np
import pytest
from distillation_models import divergence
from distillation_tensors import MAPS, OTHER_MAPS, WEIGHT, attention, squares, unit

from tfcompress import distillation as kd


def averaged(x, axis, size):
    """The mean of what each of `size` equal parts of an axis covers."""
    fine = np.repeat(np.asarray(x, "float64"), size, axis)  # each part covers as many of these
    parts = np.stack(np.split(fine, size, axis), axis)
    return parts.mean(axis + 1)


@pytest.mark.parametrize("sizes", [(2, 2), (3, 3), (4, 1), (3, 2)])
def test_features_of_other_sizes(sizes):
    """The larger map is averaged down to the smaller."""
    teacher, student = MAPS, OTHER_MAPS[:, : sizes[0], : sizes[1]]
    small = averaged(averaged(teacher, 1, sizes[0]), 2, sizes[1])
    assert small.shape == student.shape
    expected = squares(small, student)
    np.testing.assert_allclose(float(kd.Features()(teacher, student)), expected.mean(), rtol=1e-4)
    np.testing.assert_allclose(float(kd.Features()(student, teacher)), expected.mean(), rtol=1e-4)


def test_features_where_each_is_larger_along_one_axis():
    teacher, student = MAPS[:, :, :2], OTHER_MAPS[:, :2]
    expected = squares(averaged(teacher, 1, 2), averaged(student, 2, 2))
    np.testing.assert_allclose(float(kd.Features()(teacher, student)), expected.mean(), rtol=1e-4)


def test_features_of_sequences_of_other_lengths():
    teacher, student = MAPS[:, :, 0], OTHER_MAPS[:, :3, 0]
    expected = squares(averaged(teacher, 1, 3), student)
    np.testing.assert_allclose(float(kd.Features()(teacher, student)), expected.mean(), rtol=1e-4)


def test_attention_of_other_sizes():
    teacher, student = MAPS, OTHER_MAPS[:, :2, :2]
    maps = averaged(averaged((teacher.astype("float64") ** 2).mean(-1), 1, 2), 2, 2)
    gaps = unit(maps.reshape(6, -1)) - attention(student)
    value = float(kd.AttentionTransfer()(teacher, student))
    np.testing.assert_allclose(value, (gaps**2).sum(-1).mean(), rtol=1e-4)


def masked(values, mask):
    tensor = keras.ops.convert_to_tensor(values)
    keras.src.backend.set_keras_mask(tensor, keras.ops.convert_to_tensor(mask))
    return tensor


MASK = np.array(
    [[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
)
MASK = MASK.astype(bool)


@pytest.mark.parametrize("weighted", [False, True])
def test_padding_does_not_count(weighted):
    teacher, student = MAPS[:, :, 0], OTHER_MAPS[:, :, 0]
    weight = WEIGHT[:, None] if weighted else None
    factor = WEIGHT[:, None] if weighted else 1.0
    for loss, values in (
        (kd.SoftLabels(2.0), divergence(teacher, student, 2.0)),
        (kd.Regression("mae"), np.abs(teacher - student).mean(-1)),
    ):
        value = float(loss(teacher, masked(student, MASK), weight))
        np.testing.assert_allclose(value, (values * factor * MASK).sum() / MASK.sum(), rtol=1e-4)


@pytest.mark.parametrize(
    "loss",
    [kd.Features(), kd.AttentionTransfer(), kd.Relational(), kd.Contrastive()],
    ids=lambda loss: loss.name,
)
def test_losses_between_layers_do_not_look_at_padding(loss):
    teacher, student = MAPS[:, :, 0].copy(), OTHER_MAPS[:, :, 0].copy()
    value = float(loss(masked(teacher, MASK), masked(student, MASK)))
    teacher[~MASK], student[~MASK] = 7.0, -3.0
    for weight in (None, WEIGHT * 0 + 1):
        found = float(loss(masked(teacher, MASK), masked(student, MASK), weight))
        assert found == pytest.approx(value, rel=1e-5)
    ones = np.eye(6, dtype="float32")
    each = [float(loss(masked(teacher, MASK), masked(student, MASK), w)) for w in ones]
    assert sum(each) == pytest.approx(value, rel=1e-4)
