"""ONNX and OpenVINO IR out of .tflite files, by tf2onnx and OpenVINO, for servers and Jetsons."""

from __future__ import annotations

import os
import re
import textwrap
from pathlib import Path
from typing import Any

from tfcompress.files import writing
from tfcompress.files.writing import write_together
from tfcompress.tools import onnxruntime, openvino
from tfcompress.tools.comparison import compare
from tfcompress.tools.driving import Answer, Outcome, Refused
from tfcompress.tools.subject import Subject, read_subject

# What these converters can bring over, of the precisions of `convert`.
PRECISIONS = {
    "onnx": ("float32", "float16", "dynamic_int8", "int8"),
    "openvino": ("float32", "float16", "dynamic_int8", "int8", "int16x8"),
}
_TITLES = {"onnx": "ONNX", "openvino": "OpenVINO IR"}
_ENDINGS = {"onnx": ".onnx", "openvino": ".xml"}

# How tf2onnx and OpenVINO name an operator that they do not know.
_UNKNOWN_OPS = [
    re.compile(r"No Op registered for TFL_(\w+)"),
    re.compile(r"No translator found for (\w+) node"),
]


def check_exchange(format: str, path: str | os.PathLike[str], precision: str | None = None) -> None:
    """Raise unless a file of a precision can be written in a format, before the work is done."""
    if precision is not None and precision not in PRECISIONS[format]:
        raise ValueError(
            f"received precision '{precision}' for {_TITLES[format]}; expected one of "
            f"{', '.join(PRECISIONS[format])}. Its converter knows no other: take one of these, "
            "or stay with .tflite."
        )
    if Path(path).suffix != _ENDINGS[format]:
        raise ValueError(
            f"received '{path}' for {_TITLES[format]}; expected a name that ends in "
            f"{_ENDINGS[format]}."
        )
    writing.check_writable(path)
    if format == "openvino":
        writing.check_writable(Path(path).with_suffix(".bin"))


def to_onnx(data: bytes, path: str | os.PathLike[str], *, samples: Any = None) -> dict[str, Any]:
    """Write a .tflite file as ONNX (opset 18), int8 as QuantizeLinear and DequantizeLinear (QDQ).

    tf2onnx converts; ONNX Runtime then runs what it made, and the outputs are compared with those
    of LiteRT's reference kernels before anything is written.

    Args:
        data: the bytes of the .tflite file.
    """
    check_exchange("onnx", path)
    return _exchange("onnx", data, path, samples, lambda f: onnxruntime.onnx(f.data, f.inputs))


def to_openvino(
    data: bytes, path: str | os.PathLike[str], *, samples: Any = None
) -> dict[str, Any]:
    """Write a .tflite file as OpenVINO IR: a .xml, and a .bin of its weights beside it.

    OpenVINO reads the file, int8 as FakeQuantize operations with int8 weights, and runs what it
    wrote; the outputs are compared with those of LiteRT's reference kernels.

    Args:
        data: the bytes of the .tflite file.
    """
    check_exchange("openvino", path)
    return _exchange(
        "openvino", data, path, samples, lambda f: openvino.openvino(f.data, f.inputs, save=True)
    )


def _exchange(format: str, data: bytes, path, samples, run) -> dict[str, Any]:
    file = read_subject(data, {}, samples)
    answers: list[Answer] = []

    def kept(subject: Subject) -> Answer:
        answers.append(run(subject))
        return answers[-1]

    try:
        found = compare(file, kept, lsb=1)
    except Refused as refusal:
        raise ValueError(_refused(format, str(refusal))) from refusal
    if found.status != "passed":
        raise ValueError(
            f"{_TITLES[format]} made of this file computes something else: {found.reason}. "
            "Nothing was written; convert with another precision, or stay with .tflite."
        )
    target, made = Path(path), answers[0]  # What follows are its operators alone.
    contents = {target.with_suffix(Path(name).suffix): made.files[name] for name in made.files}
    write_together(contents)
    return _report(format, contents, found, made, file.note)


def _refused(format: str, said: str) -> str:
    """Why a file could not be brought over, in words."""
    title = _TITLES[format]
    unknown = next((found[1] for rule in _UNKNOWN_OPS if (found := rule.search(said))), None)
    if unknown is not None:
        return (
            f"{title} cannot be made of this file: its converter does not know {unknown}. Expected "
            "operators that it knows; replace the layer that this one comes from (for an "
            "activation: take another, such as relu), or stay with .tflite."
        )
    return (
        f"{title} cannot be made of this file: {textwrap.shorten(said, 300, placeholder=' ...')}. "
        "Expected a file of precision "
        f"{', '.join(PRECISIONS[format])}, of operators that its converter knows: take one of "
        "these precisions, replace the layer that is named, or stay with .tflite."
    )


def _report(
    format: str, contents: dict[Path, bytes], found: Outcome, made: Answer, note: str
) -> dict[str, Any]:
    return {
        "format": format,
        "files": {str(target): len(content) for target, content in contents.items()},
        "compared": found.figures,
        "remark": ". ".join(text for text in (found.reason, note) if text),
        "ops": made.figures["ops"],
        "weights": made.figures["weights"],
    }
