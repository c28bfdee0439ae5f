"""Masks, which must not take the steps of what they leave, in training and in the file."""

import keras
import numpy as np
import pytest
from conftest import run_tflite
from keras import layers, ops

import tfcompress as tfc
from tfcompress.layers.fake_quant import FakeQuant

SHAPE = (6, 8)
LOWER = np.tril(np.ones((6, 6), "float32"))[None]
SLOPES = -0.5 * np.abs(np.arange(6.0)[:, None] - np.arange(6.0))[None].astype("float32")


def data():
    """Tokens whose first feature tells whether they are masked."""
    x = np.random.default_rng(0).normal(size=(24, *SHAPE)).astype("float32")
    x[:, :, 0] = np.where(x[:, :, 0] > -0.5, 1.0, -1.0)
    x[:, 0, 0] = 1.0
    return x


def by_hand(x):
    e = ops.exp(x - ops.max(x, axis=-1, keepdims=True))
    return e / ops.sum(e, axis=-1, keepdims=True)


# What becomes of scores, where `m` is 1 for what may be read, and 0 for what is masked.
MASKS = {
    "added": lambda s, m: ops.softmax(s + (1.0 - m) * -1e9),
    "subtracted": lambda s, m: ops.softmax(s - 3.4e38 * (1.0 - m)),
    "multiplied": lambda s, m: ops.softmax(s * m - 1e4 * (1.0 - m)),
    "selected": lambda s, m: ops.softmax(ops.where(m > 0.5, s, float("-inf"))),
    "selected by a constant": lambda s, m: ops.softmax(ops.where(LOWER > 0, s, -1e9)),
    "of rows, too": lambda s, m: ops.softmax(s + (1.0 - m * ops.transpose(m, (0, 2, 1))) * -1e9),
    "constant": lambda s, m: ops.softmax(s + ops.convert_to_tensor((1 - LOWER) * -65504.0)),
    "infinite": lambda s, m: ops.softmax(s + ops.convert_to_tensor(np.log(LOWER + 0.0))),
    "with slopes": lambda s, m: ops.softmax(s + ops.convert_to_tensor(SLOPES + (LOWER - 1) * 1e9)),
    "slopes and masks": lambda s, m: ops.softmax(s + ((1.0 - m) * -1e9 + ops.copy(SLOPES))),
    "two": lambda s, m: ops.softmax(s + ((1.0 - m) * -1e9 + ops.copy((LOWER - 1.0) * 1e9))),
    "scaled after": lambda s, m: ops.softmax((s + (1.0 - m) * -1e9) * 0.3),
    "by hand": lambda s, m: by_hand(s + (1.0 - m) * -1e9),
    "as a logarithm": lambda s, m: ops.softmax(s + ops.log(m)),
    "of one number": lambda s, m: ops.softmax(ops.where(m > 0.5, s, ops.ones_like(s) * -(2**32))),
    "of a layer": lambda s, m: layers.Softmax()(s, mask=m > 0.5),
}


def attention(x, weights):
    query, key, value = (layers.Dense(8)(x) for _ in range(3))
    scores = ops.matmul(query, ops.transpose(key, (0, 2, 1))) * 0.7
    kept = ops.cast(x[:, :, 0] > 0.0, "float32")[:, None, :]
    return ops.matmul(weights(scores, kept), value)


def trained(model, x, **settings):
    qat = tfc.quantize_aware(model, **settings)
    qat.compile(keras.optimizers.Adam(1e-4), "mse", jit_compile=False)
    qat.fit(x, model(x), batch_size=8, verbose=0)
    for _ in range(3):
        qat(x, training=True)
    return qat


def compare(model, x, tmp_path, least_db=20.0):
    """A copy is near the model, and its file within a step of it, an integer one."""
    qat, path = trained(model, x), tmp_path / "model.tflite"
    report = tfc.convert(qat, path, precision="int8")
    wanted, got = model(x), np.asarray(qat(x))
    low, high = qat.outputs[0]._keras_history.operation.limits()
    assert np.abs(run_tflite(path, x) - got).max() <= 1.01 * float(high - low) / 255
    assert 10 * np.log10(np.mean(wanted**2) / np.mean((wanted - got) ** 2)) > least_db
    # Comparisons, and what makes numbers of their truths.
    assert {f.op for f in report.float_ops} <= {"GREATER", "CAST"}
    assert not report.notes
    return qat


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "added" else pytest.mark.slow) for name in MASKS],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:these operations stay float")
def test_masked_scores(name, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE, name="x")
    model = keras.Model(inputs, attention(inputs, MASKS[name]))
    qat = compare(model, data(), tmp_path, least_db=24.0)
    masked = [q for q in qat.layers if isinstance(q, FakeQuant) and q.extremes]
    assert masked
    assert all(max(map(abs, map(float, q.limits()))) < 100.0 for q in masked)


@pytest.mark.slow
@pytest.mark.parametrize("value", [-1e9, float("-inf")])
def test_a_padding_that_a_maximum_never_gives(value, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), name="x")
    x = layers.Conv2D(4, 1)(inputs)
    y = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=value)
    y = layers.MaxPooling2D(3, strides=1)(y)
    model = keras.Model(inputs, layers.Conv2D(3, 1)(layers.Concatenate()([x, y])))
    x = np.random.default_rng(0).normal(size=(24, 8, 8, 3)).astype("float32")
    compare(model, x, tmp_path, least_db=28.0)


