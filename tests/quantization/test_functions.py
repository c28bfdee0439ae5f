"""Functions of keras.ops opened into those with integer kernels: equal, and whole in the file."""

import keras
import numpy as np
import opened_layers
import pytest
from keras import layers, ops
from opened_layers import kinds, normal

import tfcompress as tfc
from tfcompress.graph.nodes import Graph
from tfcompress.quantization.kernels import has_kernel, reasons_of
from tfcompress.quantization.openers import opener

_seeded = opened_layers.seeded

FUNCTIONS = {
    "square": ops.square,
    "negative": ops.negative,
    "sum": lambda x: ops.sum(x, axis=1),
    "var": lambda x: ops.var(x, axis=[1, 2]),
    "std": lambda x: ops.std(x, axis=-1, keepdims=True),
    "normalize": lambda x: ops.normalize(x, axis=-1),
    "rms": lambda x: ops.rms_normalization(x, np.float32([1, 2, 3, 4, 5, 6, 7, 8])),
    "power": lambda x: x**2,
    "cube": lambda x: ops.power(x, 3),
    "root": lambda x: ops.power(ops.abs(x), 0.5),
    "clip": lambda x: ops.clip(x, -0.5, 0.25),
    "softplus": ops.softplus,
    "softsign": ops.softsign,
    "reciprocal": lambda x: ops.reciprocal(ops.abs(x) + 1.0),
    "hard_shrink": ops.hard_shrink,
    "soft_shrink": ops.soft_shrink,
    "threshold": lambda x: ops.threshold(x, 0.5, 0.25),
    "sparse_sigmoid": ops.sparse_sigmoid,
    "log_sigmoid": ops.log_sigmoid,
    "squareplus": ops.squareplus,
    "selu": ops.selu,
    "elu": lambda x: ops.elu(x, 0.5),
    "celu": lambda x: ops.celu(x, 2.0),
    "glu": ops.glu,
    "silu": ops.silu,
    "hard_sigmoid": ops.hard_sigmoid,
    "hard_tanh": ops.hard_tanh,
    "tanh_shrink": ops.tanh_shrink,
    "expm1": ops.expm1,
    "log1p": lambda x: ops.log1p(ops.abs(x)),
    "einsum": lambda x: ops.einsum("bij,bkj->bik", x, x),
    "einsum, batch inside": lambda x: ops.einsum("bij,bik->ibjk", x, x),
    "einsum, matrix": lambda x: ops.einsum("bij,jk->bki", x, normal(8, 3)),
    "einsum, outer": lambda x: ops.einsum("bi,bj->bij", x[:, 0], x[:, 1]),
    "patches": lambda x: ops.image.extract_patches(ops.reshape(x, (-1, 6, 4, 2)), (2, 2)),
    "patches, cut": lambda x: ops.image.extract_patches(ops.reshape(x, (-1, 6, 4, 2)), (4, 3)),
    "patches, overlapping": lambda x: ops.image.extract_patches(
        ops.reshape(x, (-1, 6, 4, 2)), (3, 2), strides=(2, 1)
    ),
    "fft": lambda x: ops.concatenate(ops.fft((x, x * x)), axis=-1),
    "fft2": lambda x: ops.fft2((x, ops.zeros_like(x)))[0],
    "ifft2": lambda x: ops.ifft2((x, x * x))[1],
    "scan": lambda x: ops.associative_scan(scanned, (x, x), axis=1)[1],
    "scan, reverse": lambda x: ops.associative_scan(scanned, (x, x), reverse=True, axis=-1)[1],
}


def scanned(a, b):
    """Two steps of h = keep * h + new as one."""
    return a[0] * b[0], a[1] * b[0] + b[1]


LAYERS = {
    "ReLU": lambda: layers.ReLU(4.0, negative_slope=0.1),
    "ELU": lambda: layers.ELU(0.3),
    "mish": lambda: layers.Activation("mish"),
    "gelu": lambda: layers.Activation(lambda x: keras.activations.gelu(x, approximate=True)),
    "UnitNormalization": layers.UnitNormalization,
    "TimeDistributed": lambda: layers.TimeDistributed(layers.Dense(3, "relu")),
    "TimeDistributed, convolution": lambda: layers.TimeDistributed(layers.Conv1D(3, 2)),
    "Lambda": lambda: layers.Lambda(lambda x: ops.square(x) * 2.0 - x),
    "EinsumDense": lambda: layers.EinsumDense("abc,bcd->abd", (6, 5), bias_axes="bd"),
}


