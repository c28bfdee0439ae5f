"""Which axes of the tensors and weights of a model count the same channels.

An axis is a term: a `Leaf` (channels that are chosen together), a `Concat` of axes one after the
other, or a `Product` of axes flattened into one, the last running fastest. Axes that must count
the same channels, as those of the inputs of an Add, are unified.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
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


class Channels:
    """The groups of channels of one model.

    Attributes:
        sources: for each group, where its channels come from, in words.

    Example:
        >>> channels = Channels()
        >>> a, b = channels.new(2, "a"), channels.new(4, "b")
        >>> channels.unify(Concat((a, a)), b)
        True
        >>> channels.resolve(b) == Concat((a, a))
        True
    """

    def __init__(self) -> None:
        self.sources: list[str] = []
        self._bound: dict[int, Axis] = {}
        self._kept: list[tuple[Axis, str]] = []
        self._fixed: list[tuple[Axis, str]] = []

    def new(self, size: int, source: str) -> Leaf:
        """A new group of channels."""
        self.sources.append(source)
        return Leaf(len(self.sources) - 1, size)

    def resolve(self, axis: Axis) -> Axis:
        """What an axis is known to be: without groups that were unified with others."""
        if isinstance(axis, Leaf):
            return self.resolve(self._bound[axis.group]) if axis.group in self._bound else axis
        parts = [self.resolve(part) for part in axis.parts]
        return _concat(parts) if isinstance(axis, Concat) else _product(parts)

    def unify(self, a: Axis, b: Axis) -> bool:
        """Notes that two axes count the same channels.

        Returns:
            False if no choice fits both; then all channels of both are kept.
        """
        a, b = self.resolve(a), self.resolve(b)
        if a == b or (size_of(a) == size_of(b) and self._bind(a, b)):
            return True
        for axis in (a, b):
            self.keep(axis, "arrangements of channels meet that no choice fits")
        return False

    def keep(self, axis: Axis, reason: str) -> None:
        """Notes that all channels of an axis stay."""
        self._kept.append((axis, reason))

    def kept(self) -> dict[int, str]:
        """The groups of which all channels stay, with the reasons."""
        return self._reasons(self._kept)

    def fix(self, axis: Axis, reason: str) -> None:
        """Notes that an axis has its size for another reason than the weights that make it."""
        self._fixed.append((axis, reason))

    def fixed(self) -> dict[int, str]:
        """The groups whose size is not for weights alone to tell, with the reasons."""
        return self._reasons(self._fixed)

    def _reasons(self, pairs: list[tuple[Axis, str]]) -> dict[int, str]:
        found = [(leaf, why) for a, why in pairs for leaf in leaves_of(self.resolve(a))]
        return {leaf.group: why for leaf, why in reversed(found)}

    def split(self, axis: Axis, sizes: Sequence[int], source: str) -> list[Axis] | None:
        """An axis as several, one after the other; None if they are not cut between channels."""
        parts: tuple[Axis, ...] = tuple(self.new(size, source) for size in sizes)
        axis = self.resolve(axis)
        if isinstance(axis, Product) or not self.unify(Concat(parts), axis):
            return None
        return [self.resolve(part) for part in parts]

    def _bind(self, a: Axis, b: Axis) -> bool:
        if isinstance(b, Leaf):
            a, b = b, a
        if isinstance(a, Leaf):
            if a in leaves_of(b):
                return False
            self._bound[a.group] = b
            return True
        if isinstance(a, Concat) and isinstance(b, Concat):
            return self._unify_concats(a, b)
        sizes = [[size_of(part) for part in _parts(axis)] for axis in (a, b)]
        if type(a) is type(b) and sizes[0] == sizes[1]:
            return all(map(self.unify, _parts(a), _parts(b)))
        lone = _lone(a), _lone(b)
        return lone != (a, b) and self.unify(*lone)

    def _unify_concats(self, a: Concat, b: Concat) -> bool:
        ours, theirs = list(a.parts), list(b.parts)
        while ours and theirs:
            short, long = self._first(ours), self._first(theirs)
            if size_of(short) > size_of(long):
                short, long, ours, theirs = long, short, theirs, ours
            rest = size_of(long) - size_of(short)
            if rest and isinstance(long, Leaf):
                if long in leaves_of(short):
                    return False
                part = self.new(rest, self.sources[long.group])
                self._bound[long.group] = Concat((short, part))
                theirs.insert(0, part)
                continue
            taken = [short]
            while rest > 0 and ours:  # for a product, which is not cut
                taken.append(self._first(ours))
                rest -= size_of(taken[-1])
            if rest or not self.unify(long, _concat(taken)):
                return False
        return True

    def _first(self, parts: list[Axis]) -> Axis:
        """Takes the first of some axes one after the other, as it is known by now."""
        first = self.resolve(parts.pop(0))
        if isinstance(first, Concat):
            first, *rest = first.parts
            parts[:0] = rest
        return first


def size_of(axis: Axis) -> int:
    """How many channels an axis counts."""
    if isinstance(axis, Leaf):
        return axis.size
    sizes = [size_of(part) for part in axis.parts]
    return sum(sizes) if isinstance(axis, Concat) else math.prod(sizes)


def size_under(axis: Axis, sizes: Mapping[int, int]) -> int:
    """How many channels an axis counts once groups have other sizes.

    Args:
        axis: resolved.
        sizes: group -> how many of its channels are left; groups that are not there keep all.
    """
    if isinstance(axis, Leaf):
        return sizes.get(axis.group, axis.size)
    parts = [size_under(part, sizes) for part in axis.parts]
    return sum(parts) if isinstance(axis, Concat) else math.prod(parts)


def places(axis: Axis) -> dict[int, np.ndarray]:
    """Where the channels of each group are along an axis.

    Returns:
        {group: array of shape (channels, places of each)}.

    Example:
        >>> places(Product((Leaf(0, 2), Leaf(1, 3))))[1]
        array([[0, 3],
               [1, 4],
               [2, 5]])
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

    Args:
        student, teacher: an axis of a weight in both models, resolved.

    Returns:
        (group of the student, channels of the teacher) pairs, or None if they are arranged
        differently.

    Example:
        >>> links(Concat((Leaf(0, 2), Leaf(1, 3))), Concat((Leaf(0, 4), Leaf(1, 6))))
        [(Leaf(group=0, size=2), 4), (Leaf(group=1, size=3), 6)]
    """
    if isinstance(student, Leaf):
        return [(student, size_of(teacher))]
    if _alike(student, teacher):
        found: list[tuple[Leaf, int]] = []
        for ours, theirs in zip(student.parts, _parts(teacher), strict=True):
            inner = links(ours, theirs)
            if inner is None:
                return None
            found += inner
        return found
    if size_of(student) == size_of(teacher):
        return [(leaf, leaf.size) for leaf in leaves_of(student)]
    return None


def indices(student: Axis, teacher: Axis, choice: Mapping[int, np.ndarray]) -> np.ndarray:
    """Which channels of the teacher's axis the student's axis takes, in order.

    Args:
        student, teacher: axes with `links`.
        choice: group of the student -> the channels that it chooses.

    Returns:
        An array of as many indices as the student has channels.
    """
    if isinstance(student, Leaf):
        return choice[student.group]
    if not _alike(student, teacher):
        return np.arange(size_of(student))
    parts, sizes = [], [size_of(part) for part in _parts(teacher)]
    for ours, theirs in zip(student.parts, _parts(teacher), strict=True):
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

    Args:
        student, teacher: axes with `links`.
        values: one number for each channel of the teacher.

    Returns:
        (group of the student, one number for each channel that it chooses from) pairs.
    """
    if isinstance(student, Leaf):
        yield student.group, values
    elif _alike(student, teacher):
        sizes = [size_of(part) for part in _parts(teacher)]
        if isinstance(student, Concat):
            pieces = np.split(values, np.cumsum(sizes)[:-1])
        else:
            grid, places = values.reshape(sizes), range(len(sizes))
            pieces = [grid.sum(axis=tuple(k for k in places if k != i)) for i in places]
        for ours, theirs, mine in zip(student.parts, _parts(teacher), pieces, strict=True):
            yield from shares(ours, theirs, mine)


def _alike(a: Concat | Product, b: Axis) -> bool:
    return type(a) is type(b) and len(a.parts) == len(_parts(b))


def _parts(axis: Axis) -> tuple[Axis, ...]:
    return () if isinstance(axis, Leaf) else axis.parts


def _lone(axis: Axis) -> Axis:
    """The one factor of a product that is not of size 1."""
    factors = [part for part in _parts(axis) if size_of(part) > 1]
    return factors[0] if isinstance(axis, Product) and len(factors) == 1 else axis


def _concat(parts: list[Axis]) -> Axis:
    flat = [p for part in parts for p in (part.parts if isinstance(part, Concat) else (part,))]
    return flat[0] if len(flat) == 1 else Concat(tuple(flat))


def _product(parts: list[Axis]) -> Axis:
    flat = [p for part in parts for p in (part.parts if isinstance(part, Product) else (part,))]
    return flat[0] if len(flat) == 1 else Product(tuple(flat))
