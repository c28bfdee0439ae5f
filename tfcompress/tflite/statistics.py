"""What is counted in a constant of a .tflite file: zeros, unique values, entropy."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from tfcompress.tflite.flatbuffer import BITS, decode, dtype_name, tensor_bytes, tensor_values

_CHUNK = 1 << 20  # bincount widens what it is given to 64 bits


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What was counted in a constant; all but `sparsity` is None unless it is a weight."""

    sparsity: float | None = None  # fraction of zeros, or of the zero point if quantized
    unique: int | None = None  # bit patterns, as a file stores them: -0.0 is not 0.0
    unique_per_channel: int | None = None  # the most in one channel, if it has a scale of its own
    entropy_bytes: int | None = None  # elements times Shannon entropy of the patterns
    coded_bytes: int | None = None  # with the table of patterns; no more than is stored


def measure(
    model: Any, tensor: Any, zero_points: tuple[int, ...], axis: int | None, is_weight: bool
) -> Statistics:
    """Count the values of a constant."""
    if tensor.sparsity is not None:
        return _measure_sparse(model, tensor, is_weight)
    values = tensor_values(model, tensor)
    if values is None or values.size == 0:
        return Statistics()
    axis = axis if axis is not None and 0 <= axis < values.ndim else None
    zero: Any = zero_points[0] if zero_points else 0
    if axis is not None and len(zero_points) == values.shape[axis]:
        zero = np.reshape(zero_points, [-1 if d == axis else 1 for d in range(values.ndim)])
    sparsity = float(np.mean(values == zero))
    if not is_weight:
        return Statistics(sparsity)
    channels = None if axis is None else unique_per_channel(values, axis)
    return _summary(model, tensor, sparsity, pattern_counts(values), channels)


def _measure_sparse(model: Any, tensor: Any, is_weight: bool) -> Statistics:
    """Count a constant of which only some values are stored; the others are zeros."""
    elements, dtype = math.prod(tensor.shape), dtype_name(tensor)
    # More elements than a float counts can only be damage.
    if dtype not in ("float16", "float32", "int8") or not 0 < elements < 2**53:
        return Statistics()
    raw = tensor_bytes(model, tensor) or b""
    # Nothing says how many values a sparse constant stores: ignore an incomplete last one.
    whole = len(raw) * 8 // BITS[dtype] * BITS[dtype] // 8
    stored = decode(raw[:whole], dtype)[:elements]
    sparsity = 1.0 - np.count_nonzero(stored) / elements
    if not is_weight:
        return Statistics(sparsity)
    counts = pattern_counts(stored, zeros=elements - stored.size)
    return _summary(model, tensor, sparsity, counts, None)


def _summary(
    model: Any, tensor: Any, sparsity: float, counts: np.ndarray, channels: int | None
) -> Statistics:
    bits = entropy_bits(counts)
    coded = math.ceil((bits + counts.size * BITS[dtype_name(tensor)]) / 8)
    stored = len(model.buffers[tensor.buffer].data)
    return Statistics(sparsity, counts.size, channels, math.ceil(bits / 8), min(coded, stored))


def pattern_counts(values: np.ndarray, zeros: int = 0) -> np.ndarray:
    """Count how often each bit pattern occurs, in the order of the patterns as unsigned numbers."""
    patterns = _patterns(values).ravel()
    bits = 8 * patterns.itemsize
    if bits <= 16:
        counts = np.zeros(2**bits, np.int64)
        for start in range(0, patterns.size, _CHUNK):
            counts += np.bincount(patterns[start : start + _CHUNK], minlength=2**bits)
        counts[0] += zeros
        return counts[counts > 0]
    if not zeros:
        return np.unique(patterns, return_counts=True)[1]
    # One zero more puts pattern 0 first.
    counts = np.unique(np.append(patterns, patterns.dtype.type(0)), return_counts=True)[1]
    counts[0] += zeros - 1
    return counts


def _patterns(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(f"u{values.itemsize}")


def entropy_bits(counts: np.ndarray) -> float:
    """Return the bits that an ideal coder of single values needs for all of them together."""
    return float(np.sum(counts * np.log2(counts.sum() / counts)))


def unique_per_channel(values: np.ndarray, axis: int) -> int:
    """Return how many bit patterns the channel with the most of them has."""
    rows = np.moveaxis(_patterns(values), axis, 0).reshape(values.shape[axis], -1)
    # A stable sort counts bytes, which takes a tenth of the time of any other.
    rows = np.sort(rows, axis=1, kind="stable")
    return int(np.count_nonzero(rows[:, 1:] != rows[:, :-1], axis=1).max()) + 1