def opened(graph: Graph) -> keras.Model:
    def call(node, *args, **kwargs):
        function = None if node.is_input else opener(node.operation)
        return (
            (args[0] if node.is_input else node.operation(*args, **kwargs))
            if function is None
            else function(node.operation, *args, **kwargs)
        )

    return graph.rebuild(call)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    x = keras.Input((6, 8))
    model = keras.Model(x, FUNCTIONS[name](x))
    other = opened(Graph.of(model))
    wanted = model(normal(2, 6, 8))
    np.testing.assert_allclose(other(normal(2, 6, 8)), wanted, rtol=1e-4, atol=1e-5)
    operations = [node.operation for node in Graph.of(other).nodes]
    assert all(has_kernel(operation) for operation in operations), kinds(other)


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    layer = LAYERS[name]()
    x = keras.Input((6, 4, 8) if "convolution" in name else (6, 8))
    model = keras.Model(x, layer(x))
    for variable in layer.variables:
        variable.assign(normal(*variable.shape))
    data = normal(2, *x.shape[1:])
    other = opened(Graph.of(model))
    np.testing.assert_allclose(other(data), model(data), rtol=1e-4, atol=1e-5)
    assert all(has_kernel(node.operation) for node in Graph.of(other).nodes), kinds(other)
    assert other.count_params() == model.count_params()


class Product(layers.Layer):
    """Multiplies with a weight of its own, as it is and the other way round."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], shape[-1]), name="w")

    def call(self, x, training=None):
        return ops.matmul(ops.matmul(x, self.w), ops.transpose(self.w))


class DropPath(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed = keras.random.SeedGenerator(0)

    def call(self, x, training=None):
        if not training:
            return x
        kept = keras.random.uniform((ops.shape(x)[0], 1, 1), seed=self.seed) > 0.2
        return x * ops.cast(kept, x.dtype)


def heads(x):
    """A model with an output for each kind of operation that QAT left float."""
    dense = [layers.Dense(8, name=f"dense{n}")(x) for n in range(4)]
    mixing = np.random.default_rng(3).normal(size=(6, 6)).astype("float32")
    return {
        "product": Product()(dense[0]),
        "constant": ops.matmul(mixing, dense[1]),
        "dropped": layers.Dense(2)(DropPath()(dense[2])),
        "cast": layers.Dense(3)(ops.cast(dense[3], "float32")),
        "sum": layers.Add()([*dense[:3], x]),
        "many": layers.Multiply()(dense[:3]),
        "axis": layers.BatchNormalization(axis=1)(dense[0]),
        "attention": layers.Attention(use_scale=True)(dense[:2]),
        "groups": layers.GroupQueryAttention(4, 4, 2)(x, x),
        "roll": ops.roll(dense[0], 1, axis=1),
        "selu": layers.Dense(4, activation="selu")(x),
        "steps": layers.TimeDistributed(layers.Dense(4, activation="relu"))(x),
        "clip": ops.clip(dense[1], -0.5, 0.5),
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("error:these operations stay float")
def test_what_was_float_is_whole_in_the_file(tmp_path):
    x = keras.Input((6, 8))
    model, data, path = keras.Model(x, heads(x)), normal(32, 6, 8), tmp_path / "qat.tflite"
    qat = tfc.quantize_aware(model)
    for _ in range(2):
        qat(data, training=True)
    assert tfc.convert(qat, path, precision="int8").float_ops == []
    checks = tfc.verify(qat, path, data).outputs
    # A step of one operation is more of the next one's.
    assert {c.name: round(c.keras.max_lsb) for c in checks if c.keras.max_lsb > 3.01} == {}
    assert tfc.convert(model, path, precision="int8", calibration=data).float_ops == []


def test_what_no_file_can_hold_is_rewritten(tmp_path):
    x = keras.Input((6, 8))
    model = keras.Model(x, FUNCTIONS["fft2"](x) + FUNCTIONS["scan"](x))
    data, path = normal(16, 6, 8), tmp_path / "m.tflite"
    tfc.convert(model, path, precision="float32")
    assert tfc.verify(model, path, data).outputs[0].keras.sqnr_db > 90
    assert tfc.convert(model, path, calibration=data).float_ops == []
    assert tfc.verify(model, path, data).outputs[0].keras.sqnr_db > 25


def test_why_operations_stay_float():
    x = keras.Input((6, 8))

    class Loop(layers.GRU):
        pass

    y = Loop(4, return_sequences=True, name="loop")(x)

    class Noisy(layers.Layer):
        def call(self, x, training=None):
            return x + 1.0 if training else x - 1.0

        def get_config(self):
            return super().get_config()

    outputs = [layers.Dense(2)(ops.sin(y)), Noisy(name="noisy")(x)]
    with pytest.warns(UserWarning, match="these operations stay float") as told:
        qat = tfc.quantize_aware(keras.Model(x, outputs))
    assert reasons_of(Graph.of(qat))["noisy"] == "does something else in training"
    message = next(str(w.message) for w in told if "stay float" in str(w.message))
    for said in (
        "'loop' (Loop), as it is a loop of a class of its own: use keras.layers.RNN over a cell",
        "(Sin), as it is SIN, which has no integer kernel",
        "'noisy' (Noisy), as it does something else in training",
    ):
        assert said in message
