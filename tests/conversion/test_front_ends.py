"""Features of sound inside of a model: float in integer files, and how they are split off."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfcompress as tfc
from tests.conftest import run_tflite
from tfcompress.conversion.front_ends import REASON
from tfcompress.graph.front_end import front_end, hint_of, settings_of
from tfcompress.graph.nodes import Graph

RATE, LENGTH, BANDS = 8000, 1200, 12
MEL = tf.signal.linear_to_mel_weight_matrix(BANDS, 65, RATE, 80.0, 4000.0).numpy()
COSINES = tf.signal.mfccs_from_log_mel_spectrograms(tf.eye(BANDS)).numpy()[:, :8]


def tones(count, seed=0):
    """Tones of loudnesses far apart, with little noise."""
    rng, t = np.random.default_rng(seed), np.arange(LENGTH) / RATE
    loud = 10 ** rng.uniform(-2, 0, (count, 1))
    waves = np.sin(2 * np.pi * rng.uniform(100, 3800, (count, 1)) * t)
    return (loud * waves + 1e-3 * rng.normal(size=(count, LENGTH))).astype("float32")


def net(x, features):
    y = layers.Conv1D(8, 3, activation="relu", name="first")(features)
    return keras.Model(x, layers.Dense(3, name="head")(layers.GlobalAveragePooling1D()(y)))


def by_ops():
    x = keras.Input((LENGTH,), name="sound")
    real, imaginary = ops.stft(x, 100, 50, 128)
    power = ops.square(real) + ops.square(imaginary)
    return net(x, ops.matmul(ops.log(ops.matmul(power, MEL) + 1e-5), COSINES))


def by_layer():
    x = keras.Input((LENGTH,))
    settings = {"sampling_rate": RATE, "num_mel_bins": BANDS}
    return net(x, layers.Permute((2, 1))(layers.MelSpectrogram(128, 64, **settings)(x)))


def by_convolutions():
    x = keras.Input((LENGTH, 1))
    waves = [layers.Conv1D(16, 100, strides=50, use_bias=False)(x) for _ in range(2)]
    return net(x, ops.log(ops.square(waves[0]) + ops.square(waves[1]) + 1e-4))


def features(x):
    power = tf.abs(tf.signal.stft(x, 100, 50, 128))
    loudness = tf.math.log(tf.tensordot(power, MEL, 1) + 1e-5)
    return tf.signal.mfccs_from_log_mel_spectrograms(loudness)[..., :8]


def by_tensorflow():
    x = keras.Input((LENGTH,))
    return net(x, layers.Lambda(features, output_shape=(23, 8))(x))


BUILDERS = [by_ops, by_layer, by_convolutions, by_tensorflow]


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


def sqnr(wanted, found):
    wanted = np.asarray(wanted)
    return 10 * np.log10((wanted**2).mean() / ((wanted - found) ** 2).mean())


@pytest.mark.parametrize("build", BUILDERS)
def test_front_ends_stay_float_and_what_follows_is_integer(build, tmp_path):
    model, path = build(), tmp_path / "m.tflite"
    shape = (-1, *model.inputs[0].shape[1:])
    x = tones(32).reshape(shape)
    report = tfc.convert(model, path, calibration=x)
    assert {op.reason for op in report.float_ops} == {REASON}
    kinds = {name: dtype for name, dtype, _ in report.ops if dtype == "int8"}
    assert {"CONV_2D", "FULLY_CONNECTED", "MEAN"} <= kinds.keys()
    assert not {"LOG", "MUL", "GATHER"} & kinds.keys()
    assert any("tfcompress.split(model)" in note for note in report.notes)
    assert sqnr(model(x[:8]), run_tflite(path, x[:8])) > 30


def test_training_for_quantization_leaves_them_float_and_says_so(tmp_path):
    model, x = by_ops(), tones(16)
    with pytest.warns(UserWarning, match="front-end of sound, 'stft.*' to 'matmul.*', stays float"):
        qat = tfc.quantize_aware(model)
    qat.compile("adam", "mse", jit_compile=False)
    qat.fit(x, np.asarray(model(x)), verbose=0)
    path = tmp_path / "m.tflite"
    report = tfc.convert(qat, path)
    assert {op.reason for op in report.float_ops} == {REASON}
    assert sqnr(qat(x[:8]), run_tflite(path, x[:8])) > 40


def test_a_rule_of_its_own_quantizes_a_front_end(tmp_path):
    model, x = by_layer(), tones(32)
    rules = {"MelSpectrogram": "int8"}
    report = tfc.convert(model, tmp_path / "m.tflite", precision=rules, calibration=x)
    assert report.float_ops == []
    assert next(iter(report.sqnr.values())) < 25


def test_integer_inputs_and_strictness_are_told(tmp_path):
    model, x = by_ops(), tones(16)
    report = tfc.convert(model, tmp_path / "m.tflite", io_dtype="int8", calibration=x)
    assert any("its input comes in int8" in note for note in report.notes)
    report = tfc.convert(model, tmp_path / "m.tflite", target="ethos_u55", calibration=x)
    assert any("takes integers alone" in note for note in report.notes)
    with pytest.raises(ValueError, match="front-end of sound"):
        tfc.convert(model, tmp_path / "m.tflite", strict=True, calibration=x)


def test_dynamic_rounding_is_told(tmp_path):
    report = tfc.convert(by_ops(), tmp_path / "m.tflite", precision="dynamic_int8")
    assert any("is rounded, too" in note for note in report.notes)


@pytest.mark.parametrize("precision", ["int16x8", {"*": "int8", "head": "int4"}])
def test_other_integer_precisions_leave_them_float_too(precision, tmp_path):
    model, x = by_ops(), tones(16)
    path = tmp_path / "m.tflite"
    report = tfc.convert(model, path, precision=precision, calibration=x)
    assert {op.reason for op in report.float_ops} == {REASON}
    assert sqnr(model(x[:8]), run_tflite(path, x[:8])) > 20


def test_microcontrollers_get_products(tmp_path):
    model, x = by_ops(), tones(16)
    path = tmp_path / "m.tflite"
    report = tfc.convert(model, path, target="microcontroller", io_dtype="float32", calibration=x)
    assert report.check.passed
    assert sqnr(model(x[:8]), run_tflite(path, x[:8])) > 30


def test_the_cosines_of_a_saved_model_are_refused_with_a_way_out(tmp_path):
    module = tf.Module()
    spec = tf.TensorSpec((1, LENGTH))
    function = tf.function(features, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures={"serve": function})
    with pytest.raises(ValueError, match=r"mfccs_from_log_mel_spectrograms\(tf.eye\(bands\)\)"):
        tfc.convert(tmp_path / "saved", tmp_path / "m.tflite", precision="float32")


def test_the_spectra_of_a_saved_model_stay_float(tmp_path):
    def loudness(x):
        power = tf.abs(tf.signal.stft(x, 100, 50, 128))
        y = tf.math.log(tf.tensordot(power, MEL, 1) + 1e-5)
        return {"y": tf.nn.relu(tf.tensordot(y, COSINES, 1))}

    function = tf.function(loudness, input_signature=[tf.TensorSpec((1, LENGTH))])
    tf.saved_model.save(tf.Module(), str(tmp_path / "saved"), signatures={"serve": function})
    path, x = tmp_path / "m.tflite", tones(16)
    report = tfc.convert(tmp_path / "saved", path, calibration=x)
    assert {op.reason for op in report.float_ops} == {REASON}
    assert ("FULLY_CONNECTED", "int8", 1) in report.ops
    wanted = np.concatenate([loudness(row[None])["y"] for row in x[:8]])
    assert sqnr(wanted, run_tflite(path, x[:8])) > 30


def test_other_models_have_none(float_cnn):
    assert front_end(Graph.of(tfc.flatten(float_cnn))) is None
    x = keras.Input((50, 1))
    y = layers.Conv1D(4, 3)(layers.Conv1D(4, 3)(x))
    y = layers.Dense(2)(ops.log(ops.mean(ops.square(y), axis=1) + 1e-6))
    assert front_end(Graph.of(keras.Model(x, y))) is None
    x = keras.Input((8,))
    y = layers.Dense(4, activation="softmax")(x)
    assert front_end(Graph.of(keras.Model(x, layers.Dense(2)(ops.log(y + 1e-6))))) is None


def test_settings_and_hint_tell_the_numbers_of_the_model():
    front = front_end(Graph.of(by_ops()))
    assert settings_of(front) == {
        "frame": 100,
        "step": 50,
        "fft": 128,
        "ends reflected by half of it": True,
        "zeros on both sides of a frame": True,
        "window": "hann",
        "mel bands": BANDS,
        "first bin": 2,
        "last bin": 63,
        "offset": 1e-5,
        "logarithm": "natural",
        "DCT-II coefficients": 8,
    }
    assert "arm_rfft_fast_f32 of 128 values" in hint_of(front)
    told = settings_of(front_end(Graph.of(by_layer())))
    assert (told["rate"], told["from"], told["to"], told["floor"]) == (RATE, 20.0, 4000, 1e-10)
