"""Inputs and outputs of a file as the Kotlin of an app needs them, and the names of classes."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfcompress.export.android.naming import identifiers
from tfcompress.graph.states import out_of, start_of, states_of
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.makers import maker_of
from tfcompress.tflite.signature import io_names

# What the generated code stores, and the Kotlin array for integers and booleans.
TYPES = ("float32", "int8", "uint8", "int16", "int32", "int64", "bool")

# TensorBuffer of LiteRT 2 reads and writes Float, Int8, Int and Boolean, nothing else.
COMPILED = frozenset(("float32", "int8", "int32", "bool"))
QUANTIZED = ("int8", "uint8", "int16")

# A method of the JVM takes 255 arguments; a longer one is no use to people anyway.
MOST = 100

# Samples of each go into the project; a hostile file may ask for gigabytes.
_MOST_ELEMENTS = 2**24


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output: `name` in the file, `identifier` in Kotlin, scale 0 if not quantized.

    `about` is what the file's metadata say of it.
    """

    name: str
    identifier: str
    shape: tuple[int, ...]
    dtype: str
    scale: float
    zero_point: int
    about: str = ""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_real(self) -> bool:
        """True if the elements stand for real numbers."""
        return self.dtype == "float32" or self.scale > 0

    @property
    def array(self) -> str:
        """The Kotlin array that holds its values."""
        if self.is_real:
            return "FloatArray"
        return {"int64": "LongArray", "bool": "BooleanArray"}.get(self.dtype, "IntArray")

    @property
    def image(self) -> tuple[int, int, int] | None:
        """Height, width and channels if a picture fits, else None.

        Told by the shape alone: one (H, W, 1 or 3) of real numbers, sides of 8 pixels or more, not
        longer than 4 times the other (spectrograms are).
        """
        if not self.is_real or len(self.shape) != 4 or self.shape[0] != 1:
            return None
        height, width, channels = self.shape[1:]
        long, short = max(height, width), min(height, width)
        fits = channels in (1, 3) and short >= 8 and long <= 4 * short
        return (height, width, channels) if fits else None


@dataclasses.dataclass(frozen=True)
class Interface:
    """Inputs and outputs in the order of the file; the signature's name, None if there is none."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    signature: str | None
    compiled: bool  # whether CompiledModel can run it; else the Interpreter

    @property
    def states(self) -> list[tuple[int, int, int]]:
        """Of each state the numbers of its input and output, and the calls before it begins."""
        taken, given = ([t.name for t in tensors] for tensors in (self.inputs, self.outputs))
        return [
            (taken.index(name), given.index(out_of(name)), start_of(name))
            for name in states_of(taken, given)
        ]

    @property
    def runner(self) -> str:
        """The API of LiteRT that runs it."""
        return "CompiledModel" if self.compiled else "Interpreter"

    def with_descriptions(self, texts: Sequence[Sequence[str]]) -> Interface:
        """The same with what is said of inputs and of outputs."""
        inputs, outputs = (
            tuple(dataclasses.replace(t, about=text) for t, text in zip(*pair, strict=True))
            for pair in zip((self.inputs, self.outputs), texts, strict=True)
        )
        return dataclasses.replace(self, inputs=inputs, outputs=outputs)

    def with_shapes(self, shapes: Sequence[tuple[int, ...]]) -> Interface:
        """The same with the shapes that outputs have when they are run.

        For CompiledModel, which makes its buffers before the first run, they must be declared.
        """
        pairs = zip(self.outputs, shapes, strict=True)
        outputs = tuple(dataclasses.replace(tensor, shape=shape) for tensor, shape in pairs)
        return dataclasses.replace(
            self, outputs=outputs, compiled=self.compiled and outputs == self.outputs
        )


def read_interface(model: Any, where: str) -> Interface:
    """Describe a file's inputs and outputs."""
    graph = model.subgraphs[0]
    names = io_names(model)
    found = []
    ends = (("input", graph.inputs, names[0]), ("output", graph.outputs, names[1]))
    for kind, indices, texts in ends:
        if not 1 <= len(indices) <= MOST:
            raise ValueError(
                f"{where} has {len(indices)} {kind}s; expected 1 to {MOST}, as arguments of a "
                "function. Convert a model with fewer."
            )
        made = identifiers(texts, kind)
        tensors = [graph.tensors[i] for i in indices]
        found.append(
            tuple(
                _tensor(*parts, f"{kind} {texts[i]!r} of {where}")
                for i, parts in enumerate(zip(tensors, texts, made, strict=True))
            )
        )
    inputs, outputs = found
    dtypes = {tensor.dtype for tensor in (*inputs, *outputs)}
    signature, named = _signature(model, graph)
    exchanged = [graph.tensors[i] for i in (*graph.inputs, *graph.outputs)]
    # Buffers are made before the first run; the Interpreter takes a free batch for 1.
    fixed = all(n >= 0 for tensor in exchanged for n in tensor.shapeSignature or ())
    compiled = named and fixed and dtypes <= COMPILED
    if not compiled and "bool" in dtypes:
        raise ValueError(
            f"{where} exchanges bool together with {', '.join(sorted(dtypes - {'bool'})) or 'no'} "
            "or without names; expected types that one API of LiteRT takes: CompiledModel takes "
            "float32, int8, int32 and bool by name, the Interpreter all but bool. "
            "Make the bool an int32 with a Cast."
        )
    return Interface(inputs, outputs, signature, compiled)


