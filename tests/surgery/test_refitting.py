"""Weights fitted to data after channels went, and scores of what is lost once they are."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.surgery.base import opened
from tfcompress.surgery.pruning.groups import Structure
from tfcompress.surgery.pruning.prune_channels import prune_channels, prune_channels_iteratively
from tfcompress.surgery.pruning.scores import score_groups

RANDOM = np.random.default_rng(0)


def normal(*shape):
    return RANDOM.normal(size=shape).astype("float32")


def shaken(model):
    """A model whose weights are all random, and whose variances are positive."""
    for variable in model.weights:
        value = normal(*variable.shape)
        variable.assign(np.abs(value) + 0.5 if "variance" in variable.name else value)
    return model


def dense():
    x = keras.Input((5,))
    hidden = layers.Dense(6, activation="relu", name="hidden")(x)
    return shaken(keras.Model(x, layers.Dense(3, name="out")(hidden)))


def convolutions():
    """A group that two convolutions make, and a grouped, a plain and a transposed one read."""
    x = keras.Input((6, 6, 2))
    a = layers.Conv2D(8, 3, padding="same", activation="relu", name="first")(x)
    b = layers.Conv2D(8, 1, use_bias=False, name="second")(x)
    c = layers.Add(name="sum")([a, b])
    d = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(c)
    read = layers.Conv2D(3, 3, strides=2, name="reader")(layers.ReLU()(d))
    wide = layers.Conv2DTranspose(2, 2, strides=2, name="transposed")(c)
    return shaken(keras.Model(x, [read, wide]))


def alike(model, names, axis=-1):
    """The first half of the channels that layers make, twice."""
    for name in names:
        for variable in model.get_layer(name).weights:
            at = -2 if name == "depthwise" and variable.ndim > 1 else axis
            half = np.array(variable.value)
            half = half.take(range(variable.shape[at] // 2), at)
            variable.assign(np.concatenate([half, half], at))


def first_half(group):
    return np.arange(group.size)[::-1]


SETTINGS = {"sparsity": 0.5, "scope": "local", "round_to": 1}


@pytest.mark.parametrize(
    ("build", "names", "shape"),
    [
        (dense, ["hidden"], (40, 5)),
        (convolutions, ["first", "second", "depthwise"], (20, 6, 6, 2)),
    ],
)
def test_what_others_can_stand_for_is_lost_without_loss(build, names, shape):
    model, x = build(), normal(*shape)
    alike(model, names)
    wanted = keras.tree.flatten(model(x))
    fitted = prune_channels(model, score=first_half, data=x, **SETTINGS)
    bare = prune_channels(model, score=first_half, data=x, refit=False, **SETTINGS)
    for a, b, c in zip(wanted, *(keras.tree.flatten(m(x)) for m in (fitted, bare)), strict=True):
        near, far = (np.abs(np.array(a) - np.array(other)).max() for other in (b, c))
        assert near < 0.02 * np.abs(a).max() < far
    assert [w.shape for w in fitted.weights] == [w.shape for w in bare.weights]


def test_kernels_are_those_of_least_squares():
    model, x = dense(), normal(300, 5)
    hidden = np.array(model.get_layer("hidden")(x))
    y = np.array(model(x))
    small = prune_channels(model, score=first_half, data=(x, np.zeros(300)), **SETTINGS)
    kernel, *_ = np.linalg.lstsq(np.c_[hidden[:, :3], np.ones(300)], y)
    # They are held a little to what they were.
    np.testing.assert_allclose(small.layers[-1].kernel, kernel[:3], atol=0.1)
    left = np.mean((np.array(small(x)) - y) ** 2)
    least = np.mean((np.c_[hidden[:, :3], np.ones(300)] @ kernel - y) ** 2)
    assert least <= left < 1.01 * least
    np.testing.assert_allclose(np.mean(small(x), 0), y.mean(0), rtol=1e-4)


def test_the_score_is_the_error_that_is_left_once_each_channel_has_gone():
    model, x = dense(), normal(300, 5)
    hidden, y = np.array(model.get_layer("hidden")(x)), np.array(model(x))
    hidden, y = hidden - hidden.mean(0), y - y.mean(0)
    left, wanted = list(range(6)), np.zeros(6)
    while left:
        errors = {}
        for channel in left:
            some = hidden[:, [c for c in left if c != channel]]
            fit = np.linalg.lstsq(some, y)[0] if some.shape[1] else np.zeros((0, 3))
            errors[channel] = np.sum((some @ fit - y) ** 2) / np.sum(y**2)
        channel = min(errors, key=errors.get)
        left.remove(channel)
        wanted[channel] = errors[channel]
    (found,) = score_groups(Structure(opened(model)), "reconstruction", x).values()
    np.testing.assert_array_equal(np.argsort(found), np.argsort(wanted))
    np.testing.assert_allclose(found, wanted, atol=0.02)


def test_where_nothing_is_fitted_weights_alone_count():
    """What an LSTM reads stays what it was, so that scores are shares of its squares."""
    x = keras.Input((4, 3))
    hidden = layers.Dense(5, name="hidden")(x)
    model = shaken(keras.Model(x, layers.LSTM(2, name="lstm")(hidden)))
    found = score_groups(Structure(opened(model)), "reconstruction", normal(8, 4, 3))
    squares = np.sum(np.square(np.array(model.get_layer("lstm").cell.kernel)), 1)
    order = np.argsort(squares)
    np.testing.assert_allclose(
        found["hidden"][order], np.cumsum(squares[order]) / squares.sum(), rtol=1e-5
    )
    small = prune_channels(model, macs=0.7, round_to=1, data=normal(8, 4, 3))
    assert small.get_layer("hidden").kernel.shape[-1] < 5


def test_kernels_that_are_too_wide_stay_as_they_are(monkeypatch):
    monkeypatch.setattr("tfcompress.surgery.pruning.refitting._WIDEST", 5)
    model, x = dense(), normal(40, 5)
    small = prune_channels(model, score=first_half, data=x, **SETTINGS)
    kernel = np.array(model.layers[-1].kernel)
    np.testing.assert_array_equal(small.layers[-1].kernel, kernel[:3])
    (found,) = score_groups(Structure(opened(model)), "reconstruction", x).values()
    np.testing.assert_array_equal(np.argsort(found), np.argsort((kernel**2).sum(1)))


def test_statistics_are_those_of_the_smaller_model():
    x = keras.Input((4, 4, 2))
    a = layers.Conv2D(6, 3, name="conv")(x)
    b = layers.Conv2D(3, 1, use_bias=False, name="reader")(layers.ReLU()(a))
    model = shaken(keras.Model(x, layers.BatchNormalization(name="norm")(b)))
    x = normal(50, 4, 4, 2)
    small = prune_channels(model, macs=0.6, round_to=1, data=x)
    given = keras.Model(small.inputs, small.get_layer("norm").input)(x)
    norm = small.get_layer("norm")
    np.testing.assert_allclose(norm.moving_mean, np.mean(given, (0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(norm.moving_variance, np.var(given, (0, 1, 2)), rtol=1e-4)
    assert small.surgery_report.operation == "prune_channels"


def test_data_in_any_form_give_the_same():
    model = dense()
    x = RANDOM.integers(0, 9, (40, 5))
    name = model.inputs[0].name
    rows = ((x[start : start + 8],) for start in range(0, 40, 8))
    ways = x, (x, np.zeros(40)), {name: x.astype("float32")}, rows
    whole, *others = (prune_channels(model, macs=0.5, round_to=1, data=way) for way in ways)
    default = prune_channels(model, macs=0.5, round_to=1, data=x, score="reconstruction")
    for other in (*others, default):
        for a, b in zip(whole.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
    before = prune_channels(model, macs=0.5, round_to=1, score="l2")
    after = prune_channels(model, macs=0.5, round_to=1)
    np.testing.assert_array_equal(before.layers[-1].kernel, after.layers[-1].kernel)


def test_rounds_are_fitted_one_after_the_other():
    model, x = dense(), normal(200, 5)
    y = np.array(model(x))
    settings = {"macs": 0.5, "round_to": 1}
    small = prune_channels_iteratively(model, 2, lambda m: None, data=x, **settings)
    bare = prune_channels(model, **settings)
    assert np.mean((np.array(small(x)) - y) ** 2) < np.mean((np.array(bare(x)) - y) ** 2)


def test_settings_that_do_not_fit():
    model = dense()
    with pytest.raises(ValueError, match=r"needs data; received none. Pass data=x"):
        prune_channels(model, macs=0.5, score="reconstruction")
