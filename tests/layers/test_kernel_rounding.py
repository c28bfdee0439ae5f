"""What kernels round inside, against values computed by hand in whole numbers."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from tfcompress.layers.fake_quant import FakeQuant
from tfcompress.layers.kernel_rounding import Sum, kernel_codes, sum_of


def in_fixed_point(total: int, factor: float) -> int:
    """gemmlowp's MultiplyByQuantizedMultiplier, in Python's integers."""
    mantissa, power = math.frexp(factor)
    product = total * 2 ** max(power, 0) * round(mantissa * 2**31)
    high = (product + 2**30) >> 31
    shift = max(-power, 0)
    down = abs(high) >> shift
    rest = abs(high) & (2**shift - 1)
    down += shift > 0 and rest >= 2 ** (shift - 1)
    return int(np.sign(high)) * int(down)


@pytest.mark.parametrize("factor", [0.0037, 0.093, 0.25, 0.41, 0.5, 0.83, 1.7])
def test_sums_are_rounded_twice(factor):
    factor = float(np.float32(factor))
    totals = np.concatenate([np.arange(-3000, 3000, 7), np.arange(-(2**21), 2**21, 4099)])
    wanted = [in_fixed_point(int(total), factor) for total in totals]
    step, unit = 0.5, 0.5 * factor
    y = kernel_codes((totals * unit).astype("float32"), step, Sum(lambda: unit))
    np.testing.assert_array_equal(y, wanted)
    once = np.floor(totals * factor + 0.5)
    assert factor > 0.4 or np.any(once != wanted)


@pytest.mark.parametrize("count", [6, 49, 160])
def test_means_divide_the_mantissa(count):
    factor, totals = float(np.float32(0.91)), np.arange(-9000, 9000, 7)
    mantissa, power = math.frexp(factor)
    digits = count.bit_length() - 1
    stored = (round(mantissa * 2**31) << digits) // count
    wanted = [in_fixed_point(int(t), stored / 2.0 ** (31 + digits - power)) for t in totals]
    added = Sum(lambda: 0.5 * factor, count=count)
    y = kernel_codes((totals * 0.5 * factor / count).astype("float32"), 0.5, added)
    np.testing.assert_array_equal(y, wanted)


def test_given_floats_are_divided_by_the_step():
    step = np.float32(9.324477672576904 / 255)
    given = quantizer(float(step) * 127)
    given(keras.Input((4000,)))
    low, high = (float(limit) for limit in given.limits())
    stored = np.float32((high - low) / 255)
    x = (np.arange(-4000, 4000, dtype="float32").reshape(2, -1) / 64 + 0.5) * stored
    x = np.nextafter(x, np.float32([[-9], [9]]))  # next to halves
    x = x[:, :4000]
    wanted = np.sign(x) * np.floor(np.abs(x / stored) + np.float32(0.5))
    codes = np.rint(np.asarray(given(x)) / stored)
    np.testing.assert_array_equal(codes, np.clip(wanted, -128, 127))


def test_a_bias_is_a_whole_number_of_units():
    added = Sum(lambda: 0.25, lambda: np.float32([0.3, -0.6]), once=True)
    y = kernel_codes(np.float32([[10.3, -5.6]]), 1.0, added)
    np.testing.assert_array_equal(y, [[10.0, -5.0]])  # 10.25 and -5.5, halves up


def quantizer(limit: float, **settings) -> FakeQuant:
    layer = FakeQuant(**settings)
    layer.build()
    layer.range.assign([[-limit * 128 / 127, limit]])
    return layer


def test_what_a_kernel_adds_up_is_found_in_the_model():
    x = keras.Input((4, 4, 6))
    given = quantizer(12.7)(x)
    units = {
        "product": (ops.multiply(given, given), 0.01),
        "scaled": (ops.multiply(layers.MaxPooling2D()(given), 0.51), 0.1 * 0.51 / 255),
        "mean": (layers.GlobalAveragePooling2D()(given), 0.1),
        "leaky": (layers.LeakyReLU(0.25)(given), 0.1),
        "nothing": (layers.Softmax()(given), None),
        "float": (ops.multiply(ops.sin(given), given), None),
    }
    for name, (y, unit) in units.items():
        last = quantizer(1.0)
        last(y)
        added = sum_of(last, 0)
        assert (added is None) == (unit is None), name
        if added is not None:
            assert float(added.unit()) == pytest.approx(unit, rel=1e-5), name
            assert added.count == (16 if name == "mean" else 1)
            assert added.slope == (0.25 if name == "leaky" else 1.0)


def test_inference_passes_gradients_straight_through():
    given = quantizer(12.7)(keras.Input((3,)))
    last = quantizer(2.54)
    last(ops.multiply(given, given))
    x = tf.constant([[0.3, -1.2, 5.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = last(x)
    np.testing.assert_allclose(y, [[0.3, -1.2, 2.54]], atol=1e-6)
    np.testing.assert_array_equal(tape.gradient(y, x), [[1.0, 1.0, 0.0]])
