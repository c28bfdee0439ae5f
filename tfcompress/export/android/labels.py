"""Names of classes, and the output that they belong to."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfcompress.export.android.tensors import Tensor
from tfcompress.tflite import flatbuffer

_PASSED_ON = ("QUANTIZE", "DEQUANTIZE", "RESHAPE", "SQUEEZE")
_PROBABILITIES = ("SOFTMAX", "LOGISTIC")
_LARGEST = 16 << 20


@dataclasses.dataclass(frozen=True)
class Classes:
    """The names of an output's classes; `logits` if they must still go through a softmax."""

    labels: tuple[str, ...]
    output: int
    logits: bool


def read_labels(source: str | os.PathLike[str] | Sequence[str]) -> tuple[str, ...]:
    """Read the names of classes."""
    if isinstance(source, (str, os.PathLike)):
        labels, where = _lines(Path(source)), f"'{os.fspath(source)}'"
    else:
        labels, where = list(source), "the labels"
    for number, label in enumerate(labels, 1):
        if not isinstance(label, str):
            raise TypeError(f"label {number} is a {type(label).__name__}; expected a text.")
        if not label.strip() or "\n" in label or "\r" in label:
            raise ValueError(
                f"label {number} of {where} is {label!r}; expected one name for each class, "
                "without line breaks. Give a class that has no name one such as '???'."
            )
    if not labels:
        raise ValueError(f"{where} holds no labels; expected one name a line. Leave it out.")
    return tuple(labels)


def _lines(path: Path) -> list[str]:
    try:
        if not path.is_file():
            raise ValueError(
                f"no file at '{path}'; expected a text file with one label a line. Check the path."
            )
        if path.stat().st_size > _LARGEST:
            raise ValueError(
                f"'{path}' has {path.stat().st_size:,} bytes; expected a text file with one label "
                "a line. Name the labels."
            )
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"'{path}' is no text of UTF-8: {error.reason} at byte {error.start}; expected one "
            "label a line. Save it as UTF-8."
        ) from error
    except OSError as error:
        raise ValueError(
            f"cannot read '{path}': {error.strerror}; expected a text file with one label a line. "
            "Check its permissions."
        ) from error
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    # At the end, blank lines are slips; in the middle, they would shift the classes behind.
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def assign(labels: tuple[str, ...], outputs: tuple[Tensor, ...], model: Any) -> Classes:
    """Find the output whose classes have these names: the first of as many real numbers."""
    fitting = (classes_of(labels, outputs, number, model) for number in range(len(outputs)))
    found = next((classes for classes in fitting if classes is not None), None)
    if found is None:
        shapes = "; ".join(f"{o.name!r} {list(o.shape)} {o.dtype}" for o in outputs)
        only = f"{outputs[0].shape[-1]} labels" if _is_row(outputs[0]) else "no labels"
        expected = only if len(outputs) == 1 else "as many labels as an output has numbers"
        raise ValueError(
            f"received {len(labels)} labels; expected {expected}, as the outputs are {shapes}. "
            "Give one label for each class, or leave the labels out."
        )
    return found


def classes_of(
    labels: Sequence[str], outputs: tuple[Tensor, ...], number: int, model: Any
) -> Classes | None:
    """Name the classes of one output; None if the labels are not as many as its numbers."""
    output = outputs[number]
    if not _is_row(output) or output.size != len(labels):
        return None
    maker = _maker(model, model.subgraphs[0].outputs[number])
    return Classes(tuple(labels), number, maker not in _PROBABILITIES)


def _is_row(output: Tensor) -> bool:
    return output.is_real and bool(output.shape) and output.shape[-1] == output.size


def _maker(model: Any, index: int) -> str:
    """Return the operator that computes a tensor, behind those that only pass numbers on."""
    operators = model.subgraphs[0].operators
    makers = {i: op for op in operators for i in op.outputs}
    for _ in operators:
        if index not in makers:
            break
        name = flatbuffer.op_name(model, makers[index])
        if name not in _PASSED_ON:
            return name
        index = makers[index].inputs[0]
    return ""
