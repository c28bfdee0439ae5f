"""verify judges each output by what it is: right files pass, files that lose something do not."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tfcompress.conversion.convert import convert
from tfcompress.verification.criteria import Kind, judge
from tfcompress.verification.differences import Difference, Tally
from tfcompress.verification.verify import verify


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def int8(model, path, samples):
    convert(model, path, precision="int8", calibration=samples)
    return path


def detector():
    """30 boxes of 4 numbers up to 600, and scores of 3 classes of which the first is the rule."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((30, 6), name="features")
    boxes = layers.Rescaling(100.0, name="boxes")(layers.Dense(4, activation="relu")(inputs))
    logits = layers.Dense(3, name="logits")(inputs)
    scores = layers.Softmax(name="scores")(4 * logits + ops.array([11.0, 0.0, 0.0]))
    return keras.Model(inputs, [boxes, scores])


def test_scores_of_one_constant_fail(tmp_path):
    model, samples = detector(), data(32, 30, 6)
    sound = verify(model, int8(model, tmp_path / "a.tflite", samples), samples)
    assert sound.passed
    assert [output.kind for output in sound.outputs] == ["values", "scores"]
    constant = keras.models.clone_model(model)
    constant.set_weights(model.get_weights())
    kernel = constant.get_layer("logits").kernel
    kernel.assign(0.01 * kernel)
    boxes, scores = verify(model, int8(constant, tmp_path / "b.tflite", samples), samples).outputs
    # The background is the first choice nearly everywhere, and most of the energy.
    assert scores.keras.agreement > 0.9
    assert scores.keras.sqnr_db > 10
    assert (boxes.passed, scores.passed) == (True, False)
    assert (scores.criterion, scores.limit) == ("SQNR of what moves, dB", 10.0)
    assert scores.value < 3


def test_scores_crushed_by_the_range_of_boxes_fail(tmp_path):
    model, samples = detector(), data(32, 30, 6)
    both = keras.Model(model.input, layers.Concatenate(name="both")(model.outputs))
    (crushed,) = verify(both, int8(both, tmp_path / "a.tflite", samples), samples).outputs
    assert crushed.keras.sqnr_db > 30
    assert not crushed.passed
    convert(both, tmp_path / "b.tflite", precision="float32")
    assert verify(both, tmp_path / "b.tflite", samples).passed


def boxes_model():
    inputs = keras.Input((20,), name="x")
    hidden = layers.Dense(32, activation="relu")(inputs)
    return keras.Model(inputs, layers.Dense(4)(hidden)), data(64, 20)


def spectra_model():
    inputs = keras.Input((16, 8), name="x")
    falling = np.float32(10.0 ** -np.linspace(0, 3, 65))
    made = layers.Dense(65)(layers.Conv1D(16, 3, padding="same", activation="relu")(inputs))
    return keras.Model(inputs, ops.abs(made) * falling), data(32, 16, 8)


def frames_model():
    inputs = keras.Input((12, 12, 3), name="x")
    made = layers.Conv2D(3, 3, padding="same")(layers.Conv2D(8, 3, padding="same")(inputs))
    return keras.Model(inputs, made), data(32, 12, 12, 3)


@pytest.mark.parametrize("build", [boxes_model, spectra_model, frames_model])
def test_numbers_that_are_no_scores_are_not_judged_by_their_largest(build, tmp_path):
    keras.utils.set_random_seed(0)
    model, samples = build()
    found = verify(model, int8(model, tmp_path / "m.tflite", samples), samples)
    assert found.passed, str(found)
    assert found.outputs[0].kind == ("logits" if build is boxes_model else "values")


def test_a_batch_that_the_model_is_fixed_to(tmp_path):
    for size in (1, 4):
        inputs = keras.Input(batch_shape=(size, 3), name="x")
        model = keras.Model(inputs, layers.Dense(2)(inputs))
        convert(model, tmp_path / "m.tflite", precision="float32", batch_size=size)
        found = verify(model, tmp_path / "m.tflite", data(10, 3))
        assert (found.passed, found.samples) == (True, 10)