def _tensor(tensor: Any, name: str, identifier: str, what: str) -> Tensor:
    dtype, shape = flatbuffer.dtype_name(tensor), tuple(int(n) for n in tensor.shape)
    if dtype not in TYPES:
        raise ValueError(
            f"{what} is {dtype}; expected one of {', '.join(TYPES)}, which LiteRT exchanges with "
            "Kotlin. Convert the model with another type there."
        )
    if any(n < 1 for n in shape) or math.prod(shape) > _MOST_ELEMENTS:
        raise ValueError(
            f"{what} has shape {list(shape)}; expected dimensions of 1 or more, and at most 2^24 "
            "elements. Convert the model with fixed shapes."
        )
    scale, zero_point = _grid(tensor, dtype, what)
    return Tensor(name, identifier, shape, dtype, scale, zero_point)


def _grid(tensor: Any, dtype: str, what: str) -> tuple[float, int]:
    scales: Any = getattr(tensor.quantization, "scale", None)
    if dtype not in QUANTIZED or scales is None or len(scales) == 0:
        return 0.0, 0
    points: Any = tensor.quantization.zeroPoint
    point = 0 if points is None or len(points) == 0 else int(points[0])
    limits = np.iinfo(dtype)
    valid = len(scales) == 1 and np.isfinite(scales[0]) and scales[0] > 0
    if not valid or not limits.min <= point <= limits.max:
        raise ValueError(
            f"{what} has the scales {[float(s) for s in scales[:3]]} and zero point {point}; "
            f"expected one scale above 0 and a zero point within {dtype}. Convert the model again."
        )
    return float(scales[0]), point


def _signature(model: Any, graph: Any) -> tuple[str | None, bool]:
    """Return the signature's name, and whether names tell all inputs and outputs apart."""
    found = next((s for s in model.signatureDefs or [] if s.subgraphIndex == 0), None)
    if found is None or not _are_names([found.signatureKey]):
        return None, False
    told = all(
        sorted(entry.tensorIndex for entry in entries or []) == sorted(indices)
        and _are_names([entry.name for entry in entries])
        for entries, indices in ((found.inputs, graph.inputs), (found.outputs, graph.outputs))
    )
    return flatbuffer.text(found.signatureKey), told


def _are_names(texts: list[bytes | None]) -> bool:
    """Tell whether texts are given, differ, and reach the runtime as they are: Java passes others
    than ASCII in a UTF-8 of its own.
    """
    return len(set(texts)) == len(texts) and all(
        text and text.isascii() and b"\0" not in text for text in texts
    )


_PROBABILITIES = ("SOFTMAX", "LOGISTIC")
_LARGEST_FILE = 16 << 20


@dataclasses.dataclass(frozen=True)
class Classes:
    """The names of an output's classes; `logits` if they must still go through a softmax."""

    labels: tuple[str, ...]
    output: int
    logits: bool


def read_labels(source: str | os.PathLike[str] | Sequence[str]) -> tuple[str, ...]:
    """Read the names of classes."""
    if isinstance(source, (str, os.PathLike)):
        labels, where = _lines_of(Path(source)), f"'{os.fspath(source)}'"
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


def _lines_of(path: Path) -> list[str]:
    try:
        if not path.is_file():
            raise ValueError(
                f"no file at '{path}'; expected a text file with one label a line. Check the path."
            )
        if path.stat().st_size > _LARGEST_FILE:
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
    maker = maker_of(model, model.subgraphs[0].outputs[number])
    logits = maker is None or flatbuffer.op_name(model, maker) not in _PROBABILITIES
    return Classes(tuple(labels), number, logits)


def _is_row(output: Tensor) -> bool:
    return output.is_real and bool(output.shape) and output.shape[-1] == output.size
