"""How an image input of a .tflite file takes pixels, as far as the file tells."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfcompress.files.pixels import (
    Normalization,
    named,
    scaling_before,
    scaling_of_range,
)
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.metadata import Metadata
from tfcompress.tflite.run import INTEGERS, port

_PASSED_ON = ("RESHAPE", "PAD", "TRANSPOSE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "CAST")
_WIDENING = ("DEQUANTIZE", "DENSIFY")


def normalization_of(model: Any, metadata: Metadata | None, number: int) -> Normalization | None:
    """What a file tells of the pixels that an input takes: in its metadata, by the range that it is
    quantized for, or by the preprocessing behind it.
    """
    index = model.subgraphs[0].inputs[number]
    told = metadata.inputs[number] if metadata and number < len(metadata.inputs) else None
    channels = int(model.subgraphs[0].tensors[index].shape[-1])
    if told is not None and len(told.mean) in (1, channels) and len(told.mean) == len(told.std):
        source = "Mean and std are those of the file's metadata."
        return Normalization(tuple(told.mean), tuple(told.std), source)
    return _of_grid(model, index, 1.0, 0.0) or _behind(model, index)


def _of_grid(model: Any, index: int, factor: Any, offset: Any) -> Normalization | None:
    """By the range of a quantized tensor that is the input times factor, plus offset."""
    tensor = port(model, index)
    if tensor.scale is None:
        return None
    limits = np.iinfo(tensor.dtype)
    codes = np.array([limits.min, limits.max], np.float64) - tensor.zero_point
    scale, shift = float(np.mean(factor)), float(np.mean(offset))
    low, high = sorted((codes * tensor.scale - shift) / scale)
    found = scaling_of_range(low, high, signed=tensor.dtype != "int16")
    if found is None:
        return None
    source = f"The file is quantized for numbers from {low:.4g} to {high:.4g} there."
    return named(found, source)


def _behind(model: Any, index: int) -> Normalization | None:
    """By the arithmetic of constants behind an input."""
    graph = model.subgraphs[0]
    factor, offset = np.ones(1), np.zeros(1)
    known = False
    for _ in graph.operators:
        readers = [op for op in graph.operators if index in op.inputs]
        if len(readers) != 1 or index in graph.outputs:
            break
        (op,) = readers
        name = flatbuffer.op_name(model, op)
        index = op.outputs[0]
        if name == "QUANTIZE" and np.all(factor):
            return _of_grid(model, index, factor, offset)
        if name in _PASSED_ON and port(model, index).dtype not in INTEGERS:
            continue
        step = _affine(model, op, name)
        if step is None or not all(np.isfinite(part).all() for part in step):
            break
        factor, offset = factor * step[0], offset * step[0] + step[1]
        known = True
    found = scaling_before(factor, offset) if known else None
    return named(found, "The file has the preprocessing of its pixels inside.") if found else None


def _affine(model: Any, op: Any, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The factor and offset of an operator that is arithmetic of a tensor and a constant."""
    if name not in ("ADD", "SUB", "MUL", "DIV"):
        return None
    first, second = (_constant(model, i) for i in op.inputs)
    constant = second if first is None else first
    if constant is None or (first is not None and name == "DIV"):
        return None
    sign = 1.0 if name == "ADD" else -1.0
    if name == "MUL":
        return constant, np.zeros(1)
    if name == "DIV":
        return 1 / np.where(constant == 0, np.nan, constant), np.zeros(1)
    if first is not None and name == "SUB":
        return -np.ones(1), constant
    return np.ones(1), sign * constant


def _constant(model: Any, index: int) -> np.ndarray | None:
    """The values of a constant of one number or one a channel, also of one that is widened."""
    graph = model.subgraphs[0]
    makers = [op for op in graph.operators if index in op.outputs]
    if makers and flatbuffer.op_name(model, makers[0]) in _WIDENING:
        index = makers[0].inputs[0]
    tensor = graph.tensors[index]
    values = flatbuffer.tensor_values(model, tensor)
    if values is None or values.size not in (1, *values.shape[-1:]):
        return None
    return values.astype(np.float64).ravel()
