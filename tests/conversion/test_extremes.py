"""Values that stand for minus infinity, paddings and limits, which must not take all of a range."""

import keras
import numpy as np
import pytest
from conftest import run_tflite
from keras import layers, ops

import tfcompress as tfc

SHAPE = (6, 8)


def data(samples=24):
    """Tokens whose first feature tells whether they are masked, which no rounding may change."""
    x = np.random.default_rng(0).normal(size=(samples, *SHAPE)).astype("float32")
    x[:, :, 0] = np.where(x[:, :, 0] > -0.5, 1.0, -1.0)
    x[:, 0, 0] = 1.0  # one of them is read in any case
    return x


LOWER = np.tril(np.ones((6, 6), "float32"))[None]
MASKS = {
    "added": lambda scores, m: scores + (1.0 - m) * -1e9,
    "subtracted": lambda scores, m: scores - (1.0 - m) * 3.4e38,
    "selected": lambda scores, m: ops.where(m > 0.5, scores, float("-inf")),
    "of rows, too": lambda scores, m: scores + (1.0 - m * ops.transpose(m, (0, 2, 1))) * -1e9,
    "constant": lambda scores, m: scores + ops.convert_to_tensor((1 - LOWER) * -1e4),
    "infinite": lambda scores, m: scores + ops.convert_to_tensor(np.log(LOWER + 0.0)),
}


def attention(x, mask, softmax=ops.softmax):
    query, key, value = (layers.Dense(8)(x) for _ in range(3))
    scores = ops.matmul(query, ops.transpose(key, (0, 2, 1))) * 0.3
    kept = ops.cast(x[:, :, 0] > 0.0, "float32")[:, None, :]
    return ops.matmul(softmax(mask(scores, kept)), value)


def by_hand(x):
    e = ops.exp(x - ops.max(x, axis=-1, keepdims=True))
    return e / ops.sum(e, axis=-1, keepdims=True)


def noise_of(model, path, x, reference=True):
    """The error of a file's outputs in dB below their power."""
    wanted = np.concatenate([np.asarray(model(sample[None])) for sample in x])
    error = np.square(wanted - run_tflite(path, x, reference)).mean()
    return 10 * np.log10(np.square(wanted).mean() / error)


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize(
    ("mask", "softmax"), [*((name, ops.softmax) for name in MASKS), ("added", by_hand)]
)
def test_masked_scores_leave_the_others_their_steps(mask, softmax, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE, name="x")
    model = keras.Model(inputs, attention(inputs, MASKS[mask], softmax))
    path = tmp_path / "model.tflite"
    report = tfc.convert(model, path, precision="int8", calibration=data())
    assert {f.op for f in report.float_ops} <= {"GREATER"}
    assert noise_of(model, path, data()) > 28


@pytest.mark.parametrize("precision", ["int8", "int16x8"])
@pytest.mark.parametrize("value", [-50.0, -1e9, float("-inf")])
def test_a_padding_that_a_maximum_never_gives(value, precision, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), name="x")
    x = layers.Conv2D(4, 1)(inputs)
    x = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=value)
    model = keras.Model(inputs, layers.MaxPooling2D(2)(x))
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype("float32")
    path = tmp_path / "model.tflite"
    tfc.convert(model, path, precision=precision, calibration=x)
    assert noise_of(model, path, x) > {"int8": 32, "int16x8": 40}[precision]


def test_values_that_are_given_out_are_kept(tmp_path):
    """A large summand is as good as any if its sum is an output: there is nothing to narrow."""
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, ops.where(inputs > 0.0, 5e3, inputs))
    x = np.random.default_rng(0).choice([-1.0, 1.0], (16, 4)).astype("float32")
    path = tmp_path / "model.tflite"
    tfc.convert(model, path, precision="int8", calibration=x)
    assert np.abs(run_tflite(path, x) - np.where(x > 0, 5e3, x)).max() <= 5001 / 255


def test_a_sigmoid_looks_no_further_than_it_rises(tmp_path):
    inputs = keras.Input((8,), name="x")
    kept = ops.cast(inputs > 0.0, "float32")
    model = keras.Model(inputs, ops.sigmoid(inputs + (1.0 - kept) * -1e9))
    x = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")
    path = tmp_path / "model.tflite"
    tfc.convert(model, path, precision="int8", calibration=x)
    wanted = np.where(x > 0, 1 / (1 + np.exp(-x)), 0.0)
    apart = np.abs(x) > 0.05  # others may be rounded to the other side
    assert np.abs(run_tflite(path, x) - wanted)[apart].max() <= 6 / 256


def test_the_place_of_the_greatest_that_is_not_masked(tmp_path):
    class Choice(layers.Layer):
        def call(self, x):
            import tensorflow as tf

            return tf.argmax(x + tf.cast(x < -0.5, tf.float32) * -1e9, -1, output_type="int32")

    inputs = keras.Input((8,), name="x")
    model = keras.Model(inputs, Choice()(inputs))
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    path = tmp_path / "model.tflite"
    report = tfc.convert(model, path, precision="int8", calibration=x)
    assert report.float_ops == []
    first, second = np.sort(x, -1)[:, :-3:-1].T
    apart = first - second > 3 * np.ptp(x) / 255
    np.testing.assert_array_equal(run_tflite(path, x)[apart], x.argmax(-1)[apart])


@pytest.mark.parametrize("value", [-1e4, -3.4e38])
def test_masks_that_training_saw_are_told_where_they_are_given_out(value, tmp_path):
    inputs = keras.Input(SHAPE, name="x")
    scores = layers.Dense(6)(inputs) + ops.convert_to_tensor((1 - LOWER) * np.float32(value))
    qat = tfc.quantize_aware(keras.Model(inputs, [scores, ops.softmax(scores)]))
    qat(data(), training=True)
    path = tmp_path / "model.tflite"
    if value < -1e30:
        with pytest.raises(ValueError, match=r"received -1e\+36 .* adding -30"):
            tfc.convert(qat, path, precision="int8")
    else:
        report = tfc.convert(qat, path, precision="int8")
        assert any("go from -1e+04 to" in note and "-30" in note for note in report.notes)
