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
        """The pattern that a text names.

        Raises:
            ValueError: if it names none.

        Example:
            >>> Pattern.parse("2:4").sparsity
            0.5
        """
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
    """True at the `count` smallest scores, exactly; of equal ones at the last.

    Args:
        scores: 1-D float array.
        count: 0 to the number of scores.

    Returns:
        A bool array. The scores are partitioned, not sorted.

    Example:
        >>> smallest(np.array([3.0, 1.0, 2.0, 1.0]), 1)
        array([False, False, False,  True])
    """
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
    """How many of `size` are pruned: as TFMOT counts, at least one is kept.

    Example:
        >>> pruned_count(100, 0.5), pruned_count(100, 0.9999)
        (50, 99)
    """
    return size - max(1, round(size * (1 - sparsity))) if size else 0


def keep_n_of_m(scores: np.ndarray, n: int, m: int, axis: int) -> np.ndarray:
    """True at the n largest of every m scores along an axis.

    Args:
        scores: float array.
        n, m: how many are kept of how many.
        axis: the axis. If m does not divide it the last group is smaller, and at most n of it are
            kept (as if it were filled up with zeros).

    Returns:
        A bool array of the shape of `scores`.

    Example:
        >>> keep_n_of_m(np.array([0.49, 0.66, 0.42]), 1, 2, 0)
        array([False,  True,  True])
    """
    moved = np.moveaxis(scores, axis, -1)
    length = moved.shape[-1]
    groups = -(-length // m)
    filled = np.full((*moved.shape[:-1], groups * m), -np.inf, scores.dtype)
    filled[..., :length] = moved
    filled = filled.reshape(*moved.shape[:-1], groups, m)
    order = np.argsort(-filled, axis=-1, kind="stable")
    keep = np.zeros(filled.shape, bool)
    np.put_along_axis(keep, order[..., :n], True, axis=-1)
    keep = keep.reshape(*moved.shape[:-1], groups * m)[..., :length]
    return np.moveaxis(keep, -1, axis)


@dataclasses.dataclass(frozen=True)
class Groups:
    """Weights that are pruned together: `number[i]` tells the group of weight i.

    Attributes:
        shape: of the weight.
        number: int array of the shape of the weight, or None where each weight is its own group.
        sizes: weights of each group, or None where each has one.
    """

    shape: tuple[int, ...]
    number: np.ndarray | None
    sizes: np.ndarray | None

    @property
    def count(self) -> int:
        """How many groups there are."""
        return math.prod(self.shape) if self.sizes is None else len(self.sizes)

    def reduce(self, scores: np.ndarray, largest: bool = False) -> np.ndarray:
        """The score of each group: the mean of its weights' scores, or the largest of them."""
        if self.number is None or self.sizes is None:
            return scores.ravel()
        if largest:
            found = np.full(len(self.sizes), -np.inf, scores.dtype)
            np.maximum.at(found, self.number.ravel(), scores.ravel())
            return found
        totals = np.bincount(self.number.ravel(), scores.ravel(), len(self.sizes))
        return totals / self.sizes

    def mask(self, pruned: np.ndarray) -> np.ndarray:
        """The mask of the weight, from a bool array that tells which groups are pruned."""
        kept = ~pruned
        return kept.reshape(self.shape) if self.number is None else kept[self.number]


def group(
    shape: tuple[int, ...],
    pattern: Pattern,
    inputs: tuple[int, ...] = (),
    outputs: tuple[int, ...] = (),
) -> Groups:
    """The groups of a weight under a pattern.

    Args:
        shape: of the weight.
        pattern: what is pruned together. Blocks lie in the matrix of the weight, whose rows are
            positions and inputs and whose columns are outputs; at its edge they are cut off.
        inputs, outputs: axes of the weight that count its input and its output channels.

    Returns:
        `Groups`.

    Raises:
        ValueError: if the weight has no such axes.
    """
    if pattern.kind in ("unstructured", "n:m"):
        return Groups(shape, None, None)
    axes = inputs if pattern.kind == "channels" else outputs
    if not axes:
        raise ValueError(
            f"pattern {pattern.kind!r} needs a weight with input and output channels; received "
            f"one of shape {shape} without. Leave its layer out with Rule('name', [])."
        )
    indices = np.indices(shape, sparse=True)
    if pattern.kind == "block":
        rest = [axis for axis in range(len(shape)) if axis not in outputs]
        row, column = _ravel(indices, shape, rest), _ravel(indices, shape, list(outputs))
        columns = -(-math.prod(shape[axis] for axis in outputs) // pattern.m)
        number = row // pattern.n * columns + column // pattern.m
    else:
        number = _ravel(indices, shape, list(axes))
    number = np.broadcast_to(number, shape)
    return Groups(shape, number, np.bincount(number.ravel()))


def _ravel(indices, shape: tuple[int, ...], axes: list[int]):
    """The index of each element within the given axes, counted row by row."""
    number = np.zeros((1,) * len(shape), np.int64)
    for axis in axes:
        number = number * shape[axis] + indices[axis]
    return number
