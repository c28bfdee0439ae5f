"""ONNX and OpenVINO IR: what is refused at once."""

import numpy as np
import pytest
from acceptance_files import two_layers
from tflite_by_hand import OPS, TYPES, build, code, graph, operator, tensor

from tfcompress.conversion.exchange import PRECISIONS, check_exchange, exchange
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.signature import io_names
from tfcompress.tools import runtimes
from tfcompress.tools.driving import Answer, Refused
from tfcompress.tools.subject import run_reference


@pytest.mark.parametrize(
    ("format", "path", "precision", "said"),
    [
        (
            "onnx",
            "m.onnx",
            "int4",
            r"precision 'int4' for ONNX; expected one of float32, float16, dynamic_int8, int8\.",
        ),
        ("onnx", "m.onnx", "int16x8", "expected one of float32"),
        ("openvino", "m.xml", "int4", "for OpenVINO IR; expected one of .*int16x8"),
        ("onnx", "m.tflite", "int8", r"received 'm\.tflite' for ONNX; .* ends in \.onnx"),
        ("openvino", "m.onnx", None, r"ends in \.xml"),
    ],
)
def test_what_cannot_be_is_told_at_once(format, path, precision, said):
    with pytest.raises(ValueError, match=said):
        check_exchange(format, path, precision)


def test_all_precisions_that_can_be_pass(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for format, name in (("onnx", "m.onnx"), ("openvino", "m.xml")):
        for precision in PRECISIONS[format]:
            check_exchange(format, name, precision)


def test_a_folder_where_the_weights_should_go(tmp_path):
    (tmp_path / "m.bin").mkdir()
    with pytest.raises(OSError, match=r"m\.bin'?: it is a folder"):
        check_exchange("openvino", tmp_path / "m.xml")


def answering(file_names, shift):
    """A converter whose model gives what LiteRT gives, plus a shift."""

    def run(data, inputs, **kwargs):
        names = io_names(flatbuffer.read(data))[1]
        values = [list(s.values()) for s in run_reference(data, list(inputs), names, "it")]
        outputs = [[v.astype(int) + shift for v in sample] for sample in values]
        figures = {"ops": 3, "weights": "int8"}
        return Answer(outputs, figures, {name: name.encode() for name in file_names})

    return run


def test_report_and_files(tmp_path, monkeypatch):
    monkeypatch.setattr(runtimes, "onnx", answering(["model.onnx"], 1))
    target = tmp_path / "small.onnx"
    assert exchange("onnx", two_layers(), target) == {
        "format": "onnx",
        "files": {str(target): 10},
        "compared": {"max LSB": 1},
        "remark": "",
        "ops": 3,
        "weights": "int8",
    }
    assert target.read_bytes() == b"model.onnx"


def test_what_is_written_is_the_whole_not_its_operators_alone(tmp_path, monkeypatch):
    def run(data, inputs):
        alone = data != two_layers()
        answer = answering([], 1 if alone else 2)(data, inputs)
        return Answer(answer.outputs, answer.figures, {"model.onnx": b"no" if alone else b"yes"})

    monkeypatch.setattr(runtimes, "onnx", run)
    report = exchange("onnx", two_layers(), tmp_path / "m.onnx")
    assert report["compared"] == {"max LSB": 2, "max LSB of an op": 1}
    assert "adds up to 2 LSB" in report["remark"]
    assert (tmp_path / "m.onnx").read_bytes() == b"yes"


def test_files_that_compute_something_else_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(runtimes, "openvino", answering(["model.xml", "model.bin"], 9))
    with pytest.raises(ValueError, match=r"computes something else: .*differ.* by 9 LSB"):
        exchange("openvino", two_layers(), tmp_path / "m.xml")
    assert list(tmp_path.iterdir()) == []


def test_refusal_names_the_precisions(tmp_path, monkeypatch):
    def refuse(data, inputs):
        raise Refused("KeyError: 17")

    monkeypatch.setattr(runtimes, "onnx", refuse)
    said = r"cannot be made of this file: KeyError: 17\. Expected .* float32, float16, dynamic"
    with pytest.raises(ValueError, match=said):
        exchange("onnx", two_layers(), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_codes_of_ops_are_written_for_old_readers_too():
    # tf2onnx and OpenVINO look at the one-byte field alone.
    model = flatbuffer.read(build([code(OPS.DEQUANTIZE)], [graph([], [], [], [])], []))
    model.operatorCodes[0].deprecatedBuiltinCode = 0
    written = flatbuffer.read(flatbuffer.write(model)).operatorCodes[0]
    assert (written.deprecatedBuiltinCode, written.builtinCode) == (OPS.DEQUANTIZE,) * 2
    assert model.operatorCodes[0].deprecatedBuiltinCode == 0
    model.operatorCodes[0].builtinCode = OPS.GELU
    written = flatbuffer.read(flatbuffer.write(model)).operatorCodes[0]
    assert (written.deprecatedBuiltinCode, written.builtinCode) == (127, OPS.GELU)


def test_note_of_the_kernels_is_told(tmp_path, monkeypatch):
    tensors = [tensor(name, [1, 2], TYPES.FLOAT32) for name in ("x", "y")]
    data = build([code(OPS.ELU)], [graph(tensors, [operator(0, [0], [1])], [0], [1])], [])

    def run(data, inputs):
        outputs = [[np.where(x > 0, x, np.expm1(x)) for x in s.values()] for s in inputs]
        return Answer(outputs, {"ops": 1, "weights": ""}, {"model.onnx": b"made"})

    monkeypatch.setattr(runtimes, "onnx", run)
    report = exchange("onnx", data, tmp_path / "m.onnx")
    assert report["compared"]["max relative"] < 1e-5
    assert report["remark"] == "LiteRT's reference kernels lack ELU: its optimized ones instead"


@pytest.mark.parametrize(
    ("tool", "format", "name", "said"),
    [
        (
            (runtimes, "onnx"),
            "onnx",
            "m.onnx",
            "ValidationError: No Op registered for TFL_GELU with domain_version of 18 ==> Context: "
            "Bad node spec for node. Name: model/dense/Gelu/mul_2;model/dense/Gelu/m",
        ),
        (
            (runtimes, "openvino"),
            "openvino",
            "m.xml",
            "RuntimeError: FrontEnd API failed with OpConversionFailure: No translator found for "
            "GELU node.",
        ),
    ],
)
def test_operators_that_a_converter_does_not_know_are_named(
    tool, format, name, said, tmp_path, monkeypatch
):
    def refuse(data, inputs, **kwargs):
        raise Refused(said)

    monkeypatch.setattr(*tool, refuse)
    with pytest.raises(ValueError, match="its converter does not know GELU") as raised:
        exchange(format, two_layers(), tmp_path / name)
    assert "replace the layer" in str(raised.value)
    assert "precision" not in str(raised.value)
    assert "Name:" not in str(raised.value)


def test_long_refusals_end_with_a_word(tmp_path, monkeypatch):
    def refuse(data, inputs):
        raise Refused("ValueError: bad node " + "first/long/name " * 30)

    monkeypatch.setattr(runtimes, "onnx", refuse)
    with pytest.raises(ValueError, match=r"first/long/name \.\.\.\. Expected a file of precision"):
        exchange("onnx", two_layers(), tmp_path / "m.onnx")
