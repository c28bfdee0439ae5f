"""ONNX and OpenVINO IR out of .tflite files, by tf2onnx and OpenVINO, for servers and Jetsons."""

from __future__ import annotations

import dataclasses
import os
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfcompress.files import writing
from tfcompress.tools import runtimes
from tfcompress.tools.comparison import compare
from tfcompress.tools.driving import Answer, Refused
from tfcompress.tools.subject import Subject, read_subject


@dataclasses.dataclass(frozen=True)
class _Format:
    """A format: how it is called, how its files end, what of `convert` it takes, and who writes."""

    title: str
    ending: str
    precisions: tuple[str, ...]
    write: Callable[[Subject], Answer]


_FORMATS = {
    # Opset 18; int8 as QuantizeLinear and DequantizeLinear (QDQ).
    "onnx": _Format(
        "ONNX",
        ".onnx",
        ("float32", "float16", "dynamic_int8", "int8"),
        lambda file: runtimes.onnx(file.data, file.inputs),
    ),
    # A .xml, and a .bin of its weights beside it; int8 as FakeQuantize with int8 weights.
    "openvino": _Format(
        "OpenVINO IR",
        ".xml",
        ("float32", "float16", "dynamic_int8", "int8", "int16x8"),
        lambda file: runtimes.openvino(file.data, file.inputs, save=True),
    ),
}
PRECISIONS = {name: format.precisions for name, format in _FORMATS.items()}

# How tf2onnx and OpenVINO name an operator that they do not know.
_UNKNOWN_OPS = [
    re.compile(r"No Op registered for TFL_(\w+)"),
    re.compile(r"No translator found for (\w+) node"),
]


def check_exchange(format: str, path: str | os.PathLike[str], precision: str | None = None) -> None:
    """Raise unless a file of a precision can be written in a format, before the work is done."""
    known = _FORMATS[format]
    if precision is not None and precision not in known.precisions:
        raise ValueError(
            f"received precision '{precision}' for {known.title}; expected one of "
            f"{', '.join(known.precisions)}. Its converter knows no other: take one of these, "
            "or stay with .tflite."
        )
    if Path(path).suffix != known.ending:
        raise ValueError(
            f"received '{path}' for {known.title}; expected a name that ends in {known.ending}."
        )
    writing.check_writable(path)
    if format == "openvino":
        writing.check_writable(Path(path).with_suffix(".bin"))


def exchange(
    format: str, data: bytes, path: str | os.PathLike[str], *, samples: Any = None
) -> dict[str, Any]:
    """Write a .tflite file in another format.

    A tool converts and runs what it made; the outputs are compared with those of LiteRT's
    reference kernels before anything is written.
    """
    check_exchange(format, path)
    title = _FORMATS[format].title
    file = read_subject(data, {}, samples)
    answers: list[Answer] = []

    def kept(subject: Subject) -> Answer:
        answers.append(_FORMATS[format].write(subject))
        return answers[-1]

    try:
        found = compare(file, kept, lsb=1)
    except Refused as refusal:
        raise ValueError(_refused(_FORMATS[format], str(refusal))) from refusal
    if found.status != "passed":
        raise ValueError(
            f"{title} made of this file computes something else: {found.reason}. "
            "Nothing was written; convert with another precision, or stay with .tflite."
        )
    target, made = Path(path), answers[0]  # What follows are its operators alone.
    contents = {target.with_suffix(Path(name).suffix): made.files[name] for name in made.files}
    writing.write_all(contents)
    return {
        "format": format,
        "files": {str(name): len(content) for name, content in contents.items()},
        "compared": found.figures,
        "remark": ". ".join(text for text in (found.reason, file.note) if text),
        "ops": made.figures["ops"],
        "weights": made.figures["weights"],
    }


def _refused(format: _Format, said: str) -> str:
    """Why a file could not be brought over, in words."""
    unknown = next((found[1] for rule in _UNKNOWN_OPS if (found := rule.search(said))), None)
    if unknown is not None:
        return (
            f"{format.title} cannot be made of this file: its converter does not know {unknown}. "
            "Expected operators that it knows; replace the layer that this one comes from (for an "
            "activation: take another, such as relu), or stay with .tflite."
        )
    return (
        f"{format.title} cannot be made of this file: "
        f"{textwrap.shorten(said, 300, placeholder=' ...')}. Expected a file of precision "
        f"{', '.join(format.precisions)}, of operators that its converter knows: take one of "
        "these precisions, replace the layer that is named, or stay with .tflite."
    )
