"""Operations that run on integers by our hand: in int8, and within one step of NumPy."""

import functools

import keras
import numpy as np
import pytest
from conftest import run_tflite
from keras import layers, ops

import tfcompress as tfc
from tfcompress.kinds import OPERATORS
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.run import Runner

LIMITS = np.array([-0.5, 0.0, 0.1, 0.5], "float32")

CASES = {
    "LEAKY_RELU": (lambda x: layers.LeakyReLU(0.2)(x), lambda x: np.where(x < 0, 0.2 * x, x)),
    "PRELU": (
        lambda x: layers.PReLU("ones", shared_axes=[1, 2])(x), lambda x: x,
    ),
    "ELU": (lambda x: ops.elu(x), lambda x: np.where(x < 0, np.expm1(x), x)),
    "EXP": (lambda x: ops.exp(x), np.exp),
    "ABS": (lambda x: ops.abs(x), np.abs),
    "MINIMUM": (lambda x: ops.minimum(x, 0.3), lambda x: np.minimum(x, 0.3)),
    "TILE": (lambda x: ops.tile(x, (1, 1, 3, 1)), lambda x: np.tile(x, (1, 1, 3, 1))),
    "REDUCE_MAX": (lambda x: ops.max(x, axis=2), lambda x: x.max(2)),
    "REVERSE_V2": (lambda x: ops.flip(x, 1), lambda x: x[:, ::-1]),
    "SPLIT_V": (
        lambda x: ops.concatenate(ops.split(x, [1], axis=-1)[::-1], axis=-1),
        lambda x: np.concatenate([x[..., 1:], x[..., :1]], -1),
    ),
    "LOG_SOFTMAX": (
        lambda x: ops.log_softmax(x), lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True)),
    ),
    "MAXIMUM": (lambda x: ops.maximum(x, LIMITS), lambda x: np.maximum(x, LIMITS)),
    "DEPTH_TO_SPACE": (lambda x: Blocks(2)(x), lambda x: blocks(x, 2)),
}  # fmt: skip


