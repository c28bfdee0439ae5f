"""Op versions: the least that ops need, against TensorFlow's own, and files that stay the same."""

import numpy as np
import pytest
from tflite_by_hand import OPS, TYPES, build, code, fully_connected, graph, operator, tensor

from tfcompress.conversion import versions as versions_module
from tfcompress.conversion.versions import least_version
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.inspect import inspect


def leaky_relu(version, dtype=TYPES.INT8):
    tensors = [tensor(n, [1, 4], dtype, scale=[0.1], zero_point=[0]) for n in ("x", "y")]
    ops = [operator(0, [0], [1])]
    return build([code(OPS.LEAKY_RELU, version)], [graph(tensors, ops, [0], [1])], [])


def two_dense(version):
    """Two FULLY_CONNECTED under one code; only the first keeps its dimensions."""
    weights = np.int8([[3, -5], [7, 11]]).tobytes()
    tensors = [
        tensor("x", [1, 3, 2], TYPES.INT8, scale=[0.1], zero_point=[3]),
        tensor("w", [2, 2], TYPES.INT8, 1, scale=[0.05], zero_point=[0]),
        tensor("b", [2], TYPES.INT32, 2, scale=[0.005], zero_point=[0]),
        tensor("kept", [1, 3, 2], TYPES.INT8, scale=[0.1], zero_point=[-4]),
        tensor("flat", [3, 2], TYPES.INT8, scale=[0.1], zero_point=[5]),
    ]
    kind, first = fully_connected()
    first.keepNumDims = True
    ops = [
        operator(0, [0, 1, 2], [3], kind, first),
        operator(0, [3, 1, 2], [4], *fully_connected()),
    ]
    biases = np.int32([10, -20]).tobytes()
    return build(
        [code(OPS.FULLY_CONNECTED, version)], [graph(tensors, ops, [0], [4])], [weights, biases]
    )


def versions(data):
    return [(op.name, op.version) for op in inspect(data).operators]


def lowered(data):
    model = flatbuffer.read(data)
    versions_module.lower_versions(model)
    return flatbuffer.write(model)


def test_a_version_is_lowered_and_nothing_else_changes():
    result = lowered(leaky_relu(2))
    assert versions(result) == [("LEAKY_RELU", 1)]
    assert result == flatbuffer.write(flatbuffer.read(leaky_relu(1)))


def test_ops_of_one_kind_get_what_each_needs():
    assert versions(lowered(two_dense(9))) == [("FULLY_CONNECTED", 5), ("FULLY_CONNECTED", 4)]


@pytest.mark.parametrize("data", [two_dense(1), leaky_relu(2, TYPES.INT16)])
def test_versions_are_never_raised_and_ops_of_other_types_keep_theirs(data):
    assert lowered(data) == flatbuffer.write(flatbuffer.read(data))


def test_a_file_that_computes_something_else_is_refused(monkeypatch):
    answers = iter([[b"a"], [b"b"]])
    monkeypatch.setattr(versions_module, "_outputs", lambda model, data, kind: next(answers))
    with pytest.raises(ValueError, match="LiteRT computes other outputs"):
        lowered(leaky_relu(2))


def test_outputs_are_really_compared():
    data = two_dense(9)
    other = flatbuffer.read(data)
    other.buffers[2].data = np.frombuffer(np.int32([10, 20]).tobytes(), np.uint8)
    same, lower, changed = (
        versions_module._outputs(flatbuffer.read(content), content, "BUILTIN_REF")
        for content in (data, lowered(data), flatbuffer.write(other))
    )
    assert same == lower != changed


LAYERS = {
    "convolution": lambda k, x: k.layers.Conv2D(4, 3, activation="relu")(x),
    "grouped": lambda k, x: k.layers.Conv2D(8, 3, groups=2)(x),
    "depthwise": lambda k, x: k.layers.DepthwiseConv2D(3)(x),
    "transposed": lambda k, x: k.layers.Conv2DTranspose(4, 3, strides=2)(x),
    "dense of rank 4": lambda k, x: k.layers.Dense(4)(x),
    "dense": lambda k, x: k.layers.Dense(4)(k.layers.Flatten()(x)),
    "pools": lambda k, x: k.layers.MaxPooling2D(2)(k.layers.AveragePooling2D(2)(x)),
    "mean": lambda k, x: k.layers.GlobalAveragePooling2D()(x),
    "bilinear": lambda k, x: k.layers.UpSampling2D(2, interpolation="bilinear")(x),
    "nearest": lambda k, x: k.layers.UpSampling2D(2)(x),
    "product": lambda k, x: x * k.ops.sigmoid(x),
    "sum and difference": lambda k, x: k.ops.tanh(x + x) - x,
    "concatenation": lambda k, x: k.layers.Concatenate()([x, k.ops.sigmoid(x)]),
    "slice": lambda k, x: x[:, 1:5],
    "pad": lambda k, x: k.layers.ZeroPadding2D(1)(x),
    "transpose": lambda k, x: k.ops.transpose(x, (0, 3, 1, 2)),
    "softmax": lambda k, x: k.layers.Softmax()(x),
    "leaky": lambda k, x: k.layers.LeakyReLU()(x),
    "prelu": lambda k, x: k.layers.PReLU(shared_axes=[1, 2])(x),
    "matrix product": lambda k, x: k.ops.matmul(x, x),
    "maximum": lambda k, x: k.ops.maximum(x, k.ops.tanh(x)),
    "exponential": lambda k, x: k.ops.exp(x),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAYERS)
def test_least_versions_are_those_of_tensorflow(kind):
    import keras
    import tensorflow as tf

    x = keras.Input((8, 8, 8), batch_size=1)
    model = keras.Model(x, LAYERS[kind](keras, x))
    samples = np.random.default_rng(0).normal(size=(8, 1, 8, 8, 8)).astype("float32")
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([s] for s in samples)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    read = flatbuffer.read(converter.convert())
    needed: dict[int, int] = {}
    for op in read.subgraphs[0].operators:
        least = least_version(read, read.subgraphs[0], op)
        assert least is not None
        needed[op.opcodeIndex] = max(needed.get(op.opcodeIndex, 1), least)
    assert needed == {i: c.version for i, c in enumerate(read.operatorCodes)}