def test_choices_within_a_step_are_equal():
    tally = Tally()
    tally.add(np.array([[0.5, 0.51, 0.0], [0.9, 0.0, 0.1]]), np.array([[0.5, 0.5, 0.0]] * 2))
    assert tally.result(0.02).agreement == 1.0
    assert tally.result(0.005).agreement == 0.5
    halves = Tally(halves=True)
    halves.add(np.array([[0.51, 0.9]]), np.array([[0.49, 0.2]]))
    assert halves.result(0.02).agreement == 0.5


def test_what_moves_is_the_signal():
    # One place of the last axis moves by 100 steps, the other stays at 1000.
    wanted = np.stack([np.linspace(0, 100, 11), np.full(11, 1000.0)], -1)
    tally = Tally()
    tally.add(wanted, np.array([[50.0, 1000.0]] * 11))
    found = tally.result(1.0)
    assert found.sqnr_db > 30
    assert found.moving_db == pytest.approx(0.0)
    still = Tally()
    still.add(wanted, wanted + 1)
    assert still.result(10.0).moving_db == pytest.approx(still.result(10.0).sqnr_db)


def difference(db, lsb=9.0, agreement=1.0, moving=None):
    return Difference(lsb, lsb / 9, 1.0, agreement, db, db if moving is None else moving)


@pytest.mark.parametrize(
    ("kind", "keras_", "kernels", "tolerance", "passed", "limit"),
    [
        # Simulated: 1 LSB, 30 dB, or as LiteRT's kernels differ.
        ("scores", difference(12, 1), difference(99, 0), 1.0, True, 1.0),
        ("scores", difference(46), difference(99, 0), 1.0, True, 30.0),
        ("scores", difference(46, agreement=0.98), difference(99, 0), 1.0, False, 0.99),
        ("values", difference(46, agreement=0.5), difference(99, 0), 1.0, True, 30.0),
        ("scores", difference(27.6, agreement=0.98), difference(26.3, 9, 0.96), 1.0, True, 23.3),
        ("scores", difference(27.6), difference(40.0), 1.0, False, 30.0),
        ("scores", difference(8.0), difference(8.0), 1.0, False, 10.0),
        ("scores", difference(35.0, moving=2.0), difference(99, 0), 1.0, False, 6.0),
        ("values", difference(35.0, moving=8.0), difference(99, 0), 1.0, True, 30.0),
        ("scores", difference(40.0), difference(9.0), 1.0, False, 10.0),
        # After training.
        ("scores", difference(12, agreement=0.91), difference(99, 0), None, True, 10.0),
        ("scores", difference(25, agreement=0.8), difference(99, 0), None, False, 0.9),
        ("logits", difference(25, agreement=0.8), difference(99, 0), None, True, 20.0),
        ("logits", difference(15, agreement=0.8), difference(99, 0), None, False, 0.9),
        ("values", difference(15, agreement=0.1), difference(99, 0), None, True, 10.0),
        ("whole numbers", difference(3, agreement=0.95), difference(99, 0), None, True, 0.9),
        ("whole numbers", difference(3, agreement=0.8), difference(99, 0), 1.0, False, 0.9),
        ("values", difference(np.nan, np.nan), difference(99, 0), 1.0, False, 6.0),
    ],
)
def test_the_verdict_names_what_decided(kind, keras_, kernels, tolerance, passed, limit):
    found = judge(Kind(kind), keras_, kernels, tolerance, strict=False)
    assert (found.passed, found.limit) == (passed, pytest.approx(limit))


@pytest.mark.parametrize(
    ("function", "axis", "keepdims"),
    [(ops.argmax, -1, False), (ops.argmin, 2, True), (ops.argmax, 1, False)],
)
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_places_of_extremes_are_whole_numbers(function, axis, keepdims, precision, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    picked = function(layers.Conv2D(5, 1)(inputs), axis=axis, keepdims=keepdims)
    model, samples = keras.Model(inputs, picked), data(16, 8, 8, 3)
    calibration = samples if precision == "int8" else None
    convert(model, tmp_path / "m.tflite", precision=precision, calibration=calibration)
    found = verify(model, tmp_path / "m.tflite", samples)
    (output,) = found.outputs
    assert found.passed, str(found)
    assert (output.kind, output.criterion, output.limit) == ("whole numbers", "equal values", 0.9)
    assert output.value > (0.999 if precision == "float32" else 0.9)
