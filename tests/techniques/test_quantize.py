"""Quantization of weights and activations, against hand-computed values, NumPy and TensorFlow."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from tfcompress.kinds import channel_axes
from tfcompress.techniques.quantize import (
    Quantize,
    moving_range,
    quantize_activation,
    quantize_weight,
    round_activation,
)

RANDOM = np.random.default_rng(0)


def numpy_weight(w, bits, axes):
    """The definition: codes of one sign-symmetric scale per channel."""
    rest = tuple(axis for axis in range(w.ndim) if axis not in axes)
    largest = np.abs(w).max(axis=rest, keepdims=True)
    scale = (np.where(largest > 0, largest, 1) / np.float32(2 ** (bits - 1) - 1)).astype("float32")
    return np.round(w / scale) * scale


def numpy_activation(x, low, high, bits):
    """The definition: scale from the range, zero point rounded, then clip and round."""
    top = 2**bits - 1
    low, high = np.float32(low), np.float32(high)  # in which half a code is not quite half
    scale = (high - low) / np.float32(top)
    zero = np.clip(np.round(-low / scale), 0, top)
    code = np.clip(np.floor(x / scale + zero + 0.5), 0, top)
    return (code - zero) * scale


def test_weights_of_two_channels():
    w = np.array([[-1.0, 0.5], [0.3, -0.2]], "float32")
    by_channel = ops.convert_to_numpy(quantize_weight(w, 8, (1,)))
    np.testing.assert_allclose(by_channel, [[-1, 0.5], [0.2992126, -0.2007874]], atol=1e-7)
    by_tensor = ops.convert_to_numpy(quantize_weight(w, 8))
    np.testing.assert_allclose(by_tensor, [[-1, 0.503937], [0.2992126, -0.19685]], atol=1e-6)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("axes", [(), (3,), (2, 3), (2,)])
def test_weights_equal_numpy_and_the_kernel(bits, axes):
    w = RANDOM.normal(0, 0.3, (3, 3, 4, 6)).astype("float32")
    found = ops.convert_to_numpy(quantize_weight(w, bits, axes))
    np.testing.assert_array_equal(found, numpy_weight(w, bits, axes))
    rest = tuple(axis for axis in range(4) if axis not in axes)
    top = np.abs(w).max(axis=rest)
    if axes:
        flat = np.moveaxis(w, axes, range(4 - len(axes), 4)).reshape(-1, top.size)
        kernel = tf.quantization.fake_quant_with_min_max_vars_per_channel
        expected = kernel(flat, -top.ravel(), top.ravel(), bits, narrow_range=True)
        found = np.moveaxis(found, axes, range(4 - len(axes), 4)).reshape(-1, top.size)
    else:
        kernel = tf.quantization.fake_quant_with_min_max_vars
        expected = kernel(w, -top, top, bits, narrow_range=True)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    codes = found / np.where(top > 0, top, 1).ravel() * (2 ** (bits - 1) - 1)
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-4)


def test_zero_weights_stay_zero_and_finite():
    w = np.zeros((2, 3), "float32")
    w[:, 1] = [0.5, -1]
    np.testing.assert_array_equal(
        ops.convert_to_numpy(quantize_weight(w, 8, (1,)))[:, [0, 2]], np.zeros((2, 2))
    )
    np.testing.assert_array_equal(quantize_weight(tf.zeros(5), 4), np.zeros(5))


def test_weight_gradient_passes_straight_through():
    w = tf.Variable(RANDOM.normal(size=(4, 5)).astype("float32"))
    upstream = RANDOM.normal(size=(4, 5)).astype("float32")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(quantize_weight(w, 4, (1,)) * upstream)
    np.testing.assert_array_equal(tape.gradient(loss, w), upstream)


@pytest.mark.parametrize("bits", [8, 4, 16])
@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 1.0), (0.0, 6.0), (-0.3, 5.1), (-7.0, 0.0), (0.0, 255 / 256)]
)
def test_activations_equal_numpy_and_the_kernel(low, high, bits):
    x = RANDOM.uniform(-8, 8, (50, 7)).astype("float32")
    found = ops.convert_to_numpy(quantize_activation(x, low, high, bits))
    kernel = tf.quantization.fake_quant_with_min_max_vars(x, low, high, num_bits=bits)
    np.testing.assert_array_equal(found, kernel)
    np.testing.assert_array_equal(found, ops.convert_to_numpy(round_activation(x, low, high, bits)))
    if bits < 16:  # float32 rounds a code of 16 bits to either side now and then
        np.testing.assert_allclose(found, numpy_activation(x, low, high, bits), atol=1e-5)
    assert 0.0 in ops.convert_to_numpy(quantize_activation(np.zeros(1), low, high, bits))


def test_fake_quant_of_one():
    x = np.array([-1.0, 0.25, 1.0], "float32")
    found = ops.convert_to_numpy(quantize_activation(x, -1.0, 1.0))
    np.testing.assert_allclose(found[[0, 2]], [-0.9960785, 1.0039216], atol=1e-7)
    narrow = ops.convert_to_numpy(quantize_weight(np.array([0.25, 1.0], "float32")))
    np.testing.assert_allclose(narrow[0], 0.2519685, atol=1e-7)


def gradient(x, low, high):
    x = tf.constant(x, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = quantize_activation(x, low, high)
        loss = tf.reduce_sum(y * tf.range(1.0, 1.0 + len(x)))
    return np.array(tape.gradient(loss, x)) / np.arange(1, 1 + len(x))


@pytest.mark.parametrize("make", [float, tf.constant], ids=["number", "tensor"])
def test_activation_gradient_is_one_inside(make):
    found = gradient([-2, -1, 0, 1, 2], make(-1.0), make(1.0))
    np.testing.assert_array_equal(found, [0, 1, 1, 1, 0])


def test_gradient_of_ranges_that_start_at_zero():
    x = [-1, 1e-6, 3, 5.9999, 6, 6.001]
    np.testing.assert_array_equal(gradient(x, 0.0, tf.constant(6.0)), [0, 1, 1, 1, 1, 0])
    np.testing.assert_array_equal(gradient(x, tf.constant(0.0), 6.0), [0, 1, 1, 1, 1, 0])
    np.testing.assert_array_equal(gradient([-1, 0, 1], tf.constant(0.0), 0.0), [0, 1, 0])


def test_gradient_agrees_with_the_definition_on_many_values():
    x = RANDOM.normal(0, 2, 2000).astype("float32")
    for low, high in [(-1.7, 3.2), (-0.001, 4.0), (-4.0, 0.0)]:
        found = gradient(x, tf.constant(low), tf.constant(high))
        np.testing.assert_allclose(found, (x >= low) & (x <= high), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_rounded_in_float32(dtype):
    x = tf.cast(RANDOM.uniform(-2, 4, 100), dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = quantize_activation(x, -1.0, 3.0)
    expected = tf.quantization.fake_quant_with_min_max_vars(tf.cast(x, "float32"), -1.0, 3.0)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, tf.cast(expected, dtype))
    inside = (np.array(x, "float32") >= -1) & (np.array(x, "float32") <= 3)
    np.testing.assert_array_equal(np.array(tape.gradient(y, x), "float32"), inside)


def test_moving_range():
    first = moving_range(ops.zeros((2,)), ops.array([-1.0, 1.0]), 0.999)
    np.testing.assert_allclose(first, [-1, 1])  # the first batch counts whole
    # TFMOT's example after its first batch: (-0.001, 0.001), then a batch of zeros.
    second = moving_range(ops.array([-0.001, 0.001]), ops.zeros((2,)), 0.999)
    np.testing.assert_allclose(second, [-0.000999, 0.000999], rtol=1e-6)
    rows = moving_range(ops.array([[0.0, 0.0], [-1.0, 2.0]]), ops.array([-3.0, 4.0]), 0.5)
    np.testing.assert_allclose(rows, [[-3, 4], [-2, 3]])
    grown = moving_range(ops.array([-1.0, 4.0]), ops.array([-2.0, 3.0]), 0.99)
    np.testing.assert_allclose(grown, [-1.1, 3.99], rtol=1e-6)  # outwards faster than inwards


@pytest.mark.parametrize(
    ("layer", "shape", "scales"),
    [
        (layers.Conv1D(5, 3), (None, 8, 2), 5),
        (layers.Conv2D(5, 3), (None, 8, 8, 2), 5),
        (layers.Conv3D(5, 3), (None, 8, 8, 8, 2), 5),
        (layers.Conv1DTranspose(5, 3), (None, 8, 2), 5),
        (layers.Conv2DTranspose(5, 3), (None, 8, 8, 2), 5),
        (layers.DepthwiseConv1D(3, depth_multiplier=3), (None, 8, 2), 6),
        (layers.DepthwiseConv2D(3, depth_multiplier=3), (None, 8, 8, 2), 6),
        (layers.Dense(5), (None, 3), 1),
        (layers.Embedding(7, 4), (None, 3), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, layers.Layer) else None,
)
def test_scales_per_layer(layer, shape, scales):
    layer.build(shape)
    weight = layer.embeddings if isinstance(layer, layers.Embedding) else layer.kernel
    value = RANDOM.normal(size=weight.shape).astype("float32")
    technique = Quantize().bind(layer, weight.name)
    found = ops.convert_to_numpy(technique.apply(ops.array(value), {}))
    np.testing.assert_array_equal(found, numpy_weight(value, 8, technique.axes))
    assert int(np.prod([value.shape[axis] for axis in technique.axes])) == scales


def test_dense_per_channel_and_subclasses():
    dense = layers.Dense(5)
    assert Quantize(dense="per_channel").bind(dense, "kernel").axes == (1,)
    assert Quantize().bind(dense, "kernel").axes == ()

    class MyConv(layers.Conv2D):
        pass

    assert channel_axes(MyConv(2, 3)) == (3,)


def test_delay_of_weights():
    technique = Quantize(bits=4, delay=5)
    w = ops.array([0.25, 1.0])
    state = technique.initial_state(w)
    np.testing.assert_array_equal(technique.apply(w, technique.update(w, state, 4)), [0.25, 1.0])
    after = technique.apply(w, technique.update(w, state, 5))
    np.testing.assert_allclose(after, [2 / 7, 1.0], rtol=1e-6)
    assert [technique.next_step(step) for step in (0, 4, 5)] == [5, 5, None]
    assert Quantize().initial_state(w) == {}


def test_serialises():
    technique = Quantize(bits=4, dense="per_channel", delay=3, freeze=9, axes=(2, 3))
    config = keras.saving.serialize_keras_object(technique)
    assert keras.saving.deserialize_keras_object(config) == technique


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 1}, "bits must be 2 to 16; received 1"),
        ({"activation_bits": 4}, "activation_bits must be 8, 16 or None; received 4"),
        ({"dense": "channel"}, "dense must be 'per_tensor' or 'per_channel'; received 'channel'"),
        ({"momentum": 1.0}, r"momentum must be \[0, 1\); received 1.0"),
        ({"delay": -1}, "delay must be 0 or more optimizer steps; received -1"),
        ({"delay": 5, "freeze": 5}, "freeze must be None or more than delay=5; received 5"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Quantize(**settings)
