"""Fourier transforms and scans, for which LiteRT has no operator, as products and slices."""

from __future__ import annotations

import math
from collections.abc import Callable

import keras
import numpy as np
from keras import ops, tree

from tfcompress.quantization import spectra


def opener_of(operation, spectral: bool = True) -> Callable | None:
    """The function that opens an operation that no file can hold; None if it is another.

    Args:
        spectral: whether files cannot hold spectra of real numbers, either.
    """
    if not spectral and spectra.has_operator(operation):
        return None
    if isinstance(operation, keras.Layer):
        return spectra.opener_of(operation)
    return _OPENERS.get(type(operation).__name__) or spectra.opener_of(operation)


def _fft(operation, x):
    real, imaginary = x
    if not _is_short(real.shape[-1:]):
        return operation(x)
    return _transformed(real, _or_none(imaginary))


def _fft2(operation, x):
    real, imaginary = x
    if not _is_short(real.shape[-2:]):
        return operation(x)
    order = [*range(len(real.shape) - 2), len(real.shape) - 1, len(real.shape) - 2]
    parts = _transformed(real, _or_none(imaginary))
    parts = _transformed(*(ops.transpose(part, order) for part in parts))
    return tuple(ops.transpose(part, order) for part in parts)


def _ifft2(operation, x):
    """Of the conjugate, conjugated and divided by the number of values."""
    real, imaginary = x
    if not _is_short(real.shape[-2:]):
        return operation(x)
    imaginary = _or_none(imaginary)
    other = ops.zeros_like(real) if imaginary is None else ops.multiply(imaginary, -1.0)
    factor = 1.0 / math.prod(real.shape[-2:])
    found = _fft2(operation, (real, other))
    return ops.multiply(found[0], factor), ops.multiply(found[1], -factor)


def _is_short(sizes) -> bool:
    return all(size is not None and size <= spectra.LONGEST for size in sizes)


def _or_none(imaginary):
    """None for an imaginary part of zeros."""
    if isinstance(imaginary, keras.KerasTensor):
        maker = imaginary._keras_history.operation
        return None if type(maker).__name__ == "ZerosLike" else imaginary
    return imaginary if np.any(imaginary) else None


def _transformed(real, imaginary):
    """The Fourier transform along the last axis, in parts; None for an imaginary part of zeros."""
    size = real.shape[-1]
    angles = 2 * np.pi * (np.outer(np.arange(size), np.arange(size)) % size) / size
    cosines, sines = (np.asarray(f(angles), "float32") for f in (np.cos, np.sin))
    of_real = ops.matmul(real, cosines), ops.matmul(real, -sines)
    if imaginary is None:
        return of_real
    of_other = ops.matmul(imaginary, sines), ops.matmul(imaginary, cosines)
    return tuple(ops.add(a, b) for a, b in zip(of_real, of_other, strict=True))


def _associative_scan(operation, f, elems):
    """Blelloch's scan: half of the elements, twice as far apart, and then those between."""
    axis, flat = operation.axis, tree.flatten(elems)
    axis %= len(flat[0].shape)
    if flat[0].shape[axis] is None:
        return operation(f, elems)

    def combined(a: list, b: list) -> list:
        return tree.flatten(f(tree.pack_sequence_as(elems, a), tree.pack_sequence_as(elems, b)))

    def cut(parts: list, start: int | None, stop: int | None, step: int | None = None) -> list:
        return [_cut(x, axis, start, stop, step) for x in parts]

    def scanned(parts: list) -> list:
        count = parts[0].shape[axis]
        if count < 2:
            return parts
        odd = scanned(combined(cut(parts, 0, count - 1, 2), cut(parts, 1, None, 2)))
        even, rest = cut(parts, 0, 1), cut(parts, 2, None, 2)
        if count > 2:
            before = odd if count % 2 else cut(odd, 0, -1)
            later = combined(before, rest)
            even = [ops.concatenate(pair, axis=axis) for pair in zip(even, later, strict=True)]
        return [_interleaved(a, b, axis) for a, b in zip(even, odd, strict=True)]

    flat = [ops.flip(x, axis) for x in flat] if operation.reverse else flat
    found = scanned(flat)
    found = [ops.flip(x, axis) for x in found] if operation.reverse else found
    return tree.pack_sequence_as(elems, found)


def _interleaved(a, b, axis: int):
    """The elements of two tensors in turn; the first may have one more."""
    count = b.shape[axis]
    head = _cut(a, axis, 0, count) if a.shape[axis] > count else a
    shape = (-1, *a.shape[1:axis], 2 * count, *a.shape[axis + 1 :])
    shape = shape if axis else (2 * count, *a.shape[1:])
    mixed = ops.reshape(ops.stack([head, b], axis=axis + 1), shape)
    if head is a:
        return mixed
    return ops.concatenate([mixed, _cut(a, axis, count, None)], axis=axis)


def _cut(x, axis: int, start: int | None, stop: int | None, step: int | None = None):
    key = [slice(None)] * axis + [slice(start, stop, step)]
    return x[tuple(key)]


_OPENERS: dict[str, Callable] = {
    "FFT": _fft,
    "FFT2": _fft2,
    "IFFT2": _ifft2,
    "AssociativeScan": _associative_scan,
}
