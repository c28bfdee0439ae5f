"""Files are run before they are written."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.conversion import float_files, quantize
from tfcompress.conversion.trial import Trial
from tfcompress.tflite import flatbuffer


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 3), name="x")
    return keras.Model(inputs, layers.Conv2D(4, 3, name="seen")(inputs))


def data():
    return np.random.default_rng(0).normal(size=(16, 6, 6, 3)).astype("float32")


def test_a_file_that_litert_refuses_is_not_written(model, tmp_path, monkeypatch):
    def damaged(*args, made=quantize.static, **kwargs):
        file = made(*args, **kwargs)
        (op,) = [o for o in file.subgraphs[0].operators if "CONV" in flatbuffer.op_name(file, o)]
        kernel = file.subgraphs[0].tensors[op.inputs[1]]
        kernel.quantization.zeroPoint = [3] * len(kernel.quantization.scale)
        return file

    monkeypatch.setattr(quantize, "static", damaged)
    path = tmp_path / "model.tflite"
    with pytest.raises(
        ValueError, match=r"operator 1 \(CONV_2D\), which gives '.*seen.*'.*written"
    ):
        tfc.convert(model, path, precision="int8", calibration=data())
    assert not path.exists()


def test_a_file_of_another_model_is_told(model, tmp_path):
    tfc.convert(model, tmp_path / "good.tflite", precision="int8", calibration=data())
    good = flatbuffer.read(tmp_path / "good.tflite")
    float_file, _, _ = float_files.float_file(model)
    trial, batches = Trial(), [{"x": sample[None]} for sample in data()]
    trial.remember(float_file, flatbuffer.write(float_file), batches)
    assert trial.passed_by(good, flatbuffer.write(good)) == []
    kernel = next(t for t in good.subgraphs[0].tensors if list(t.shape) == [4, 3, 3, 3])
    good.buffers[kernel.buffer].data = np.zeros(4 * 27, np.uint8)
    (note,) = trial.passed_by(good, flatbuffer.write(good))
    assert note.startswith("output 'seen' is far from that of the float model")


def test_what_the_model_itself_cannot_bear_is_no_fault_of_the_file(tmp_path):
    """Without samples a file runs on ones, which are no index of a table of one row."""
    tokens = keras.Input((3,), dtype="int32", name="t")
    model = keras.Model(tokens, layers.Embedding(1, 4)(tokens))
    tfc.convert(model, tmp_path / "model.tflite", precision="float32")
    assert (tmp_path / "model.tflite").exists()
