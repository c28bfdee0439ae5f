"""Which channels belong together, and models with fewer of them."""

import re

import keras
import numpy as np
import pytest
import surgery_models as made
from keras import layers, ops
from surgery_models import (
    KINDS,
    relative_error,
    samples_of,
    shaken,
    switch_off,
    switch_off_channels,
)

from tfcompress.surgery.base import opened
from tfcompress.surgery.macs import count
from tfcompress.surgery.pruning.groups import Structure
from tfcompress.surgery.pruning.ranking import kept_channels
from tfcompress.surgery.pruning.resizing import resized


def structure_of(model):
    return Structure(opened(model))


def residual():
    """Two convolutions that are added, a bottleneck with squeeze and excitation, a head."""
    x = inputs = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(x)
    skip = x = layers.ReLU()(layers.BatchNormalization(name="bn")(x))
    x = layers.Conv2D(6, 1, activation="relu", name="narrow")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="deep")(x)
    s = layers.GlobalAveragePooling2D(keepdims=True)(x)
    s = layers.Conv2D(2, 1, activation="relu", name="squeeze")(s)
    x = x * layers.Conv2D(6, 1, activation="sigmoid", name="excite")(s)
    x = layers.Add()([layers.Conv2D(8, 1, name="wide")(x), skip])
    return keras.Model(inputs, layers.Dense(4, name="head")(layers.Flatten()(x)))


def members_of(group):
    return {(m.layer, m.variable.name, m.axis, m.role) for m in group.members}


def test_groups_of_a_residual_block():
    structure = structure_of(residual())
    found = {name: (g.size, g.makers, g.kept) for name, g in structure.groups.items()}
    assert found == {
        "stem": (8, ("stem", "wide"), None),
        "narrow": (6, ("narrow", "excite"), None),
        "squeeze": (2, ("squeeze",), None),
        "head": (4, ("head",), "they are an output of the model"),
    }
    assert members_of(structure.groups["stem"]) == {
        ("stem", "kernel", 3, "makes"),
        ("bn", "gamma", 0, "carries"),
        ("bn", "beta", 0, "carries"),
        ("bn", "moving_mean", 0, "carries"),
        ("bn", "moving_variance", 0, "carries"),
        ("narrow", "kernel", 2, "reads"),
        ("wide", "kernel", 3, "makes"),
        ("wide", "bias", 0, "carries"),
        ("head", "kernel", 0, "reads"),
    }
    flat = next(m for m in structure.groups["stem"].members if m.layer == "head")
    assert flat.index.shape == (8, 36)  # each channel is at 6 x 6 places of what is flattened
    assert flat.index[1, :3].tolist() == [1, 9, 17]


def test_weights_of_a_smaller_model_are_slices():
    model = shaken(residual())
    structure = structure_of(model)
    choice = {"stem": np.array([0, 3, 5]), "narrow": np.array([1, 4])}
    small = resized(structure, choice)
    old, new = ({v.path: np.array(v.value) for v in m.weights} for m in (model, small))
    assert set(old) == set(new)
    assert np.array_equal(new["stem/kernel"], old["stem/kernel"][..., [0, 3, 5]])
    assert np.array_equal(new["bn/moving_mean"], old["bn/moving_mean"][[0, 3, 5]])
    assert np.array_equal(new["narrow/kernel"], old["narrow/kernel"][:, :, [0, 3, 5]][..., [1, 4]])
    assert np.array_equal(new["deep/kernel"], old["deep/kernel"][:, :, [1, 4]])
    head = old["head/kernel"].reshape(6, 6, 8, 4)[:, :, [0, 3, 5]].reshape(-1, 4)
    assert np.array_equal(new["head/kernel"], head)
    assert np.array_equal(new["head/bias"], old["head/bias"])
    assert small.get_layer("excite").filters == 2
    assert structure.cost(structure.sizes(choice)) == count(small)


def test_the_model_stays_as_it_was():
    model = shaken(residual())
    before = [np.array(v.value) for v in model.weights]
    structure = structure_of(model)
    resized(structure, {"stem": np.arange(3)})
    assert all(np.array_equal(v, old) for v, old in zip(model.weights, before, strict=True))


