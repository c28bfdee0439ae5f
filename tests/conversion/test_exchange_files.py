"""ONNX and OpenVINO IR of a trained model, through the real converters."""

import json
import subprocess

import numpy as np
import pytest
from conftest import run_tflite

from tfcompress.conversion.convert import convert
from tfcompress.conversion.exchange import PRECISIONS, exchange
from tfcompress.tools.environments import Unavailable, python_environment
from tfcompress.tools.runtimes import ONNX_LIBRARY, OPENVINO_LIBRARY

pytestmark = pytest.mark.slow

# Independent of our own drivers.
RUN_ONNX = """
import json, sys
from collections import Counter
import numpy as np, onnx, onnxruntime
model = onnx.load(sys.argv[1])
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
values = [session.run(None, {name: x[None]})[0][0].tolist() for x in np.load(sys.argv[2])]
kinds = Counter(node.op_type for node in model.graph.node)
stored = [onnx.TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer
          if len(t.dims) == 4]
print(json.dumps([values, kinds, stored]))
"""
RUN_OPENVINO = """
import json, sys
import numpy as np, openvino
model = openvino.Core().read_model(sys.argv[1])
run = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
print(json.dumps([run([x[None]])[0][0].tolist() for x in np.load(sys.argv[2])]))
"""


def python(name, packages):
    try:
        return python_environment(name, packages)
    except Unavailable as error:
        pytest.skip(str(error))


def asked(interpreter, script, *arguments):
    command = [interpreter, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def made(float_cnn, qat_cnn, images, tmp_path_factory):
    """A function that gives the .tflite of a precision, and the inputs."""
    folder = tmp_path_factory.mktemp("made")
    np.save(folder / "x.npy", images[0][:20])

    def make(precision, io_dtype="float32"):
        path = folder / f"{precision}_{io_dtype}.tflite"
        model = qat_cnn if precision == "int8" else float_cnn
        calibration = images[0][:50] if precision in ("int16x8", "int4") else None
        settings = {"precision": precision, "io_dtype": io_dtype, "calibration": calibration}
        convert(model, path, **settings)
        return path, folder / "x.npy"

    return make


def test_onnx_int8_is_qdq_and_equal(made, images, tmp_path):
    interpreter = python("onnx", ONNX_LIBRARY.packages)
    file, x = made("int8")
    report = exchange("onnx", file.read_bytes(), tmp_path / "m.onnx", samples=images[0][:20])
    assert report["files"] == {str(tmp_path / "m.onnx"): (tmp_path / "m.onnx").stat().st_size}
    values, kinds, stored = asked(interpreter, RUN_ONNX, tmp_path / "m.onnx", x)
    assert kinds["QuantizeLinear"] > 5
    assert kinds["DequantizeLinear"] > 5
    assert not {"QLinearConv", "ConvInteger"} & set(kinds)
    assert stored
    assert set(stored) == {"INT8"}
    # Steps of single operators add up.
    assert np.abs(np.array(values) - run_tflite(file, images[0][:20])).max() < 3.5 / 256


@pytest.mark.parametrize("precision", [p for p in PRECISIONS["onnx"] if p != "int8"])
def test_onnx_of_float_precisions(made, images, tmp_path, precision):
    interpreter = python("onnx", ONNX_LIBRARY.packages)
    file, x = made(precision)
    exchange("onnx", file.read_bytes(), tmp_path / "m.onnx")
    values, _, stored = asked(interpreter, RUN_ONNX, tmp_path / "m.onnx", x)
    if precision == "float16":
        assert set(stored) == {"FLOAT16"}
        assert (tmp_path / "m.onnx").stat().st_size < 2 * file.stat().st_size
    near = 0.02 if precision == "dynamic_int8" else 1e-5
    assert np.abs(np.array(values) - run_tflite(file, images[0][:20])).max() < near


@pytest.mark.parametrize("precision", PRECISIONS["openvino"])
def test_openvino(made, images, tmp_path, precision):
    interpreter = python("openvino", OPENVINO_LIBRARY.packages)
    file, x = made(precision)
    report = exchange("openvino", file.read_bytes(), tmp_path / "m.xml", samples=images[0][:20])
    assert {p.name for p in tmp_path.iterdir()} == {"m.xml", "m.bin"}
    weights = {"float32": "f32", "float16": "f16", "int8": "i8", "int16x8": "i8"}
    if precision in weights:
        assert report["weights"] == weights[precision]
    values = asked(interpreter, RUN_OPENVINO, tmp_path / "m.xml", x)
    near = {"float32": 1e-5, "float16": 1e-5, "dynamic_int8": 0.02, "int8": 3.5 / 256}
    gap = np.abs(np.array(values) - run_tflite(file, images[0][:20])).max()
    assert gap <= near.get(precision, 0.005)


@pytest.mark.parametrize(("format", "name"), [("onnx", "m.onnx"), ("openvino", "m.xml")])
def test_int4_is_refused(made, tmp_path, format, name):
    python("onnx", ONNX_LIBRARY.packages)
    python("openvino", OPENVINO_LIBRARY.packages)
    file, _ = made("int4")
    with pytest.raises(ValueError, match=r"cannot be made of this file.*Expected a file of"):
        exchange(format, file.read_bytes(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []
