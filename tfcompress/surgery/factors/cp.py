"""Tensors of three axes as sums of outer products of vectors (CP)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfcompress.surgery.factors.decompositions import balanced

_STEPS, _TOLERANCE = 50, 1e-6
# Numbers of a tensor from which on alternating least squares runs in float32, thrice as fast.
_LARGE = 2**18
# How much the size of the factors counts, relative to that of the tensor.
_RIDGE = 1e-9


def cp(tensor: np.ndarray, rank: int) -> list[np.ndarray]:
    """A tensor of three axes as a sum of `rank` outer products of vectors (CP, Lebedev et al.
    2015, arXiv:1412.6553), found by alternating least squares.

    These start from the singular vectors of the slices of the tensor along its smallest axis, of
    which those with the largest values are taken. All of them, `cp_full_rank`, are exact.

    Args:
        tensor: (a, b, c).
        rank: how many products.

    Returns:
        [(a, rank), (b, rank), (c, rank)], float64.
    """
    tensor = np.asarray(tensor, "float64")
    start = _slices(tensor, rank)
    if rank >= cp_full_rank(tensor.shape) or not tensor.any():
        return balanced(start)
    found = _alternated(tensor, start)
    if found is None or cp_error(tensor, found) > cp_error(tensor, start):
        found = start
    return balanced(found)


def cp_full_rank(shape: Sequence[int]) -> int:
    """A CP rank that every tensor of three axes can be written with exactly."""
    return int(np.prod(sorted(shape)[:2]))


def cp_error(tensor: np.ndarray, factors: Sequence[np.ndarray]) -> float:
    """The share of a tensor's energy that its CP factors leave."""
    made = np.einsum("ar,br,cr->abc", *factors, optimize=True)
    return float(np.sum((tensor - made) ** 2) / max(np.sum(tensor**2), 1e-300))


def _slices(tensor: np.ndarray, rank: int) -> list[np.ndarray]:
    """The CP factors made of the largest singular values of slices along the smallest axis."""
    axis = int(np.argmin(tensor.shape))
    slices = np.moveaxis(tensor, axis, 0)
    left, values, right = np.linalg.svd(slices, full_matrices=False)
    # Of many equal components, such as zeros, the first ones come first.
    order = np.argsort(-values.ravel(), kind="stable")[:rank]
    place, number = np.unravel_index(order, values.shape)
    scale = np.sqrt(values[place, number])
    ones = np.eye(len(slices))[:, place]
    rows, columns = left[place, :, number].T * scale, right[place, number].T * scale
    factors = [rows, columns]
    factors.insert(axis, ones)
    extra = rank - len(order)
    return [np.pad(factor, ((0, 0), (0, extra))) for factor in factors]


def _alternated(tensor, start):
    """What alternating least squares finds; None if its equations cannot be solved."""
    import tensorly
    from tensorly.decomposition import parafac

    rank, norm = start[0].shape[1], float(np.linalg.norm(tensor))
    dtype = "float32" if tensor.size > _LARGE else "float64"
    with tensorly.backend_context("numpy", local_threadsafe=True):
        try:
            _, factors = parafac(
                tensor.astype(dtype),
                rank,
                init=(np.ones(rank, dtype), [factor.astype(dtype) for factor in start]),
                n_iter_max=_STEPS,
                tol=_TOLERANCE,
                l2_reg=_RIDGE * norm,
                linesearch=True,
                random_state=0,
            )
        except np.linalg.LinAlgError:
            return None
    return factors if all(np.isfinite(factor).all() for factor in factors) else None
