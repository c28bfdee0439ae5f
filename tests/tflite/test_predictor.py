"""Files on many samples: in batches where these give what samples give one by one."""

import numpy as np
import pytest
from conftest import run_tflite

import tfcompress as tfc
from tfcompress.tflite import flatbuffer, predictor
from tfcompress.tflite.run import ports


@pytest.fixture(scope="module")
def tflites(tmp_path_factory, float_cnn, qat_cnn):
    folder = tmp_path_factory.mktemp("files")
    tfc.convert(float_cnn, folder / "float32.tflite", precision="float32")
    tfc.convert(qat_cnn, folder / "int8.tflite")
    return folder


@pytest.mark.parametrize("name", ["float32", "int8"])
def test_files_run_in_batches_as_sample_by_sample(name, images, tflites, monkeypatch):
    x, path = images[0], tflites / f"{name}.tflite"
    content = path.read_bytes()
    (taken,), (given,) = ports(flatbuffer.read(content))
    expected = run_tflite(path, x, reference=False)
    batches = []
    batched = predictor._batched

    def spy(*arguments):
        batches.append(batched(*arguments))
        return batches[-1]

    def found(count=None):
        predict = predictor.predictor(content, {taken.name: x[:4]})
        return predict({taken.name: x[:count]})[given.name]

    monkeypatch.setattr(predictor, "_batched", spy)
    near = 1e-5 if name == "float32" else 1 / 255
    np.testing.assert_allclose(found(), expected, atol=near)
    assert batches[0] is not None
    # As of a file with the batch written into a shape.
    monkeypatch.setattr(predictor, "_batched", lambda *arguments: None)
    np.testing.assert_array_equal(found(9), expected[:9])


def test_a_file_that_gives_other_outputs_in_batches_is_run_sample_by_sample(tflites):
    _, outputs = ports(flatbuffer.read(tflites / "float32.tflite"))
    name = outputs[0].name

    def load(batch):
        return lambda x: {name: x["x"] + 1 if batch > 1 else x["x"]}

    def tried(load, one):
        return predictor._batched(load, one, {"x": samples}, outputs)

    samples = np.arange(12, dtype="float32").reshape(4, 3)
    assert tried(load, load(1)) is None
    assert tried(lambda batch: load(1), load(1)) is not None
    assert tried(lambda batch: lambda x: {name: x["x"][:1]}, load(1)) is None
