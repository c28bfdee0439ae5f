"""Channels without effect are removed exactly."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from surgery_models import KINDS, relative_error, samples_of, shaken, switch_off

from tfcompress.surgery.base import opened
from tfcompress.surgery.pruning.dead import remove_dead_channels
from tfcompress.surgery.pruning.groups import Structure
from tfcompress.surgery.pruning.supports import supports_of


def removed(model, small) -> int:
    """How many channels of groups a model has lost; groups of one are none any more."""
    before, after = (Structure(opened(m)).groups.values() for m in (model, small))
    gone = len(before) - len(after)
    return sum(g.size for g in before) - sum(g.size for g in after) - gone


@pytest.mark.parametrize("build", KINDS, ids=lambda f: f.__name__)
def test_zero_channels_of_every_kind_of_layer_are_removed_exactly(build):
    keras.utils.set_random_seed(0)
    model = opened(shaken(build()))
    zeroed = switch_off(model, 0.4)
    small = remove_dead_channels(model)
    # A part of groups, see below; channels that are attended to count as read.
    inexact = {"group_normalized": 1, "attentive": 6}.get(build.__name__, 0)
    x = samples_of(model)
    assert np.std(np.array(model(x))) > 0
    assert relative_error(model(x), small(x)) < 1e-5
    assert removed(model, small) == zeroed - inexact


def test_nothing_is_removed_where_all_have_an_effect():
    x = inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, activation="relu")(x)
    model = shaken(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))
    small = remove_dead_channels(model)
    assert small.surgery_report.changes == ()
    assert removed(model, small) == 0
    assert relative_error(model(samples_of(model)), small(samples_of(model))) == 0.0


def line(make, read_first=True):
    """A convolution whose channel 1 is zero, what comes after it, and a head."""
    x = inputs = keras.Input((4, 4, 2))
    conv = layers.Conv2D(3, 1, name="conv")
    x = make(conv(x))
    model = shaken(keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x))))
    kernel, bias = (np.array(v.value) for v in conv.weights)
    kernel[..., 1], bias[1] = 0, 0
    conv.set_weights([kernel, bias])
    return model


CASES = {
    "relu": (layers.ReLU(), True),
    "gelu": (layers.Activation("gelu"), True),
    "sigmoid": (layers.Activation("sigmoid"), False),  # of zero is 0.5
    "softmax": (layers.Softmax(), False),
    "exp": (ops.exp, False),
    "plus one": (lambda x: x + 1.0, False),
    "plus one, relu of minus two": (lambda x: ops.relu((x + 1.0) * -2.0), True),
    "times a gain": (lambda x: x * np.float32([2.0]), True),
    "gated by itself": (lambda x: x * ops.sigmoid(x), True),
    "unit norm": (layers.UnitNormalization(), True),
    "layer norm": (layers.LayerNormalization(), False),
    "rms norm": (layers.RMSNormalization(), False),
    "max over channels": (lambda x: ops.max(x, axis=-1), False),
    "sum over channels": (lambda x: ops.sum(x, axis=-1), True),
    "mean over channels": (lambda x: ops.mean(x, axis=-1), False),
    "pooled and padded": (lambda x: layers.ZeroPadding2D()(layers.AveragePooling2D(2)(x)), True),
    "residual of itself": (lambda x: x + ops.relu(x), True),
    "products of channels": (lambda x: ops.matmul(ops.swapaxes(x, 2, 3), x), True),
    "kept by a cosine": (lambda x: ops.matmul(ops.swapaxes(ops.cos(x), 2, 3), x + 1.0), False),
}


@pytest.mark.parametrize("name", CASES)
def test_zero_is_followed_through(name):
    make, exact = CASES[name]
    model = line(make)
    small = remove_dead_channels(model)
    assert relative_error(model(samples_of(model)), small(samples_of(model))) < 1e-5
    assert removed(model, small) == (1 if exact else 0)


@pytest.mark.parametrize("shift", [0.0, -0.5, 0.5])
def test_batch_norm_of_a_zero_channel(shift):
    """What it adds counts, unless a ReLU makes zero of it."""
    model = line(lambda x: layers.ReLU()(layers.BatchNormalization(name="bn")(x)))
    gamma, beta, mean, variance = (np.array(v.value) for v in model.get_layer("bn").weights)
    mean[1], beta[1] = 0, shift
    model.get_layer("bn").set_weights([gamma, beta, mean, variance])
    small = remove_dead_channels(model)
    assert removed(model, small) == (shift <= 0)
    assert relative_error(model(samples_of(model)), small(samples_of(model))) < 1e-5


def test_channels_that_nothing_reads_are_removed():
    model = shaken(line(layers.ReLU()))
    head = model.get_layer("head")
    kernel, bias = (np.array(v.value) for v in head.weights)
    kernel.reshape(4, 4, 3, 2)[:, :, 2] = 0
    head.set_weights([kernel, bias])
    small = remove_dead_channels(model)
    assert removed(model, small) == 1  # not the one of zero weights, which has a bias now
    assert relative_error(model(samples_of(model)), small(samples_of(model))) < 1e-5


def test_one_channel_stays():
    model = line(layers.ReLU())
    conv = model.get_layer("conv")
    conv.set_weights([np.zeros(v.shape) for v in conv.weights])
    small = remove_dead_channels(model)
    assert small.get_layer("conv").filters == 1
    assert relative_error(model(samples_of(model)), small(samples_of(model))) < 1e-5
    assert "conv  3 -> 1 channels" in str(small.surgery_report)


def test_group_norm_loses_whole_groups_alone():
    x = inputs = keras.Input((3, 3, 2))
    conv = layers.Conv2D(6, 1, use_bias=False, name="conv")
    norm = layers.GroupNormalization(3, name="norm")
    x = layers.Dense(2)(layers.Flatten()(norm(conv(x))))
    model = shaken(keras.Model(inputs, x))
    kernel = np.array(conv.kernel.value)
    kernel[..., 1:4] = 0  # the second half of a group, and a whole one
    conv.set_weights([kernel])
    gamma, beta = (np.array(v.value) for v in norm.weights)
    gamma[2:4] = beta[2:4] = 0
    norm.set_weights([gamma, beta])
    small = remove_dead_channels(model)
    assert (small.get_layer("conv").filters, small.get_layer("norm").groups) == (4, 2)
    assert relative_error(model(samples_of(model)), small(samples_of(model))) < 1e-5


def test_supports_say_where_a_tensor_is_zero():
    model = line(layers.ReLU())
    structure = Structure(opened(model))
    supports = supports_of(structure)
    found = {node.name: supports[id(node.outputs[0])] for node in structure.graph.nodes}
    assert np.array_equal(found["conv"][0, 0, 0], [True, False, True])
    assert found["conv"].shape == (1, 4, 4, 3)
    flat = next(support for name, support in found.items() if name.startswith("flatten"))
    assert flat.shape == (1, 48)
    assert flat.sum() == 32


def test_errors():
    with pytest.raises(TypeError, match=r"keras\.Model"):
        remove_dead_channels(object())
    with pytest.raises(ValueError, match="built"):
        remove_dead_channels(keras.Sequential([layers.Dense(2)]))
