"""Tensors of three axes as sums of outer products of vectors (CP)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg

from tfcompress.surgery.factors.decompositions import balanced, energies

# Alternating least squares end once a step takes less than this share of the error away.
_TOLERANCE = 1e-3
_LEAST_STEPS, _MOST_STEPS = 4, 50
# Multiplications that take some seconds.
_WORK = 1e11
# Numbers of a tensor from which on products are computed in float32, in half of the time.
_LARGE = 2**16
# How much the size of the factors counts, relative to that of the tensor.
_RIDGE = 1e-9


def cp(tensor: np.ndarray, rank: int, work: float = _WORK) -> list[np.ndarray]:
    """A tensor of three axes as a sum of `rank` outer products of vectors (CP, Lebedev et al.
    2015, arXiv:1412.6553), found by accelerated alternating least squares.

    These start from the singular vectors of the slices of the tensor along its smallest axis, of
    which those with the largest values are taken. All of them, `cp_full_rank`, are exact. They go
    on from where the last two steps point to (Mitchell et al. 2020, arXiv:1810.05846).

    Args:
        tensor: (a, b, c).
        rank: how many products.
        work: about how many multiplications may be spent, which ends the search of large factors.

    Returns:
        [(a, rank), (b, rank), (c, rank)], float64.
    """
    tensor = np.asarray(tensor, "float64")
    axis = int(np.argmin(tensor.shape))
    slices = np.moveaxis(tensor, axis, 0)
    found = _of_slices(slices, rank)
    if rank < cp_full_rank(tensor.shape) and tensor.any():
        found = _alternated(slices, found, work)
    first, *others = balanced(found)
    others.insert(axis, first)
    return others


def cp_full_rank(shape: Sequence[int]) -> int:
    """A CP rank that every tensor of three axes can be written with exactly."""
    return int(np.prod(sorted(shape)[:2]))


def cp_error(tensor: np.ndarray, factors: Sequence[np.ndarray]) -> float:
    """The share of a tensor's energy that its CP factors leave."""
    first, b, c = factors
    slices = zip(tensor, first, strict=True)  # one by one, to hold no products of all columns
    left = sum(np.sum(np.square(part - (weights * b) @ c.T)) for part, weights in slices)
    return float(left / max(np.sum(np.square(tensor)), 1e-300))


def slice_energies(tensor: np.ndarray) -> np.ndarray:
    """The squared singular values of the slices along the smallest axis, largest first.

    `cp` leaves at most the sum of all but the first of them, as many as its rank.
    """
    slices = np.moveaxis(tensor, int(np.argmin(tensor.shape)), 0)
    found = np.concatenate([energies(each) for each in slices])
    return np.sort(found)[::-1]


def _of_slices(slices: np.ndarray, rank: int) -> list[np.ndarray]:
    """The CP factors made of the largest singular values of the slices along the first axis.

    The columns of all but the last are of norm 1, as those of `_step`.
    """
    left, values, right = np.linalg.svd(slices, full_matrices=False)
    # Of many equal components, such as zeros, the first ones come first.
    order = np.argsort(-values.ravel(), kind="stable")[:rank]
    place, number = np.unravel_index(order, values.shape)
    ones, rows = np.eye(len(slices))[:, place], left[place, :, number].T
    columns = right[place, number].T * values[place, number]
    extra = rank - len(order)
    return [np.pad(factor, ((0, 0), (0, extra))) for factor in (ones, rows, columns)]


def _alternated(tensor: np.ndarray, start: list[np.ndarray], work: float) -> list[np.ndarray]:
    """The best of what alternating least squares find, and of what they start from."""
    total = float(np.sum(np.square(tensor)))
    best, left = start, cp_error(tensor, start) * total
    tensor = tensor.astype("float32" if tensor.size > _LARGE else "float64")
    rounding = 10 * float(np.finfo(tensor.dtype).eps) * total
    before: list[np.ndarray] | None = None
    for _ in range(_steps(tensor.shape, start[0].shape[1], work)):
        ahead = best if before is None else [2 * b - a for a, b in zip(before, best, strict=True)]
        try:
            found, now = _step(tensor, ahead, total)
        except np.linalg.LinAlgError:  # its equations have no solution
            found, now = best, left
        if now < left - rounding:
            before, best, gained, left = best, found, 1 - now / left, now
            if gained < _TOLERANCE:
                break
        elif before is None:
            break
        else:  # too far ahead
            before = None
    return best


def _steps(shape: Sequence[int], rank: int, work: float) -> int:
    """How many steps are not too much work."""
    one = rank * (2 * np.prod(shape) + rank * (rank + 2 * sum(shape)))
    return int(np.clip(work / one, _LEAST_STEPS, _MOST_STEPS))


def _step(
    tensor: np.ndarray, factors: list[np.ndarray], total: float
) -> tuple[list[np.ndarray], float]:
    """Each factor once as the best one for both others, and the squared error that they leave.

    Args:
        tensor: (places, rows, columns).
        factors: of it; the first one is not looked at.
        total: the sum of squares of the tensor.
    """
    _, b, c = (factor.astype(tensor.dtype) for factor in factors)
    seen, of_c = tensor @ c, _gram(c)  # (places, rows, rank)
    a = _unit(_solved(_gram(b) * of_c, np.einsum("pir,ir->pr", seen, b)))
    of_a = _gram(a)
    b = _unit(_solved(of_a * of_c, np.einsum("pir,pr->ir", seen, a)))
    del seen
    inner, narrow = np.zeros((tensor.shape[2], b.shape[1])), b.astype(tensor.dtype)
    for place, weights in zip(tensor, a, strict=True):
        inner += (place.T @ narrow) * weights
    products = of_a * _gram(b)
    c = _solved(products, inner)
    left = total + float(np.sum(products * _gram(c)) - 2 * np.sum(inner * c))
    return [a, b, c], max(left, 0.0)


def _solved(products: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The factor x that solves x @ products = inner, products of vectors with each other."""
    ridge = _RIDGE * np.trace(products) / len(products)
    factor = scipy.linalg.cho_factor(products + ridge * np.eye(len(products)), lower=True)
    return scipy.linalg.cho_solve(factor, inner.T.astype("float64"), overwrite_b=True).T


def _gram(factor: np.ndarray) -> np.ndarray:
    factor = factor.astype("float64")
    return factor.T @ factor


def _unit(factor: np.ndarray) -> np.ndarray:
    return factor / np.maximum(np.linalg.norm(factor, axis=0), 1e-300)
