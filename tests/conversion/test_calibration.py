"""What is said of calibration data, and which precision a model has been trained for."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc

RNG = np.random.default_rng(0)
PIXELS = RNG.random((40, 8, 8, 3)).astype("float32")


def model_of(*first, shape=(8, 8, 3)):
    keras.utils.set_random_seed(0)
    rest = layers.Flatten(), layers.Dense(2)
    return keras.Sequential([keras.Input(shape), *first, *rest])


def with_statistics(scale=1.0):
    """A model whose BatchNormalization has seen pixels from 0 to 1."""
    model = model_of(layers.Conv2D(4, 3), layers.BatchNormalization(momentum=0.0))
    model(PIXELS * scale, training=True)
    return model


def normalized():
    layer = layers.Normalization()
    layer.adapt(PIXELS.reshape(40, -1)[:, :5])
    return model_of(layer, layers.Dense(3), shape=(5,))


def rescaled():
    return model_of(layers.Rescaling(1 / 255), layers.Conv2D(2, 3))


CASES = {
    "as in training": (with_statistics, PIXELS, None),
    "zeros": (with_statistics, 0 * PIXELS, "are 0 everywhere"),
    "one sample": (with_statistics, PIXELS[:1], "with 1 sample shows few"),
    "statistics": (with_statistics, 255 * PIXELS, "from 0.* to 25.*comes to 'batch_.* times what"),
    "the other way": (lambda: with_statistics(255.0), PIXELS, "comes to 'batch.* 1/.* of what"),
    "normalized": (normalized, 255 * PIXELS.reshape(40, -1)[:, :5], "comes to 'normal.* 2.. times"),
    "well normalized": (normalized, PIXELS.reshape(40, -1)[:, :5], None),
    "preprocessed": (rescaled, PIXELS, "takes values from 0 to 255"),
    "well preprocessed": (rescaled, 255 * PIXELS, None),
    "raw pixels": (lambda: model_of(layers.Conv2D(2, 3)), np.round(255 * PIXELS), "raw pixels"),
}


@pytest.mark.parametrize("name", CASES)
def test_calibration_data_that_cannot_be_those_of_the_training(name, tmp_path):
    make, data, text = CASES[name]
    model = make()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tfc.convert(model, tmp_path / "model.tflite", calibration=data)
    found = [str(w.message) for w in caught if "calibration" in str(w.message)]
    assert len(found) == (text is not None), found
    if text:
        with pytest.warns(UserWarning, match=text):
            warnings.warn(found[0], stacklevel=1)


def test_what_is_left_out_is_told(tmp_path):
    def notes(data, **settings):
        report = tfc.convert(model, path, calibration=data, **settings)
        return [note for note in report.notes if "samples" in note]

    model, path = model_of(layers.Conv2D(2, 3)), tmp_path / "model.tflite"
    (told,) = notes(PIXELS, samples=20)
    assert told.startswith("calibrated with the first 20 samples of more")
    broken = np.where(np.arange(40)[:, None, None, None] == 20, np.nan, PIXELS)
    assert notes(broken, samples=20) == [told]
    assert notes(PIXELS, samples=40) == notes(iter(PIXELS), samples=None) == []
    with pytest.raises(ValueError, match="at least 1; received 0"):
        notes(PIXELS, samples=0)
    with pytest.warns(UserWarning, match="no effect: precision 'float16' needs no ranges"):
        notes(PIXELS, precision="float16")


@pytest.fixture(scope="module")
def trained():
    def make(**settings):
        model = tfc.quantize_aware(model_of(layers.Conv2D(4, 3)), **settings)
        model(PIXELS, training=True)
        return model

    return {
        "int4": make(bits=4),
        "int16x8": make(activation_bits=16),
        "weights": make(bits=4, activation_bits=None),
        "int8": make(),
    }


def test_a_file_has_the_bits_of_the_training_unless_told(trained, tmp_path):
    path = tmp_path / "model.tflite"
    for name, precision in (("int4", "int4"), ("int16x8", "int16x8"), ("weights", "int4")):
        assert tfc.convert(trained[name], path).precision == precision
    assert tfc.convert(trained["int8"], path).precision == "int8"
    assert tfc.convert(trained["int4"], path, target="edge_tpu").precision == "int8"
    report = tfc.convert(trained["int4"], path, precision="int8")
    assert report.precision == "int8"
    assert any("the 4 bits that weights were trained for" in note for note in report.notes)


def test_calibration_of_a_trained_model_has_no_effect(trained, tmp_path):
    with pytest.warns(UserWarning, match=r"no effect: the model was trained.* ranges of its own"):
        tfc.convert(trained["int8"], tmp_path / "model.tflite", calibration=PIXELS)
