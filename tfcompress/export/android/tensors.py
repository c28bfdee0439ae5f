"""Inputs and outputs of a file as the Kotlin of an app needs them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from tfcompress.export.android.naming import identifiers
from tfcompress.tflite import flatbuffer
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
    """An input or output: `name` in the file, `identifier` in Kotlin, scale 0 if not quantized."""

    name: str
    identifier: str
    shape: tuple[int, ...]
    dtype: str
    scale: float
    zero_point: int

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
    def runner(self) -> str:
        """The API of LiteRT that runs it."""
        return "CompiledModel" if self.compiled else "Interpreter"


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
