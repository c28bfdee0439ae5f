"""The scales of symmetric grids of weights."""

from __future__ import annotations

import numpy as np

from tfcompress.errors import check

WEIGHT_OBSERVERS = ("max", "mse", "octav")

# Scales that are tried, as parts of that of the greatest value.
_PARTS = np.linspace(1.0, 0.2, 41)
_STEPS = 3  # of least squares from the best of them
_ITERATIONS = 20


def levels(bits: int) -> int:
    """The greatest code of a symmetric grid."""
    return 2 ** (bits - 1) - 1


def weight_scale(
    weight: np.ndarray, reduced: tuple[int, ...], bits: int, method: str = "max"
) -> np.ndarray:
    """The step of the symmetric grid that a weight gets.

    Args:
        weight: a kernel, of any shape.
        reduced: the axes along which values share a scale.
        bits: of the codes, which go from -(2**(bits - 1) - 1) to as much.
        method: "max" takes the greatest code for the greatest value; "mse" the scale of the least
            squared error, searched; "octav" the clipping whose expected error is the least (Sakr
            et al. 2022, arXiv:2206.06501).

    Returns:
        Scales, float32, of the rank of `weight`, 1 along `reduced`; 0 where all values are 0.
    """
    check(method in WEIGHT_OBSERVERS, "method", f"one of {', '.join(WEIGHT_OBSERVERS)}", method)
    kept = [i for i in range(weight.ndim) if i not in reduced]
    shape = [n if i in kept else 1 for i, n in enumerate(weight.shape)]
    rows = np.transpose(weight, (*kept, *reduced)).astype(np.float32, copy=False)
    rows = np.ascontiguousarray(rows.reshape(-1, max(1, rows[(0,) * len(kept)].size)))
    largest = np.abs(rows).max(axis=1, initial=0.0)
    if method == "octav":
        largest = _octav(np.abs(rows), bits)
    scale = largest / np.float32(levels(bits))
    return (_least_squares(rows, scale, bits) if method == "mse" else scale).reshape(shape)


def _octav(sizes: np.ndarray, bits: int) -> np.ndarray:
    """Where rows of absolute values are best clipped, by Newton's method on the expected error."""
    noise = np.float32(4.0**-bits / 3)  # of rounding, for a step of 2 / 2**bits
    count = np.maximum(np.count_nonzero(sizes, axis=1), 1)  # a zero is not rounded
    limit = sizes.sum(axis=1) / count.astype(np.float32)
    for _ in range(_ITERATIONS):
        above = sizes > limit[:, None]
        clipped = np.count_nonzero(above, axis=1)
        found = np.sum(sizes, axis=1, where=above) / (noise * (count - clipped) + clipped)
        # Values of one size are at their own limit.
        found = np.where(clipped > 0, found, limit).astype(np.float32)
        if np.allclose(found, limit, rtol=1e-4, atol=0):
            break
        limit = found
    return limit


def _least_squares(rows: np.ndarray, largest: np.ndarray, bits: int) -> np.ndarray:
    """The scales of the least squared error of rows, from those of their greatest values."""
    best = largest
    least = _error(rows, _codes(rows, best, bits), best)
    most = levels(bits)
    # Of rows that are on a grid already the greatest value may have any code.
    known = [most / top for top in range(1, most)] if bits <= 4 else []
    for part in (*_PARTS[1:], *known):
        scale = (largest * part).astype(np.float32)
        error = _error(rows, _codes(rows, scale, bits), scale)
        best = np.where(error < least, scale, best)
        least = np.minimum(error, least)
    for _ in range(_STEPS):
        codes = _codes(rows, best, bits)
        squares = np.einsum("ij,ij->i", codes, codes)
        fitted = np.einsum("ij,ij->i", rows, codes) / np.where(squares > 0, squares, 1.0)
        scale = fitted.astype(np.float32)
        error = _error(rows, _codes(rows, scale, bits), scale)
        best = np.where(error < least, scale, best)
        least = np.minimum(error, least)
    return best


def _codes(rows: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    codes = rows / np.where(scale > 0, scale, np.float32(1.0))[:, None]
    np.rint(codes, out=codes)
    return np.clip(codes, -levels(bits), levels(bits), out=codes)


def _error(rows: np.ndarray, codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The squared error of each row. Changes `codes`."""
    codes *= scale[:, None]
    codes -= rows
    return np.einsum("ij,ij->i", codes, codes)
