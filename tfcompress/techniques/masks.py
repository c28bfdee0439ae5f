"""Which weights to prune: pure functions on NumPy arrays.

A mask is True where a weight is kept. Counts are exact: where scores are equal, the weights that
come first are kept.
"""

import dataclasses
import math
import re
from typing import Literal

import numpy as np

Kind = Literal["unstructured", "n:m", "block", "filters", "channels"]


@dataclasses.dataclass(frozen=True)
class Pattern:
    """The shape of what is pruned together.

    Attributes:
        kind: "unstructured", "n:m", "block", "filters" or "channels".
        n, m: of "n:m", kept and all; of "block", rows (inputs) and columns (outputs).
    """

    kind: Kind
    n: int = 1
    m: int = 1

    @property
    def sparsity(self) -> float | None:
        """The sparsity that the pattern itself gives; None where it is free."""
        return 1 - self.n / self.m if self.kind == "n:m" else None

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """The pattern that a text names."""
        if text in ("unstructured", "filters", "channels"):
            return cls(text)  # type: ignore[arg-type]
        match = re.fullmatch(r"(\d{1,4})([:x])(\d{1,4})", text) if isinstance(text, str) else None
        if match is None or not int(match[1]) or not int(match[3]):
            raise ValueError(
                "pattern must be 'unstructured', 'n:m' such as '2:4', a block such as '1x4', "
                f"'filters' or 'channels'; received {text!r}."
            )
        n, m = int(match[1]), int(match[3])
        if match[2] == "x":
            return cls("block", n, m)
        if n >= m:
            raise ValueError(
                f"pattern 'n:m' keeps n of every m weights, with n less than m; received {text!r}. "
                "'2:4' keeps half of them."
            )
        return cls("n:m", n, m)


def smallest(scores: np.ndarray, count: int) -> np.ndarray:
    """True at the `count` smallest scores, exactly; of equal ones at the last."""
    if count <= 0:
        return np.zeros(scores.shape, bool)
    if count >= scores.size:
        return np.ones(scores.shape, bool)
    limit = np.partition(scores, count - 1)[count - 1]
    found = scores < limit
    missing = count - int(np.count_nonzero(found))
    equal = np.flatnonzero(scores == limit)
    found[equal[equal.size - missing :]] = True
    return found


def pruned_count(size: int, sparsity: float) -> int:
    """How many of `size` are pruned: as TFMOT counts, at least one is kept."""
    return size - max(1, round(size * (1 - sparsity))) if size else 0


