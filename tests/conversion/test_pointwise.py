"""Pointwise convolutions with int4 weights: as FULLY_CONNECTED, with outputs rounded once."""

import keras
import numpy as np
import pytest
from conftest import run_tflite
from keras import layers

import tfcompress as tfc
from tfcompress.conversion import pointwise
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.run import port


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 8))
    x = layers.Conv2D(8, 1, activation="relu", name="point")(inputs)
    x = layers.Conv2D(8, 1, strides=2, name="strided")(x)
    return keras.Model(inputs, layers.Conv2D(4, 2, name="wide")(x))


def files(model, path, monkeypatch, **options):
    """The names of operators in two files: as by default, and with convolutions alone."""
    x = np.random.default_rng(0).normal(size=(20, 6, 6, 8)).astype("float32")
    report = tfc.convert(model, path, precision="int4", calibration=x, **options)
    with monkeypatch.context() as patch:
        patch.setattr(pointwise, "as_dense", lambda file, wide: None)
        tfc.convert(model, f"{path}.conv", precision="int4", calibration=x, **options)
    names = [[op.name for op in tfc.inspect(p).operators if op.dtype == "int8"]
             for p in (path, f"{path}.conv")]  # fmt: skip
    return x, report, names


def test_those_of_four_bits_and_one_step_are_rewritten(model, tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    x, report, (new, old) = files(model, path, monkeypatch)
    dense = [name.replace("CONV_2D", "FULLY_CONNECTED") if i == old.index("CONV_2D") else name
             for i, name in enumerate(old)]  # fmt: skip
    assert new == dense
    assert "FULLY_CONNECTED in the file" in " ".join(report.notes)
    assert tfc.verify(model, path, x).passed


def test_outputs_are_the_products_rounded_once(tmp_path):
    inputs = keras.Input((6, 6, 8))
    model = keras.Model(inputs, layers.Conv2D(8, 1, activation="relu")(inputs))
    x = np.random.default_rng(0).normal(size=(5, 6, 6, 8)).astype("float32")
    path = tmp_path / "model.tflite"
    tfc.convert(model, path, precision="int4", calibration=x)
    file = flatbuffer.read(path)
    graph = file.subgraphs[0]
    (op,) = (o for o in graph.operators if flatbuffer.op_name(file, o) == "FULLY_CONNECTED")
    given, made = port(file, op.inputs[0]), port(file, op.outputs[0])
    weight, bias = (flatbuffer.tensor_values(file, graph.tensors[i]) for i in op.inputs[1:])
    scales = np.array(flatbuffer.scales_of(graph.tensors[op.inputs[1]])[0])
    sums = (given.quantize(x).astype(int) - given.zero_point) @ weight.astype(int).T + bias
    wanted = np.clip(sums * given.scale * scales / made.scale, 0, 127 - made.zero_point)
    for reference in (True, False):
        found = run_tflite(path, x, reference) / made.scale
        assert np.abs(found - wanted).max() < 0.501


def test_files_for_one_scale_keep_convolutions(model, tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    _, _, (new, old) = files(model, path, monkeypatch, dense="per_tensor")
    assert new == old


@pytest.mark.parametrize("bits", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_trained_ones_round_as_the_file_does(model, bits, tmp_path):
    """Once as FULLY_CONNECTED, which is the simulation's own way, and twice as CONV_2D."""
    x = np.random.default_rng(0).normal(size=(64, 6, 6, 8)).astype("float32")
    qat, path = tfc.quantize_aware(model, bits=bits), tmp_path / "model.tflite"
    qat(x, training=True)
    for settings in ({}, {"precision": "int8"}, {"target": "microcontroller"}):
        report = tfc.convert(qat, path, **settings)
        assert any(op == "FULLY_CONNECTED" for op, _, _ in report.ops) is (settings == {})
        (found,) = tfc.verify(qat, path, x).outputs
        assert found.keras.max_lsb < 0.01
        if not settings:
            np.testing.assert_allclose(run_tflite(path, x), qat.predict(x, verbose=0), atol=1e-5)