@pytest.mark.parametrize("build", KINDS, ids=lambda f: f.__name__)
def test_half_of_the_channels_of_every_kind_of_layer(build, tmp_path):
    """It computes the same where those that go are zero, costs what was predicted, trains, and is
    loaded by Keras as it was saved."""
    keras.utils.set_random_seed(0)
    structure = structure_of(shaken(build()))
    rng = np.random.default_rng(0)
    scores = {name: rng.random(group.size) for name, group in structure.prunable().items()}
    choice = kept_channels(scores, {name: (len(x) + 1) // 2 for name, x in scores.items()})
    for name, group in structure.prunable().items():
        switch_off_channels(group, np.setdiff1d(np.arange(group.size), choice[name]))
    small = resized(structure, choice)
    assert structure.cost(structure.sizes(choice)) == count(small)
    assert count(small)[0] < 0.8 * count(structure.model)[0]
    x = samples_of(small)
    if build is not made.group_normalized:  # which zeros change, too
        assert relative_error(structure.model(x), small(x)) < 1e-5
    # In graph mode TensorFlow 2.21 crashes on split_and_joined, smaller or not.
    small.compile("sgd", "mse", run_eagerly=True)
    small.train_on_batch(x, np.zeros(small(x).shape))
    small.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    assert relative_error(small(x), loaded(x)) == 0.0


def test_groups_of_composed_axes():
    found = {}
    for build in (made.grouped, made.split_and_joined, made.attention_by_hand):
        groups = structure_of(build()).groups.values()
        found |= {f"{build.__name__}/{g.name}": (g.size, g.repeats) for g in groups if not g.kept}
    assert found == {
        "grouped/stem:1": (3, 4),  # whole groups of the first convolution and the shuffle
        "grouped/stem:2": (4, 3),
        "grouped/first": (4, 3),
        "grouped/second": (2, 4),
        # 0 and 1, 2, 3 to 6 and 7 part; what is added to padding stays.
        "split_and_joined/stem:1": (2, 1),
        "split_and_joined/stem:2": (4, 1),
        "split_and_joined/left": (4, 1),
        "attention_by_hand/q:1": (2, 4),
        "attention_by_hand/q:2": (4, 2),
        "attention_by_hand/v": (4, 2),
    }


def test_heads_of_attention_go_as_wholes():
    x = inputs = keras.Input((5, 8))
    x = layers.MultiHeadAttention(4, 3, name="attention")(x, x)
    structure = structure_of(keras.Model(inputs, layers.Dense(2, name="head")(x)))
    name, group = next((n, g) for n, g in structure.groups.items() if g.unit == "heads")
    assert (group.size, group.unit, group.kept) == (4, "heads", None)
    kept = [g.kept for g in structure.groups.values() if g.size == 3]
    assert kept == ["attention loses whole heads"]
    small = resized(structure, {name: np.array([1, 3])})
    old, new = structure.model.get_layer("attention"), small.get_layer("attention")
    assert (new.num_heads, new.key_dim, new.value_dim) == (2, 3, 3)
    for part in ("query_dense", "value_dense"):
        wanted = np.array(getattr(old, part).kernel.value)[:, [1, 3]]
        assert np.array_equal(getattr(new, part).kernel, wanted)
    kernel = np.array(old.output_dense.kernel.value)
    assert np.array_equal(new.output_dense.kernel, kernel[[1, 3]])


def unseen():
    x = inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, name="before")(x)
    x = layers.Lambda(lambda t: ops.qr(t)[0], name="turned")(x)
    x = layers.Conv2D(6, 1, name="after")(x)
    x = layers.Permute((1, 3, 2))(x)
    x = layers.MaxPooling2D((1, 2), name="across")(x)  # over channels
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


def test_what_cannot_be_seen_through_keeps_its_channels():
    groups = structure_of(unseen()).groups
    assert re.fullmatch(r"what Qr 'qr\w*' does with them is not known", groups["before"].kept)
    assert groups["after"].kept == "they are positions of MaxPooling2D 'across'"


def test_layers_keep_what_they_are():
    x = inputs = keras.Input((8,))
    x = layers.Dense(6, kernel_regularizer="l2", name="hidden", dtype="mixed_bfloat16")(x)
    x = layers.Dropout(0.3, seed=1, name="drop")(x)
    frozen = layers.BatchNormalization(name="bn", trainable=False, momentum=0.7)
    model = keras.Model(inputs, layers.Dense(2)(frozen(x)), name="mine")
    small = resized(structure_of(model), {"hidden": np.arange(2)})
    assert small.name == "mine"
    assert small.input_shape == (None, 8)
    hidden = small.get_layer("hidden")
    assert (hidden.units, hidden.dtype_policy.name) == (2, "mixed_bfloat16")
    assert isinstance(hidden.kernel_regularizer, keras.regularizers.L2)
    assert small.get_layer("drop").rate == 0.3
    assert not small.get_layer("bn").trainable
    assert small.get_layer("bn").momentum == 0.7
    assert len(small.trainable_weights) == 4


def test_switch_off_leaves_the_rest():
    """What the tests of dead channels rest on."""
    model = opened(shaken(residual()))
    before = np.array(model.get_layer("stem").kernel.value)
    assert switch_off(model, 0.5) == 4 + 3 + 1
    after = np.array(model.get_layer("stem").kernel.value)
    gone = ~np.any(after, axis=(0, 1, 2))
    assert gone.sum() == 4
    assert np.array_equal(after[..., ~gone], before[..., ~gone])


@pytest.mark.parametrize(
    "join",
    [lambda x: ops.stack([x, x, x], axis=2), layers.RepeatVector(3)],
    ids=["stack", "repeat"],
)
def test_what_an_operation_counts_stays(join):
    """The three tensors of a stack, or repetitions, are met by three channels of a layer."""
    inputs = keras.Input((4,))
    x = layers.Dense(5, name="first")(inputs)
    x = join(x)
    y = layers.Dense(3, name="met")(x) if x.shape[-1] == 3 else x
    if y is x:
        y = layers.Permute((2, 1))(layers.Dense(3, name="met")(layers.Permute((2, 1))(x)))
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x + y)))
    groups = structure_of(model).groups
    assert groups["met"].kept is not None
    assert groups["first"].kept is None


