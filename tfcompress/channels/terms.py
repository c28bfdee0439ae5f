"""Which axes of the tensors and weights of a model count the same channels.

An axis is a term: a `Leaf` (channels that are chosen together), a `Concat` of axes one after the
other, or a `Product` of axes flattened into one, the last running fastest. Axes that must count
the same channels, as those of the inputs of an Add, are unified; see `following.Channels`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import numpy as np


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Channels that are chosen together.

    Attributes:
        group: number of the choice.
        size: how many they are.
    """

    group: int
    size: int


@dataclasses.dataclass(frozen=True)
class Concat:
    """Axes one after the other."""

    parts: tuple[Axis, ...]


@dataclasses.dataclass(frozen=True)
class Product:
    """Axes flattened into one, the last running fastest."""

    parts: tuple[Axis, ...]


Axis: TypeAlias = Leaf | Concat | Product


def size_of(axis: Axis) -> int:
    """How many channels an axis counts."""
    if isinstance(axis, Leaf):
        return axis.size
    sizes = [size_of(part) for part in axis.parts]
    return sum(sizes) if isinstance(axis, Concat) else math.prod(sizes)


def size_under(axis: Axis, sizes: Mapping[int, int]) -> int:
    """How many channels an axis counts once groups have other sizes."""
    if isinstance(axis, Leaf):
        return sizes.get(axis.group, axis.size)
    parts = [size_under(part, sizes) for part in axis.parts]
    return sum(parts) if isinstance(axis, Concat) else math.prod(parts)


def places(axis: Axis) -> dict[int, np.ndarray]:
    """Where the channels of each group are along an axis.

    Returns {group: array of shape (channels, places of each)}.
    """
    if isinstance(axis, Leaf):
        return {axis.group: np.arange(axis.size)[:, None]}
    found: dict[int, list[np.ndarray]] = {}
    sizes = [size_of(part) for part in axis.parts]
    for i, part in enumerate(axis.parts):
        for group, inner in places(part).items():
            if isinstance(axis, Concat):
                outer = inner + sum(sizes[:i])
            else:
                before, after = (math.prod(side) for side in (sizes[:i], sizes[i + 1 :]))
                grid = np.arange(before)[:, None, None] * sizes[i] + inner[:, None, :, None]
                outer = (grid * after + np.arange(after)).reshape(len(inner), -1)
            found.setdefault(group, []).append(outer)
    return {group: np.concatenate(each, axis=1) for group, each in found.items()}


def leaves_of(axis: Axis) -> list[Leaf]:
    """The groups of an axis, as often as they occur."""
    if isinstance(axis, Leaf):
        return [axis]
    return [leaf for part in axis.parts for leaf in leaves_of(part)]


def links(student: Axis, teacher: Axis) -> list[tuple[Leaf, int]] | None:
    """From how many channels of the teacher each group of the student chooses.

    Returns (group of the student, channels of the teacher) pairs, or None if they are arranged
    differently.
    """
    if isinstance(student, Leaf):
        return [(student, size_of(teacher))]
    if _alike(student, teacher):
        found: list[tuple[Leaf, int]] = []
        for ours, theirs in zip(student.parts, parts_of(teacher), strict=True):
            inner = links(ours, theirs)
            if inner is None:
                return None
            found += inner
        return found
    if size_of(student) == size_of(teacher):
        return [(leaf, leaf.size) for leaf in leaves_of(student)]
    return None


def indices(student: Axis, teacher: Axis, choice: Mapping[int, np.ndarray]) -> np.ndarray:
    """Which channels of the teacher's axis the student's axis takes, in order."""
    if isinstance(student, Leaf):
        return choice[student.group]
    if not _alike(student, teacher):
        return np.arange(size_of(student))
    parts, sizes = [], [size_of(part) for part in parts_of(teacher)]
    for ours, theirs in zip(student.parts, parts_of(teacher), strict=True):
        parts.append(indices(ours, theirs, choice))
    if isinstance(student, Concat):
        starts = np.cumsum([0, *sizes[:-1]])
        return np.concatenate([p + start for p, start in zip(parts, starts, strict=True)])
    whole = parts[0]
    for part, size in zip(parts[1:], sizes[1:], strict=True):
        whole = (whole[:, None] * size + part).ravel()
    return whole


def shares(student: Axis, teacher: Axis, values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """What a value for each channel of the teacher's axis says of the groups of the student.

    Returns (group of the student, one number for each channel that it chooses from) pairs.
    """
    if isinstance(student, Leaf):
        yield student.group, values
    elif _alike(student, teacher):
        sizes = [size_of(part) for part in parts_of(teacher)]
        if isinstance(student, Concat):
            pieces = np.split(values, np.cumsum(sizes)[:-1])
        else:
            grid, places = values.reshape(sizes), range(len(sizes))
            pieces = [grid.sum(axis=tuple(k for k in places if k != i)) for i in places]
        for ours, theirs, mine in zip(student.parts, parts_of(teacher), pieces, strict=True):
            yield from shares(ours, theirs, mine)


def _alike(a: Concat | Product, b: Axis) -> bool:
    return type(a) is type(b) and len(a.parts) == len(parts_of(b))


def parts_of(axis: Axis) -> tuple[Axis, ...]:
    """What an axis is composed of; nothing if it is of one group."""
    return () if isinstance(axis, Leaf) else axis.parts
