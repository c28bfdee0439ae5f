"""Codebook as pure functions: its grids, nearest values, scales, gradients and settings."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from tfcompress import Cluster, Codebook, Prune, Quantize, Rule
from tfcompress.techniques import codebook as grids

RANDOM = np.random.default_rng(0)


def of_size(values, *shape):
    """Weights of a shape, in channels of different sizes, with gradients that are known."""
    weight = RANDOM.normal(size=shape) * np.arange(1, shape[-1] + 1)
    return weight.astype("float32"), RANDOM.normal(size=shape).astype("float32")


def test_grids_by_hand():
    root = 2**-0.5
    wanted = {
        "binary": (grids.mid_rise(2), [-1, 1]),
        "4": (grids.mid_rise(4), [-1, -1 / 3, 1 / 3, 1]),
        "8": (grids.mid_rise(8), np.arange(-7, 8, 2) / 7),
        "ternary": (grids.ternary(), [-1, 0, 1]),
        "powers": (grids.powers_of_two(3), [-1, -0.5, -0.25, 0, 0.25, 0.5, 1]),
        # 2^0, 2^-1, 2^-3 and none of them, with 2^-2 or without; over 1.25, their largest sum.
        "sums": (
            grids.additive_powers_of_two(4)[7:],
            np.array([0, 0.125, 0.25, 0.375, 0.5, 0.75, 1, 1.25]) / 1.25,
        ),
        "two sums": (grids.additive_powers_of_two(5)[15:19] * 48, [0, 1, 2, 3]),
        "roots": (grids.logarithmic(3), [-1, -root, -0.5, 0, 0.5, root, 1]),
        "sigmoid": (
            grids.sigmoid(2),
            np.array([-np.log(7), -np.log(5 / 3), np.log(5 / 3), np.log(7)]) / np.log(7),
        ),
    }
    for name, (found, by_hand) in wanted.items():
        np.testing.assert_allclose(found, by_hand, atol=1e-12, err_msg=name)
    for bits in (2, 3, 4, 5):
        assert len(grids.additive_powers_of_two(bits)) == 2**bits - 1


def test_codes_hold_the_values():
    assert Codebook("8").codes == (-7, -5, -3, -1, 1, 3, 5, 7)
    assert Codebook("power_of_two", bits=4).codes[8:] == (1, 2, 4, 8, 16, 32, 64)
    assert Codebook("additive_power_of_two", bits=4).codes[7:] == (0, 1, 2, 3, 4, 6, 8, 10)
    assert Codebook("log", bits=3).codes == (-127, -90, -64, 0, 64, 90, 127)
    assert Codebook([0.5, -1, 2, 0]).codes == (-2, 0, 1, 4)
    assert Codebook("4", follows=True).codes == (-3, -1, 0, 1, 3)
    bits = {"binary": 2, "4": 3, "8": 4, "ternary": 8}
    assert {name: Codebook(name).code_bits for name in bits} == bits
    assert Codebook("ternary", symmetric=True).code_bits == 2


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("values", ["binary", "4", [-1.0, 0.0, 0.5]])
def test_nearest_values_and_gradients(values, per_channel):
    weight, upstream = of_size(values, 3, 3, 4, 5)
    book = Codebook(values, channels=(3,) if per_channel else ())
    state = book.initial_state(ops.convert_to_tensor(weight))
    shape = (1, 1, 1, 1, 5 if per_channel else 1)
    assert state["base"].shape == state["factor"].shape == shape
    factor = tf.Variable(np.full(shape, 1.3, "float32"))
    kernel = tf.Variable(weight)
    with tf.GradientTape() as tape:
        found = book.apply(kernel, {**state, "factor": factor})
        loss = tf.reduce_sum(found * upstream)
    of_weight, of_factor = tape.gradient(loss, [kernel, factor])
    scale = np.array(state["base"])[0] * np.float32(1.3)
    table = np.array(book.codes) / max(np.abs(book.codes))
    value = table[np.abs(weight[..., None] / scale[..., None] - table).argmin(-1)]
    np.testing.assert_allclose(found, scale * value, rtol=1e-6)
    x = weight / scale
    inside = (x >= grids.REACH * table[0]) & (x <= grids.REACH * table[-1])
    np.testing.assert_array_equal(of_weight, np.where(inside, upstream, 0))
    slope = upstream * (value - np.where(inside, x, 0)) * np.array(state["base"])[0]
    sums = slope.sum((0, 1, 2) if per_channel else None)
    count = 36 if per_channel else 180
    np.testing.assert_allclose(np.ravel(of_factor), sums / np.sqrt(count), rtol=2e-4, atol=1e-5)


def test_scales_begin_with_the_least_error():
    rows = np.stack([np.array([-3, -1, 1, 3, 3]) * s for s in (0.2, 5.0)], 1)
    np.testing.assert_allclose(grids.best_scale(rows, grids.mid_rise(4)), [0.6, 15.0])
    weight = RANDOM.normal(size=(500, 1))
    found = grids.best_scale(weight, grids.mid_rise(2))
    np.testing.assert_allclose(found, np.abs(weight).mean())  # the best one of two values
    values = grids.sigmoid(3)
    found = grids.best_scale(weight, values)[0]
    errors = {
        s: np.square(weight - s * grids.nearest_value(weight / s, values)).sum()
        for s in [found, *np.linspace(0.5, 5, 300)]
    }
    assert errors[found] <= 1.02 * min(errors.values())
    assert (grids.best_scale(np.zeros((4, 2)), values) > 0).all()


@pytest.mark.parametrize("per_channel", [False, True])
def test_two_scales_of_ternary(per_channel):
    weight, upstream = of_size("ternary", 16, 4)
    book = Codebook("ternary", channels=(1,) if per_channel else ())
    state = book.initial_state(ops.convert_to_tensor(weight))
    axis = 0 if per_channel else None
    limit = 0.7 * np.abs(weight).mean(axis)  # arXiv:1605.04711
    above, below = weight > limit, weight < -limit
    scales = [
        np.where(side, np.abs(weight), 0).sum(axis) / side.sum(axis) for side in (above, below)
    ]
    shape = (2, 1, 4 if per_channel else 1)
    np.testing.assert_allclose(np.array(state["base"]), np.reshape(scales, shape), rtol=1e-6)
    kernel, factor = tf.Variable(weight), tf.Variable(state["factor"])
    with tf.GradientTape() as tape:
        found = book.apply(kernel, {**state, "factor": factor})
        loss = tf.reduce_sum(found * upstream)
    of_weight, of_factor = tape.gradient(loss, [kernel, factor])
    wanted = np.where(above, scales[0], np.where(below, -scales[1], 0))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    np.testing.assert_array_equal(of_weight, upstream)
    sums = [np.where(above, upstream, 0).sum(axis), -np.where(below, upstream, 0).sum(axis)]
    share = np.sqrt(16 if per_channel else 64)
    wanted = np.array(state["base"]) * np.reshape(sums, shape) / share
    np.testing.assert_allclose(of_factor, wanted, rtol=1e-5)


def test_weights_are_free_until_it_begins():
    weight, _ = of_size("4", 8, 6)
    book = Codebook("4", begin=3)
    state = book.initial_state(ops.convert_to_tensor(0.1 * weight))
    np.testing.assert_array_equal(book.apply(tf.constant(weight), state), weight)
    assert book.update(weight, state, 2) is state
    new = book.update(weight, state, 3)
    np.testing.assert_allclose(new["base"], 10 * np.array(state["base"]), rtol=1e-6)
    assert len(np.unique(book.apply(tf.constant(weight), new))) == 4
    assert book.update(10 * weight, new, 4) is new
    assert not Codebook("4").scheduled


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: Codebook("5"), "values must be one of binary, ternary, 4, 8"),
        (lambda: Codebook("power_of_two"), "bits of 'power_of_two' must be 2 to 4; received None"),
        (lambda: Codebook("log", bits=8), "bits of 'log' must be 2 to 4; received 8"),
        (lambda: Codebook("4", bits=2), "bits of '4' must be None; received 2"),
        (lambda: Codebook(4), "received 4. Did you mean '4'?"),
        (lambda: Codebook([1.0]), "or 2 numbers or more"),
        (lambda: Codebook([1.0, float("nan")]), "or 2 numbers or more"),
        (lambda: Codebook([0.0, 0.001, 1.0]), "1 of them would be the same code"),
        (lambda: Codebook("4", symmetric=False), "Only 'ternary' has two scales"),
        (lambda: Codebook("ternary", threshold=2.5), r"threshold must be \[0, 2\)"),
        (
            lambda: Codebook(range(-64, 65), target="microcontroller"),
            "values, with 0, must be 128 or fewer with target='microcontroller'.*129",
        ),
        (lambda: Codebook("4", begin=-1), "begin must be 0 or more optimizer steps"),
        (lambda: Rule("*", [Cluster(4), Codebook("4")]), "weights few values once"),
        (lambda: Rule("*", [Codebook("8"), Quantize(bits=3)]), r"Write Quantize\(bits=4\)"),
        (lambda: Rule("*", [Codebook("ternary"), Quantize(bits=2)]), "symmetric=True"),
        (
            lambda: Rule("*", [Codebook("4"), Prune(0.5)]),
            "order Regularize, Prune, Cluster, Codebook",
        ),
    ],
)
def test_errors(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()


def test_mends_work():
    Rule("*", [Codebook("8"), Quantize(bits=4)])
    Rule("*", [Codebook("ternary", symmetric=True), Quantize(bits=2)])


def test_numbers_of_numpy():
    given = Codebook(np.array([-1, 0, 2]), begin=np.int64(3))
    assert given == Codebook([-1.0, 0.0, 2.0], begin=3)
    assert Codebook("log", bits=np.int32(3)).bits == 3


def test_numbers_without_0_get_it_behind_pruning():
    kernel = keras.layers.Dense(4)
    kernel.build((None, 8))
    bound = Codebook([-0.5, 0.25, 1.0]).bind(kernel, "kernel", [Prune(0.5)])
    assert bound.codes == (-2, 0, 1, 4)


def test_config_round_trip():
    load, serialize = keras.saving.deserialize_keras_object, keras.saving.serialize_keras_object
    for book in (Codebook([1, -1, 3], begin=4), Codebook("ternary", symmetric=True)):
        assert load(serialize(book)) == book
