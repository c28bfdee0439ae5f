"""Which rows and columns of a matrix go together, so that most of it lies in diagonal blocks."""

from __future__ import annotations

import numpy as np

_ITERATIONS = 100
_ROUNDS = 20


def diagonal_blocks(energy: np.ndarray, blocks: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Orders rows and columns so that equal blocks along the diagonal hold much of a matrix.

    Rows and columns start in the order of the second singular vectors of the normalized matrix
    (Dhillon 2001, spectral co-clustering), and change blocks as long as that gains something. The
    order they have is kept if it is as good.

    Args:
        energy: (rows, columns), not negative.
        blocks: how many; divides both sizes.

    Returns:
        (order of the rows, order of the columns, share of the energy in the blocks).

    Example:
        >>> rows, columns, share = diagonal_blocks(np.array([[0.0, 2.0], [3.0, 0.0]]), 2)
        >>> np.array_equal(rows, columns), share
        (False, 1.0)
    """
    plain = [np.arange(size) * blocks // size for size in energy.shape]
    if blocks == 1:
        return np.arange(energy.shape[0]), np.arange(energy.shape[1]), 1.0
    found = _refined(energy, _spectral(energy, blocks), blocks)
    if _inside(energy, *found) <= _inside(energy, *plain) * (1 + 1e-9):
        found = plain
    rows, columns = (np.argsort(place, kind="stable") for place in found)
    return rows, columns, _inside(energy, *found) / max(float(energy.sum()), 1e-300)


def _inside(energy, rows, columns) -> float:
    """What lies in the blocks, given the block of each row and column."""
    return float(energy[rows[:, None] == columns].sum())


def _spectral(energy: np.ndarray, blocks: int) -> list[np.ndarray]:
    """Blocks of equal size along the second singular vectors, found by power iteration."""
    degrees = [np.maximum(energy.sum(axis), 1e-300) ** 0.5 for axis in (1, 0)]
    normalized = energy / degrees[0][:, None] / degrees[1]
    first = degrees[1] / np.linalg.norm(degrees[1])
    vector = np.random.default_rng(0).normal(size=energy.shape[1])
    for _ in range(_ITERATIONS):
        vector = vector - first * (first @ vector)
        vector = normalized.T @ (normalized @ vector)
        vector /= max(float(np.linalg.norm(vector)), 1e-300)
    scores = normalized @ vector / degrees[0], vector / degrees[1]
    ranks = [np.argsort(np.argsort(score, kind="stable")) for score in scores]
    return [rank * blocks // len(rank) for rank in ranks]


def _refined(energy: np.ndarray, places: list[np.ndarray], blocks: int) -> list[np.ndarray]:
    """Assigns rows, then columns, to blocks anew as long as more lies in the blocks."""
    best = _inside(energy, *places)
    for _ in range(_ROUNDS):
        rows = _assigned(energy @ np.eye(blocks)[places[1]])
        columns = _assigned(energy.T @ np.eye(blocks)[rows])
        gained = _inside(energy, rows, columns)
        if gained <= best * (1 + 1e-9):
            break
        best, places = gained, [rows, columns]
    return places


def _assigned(gains: np.ndarray) -> np.ndarray:
    """Gives each row one of equally large blocks; those that have most to lose choose first."""
    count, blocks = gains.shape
    left = np.full(blocks, count // blocks)
    ranked = np.sort(gains, axis=1)
    places = np.empty(count, int)
    for row in np.argsort(ranked[:, -2] - ranked[:, -1], kind="stable"):
        place = int(np.argmax(np.where(left > 0, gains[row], -1.0)))
        places[row], left[place] = place, left[place] - 1
    return places
