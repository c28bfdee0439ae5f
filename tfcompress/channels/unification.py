"""Which axes of a model count the same channels, found by unifying them."""

from __future__ import annotations

from collections.abc import Sequence

from tfcompress.channels.axes import Axis, Concat, Leaf, Product, leaves_of, parts_of, size_of


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
        sizes = [[size_of(part) for part in parts_of(axis)] for axis in (a, b)]
        if type(a) is type(b) and sizes[0] == sizes[1]:
            return all(map(self.unify, parts_of(a), parts_of(b)))
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


def _lone(axis: Axis) -> Axis:
    """The one factor of a product that is not of size 1."""
    factors = [part for part in parts_of(axis) if size_of(part) > 1]
    return factors[0] if isinstance(axis, Product) and len(factors) == 1 else axis


def _concat(parts: list[Axis]) -> Axis:
    flat = [p for part in parts for p in (part.parts if isinstance(part, Concat) else (part,))]
    return flat[0] if len(flat) == 1 else Concat(tuple(flat))


def _product(parts: list[Axis]) -> Axis:
    flat = [p for part in parts for p in (part.parts if isinstance(part, Product) else (part,))]
    return flat[0] if len(flat) == 1 else Product(tuple(flat))
