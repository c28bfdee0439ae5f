"""Recurrent layers that stay loops, which LiteRT runs in float only: said before any work."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc

SAMPLES = np.random.default_rng(0).random((8, 4, 3)).astype("float32")
MEND = r"keeps states from batch to batch: build it with stateful=False"


class Own(layers.GRU):
    """A loop of a class of its own."""


def recurrent(kind=layers.GRU, **options):
    inputs = keras.Input(batch_shape=(1, 4, 3))
    hidden = kind(5, name="memory", **options)(inputs)
    return keras.Model(inputs, layers.Dense(2)(hidden))


def converted(model, path, **settings):
    return tfc.convert(model, path, precision="int8", calibration=SAMPLES, **settings)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (lambda: recurrent(stateful=True), {"io_dtype": "int8"}),
        (lambda: recurrent(layers.SimpleRNN, stateful=True, unroll=True), {"io_dtype": "uint8"}),
        (lambda: recurrent(stateful=True), {"target": "microcontroller"}),
    ],
)
def test_integer_inputs_and_a_loop(model, settings, tmp_path):
    said = (
        rf"layer 'memory' is a loop that {MEND}.* \(LiteRT has no integer kernel of WHILE\); "
        r"received io_dtype='u?int8'.*or pass io_dtype='float32'"
    )
    with pytest.raises(ValueError, match=said):
        converted(model(), tmp_path / "m.tflite", **settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:these loops stay float")
def test_reasons_inside_a_loop(tmp_path):
    with pytest.warns(UserWarning, match="stay float: layer 'memory' is a loop of a class of its"):
        report = converted(recurrent(Own), tmp_path / "m.tflite", io_dtype="float32")
    reasons = {op.op: op.reason for op in report.float_ops}
    assert {"WHILE", "MUL", "ADD"} <= set(reasons)
    assert reasons["WHILE"] == "a loop, of which LiteRT has no integer kernel"
    assert reasons["MUL"] == "inside a loop (WHILE), of which LiteRT has no integer kernel"


@pytest.mark.filterwarnings("ignore:these loops stay float")
def test_strict_refuses_a_loop(tmp_path):
    with pytest.raises(ValueError, match=r"stay float: WHILE at '.*memory.*' \(a loop, of which"):
        converted(recurrent(Own), tmp_path / "m.tflite", io_dtype="float32", strict=True)


def test_quantize_aware_says_so():
    said = rf"'memory' \(GRU\), as it is a loop that {MEND}"
    with pytest.warns(UserWarning, match=said):
        tfc.quantize_aware(recurrent(stateful=True))


def test_the_mend_works(tmp_path):
    memory, state = layers.GRU(5, return_state=True), keras.Input((5,))
    inputs = keras.Input((4, 3))
    hidden, new = memory(inputs, initial_state=state)
    model = keras.Model([inputs, state], [layers.Dense(2)(hidden), new])
    data = [SAMPLES, np.zeros((8, 5), "float32")]
    made = {x.name: each for x, each in zip(model.inputs, data, strict=True)}
    path = tmp_path / "m.tflite"
    report = tfc.convert(model, path, calibration=made, io_dtype="int8", strict=True)
    assert report.float_ops == []
