"""Constants of float files: carried out, parted, and of the rank of what reads them."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import run_tflite
from float_files import float_model, ops_of, run
from keras import layers, ops

import tfcompress as tfc
from tfcompress.conversion import constants, forms
from tfcompress.conversion.markers import MARKED, take_markers
from tfcompress.conversion.ranges import Range, is_constant
from tfcompress.tflite import flatbuffer


@pytest.mark.parametrize("rounded", [False, True])
def test_what_is_computed_of_constants_alone_is_carried_out(rounded):
    """Unless training rounded them on the way."""
    weight = np.arange(6, dtype="float32").reshape(3, 2)
    model = float_model(lambda x: tf.exp(mark(weight)) * x, (3, 2))
    ranges, floats = take_markers(model)
    known = ranges if rounded else {}
    constants.fold(model, known, floats)
    assert ops_of(model) == (["EXP", "MUL"] if rounded else ["MUL"])
    x = np.full((3, 2), 2, "float32")
    np.testing.assert_allclose(run(model, x)[0], 2 * np.exp(weight), rtol=1e-6)


class Positions(layers.Layer):
    def call(self, x):
        return ops.arange(x.shape[1], dtype="int32")


class OfWeights(layers.Layer):
    """Waves, weights of length 1 and shares: what is computed of weights, not of inputs."""

    def build(self, shape):
        self.w = self.add_weight(shape=(4, 4), initializer="normal", name="w")

    def call(self, x, positions):
        x = x + ops.cos(ops.expand_dims(ops.cast(positions, "float32"), -1) * self.w)
        x = x * ops.cos(self.w * 30.0) + ops.reshape(ops.sin(self.w * 50.0), (1, 4, 4))
        x = ops.matmul(x, self.w / ops.sqrt(ops.sum(ops.square(self.w), 0, keepdims=True)))
        return ops.matmul(ops.softmax(self.w * 9.0), x)


def test_what_is_computed_of_weights_is_no_operation_in_the_file(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4))
    model = keras.Model(inputs, OfWeights()(inputs, Positions()(inputs)))
    data = np.random.default_rng(0).normal(size=(32, 4, 4)).astype("float32")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*stay float")
        qat = tfc.quantize_aware(model)
    qat(data, training=True)
    path = tmp_path / "model.tflite"
    report = tfc.convert(qat, path, precision="int8")
    assert report.float_ops == []
    ran = set(ops_of(flatbuffer.read(path)))
    assert ran <= {"QUANTIZE", "MUL", "ADD", "RESHAPE", "FULLY_CONNECTED", "BATCH_MATMUL"} | {
        "DEQUANTIZE"
    }
    expected, plain = np.asarray(qat(data)), np.asarray(model(data))
    step = np.ptp(expected) / 255
    assert np.abs(run_tflite(path, data) - expected).max() <= 1.01 * step
    assert np.abs(expected - plain).max() <= 6 * step


def mark(x):
    for width in (1.0, MARKED):
        x = tf.raw_ops.FakeQuantWithMinMaxVars(inputs=x, min=0.0, max=5.1 * width)
    return x


def test_random_numbers_are_not_carried_out():
    model = float_model(lambda x: x + tf.random.uniform((3,), seed=1), (3,))
    before = ops_of(model)
    constants.fold(model, {}, set())
    assert [name for name in ops_of(model) if "RANDOM" in name] == [
        name for name in before if "RANDOM" in name
    ]


def test_no_two_operations_share_a_constant():
    vector = tf.constant([0.1, 0.2, 0.3])
    model = float_model(lambda x: tf.maximum(tf.minimum(x, vector) * vector, vector), (1, 2, 3))
    constants.part(model, {})
    graph = model.subgraphs[0]
    read = [i for op in graph.operators for i in op.inputs if is_constant(model, i)]
    assert len(set(read)) == len(read) == 3
    assert len({graph.tensors[i].buffer for i in read}) == 3
    assert {tuple(graph.tensors[i].shape) for i in read} == {(1, 1, 3)}
    x = np.random.default_rng(0).normal(size=(1, 2, 3)).astype("float32")
    values = np.array([0.1, 0.2, 0.3], "float32")
    expected = np.maximum(np.minimum(x, values) * values, values)
    np.testing.assert_allclose(run(model, x)[0], expected, rtol=1e-6)


def test_no_constant_is_a_bias_too():
    vector, kernel = tf.constant([0.1, 0.2, 0.3]), tf.eye(3)
    model = float_model(
        lambda x: tf.nn.bias_add(tf.matmul(tf.maximum(x, vector), kernel), vector), (1, 3)
    )
    constants.part(model, {})
    graph = model.subgraphs[0]
    assert ops_of(model) == ["MAXIMUM", "FULLY_CONNECTED"]
    read = [i for op in graph.operators for i in op.inputs if is_constant(model, i)]
    assert len({graph.tensors[i].buffer for i in read}) == len(read) == 3


def test_a_float_layer_keeps_what_it_shares_with_integers(tmp_path):
    """The masked steps of an LSTM, left float, select the zeros that others concatenate."""
    keras.utils.set_random_seed(0)
    tokens = keras.Input((4,), dtype="int32", name="t")
    x = layers.Embedding(9, 4, mask_zero=True, embeddings_initializer="normal")(tokens)
    x = layers.LSTM(3, unroll=True, name="rnn")(x * 20.0)
    x = ops.concatenate([layers.Dense(3)(x), ops.zeros_like(x)], -1)
    model = keras.Model(tokens, layers.Dense(2)(x))
    t = np.random.default_rng(0).integers(0, 9, (32, 4)).astype("int32")
    t[:, 0] = 1
    qat = tfc.quantize_aware(model, skip=["rnn"])
    qat(t, training=True)
    path = tmp_path / "model.tflite"
    tfc.convert(qat, path, precision="int8")
    expected = np.asarray(qat(t))
    assert np.abs(run_tflite(path, t) - expected).max() <= 2.01 * np.ptp(expected) / 255


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_kernels_made_of_constants_and_of_activations(padding, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((9, 9, 2), name="x")
    x = ops.image.extract_patches(inputs, size=3, padding=padding)
    kernel = layers.Dense(2, activation="relu")(ops.reshape(inputs[:, :3, :3], (1, 3, 3, 2)))
    kernel = ops.expand_dims(ops.squeeze(kernel, 0), -1)
    x = ops.concatenate([layers.Flatten()(x), layers.Flatten()(ops.conv(inputs, kernel))], -1)
    model = keras.Model(inputs, x)
    data = np.random.default_rng(0).normal(size=(16, 9, 9, 2)).astype("float32")
    path = tmp_path / "model.tflite"
    report = tfc.convert(model, path, precision="int8", calibration=data)
    assert report.float_ops == []
    expected = np.concatenate([np.asarray(model(sample[None])) for sample in data])
    for reference in (True, False):
        error = np.abs(run_tflite(path, data, reference) - expected)
        assert error.max() <= 8 * np.ptp(expected) / 255


def test_squares_powers_and_sums_in_other_forms():
    def function(x):
        return tf.reduce_sum(tf.square(x), -1, keepdims=True) * tf.pow(x, 3.0)

    model = float_model(function, (2, 5))
    assert {"SUM", "SQUARE", "POW"} <= set(ops_of(model))
    total = model.subgraphs[0].operators[[*ops_of(model)].index("SUM")].outputs[0]
    ranges = {int(total): Range(0.0, 10.0)}
    forms.rewrite(model, ranges, set())
    assert set(ops_of(model)) == {"MUL", "MEAN"}
    assert Range(0.0, 2.0) in ranges.values()
    x = np.random.default_rng(0).normal(size=(2, 5)).astype("float32")
    expected = np.square(x).sum(-1, keepdims=True) * x**3
    np.testing.assert_allclose(run(model, x)[0], expected, rtol=1e-5)


def test_what_stays_float_keeps_its_form():
    model = float_model(lambda x: tf.square(x), (2, 5))
    forms.rewrite(model, {}, set(model.subgraphs[0].outputs))
    assert ops_of(model) == ["SQUARE"]
