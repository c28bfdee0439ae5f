"""Recurrent layers that are not unrolled: LiteRT runs their loop in float only."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc

SAMPLES = np.random.default_rng(0).random((8, 4, 3)).astype("float32")
MEND = "rebuild the recurrent layer with unroll=True"


def recurrent(kind=layers.GRU, **options):
    inputs = keras.Input((4, 3))
    hidden = kind(5, name="memory", **options)(inputs)
    return keras.Model(inputs, layers.Dense(2)(hidden))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (layers.SimpleRNN, {"io_dtype": "int8"}),
        (layers.GRU, {"io_dtype": "uint8"}),
        (layers.SimpleRNN, {"target": "microcontroller"}),
    ],
)
def test_integer_inputs_and_a_loop(kind, settings, tmp_path):
    said = (
        r"layer 'memory' is a loop \(WHILE\), for which LiteRT has no integer kernel; received "
        r"io_dtype='u?int8'.*unroll=True.*or pass io_dtype='float32'"
    )
    with pytest.raises(ValueError, match=said):
        tfc.convert(
            recurrent(kind),
            tmp_path / "m.tflite",
            precision="int8",
            calibration=SAMPLES,
            **settings,
        )
    assert list(tmp_path.iterdir()) == []


def test_reasons_inside_a_loop(tmp_path):
    report = tfc.convert(
        recurrent(),
        tmp_path / "m.tflite",
        precision="int8",
        calibration=SAMPLES,
        io_dtype="float32",
    )
    reasons = {op.op: op.reason for op in report.float_ops}
    assert {"WHILE", "MUL", "ADD"} <= set(reasons)
    assert set(reasons.values()) == {f"inside a loop (WHILE): {MEND}", f"a loop: {MEND}"}
    assert reasons["WHILE"] == f"a loop: {MEND}"


def test_strict_tells_the_mend(tmp_path):
    with pytest.raises(ValueError, match=rf"stay float: WHILE at '.*memory.*' \(a loop: {MEND}\)"):
        tfc.convert(
            recurrent(),
            tmp_path / "m.tflite",
            precision="int8",
            calibration=SAMPLES,
            io_dtype="float32",
            strict=True,
        )


def test_the_mend_works(tmp_path):
    report = tfc.convert(
        recurrent(unroll=True),
        tmp_path / "m.tflite",
        precision="int8",
        calibration=SAMPLES,
        io_dtype="int8",
        strict=True,
    )
    assert report.float_ops == []
