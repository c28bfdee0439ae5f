"""What is said of calibration data, and which precision a model has been trained for."""

import re
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.conversion import lower

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


def of_two_inputs():
    """A model of a vector and of pixels from 0 to 1, which have been normalized."""
    model = with_statistics()
    other = keras.Input((3,), name="other")
    image = keras.Input((8, 8, 3), name="image")
    last = layers.Concatenate()([model(image), layers.Dense(2)(other)])
    return keras.Model([other, image], last)


def both(pixels):
    return [RNG.normal(size=(40, 3)), pixels]


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
    "the second input": (of_two_inputs, both(255 * PIXELS), "comes to 'batch_.* times what"),
    "well scaled inputs": (of_two_inputs, both(PIXELS), None),
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


def test_how_many_samples_were_used_is_told(tmp_path):
    def note(data, **settings):
        report = tfc.convert(model, path, calibration=data, **settings)
        (found,) = [note for note in report.notes if "samples" in note]
        return found

    model, path = model_of(layers.Conv2D(2, 3)), tmp_path / "model.tflite"
    told = note(PIXELS, samples=20)
    assert re.match(r"calibrated with the first 20 samples of more; ranges had .*settled:", told)
    broken = np.where(np.arange(40)[:, None, None, None] == 20, np.nan, PIXELS)
    assert note(broken, samples=20) == told
    assert note(PIXELS, samples=40).startswith("calibrated with 40 samples; ranges had")
    with pytest.raises(ValueError, match="at least 1; received 0"):
        note(PIXELS, samples=0)
    with pytest.warns(UserWarning, match="no effect: precision 'float16' needs no ranges"):
        tfc.convert(model, path, calibration=PIXELS, precision="float16")


def test_samples_are_used_until_the_ranges_have_settled(tmp_path):
    model = model_of(layers.Dense(3), shape=(5,))
    same = np.resize(RNG.random((50, 5)), (400, 5))

    def note(data, **settings):
        report = tfc.convert(model, tmp_path / "model.tflite", calibration=data, **settings)
        return report.notes[0]

    assert note(same) == (
        "calibrated with 200 samples; ranges had settled: over the second half of them none grew "
        "by over 0.0%"
    )
    assert note(same, samples=None).startswith("calibrated with 400 samples; ranges had settled")
    growing = same * np.linspace(1, 3, 400)[:, None]
    # That of input and Flatten from (1 + 3) / 2 to 3, that of a sum by somewhat more.
    assert re.match(
        r"calibrated with 400 samples; ranges had not settled: over the second half of them 3 of 3 "
        r"grew by more than 5%, one by 5\d%",
        note(growing),
    )


def no_work(*args, **kwargs):
    raise AssertionError("the model was lowered")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.where(PIXELS > 0.999, np.nan, PIXELS), "that are NaN or infinite; expected finite"),
        (np.where(PIXELS > 0.999, np.inf, PIXELS), "that are NaN or infinite; expected finite"),
        ({"photo": PIXELS}, "the data must have the names image; received photo. Add image"),
        ([], "the data is empty"),
    ],
)
def test_data_that_will_not_do_are_refused_before_any_work(data, message, tmp_path, monkeypatch):
    monkeypatch.setattr(lower, "to_float", no_work)
    image = keras.Input((8, 8, 3), name="image")
    model = keras.Model(image, layers.Flatten()(image))
    with pytest.raises(ValueError, match=message):
        tfc.convert(model, tmp_path / "model.tflite", calibration=data)
    assert not list(tmp_path.iterdir())


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