def keep_n_of_m(scores: np.ndarray, n: int, m: int, axis: int) -> np.ndarray:
    """True at the n largest of every m scores along an axis.

    Returns a bool array of the shape of `scores`.
    """
    moved = np.moveaxis(scores, axis, -1)
    length = moved.shape[-1]
    groups = -(-length // m)
    filled = np.full((*moved.shape[:-1], groups * m), -np.inf, scores.dtype)
    filled[..., :length] = moved
    filled = filled.reshape(*moved.shape[:-1], groups, m)
    keep = _largest(filled, n).reshape(*moved.shape[:-1], groups * m)[..., :length]
    return np.moveaxis(keep, -1, axis)


def _largest(groups: np.ndarray, n: int) -> np.ndarray:
    """True at the n largest of the last axis; of equal ones at the first."""
    m = groups.shape[-1]
    if m > 16:
        order = np.argsort(-groups, axis=-1, kind="stable")
        keep = np.zeros(groups.shape, bool)
        np.put_along_axis(keep, order[..., :n], True, axis=-1)
        return keep
    # Comparing each with each is many times as fast as sorting so few.
    columns = [np.ascontiguousarray(groups[..., i]) for i in range(m)]
    ranks = [np.zeros(groups.shape[:-1], np.uint8) for _ in range(m)]
    for i in range(m):
        for j in range(i + 1, m):
            later = columns[j] > columns[i]
            ranks[i] += later
            ranks[j] += ~later
    return np.stack([rank < n for rank in ranks], axis=-1)


@dataclasses.dataclass(frozen=True)
class Groups:
    """Weights that are pruned together: blocks of the matrix that a weight is seen as.

    Attributes:
        shape: of the weight.
        columns: axes of the weight that are the columns of the matrix; the others are its rows.
        block: rows and columns of a block; None where each weight is its own group.
    """

    shape: tuple[int, ...]
    columns: tuple[int, ...] = ()
    block: tuple[int, int] | None = None

    @property
    def _matrix(self) -> tuple[int, int]:
        columns = math.prod(self.shape[axis] for axis in self.columns)
        return math.prod(self.shape) // max(columns, 1), columns

    @property
    def _blocks(self) -> tuple[int, int]:
        assert self.block is not None
        rows, columns = (-(-n // b) for n, b in zip(self._matrix, self.block, strict=True))
        return rows, columns

    @property
    def count(self) -> int:
        """How many groups there are."""
        return math.prod(self.shape if self.block is None else self._blocks)

    @property
    def sizes(self) -> np.ndarray | None:
        """Weights of each group; None where each has one."""
        if self.block is None:
            return None
        ends = []
        for length, size in zip(self._matrix, self.block, strict=True):
            starts = np.arange(0, length, size)
            ends.append(np.minimum(starts + size, length) - starts)
        return np.outer(*ends).ravel()

    def reduce(self, scores: np.ndarray, largest: bool = False) -> np.ndarray:
        """The score of each group: the mean of its weights' scores, or the largest of them."""
        if self.block is None or self.sizes is None:
            return scores.ravel()
        (rows, columns), (n, m) = self._blocks, self.block
        last = tuple(range(-len(self.columns), 0))
        matrix = np.moveaxis(scores, self.columns, last).reshape(self._matrix)
        height, width = self._matrix
        missing = [(0, rows * n - height), (0, columns * m - width)]
        if any(after for _, after in missing):
            matrix = np.pad(matrix, missing, constant_values=-np.inf if largest else 0)
        blocks = matrix.reshape(rows, n, columns, m)
        if largest:
            return blocks.max(axis=(1, 3)).ravel()
        return blocks.sum(axis=(1, 3), dtype=np.float64).ravel() / self.sizes

    def expand(self, values: np.ndarray) -> np.ndarray:
        """An array of the weight's shape from one value for each group."""
        if self.block is None:
            return values.reshape(self.shape)
        rows, columns = self._matrix
        blocks = values.reshape(self._blocks)
        matrix = blocks.repeat(self.block[0], 0)[:rows].repeat(self.block[1], 1)[:, :columns]
        last = tuple(range(-len(self.columns), 0))
        others = [n for axis, n in enumerate(self.shape) if axis not in self._positive]
        moved = matrix.reshape(*others, *(self.shape[axis] for axis in self.columns))
        return np.moveaxis(moved, last, self.columns)

    @property
    def _positive(self) -> tuple[int, ...]:
        return tuple(axis % len(self.shape) for axis in self.columns)

    def mask(self, pruned: np.ndarray) -> np.ndarray:
        """The mask of the weight, from a bool array that tells which groups are pruned."""
        return self.expand(~pruned)


def pool(
    every: list[Groups], importance: list[np.ndarray], count: int, density: float = 0.0
) -> list[np.ndarray]:
    """The masks of several weights whose least important groups are pruned, wherever they are.

    Each keeps that fraction of its weights at least, and at least one group.
    """
    grouped = any(groups.sizes is not None for groups in every)
    scores = [s.astype(np.float64 if grouped else s.dtype) for s in importance]
    for groups, each in zip(every, scores, strict=True):
        order = np.argsort(-each, kind="stable")
        weights = np.ones(groups.count, int) if groups.sizes is None else groups.sizes[order]
        # As many of the most important as do not exceed it.
        kept = int(np.count_nonzero(np.cumsum(weights) <= density * weights.sum()))
        each[order[: max(1, kept)]] = np.inf
    pooled = np.concatenate(scores)
    if grouped:
        sizes = [np.ones(g.count, int) if g.sizes is None else g.sizes for g in every]
        order = np.argsort(pooled, kind="stable")
        fits = np.cumsum(np.concatenate(sizes)[order]) <= count
        pruned = np.zeros(pooled.shape, bool)
        pruned[order[fits & (pooled[order] < np.inf)]] = True
    else:
        pruned = smallest(pooled, min(count, int(np.count_nonzero(pooled < np.inf))))
    parts = np.split(pruned, np.cumsum([groups.count for groups in every])[:-1])
    return [groups.mask(part) for groups, part in zip(every, parts, strict=True)]


def regrown(
    sizes: np.ndarray, gradients: np.ndarray, kept: np.ndarray, survivors: int
) -> np.ndarray:
    """The order in which weights stay, where pruned ones with large gradients come back (RigL).

    Args:
        sizes, gradients: of all weights, or groups; float arrays (n,), 0 or more.
        kept: which are not pruned now, bool (n,).
        survivors: how many of them stay, the largest; the others give way to pruned ones.

    Returns scores, float (n,): of survivors above 1, of what comes back in (0, 1].
    """
    largest = np.argsort(np.where(kept, -sizes, np.inf), kind="stable")
    largest = largest[: min(survivors, int(np.count_nonzero(kept)))]
    most = float(np.max(gradients, where=~kept, initial=0.0))
    # A weight that must go before those without a gradient would go for nothing.
    found = np.where(kept, 0.0, np.where(gradients > 0, gradients / (most or 1.0), -1.0))
    found[largest] = 1.0 + sizes[largest]
    return found


def group(
    shape: tuple[int, ...],
    pattern: Pattern,
    inputs: tuple[int, ...] = (),
    outputs: tuple[int, ...] = (),
) -> Groups:
    """The groups of a weight under a pattern."""
    if pattern.kind in ("unstructured", "n:m"):
        return Groups(shape)
    axes = inputs if pattern.kind == "channels" else outputs
    if not axes:
        raise ValueError(
            f"pattern {pattern.kind!r} needs a weight with input and output channels; received "
            f"one of shape {shape} without. Leave its layer out with Rule('name', [])."
        )
    if pattern.kind == "block":
        return Groups(shape, axes, (pattern.n, pattern.m))
    rows = math.prod(n for axis, n in enumerate(shape) if axis not in axes)
    return Groups(shape, axes, (max(rows, 1), 1))