@pytest.mark.slow
def test_the_greatest_of_what_is_not_masked(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE, name="x")
    kept = ops.where(inputs[:, :, :1] > 0, layers.Dense(8)(inputs), -1e9)
    model = keras.Model(inputs, layers.Dense(3)(ops.max(kept, axis=1)))
    compare(model, data(), tmp_path, least_db=18.0)


@pytest.mark.slow
def test_a_constant_beyond_what_it_is_selected_from(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE, name="x")
    y = ops.where(inputs[:, :, :1] > 0, layers.Dense(8)(inputs), 9.0)
    compare(keras.Model(inputs, layers.Dense(3)(y)), data(), tmp_path, least_db=30.0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["padding", "additive", "causal and given"])
def test_masks_that_are_given(kind, tmp_path):
    """By an embedding, as floats of an input, as whole numbers of an input."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 5, (24, 6))
    tokens[:, 0] = 1
    inputs = keras.Input((6,), dtype="int32", name="x")
    x = layers.Embedding(5, 8, mask_zero=kind == "padding")(inputs)
    if kind == "padding":
        y = layers.MultiHeadAttention(2, 4, dropout=0.1)(x, x)
    elif kind == "causal and given":
        given = ops.cast(inputs > 0, "int32")[:, None, :]
        y = layers.MultiHeadAttention(2, 4)(x, x, attention_mask=given, use_causal_mask=True)
    else:
        y = layers.Attention(use_scale=True)([x, x], mask=[None, ops.cast(inputs, "bool")])
    model = keras.Model(inputs, layers.Dense(3)(y))
    compare(model, tokens.astype("int32"), tmp_path, least_db=18.0)


def test_a_range_ends_where_a_softmax_looks(tmp_path):
    """By hand: scores of 3 at most are read down to 3 - 12, masks of them down to 3 - 12 - 5."""
    scores, mask = keras.Input((4,), name="s"), keras.Input((4,), name="m")
    qat = tfc.quantize_aware(keras.Model([scores, mask], ops.softmax(scores + mask * -1e9)))
    s = np.array([[5.0, 3.0, -1.0, 0.0]], "float32")
    for _ in range(2):
        qat([s, np.array([[1.0, 0.0, 0.0, 0.0]], "float32")], training=True)
    ranges = {q.name.partition("_")[0]: q.limits() for q in qat.layers if hasattr(q, "limits")}
    np.testing.assert_allclose(ranges["add"], (-9.0, 3.0), atol=0.03)
    np.testing.assert_allclose(ranges["multiply"], (-9.0 - 5.0, 0.0), atol=0.03)
    qat.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    again = {q.name.partition("_")[0]: q.limits() for q in loaded.layers if hasattr(q, "limits")}
    np.testing.assert_allclose(again["multiply"], ranges["multiply"])


def divided(name):
    """An average of the tokens that are not masked, which in "near" are none in some samples."""
    x = keras.Input(SHAPE)
    kept = ops.cast(x[:, :, :1] > 0.0, "float32")
    y = layers.Dense(8)(x)
    if name == "layer":
        y = layers.GlobalAveragePooling1D()(y, mask=x[:, :, 0] > 0.0)
    elif name == "far":
        y = ops.sum(y * kept, axis=1) / (ops.sum(kept, axis=1) + 1.0)
    else:
        y = ops.sum(y * kept, axis=1) / (ops.sum(kept, axis=1) + 1e-6)
    return keras.Model(x, layers.Dense(4)(y))


@pytest.mark.parametrize(
    ("name", "floats"),
    [
        ("near", True),
        *(pytest.param(name, False, marks=pytest.mark.slow) for name in ("far", "layer")),
    ],
)
def test_divisors_that_come_near_0_stay_float(name, floats, tmp_path):
    x = data()
    if name == "near":
        x[::4, :, 0] = -1.0
    else:
        x[:, 3:] = -1.0
    qat = trained(divided(name), x)
    report = tfc.convert(qat, tmp_path / "q.tflite", precision="int8")
    named = {found.op: found.reason for found in report.float_ops}
    assert bool(named.keys() - {"GREATER", "CAST"}) == floats
    assert not floats or "its divisor comes so near to 0" in named["DIV"]
    expected = np.asarray(qat(x, training=False))
    got = run_tflite(tmp_path / "q.tflite", x)
    assert np.abs(got - expected).max() <= 2.01 * np.ptp(expected) / 255


@pytest.mark.slow
def test_a_mask_given_as_floats_with_16_bits(tmp_path):
    x = keras.Input(SHAPE)
    kept = ops.cast(x[:, :, 0] > 0.0, "float32")[:, None, :]
    y = layers.MultiHeadAttention(2, 4)(x, x, attention_mask=kept)
    qat = trained(keras.Model(x, y), data(), activation_bits=16)
    tfc.convert(qat, tmp_path / "q.tflite", precision="int16x8")
    expected = np.asarray(qat(data(), training=False))
    got = run_tflite(tmp_path / "q.tflite", data())
    assert 10 * np.log10(np.square(expected).sum() / np.square(got - expected).sum()) > 50
