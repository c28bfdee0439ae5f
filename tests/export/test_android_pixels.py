"""From a bitmap on: what the app feeds a file gives what Keras says of that bitmap."""

import keras
import numpy as np
import pytest
from conftest import run_tflite
from keras import layers

from tfcompress.conversion.convert import convert
from tfcompress.export.android.checking import from_pixels, images_of, quantize
from tfcompress.export.android.project import android_project
from tfcompress.files.pixels import scaling_before, scaling_of_range
from tfcompress.graph.pixels import normalization_in_front

MEAN, VARIANCE = [110.0, 120.0, 130.0], [3000.0, 3500.0, 4000.0]


def rescaled():
    return [layers.Rescaling(1 / 255)], 255


def centred():
    return [layers.RandomFlip(), layers.Rescaling(1 / 127.5, -1)], 255


def normalized():
    return [layers.ZeroPadding2D(1), layers.Normalization(mean=MEAN, variance=VARIANCE)], 255


def by_hand():
    return [layers.Rescaling(1 / 255), layers.Normalization(mean=0.45, variance=0.05)], 255


def plain():
    return [], 1


@pytest.fixture(scope="module")
def bitmaps():
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (24, 4, 4, 3))
    return np.kron(coarse, np.ones((1, 4, 4, 1))).astype(np.uint8)


@pytest.fixture(scope="module")
def models(bitmaps):
    """By preprocessing: the model, and the bitmaps as it takes them."""
    made = {}
    for build in (rescaled, centred, normalized, by_hand, plain):
        keras.utils.set_random_seed(1)
        front, high = build()
        inputs = x = keras.Input((16, 16, 3), name="image")
        for layer in front:
            x = layer(x)
        x = layers.Conv2D(8, 3, strides=2, activation="relu")(x)
        x = layers.Dense(4)(layers.Flatten()(x))
        # As sure of its classes as a trained one.
        outputs = layers.Activation("softmax")(4 * x)
        made[build.__name__] = keras.Model(inputs, outputs), bitmaps * np.float32(high / 255)
    return made


CASES = [(name, "int8", "int8") for name in ("rescaled", "centred", "normalized", "by_hand")]
CASES += [("plain", "int8", "int8"), ("plain", "int8", "float32"), ("rescaled", "int8", "uint8")]
CASES += [("rescaled", "int8", "float32"), ("normalized", "int8", "float32")]
CASES += [(name, "float32", "float32") for name in ("rescaled", "centred", "normalized")]
CASES += [("rescaled", "float16", "float32"), ("plain", "int16x8", "float32")]


@pytest.mark.parametrize(("name", "precision", "io_dtype"), CASES)
def test_a_bitmap_gives_the_predictions_of_keras(
    models, bitmaps, tmp_path, name, precision, io_dtype
):
    model, taken = models[name]
    path = tmp_path / "m.tflite"
    calibration = taken if precision.startswith("int") else None
    convert(model, path, precision=precision, io_dtype=io_dtype, calibration=calibration)
    scaling = "0_1" if precision == "int16x8" else None
    made = android_project(path, tmp_path / "app", package="com.example.m", scaling=scaling)
    ((tensor, told),) = images_of(made)
    stored = [quantize(tensor, from_pixels(tensor, told, bitmap))[0] for bitmap in bitmaps]
    given = run_tflite(path, np.stack(stored))
    expected = model.predict(taken, verbose=0)
    assert np.ptp(expected, 0).max() > 0.5  # Other numbers would be told apart.
    np.testing.assert_allclose(given, expected, atol=0.15 if precision == "int8" else 0.02)
    assert normalization_in_front(model) == (None if name == "plain" else told_by(model))


def told_by(model):
    found = normalization_in_front(model)
    assert (found.mean, found.std) == ((0.0,), (1.0,))
    return found


def test_what_nothing_tells_is_asked_for(models, tmp_path):
    path = tmp_path / "m.tflite"
    convert(models["plain"][0], path, precision="float32")
    message = r"nothing tells how input 'image' .* scaling= \(--scaling\) 'none' for 0"
    with pytest.raises(ValueError, match=message):
        android_project(path, tmp_path / "app", package="com.example.m")
    made = android_project(path, tmp_path / "app", package="com.example.m", scaling="-1_1")
    assert made.pixels["image"].mean == (127.5,)


@pytest.mark.parametrize(
    ("low", "high", "signed", "expected"),
    [
        (0, 255, True, "none"),
        (-5, 180, True, "none"),
        (0, 1, True, "0_1"),
        (0, 0.9961, True, "0_1"),
        (-1, 0.992, True, "-1_1"),
        (-123.7, 151.1, True, None),
        (-2.1, 2.6, True, None),
        (0, 6, True, None),
        (-256, 255, False, "none"),
        (-1, 1, False, None),  # 0 to 1, or -1 to 1
    ],
)
def test_ranges_of_pixels(low, high, signed, expected):
    assert scaling_of_range(low, high, signed) == expected


@pytest.mark.parametrize(
    ("factor", "offset", "expected"),
    [
        (1, 0, None),
        (1 / 255, 0, "none"),
        (1 / 127.5, -1, "none"),
        (1, -120, "none"),  # Caffe's way
        (1 / 60, -2, "none"),
        (255, 0, "0_1"),
        (2, -1, "0_1"),
        (127.5, 127.5, "-1_1"),
        (1 / 0.3, -0.13 / 0.3, None),  # of 0 to 1, or of -1 to 1
    ],
)
def test_preprocessing_tells_what_comes_before_it(factor, offset, expected):
    assert scaling_before(np.full(3, factor), np.full(3, offset)) == expected