class Blocks(layers.Layer):
    """Channels moved into space, as TensorFlow does it."""

    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def call(self, x):
        import tensorflow as tf

        return tf.nn.depth_to_space(x, self.size)

    def compute_output_spec(self, x):
        n, s = x.shape, self.size
        return keras.KerasTensor((n[0], n[1] * s, n[2] * s, n[3] // s**2), x.dtype)

    def get_config(self):
        return {**super().get_config(), "size": self.size}


def blocks(x, s):
    n, h, w, c = x.shape
    y = x.reshape(n, h, w, s, s, c // s**2).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(n, h * s, w * s, c // s**2)


def run(path, x):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path))
    runner.allocate_tensors()
    entry, out = runner.get_input_details()[0], runner.get_output_details()[0]
    results = []
    for sample in x:
        runner.set_tensor(entry["index"], sample[None])
        runner.invoke()
        results.append(runner.get_tensor(out["index"])[0])
    return np.array(results)


def data():
    return np.random.default_rng(0).uniform(-1, 1, (8, 3, 4, 4)).astype("float32")


def step_of(path) -> float:
    found = tfc.inspect(path)
    index = found.operators[-1].inputs[0] if found.operators[-1].name == "DEQUANTIZE" else None
    return next(t.scale for t in found.tensors if t.index == index)


@pytest.mark.parametrize("op", CASES)
def test_calibrated_int8_is_within_a_step_of_numpy(op, tmp_path):
    function, expected = CASES[op]
    inputs = keras.Input((3, 4, 4), name="x")
    model = keras.Model(inputs, function(inputs))
    path = tmp_path / "model.tflite"
    report = tfc.convert(model, path, precision="int8", calibration=data())
    assert report.float_ops == []
    assert {d for name, d, _ in report.ops if name == op} == {"int8"}
    step = max(step_of(path), 2 / 255)  # rounding of the input counts too
    slope = np.e if op == "EXP" else 1.0
    error = np.abs(run(path, data()) - expected(data()))
    assert error.max() <= (0.5 + 0.5 * slope) * step * 1.02


@pytest.mark.parametrize("io_dtype", ["float32", "int8", "uint8"])
def test_at_the_edge_and_in_chains(io_dtype, tmp_path):
    x = inputs = keras.Input((3, 4, 4), name="x")
    x = ops.max(layers.LeakyReLU()(layers.Conv2D(4, 1)(x)), axis=1)
    plain = keras.Model(inputs, ops.flip(ops.tile(x, (1, 2, 1)), 1))
    path = tmp_path / "model.tflite"
    for model, calibration in ((plain, data()), (trained(plain), None)):
        report = tfc.convert(
            model, path, precision="int8", io_dtype=io_dtype, calibration=calibration
        )
        assert report.float_ops == []
        dtypes = {name: dtype for name, dtype, _ in report.ops}
        for name in ("LEAKY_RELU", "REDUCE_MAX", "TILE", "REVERSE_V2"):
            assert dtypes[name] == "int8"
        if io_dtype == "float32":
            step = np.ptp(np.asarray(model(data()))) / 255
            assert np.abs(run(path, data()) - np.asarray(model(data()))).max() <= 3 * step


def trained(model):
    qat = tfc.quantize_aware(model)
    qat(data(), training=True)
    return qat


def each(names: str, form):
    """The functions of keras.ops of some names, each in a form that makes one of a tensor."""
    return {name: functools.partial(form, getattr(ops, name)) for name in names.split()}


# Of each kind of operation that LiteRT has an operator for, and of those that are opened.
KINDS = {
    **each(
        "abs exp elu relu relu6 sigmoid tanh gelu hard_silu leaky_relu softmax log_softmax ceil "
        "cos floor round sign sin square negative silu hard_sigmoid hard_tanh tanh_shrink softplus "
        "softsign log_sigmoid squareplus selu celu expm1 sparse_sigmoid hard_shrink soft_shrink",
        lambda f, x: f(x),
    ),
    **each("log log1p sqrt rsqrt reciprocal", lambda f, x: f(ops.abs(x) + 0.5)),
    **each("max min amax amin mean sum var std prod", lambda f, x: f(x, axis=-1, keepdims=True)),
    **each(
        "greater greater_equal less less_equal equal not_equal",
        lambda f, x: ops.where(f(x, 0.25), x, 0.5),
    ),
    **each("argmax argmin", lambda f, x: x * ops.cast(f(x, axis=-1)[..., None], "float32")),
    "threshold": lambda x: ops.threshold(x, 0.2, 0.1),
    "power": lambda x: ops.power(ops.abs(x) + 0.5, 1.5),
    "clip": lambda x: ops.clip(x, -0.5, 0.5),
    "tile": lambda x: ops.tile(x, (1, 2, 1)),
    "flip": lambda x: ops.flip(x, axis=1),
    "roll": lambda x: ops.roll(x, 1, axis=1),
    "repeat": lambda x: ops.repeat(x, 2, axis=1),
    "take": lambda x: ops.take(x, [2, 0], axis=1),
    "pad": lambda x: ops.pad(x, ((0, 0), (1, 1), (0, 0))),
    "cumsum": lambda x: ops.cumsum(x, axis=1),
    "matmul": lambda x: ops.matmul(x, ops.swapaxes(x, 1, 2)),
}


@pytest.mark.slow
def test_training_and_calibration_leave_the_same_float(tmp_path):
    """What one table says of kernels holds for both, and the file tells the same of them."""
    x = keras.Input((3, 8))
    y = layers.Dense(8, name="first")(x)
    model = keras.Model(x, {name: function(y) for name, function in KINDS.items()})
    samples = np.random.default_rng(0).normal(size=(32, 3, 8)).astype("float32")
    with pytest.warns(UserWarning, match="stay float") as told:
        qat = tfc.quantize_aware(model)
    qat(samples, training=True)
    path = tmp_path / "m.tflite"
    trained = tfc.convert(qat, path).float_ops
    calibrated = tfc.convert(model, path, calibration=samples).float_ops
    assert sorted(f.op for f in trained) == sorted(f.op for f in calibrated)
    assert {f.op for f in trained}.isdisjoint(OPERATORS)
    message = next(str(w.message) for w in told if "stay float" in str(w.message))
    for found in (*trained, *calibrated):
        assert found.reason == f"LiteRT has no integer kernel of {found.op}"
        assert f"it is {found.op}, which has no integer kernel" in message


def test_an_op_that_moves_codes_keeps_their_scale(tmp_path):
    """Its output was calibrated to another range than its input: the scale changes after it."""
    x = inputs = keras.Input((3, 4, 4), name="x")
    x = layers.Conv2D(4, 1)(x)
    model = keras.Model(inputs, layers.Conv2D(2, 1)(ops.minimum(x, 0.05)))
    path = tmp_path / "model.tflite"
    report = tfc.convert(model, path, precision="int8", calibration=data())
    assert report.float_ops == []
    found = tfc.inspect(path)
    tensors = {t.index: t for t in found.tensors}
    (op,) = [o for o in found.operators if o.name == "MINIMUM"]
    assert len({tensors[i].scale for i in (*op.inputs, *op.outputs)}) == 1
    expected = np.asarray(model(data()))
    assert np.abs(run(path, data()) - expected).max() <= 4 * np.ptp(expected) / 255


def test_a_skipped_op_is_not_folded(tmp_path):
    x = inputs = keras.Input((3, 4, 4), name="x")
    x = layers.LeakyReLU(name="leaky")(layers.Conv2D(4, 1)(x))
    model = keras.Model(inputs, layers.Conv2D(2, 1)(x))
    qat = tfc.quantize_aware(model, skip=["leaky"])
    qat(data(), training=True)
    report = tfc.convert(qat, tmp_path / "model.tflite", precision="int8")
    assert [f.op for f in report.float_ops] == ["LEAKY_RELU"]


@pytest.mark.parametrize("name", ["GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL"])
def test_comparisons_and_numbers_of_their_truths(name, tmp_path):
    function = {
        "GREATER": lambda a, b: a > b,
        "GREATER_EQUAL": lambda a, b: a >= b,
        "LESS": lambda a, b: a < b,
        "LESS_EQUAL": lambda a, b: a <= b,
    }[name]
    inputs = keras.Input((3, 4, 4), name="x")
    model = keras.Model(inputs, ops.cast(function(inputs, 0.3), "float32") * inputs)
    path, x = tmp_path / "model.tflite", data()
    report = tfc.convert(model, path, precision="int8", calibration=x)
    assert report.float_ops == []
    assert {d for op, d, _ in report.ops if op in (name, "CAST")} == {"int8"}
    apart = np.abs(x - 0.3) > 2 / 255
    error = np.abs(run(path, x) - np.where(function(x, 0.3), x, 0.0))
    assert error[apart].max() <= 2.02 / 255


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "bool"])
@pytest.mark.parametrize("is_trained", [True, False], ids=["trained", "calibrated"])
def test_whole_numbers_become_int8_at_once(dtype, is_trained, tmp_path):
    """As masks do; and those that calibration did not reach saturate."""
    a, b = keras.Input((4,), name="a"), keras.Input((4,), dtype=dtype, name="b")
    whole = ops.cast(b, "float32")
    model = keras.Model([a, b], [a * whole, ops.sin(whole)])
    x = np.ones((8, 4), "float32")
    n = np.arange(32).reshape(8, 4) % (2 if dtype == "bool" else 6)
    samples, path = {"a": x, "b": n.astype(dtype)}, tmp_path / "m.tflite"
    if is_trained:
        with pytest.warns(UserWarning, match="Sin"):
            qat = model = tfc.quantize_aware(model)
        qat([x, n.astype(dtype)], training=True)
    report = tfc.convert(model, path, calibration=None if is_trained else samples)
    # What SIN reads are floats as they are, or truths.
    assert {f.op for f in report.float_ops} - {"CAST"} == {"SIN"}
    runner = Runner(flatbuffer.read(path), path.read_bytes(), "it", reference=True)
    for value in (0, 1, *(() if dtype == "bool" else (5, 200))):
        given = {"a": np.ones((1, 4), "float32"), "b": np.full((1, 4), value, dtype)}
        product, sine = runner.run(given)
        assert np.abs(product - min(value, 5)).max() <= 0.05
        np.testing.assert_allclose(sine, np.sin(value), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_comparisons_that_integers_cannot_tell_stay_float(scale, tmp_path):
    """LiteRT compares in 256ths, and ends the process at scales of 1."""
    inputs = keras.Input((3, 4, 4), name="x")
    model = keras.Model(inputs, ops.where(inputs > 0.3 * scale, inputs, 0.0))
    path, x = tmp_path / "model.tflite", scale * data()
    report = tfc.convert(model, path, precision="int8", calibration=x)
    assert [f.op for f in report.float_ops] == ["GREATER"]
    apart = np.abs(x - 0.3 * scale) > 2 * scale / 255
    error = np.abs(run(path, x) - np.where(x > 0.3 * scale, x, 0.0))
    assert error[apart].max() <= 1.01 * scale * 2 / 255


def test_the_place_of_the_greatest(tmp_path):
    class Places(layers.Layer):
        def call(self, x):
            import tensorflow as tf

            return tf.argmax(x, -1, output_type="int32") * 10 + tf.argmin(
                x, -1, output_type="int32"
            )

    inputs = keras.Input((3, 4, 4), name="x")
    model = keras.Model(inputs, Places()(inputs))
    path, x = tmp_path / "model.tflite", data()
    report = tfc.convert(model, path, precision="int8", calibration=x)
    assert report.float_ops == []
    ordered = np.sort(x, -1)
    apart = (np.diff(ordered, axis=-1)[..., [0, -1]] > 2 / 255).all(-1)
    np.testing.assert_array_equal(run(path, x)[apart], (x.argmax(-1) * 10 + x.argmin(-1))[apart])


def test_a_divisor_near_zero_stays_float(tmp_path):
    inputs = keras.Input((3, 4, 4), name="x")
    divisor = ops.abs(inputs) + 0.01
    model = keras.Model(inputs, (inputs / divisor, 1.0 / (ops.abs(inputs) + 1.0)))
    path = tmp_path / "model.tflite"
    report = tfc.convert(model, path, precision="int8", calibration=data())
    assert [f.op for f in report.float_ops] == ["ADD", "DIV"]
    assert {f.reason for f in report.float_ops} == {
        "its divisor comes so near to 0 that integers would round it there"
    }
    x = np.linspace(-1, 1, 48, dtype="float32").reshape(1, 3, 4, 4)
    assert np.abs(run(path, x) - x / (np.abs(x) + 0.01)).max() < 0.3


@pytest.mark.parametrize(
    ("low", "shift", "integer"), [(1.0, 0, False), (6.0, 0, True), (3.0, 3, True)]
)
def test_small_quotients_become_zero(tmp_path, low, shift, integer):
    """LiteRT's kernel makes anything of them where divisors vary widely."""
    a, b = (keras.Input((64,), name=name) for name in "ab")
    model = keras.Model([a, b], layers.Activation("linear", name="y")(ops.divide(a, b)))
    x = np.random.default_rng(0).uniform(-1, 1, (64, 64)).astype("float32") + shift
    x[:, :16] = shift / 64 + np.linspace(-0.02, 0.02, 16)  # small codes, of both signs
    values = {"a": x, "b": np.linspace(8, low, 64 * 64, dtype="float32").reshape(64, 64)}
    path = tmp_path / "model.tflite"
    report = tfc.convert(model, path, calibration=values)
    assert [f.op for f in report.float_ops] == ([] if integer else ["DIV"])
    assert integer or "varies so much" in report.float_ops[0].reason
    runner = Runner(flatbuffer.read(path.read_bytes()), path.read_bytes(), "f", reference=True)
    rows = [runner.run({k: v[i : i + 1] for k, v in values.items()})[0] for i in range(64)]
    wanted = values["a"] / values["b"]
    steps = np.abs(np.concatenate(rows) - wanted) * 255 / np.ptp(wanted)
    assert steps.max() < 3


def test_a_masked_average_divides_by_whole_counts(tmp_path):
    keras.utils.set_random_seed(0)
    tokens = keras.Input((10,), dtype="int32", name="t")
    x = layers.Embedding(20, 6, mask_zero=True)(tokens)
    model = keras.Model(tokens, layers.GlobalAveragePooling1D()(x))
    random = np.random.default_rng(0)
    t = random.integers(1, 20, (32, 10)).astype("int32")
    t[np.arange(10) >= random.integers(1, 11, 32)[:, None]] = 0
    path = tmp_path / "model.tflite"
    expected = np.concatenate([np.asarray(model(sample[None])) for sample in t])
    for precision, steps in (("int8", 6), ("int16x8", 3)):
        tfc.convert(model, path, precision=precision, calibration=t)
        for reference in (True, False):
            error = np.abs(run_tflite(path, t, reference) - expected).max()
            assert error <= steps * np.ptp(expected) / 255


def test_files_hold_nothing_that_no_operator_reads(tmp_path):
    """TFLite Micro allocates a record for every tensor."""
    inputs = keras.Input((6, 8))
    y = layers.PReLU(keras.initializers.RandomUniform(0.1, 0.9))(layers.UpSampling1D(2)(inputs))
    x = np.random.default_rng(0).normal(size=(8, 6, 8)).astype("float32")
    path = tmp_path / "m.tflite"
    tfc.convert(keras.Model(inputs, y), path, io_dtype="int8", calibration=x, strict=True)
    file = tfc.inspect(path)
    used = {i for op in file.operators for i in (*op.inputs, *op.outputs)}
    assert {t.index for t in file.tensors} == used
    assert path.stat().st_size < 12 * 8 * 4 + 3000  # not the float slopes, too


@pytest.mark.parametrize("activation", ["relu", None])
def test_sum_of_vectors_is_one_operator(activation, tmp_path):
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    y = layers.Activation(activation)(layers.Add()([a, b]))
    random = np.random.default_rng(0)
    data = {name: random.normal(size=(16, 6)).astype("float32") for name in "ab"}
    report = tfc.convert(
        keras.Model([a, b], y), tmp_path / "m.tflite", io_dtype="int8", calibration=data
    )
    assert [op for op, _, _ in report.ops] == ["ADD"]


@pytest.mark.parametrize("length", [3, 4])
def test_addends_that_look_like_biases_in_a_batch_of_one(length, tmp_path):
    # Keras adds a (1, n, 1) along the last axis of (1, n, n), and in others by an operator that
    # LiteRT lacks; with batches left open, as in training, it broadcasts.
    x, mask = keras.Input((length, 4)), keras.Input((length, 1))
    model = keras.Model([x, mask], layers.Dense(4, bias_initializer="ones")(x) + mask)
    tfc.convert(model, tmp_path / "m.tflite", precision="float32")
    random = np.random.default_rng(0)
    data = [random.normal(size=(1, *t.shape[1:])).astype("float32") for t in model.inputs]
    want = model.predict([np.repeat(a, 2, axis=0) for a in data], verbose=0)[:1]
    path = tmp_path / "m.tflite"
    runner = Runner(flatbuffer.read(path), path.read_bytes(), "it", reference=True)
    found = runner.run(dict(zip((t.name for t in model.inputs), data, strict=True)))
    np.testing.assert_allclose(found[0], want, atol=1e-5)


@pytest.mark.parametrize("kind", ["Conv1D", "DepthwiseConv1D", "Conv1DTranspose"])
def test_biases_and_normalization_after_sequences_are_folded(kind, tmp_path):
    settings = {"kernel_size": 3, "bias_initializer": "ones"}
    settings |= {} if kind == "DepthwiseConv1D" else {"filters": 4}
    convolution = getattr(layers, kind)(**settings)
    model = keras.Sequential([keras.Input((8, 4)), convolution, layers.BatchNormalization()])
    model.layers[-1].moving_mean.assign([0.5, 1.0, 1.5, 2.0])
    x = np.random.default_rng(0).normal(size=(16, 8, 4)).astype("float32")
    report = tfc.convert(model, tmp_path / "m.tflite", io_dtype="int8", calibration=x)
    assert not {op for op, _, _ in report.ops} & {"ADD", "MUL"}


def test_dilated_convolutions_that_share_their_blocks(tmp_path):
    x = inputs = keras.Input((16, 4))
    settings = {"dilation_rate": 2, "padding": "causal", "bias_initializer": "random_normal"}
    branches = [layers.Conv1D(4, 2, activation=a, **settings)(x) for a in ("tanh", "relu")]
    qat = tfc.quantize_aware(keras.Model(inputs, layers.Multiply()(branches)))
    data = np.random.default_rng(0).normal(size=(16, 16, 4)).astype("float32")
    qat(data, training=True)
    report = tfc.convert(qat, tmp_path / "m.tflite", strict=True)
    assert "ADD" not in [op for op, _, _ in report.ops]
    assert tfc.verify(qat, tmp_path / "m.tflite", data).outputs[0].keras.max_lsb <= 1