def test_an_open_length_costs_what_is_counted():
    x = inputs = keras.Input((6, 5))
    x = layers.Dense(4)(x)
    x = layers.EinsumDense("abn,n->abn", (None, 4))(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    assert structure_of(model).cost({}) == count(model)


def test_a_constant_that_is_multiplied_as_a_matrix_is_not_cut():
    """Its axis that is summed is as long as the channels."""
    inputs = keras.Input((6, 4))
    x = layers.Permute((2, 1))(layers.Dense(6, name="cut")(inputs))
    x = ops.matmul(x, np.linspace(0, 1, 30, dtype="float32").reshape(6, 5))
    x = ops.einsum("abc,bd->adc", x * np.linspace(1, 2, 6, dtype="float32")[:, None], np.eye(6))
    model = keras.Model(inputs, layers.Dense(2)(x))
    assert structure_of(model).groups["cut"].kept is not None
    x = layers.Dense(3, name="next")(ops.matmul(model.layers[2].output, np.tri(6, dtype="float32")))
    structure = structure_of(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))
    switch_off_channels(structure.groups["cut"], np.array([1, 4]))
    small = resized(structure, {"cut": np.array([0, 2, 3, 5])})
    x = samples_of(small)
    assert relative_error(structure.model(x), small(x)) < 1e-5


def reshaped(shape, width=8, length=None):
    inputs = keras.Input((length, 5))
    x = layers.Dense(width, name="cut")(inputs)
    x = layers.Permute((1, 3, 2))(layers.Reshape((-1 if length is None else length, *shape))(x))
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


def test_a_reshape_of_an_open_length():
    """(length, 8) to (length, 2, 4) splits channels; (length, 6) to (any, 2, 4) mixes lengths."""
    structure = structure_of(reshaped((2, 4)))
    sizes = {n: g.size for n, g in structure.groups.items() if g.kept is None}
    assert list(sizes.values()) == [2]  # of the others the head makes outputs
    small = resized(structure, {name: np.arange(1) for name in sizes})
    assert small(np.zeros((2, 12, 5), "float32")).shape == (2, 12, 4, 2)
    assert structure_of(reshaped((2, 4), width=6)).groups["cut"].kept is not None


def test_a_reshape_across_joined_channels():
    x = inputs = keras.Input((5,))
    x = layers.Concatenate()([layers.Dense(3, name="a")(x), layers.Dense(5, name="b")(x)])
    x = ops.swapaxes(layers.Reshape((2, 4))(x), 1, 2)
    structure = structure_of(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))
    assert structure.prunable() == {}
