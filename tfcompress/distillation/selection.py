"""Which channels of a teacher a narrower student takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from keras import ops

from tfcompress.channels.following import Follower
from tfcompress.channels.terms import Axis, Concat, Leaf, indices, leaves_of, links, shares, size_of
from tfcompress.channels.weighted import Weight, Weighted
from tfcompress.distillation.matching import Pairs, difference


@dataclasses.dataclass(frozen=True)
class Selection:
    """What each matched layer takes.

    Attributes:
        values: layer of the student -> the new values of its weights.
        details: layer of the student -> how many channels it takes.
        reasons: layer of the student that takes nothing -> why.
    """

    values: dict[Weighted, list[np.ndarray]]
    details: dict[Weighted, str]
    reasons: dict[Weighted, str]


def select(student: Follower, pairs: Pairs, values: Mapping[int, Any]) -> Selection:
    """Chooses channels, carries the choice on, and cuts the teacher's weights.

    The channels with the largest L1 norm of the weights that make them are kept, in their order
    (Li et al. 2017, arXiv:1608.08710); norms of layers whose outputs must be the same channels are
    summed.
    """
    return _Selector(student, values).run(pairs)


@dataclasses.dataclass(frozen=True)
class _Width:
    """A group of the student has `size` channels of the `of` that a layer of the teacher has."""

    size: int
    of: int
    layer: str


class _Selector:
    def __init__(self, student: Follower, values: Mapping[int, Any]):
        self.student, self.given = student, values
        self.kept = student.channels.kept()
        self.makers = _makers(student)
        self.reasons: dict[Weighted, str] = {}
        self.widths: dict[int, _Width] = {}
        self.partners: dict[int, int] = {}  # group of the student -> group of the teacher
        self.arrays: dict[int, np.ndarray] = {}

    def run(self, pairs: Pairs) -> Selection:
        """Leaves layers out until the choice can be carried through all others."""
        self._note_partners(pairs)
        while True:
            self.widths = {}
            possible = [pair for pair in pairs if self._note_widths(*pair)]
            scores = self._scores(possible)
            matched = {ours for ours, _ in possible}
            kept = [
                (ours, theirs) for ours, theirs in possible if self._is_told(ours, scores, matched)
            ]
            if len(kept) == len(pairs):
                break
            pairs = kept
        choice = {group: _largest(scores.get(group), w) for group, w in self.widths.items()}
        values, details = {}, {}
        for ours, theirs in pairs:
            values[ours] = [self._cut(*each, choice) for each in _weights(ours, theirs)]
            details[ours] = self._detail(ours, theirs)
        return Selection(values, details, self.reasons)

    def _note_partners(self, pairs: Pairs) -> None:
        for ours, theirs in pairs:
            for weight, other in _weights(ours, theirs):
                for place in weight.makes:
                    a, b = weight.axes[place], other.axes[place]
                    if isinstance(a, Leaf) and isinstance(b, Leaf):
                        self.partners.setdefault(a.group, b.group)

    def _note_widths(self, ours: Weighted, theirs: Weighted) -> bool:
        """Notes from how many channels the groups of a layer are chosen; False if it cannot be."""
        reason = difference(ours, theirs) or self._misfit(ours, theirs)
        if reason is not None:
            self.reasons[ours] = reason
            return False
        for a, b in self._axes(ours, theirs):
            for leaf, width in links(a, b) or ():
                self.widths.setdefault(leaf.group, _Width(leaf.size, width, theirs.name))
        return True

    def _misfit(self, ours: Weighted, theirs: Weighted) -> str | None:
        """Why a layer's channels are no choice of those of the teacher's."""
        own: dict[int, _Width] = {}
        for a, b in self._axes(ours, theirs):
            linked = links(a, b)
            if linked is None:
                return f"its {size_of(a)} channels are composed otherwise in the teacher"
            for leaf, of in linked:
                width = own.setdefault(leaf.group, _Width(leaf.size, of, theirs.name))
                known = self.widths.get(leaf.group, width)
                if of < leaf.size:
                    return f"the teacher has {of} channels where it has {leaf.size}"
                if {known.of, width.of} != {of}:
                    return (
                        f"it has {of} channels in the teacher, but '{known.layer}' has {known.of}"
                    )
                if of > leaf.size and leaf.group in self.kept:
                    return f"{of} channels cannot become {leaf.size}: {self.kept[leaf.group]}"
        return self._moved_inputs(ours, theirs)

    def _moved_inputs(self, ours: Weighted, theirs: Weighted) -> str | None:
        """Why a layer of a class that is not known would read other channels."""
        for a, b in zip(ours.inputs, theirs.inputs, strict=False):
            linked = links(a, b) if size_of(a) == size_of(b) else []
            if linked is None or any(leaf.size != of for leaf, of in linked):
                return f"no choice is carried into a {ours.kind}"
        return None

    def _is_told(self, layer: Weighted, scores: Mapping[int, Any], matched: set[Weighted]) -> bool:
        """Whether it is known which channels a layer must take."""
        carries = not any(weight.makes for weight in layer.weights)
        for leaf in _leaves(layer):
            width, makers = self.widths[leaf.group], self.makers.get(leaf.group, [])
            if width.of > width.size and leaf.group not in scores:
                source = self.student.channels.sources[leaf.group]
                told = (
                    f"nothing tells which {width.size} of {width.of} channels of {source} to take"
                )
            elif carries and makers and not matched.intersection(makers):
                told = f"'{makers[0].name}', whose channels it takes, is left"
            else:
                continue
            self.reasons[layer] = told
            return False
        return True

    def _scores(self, pairs: Pairs) -> dict[int, np.ndarray]:
        """The importance of the channels that each group of the student chooses from."""
        scores: dict[int, Any] = {}
        for ours, theirs in pairs:
            for weight, other in _weights(ours, theirs):
                for place in weight.makes:
                    array = np.abs(self._value(other))
                    rest = tuple(axis for axis in range(array.ndim) if axis != place)
                    norms = array.sum(axis=rest, dtype="float64")
                    for group, share in shares(*self._axis(weight, other, place), norms):
                        scores[group] = scores.get(group, 0.0) + share
        return scores

    def _cut(self, weight: Weight, other: Weight, choice: Mapping[int, np.ndarray]) -> np.ndarray:
        array = self._value(other)
        for place in range(array.ndim):
            a, b = self._axis(weight, other, place)
            if a is None:
                continue
            taken = indices(a, b, choice)
            whole = other.axes[place]
            if whole is not None and size_of(b) < size_of(whole):
                taken = _places(b, whole)[taken]
            array = np.take(array, taken, axis=place)
        return array

    def _detail(self, ours: Weighted, theirs: Weighted) -> str:
        """How many channels a layer takes, or the shape of its first weight if all."""
        told: dict[str, None] = {}
        for weight, other in _weights(ours, theirs):
            for place in range(len(weight.axes)):
                a, b = self._axis(weight, other, place)
                if a is None or size_of(a) == size_of(b):
                    continue
                if isinstance(a, Concat) and len(set(a.parts)) == 1:
                    a, b = a.parts[0], b.parts[0]  # the gates of a recurrent layer
                makes = place in weight.makes or not any(w.makes for w in ours.weights)
                heads = ours.kind == "MultiHeadAttention"
                told[f"{size_of(a)} of {size_of(b)} {_noun(makes, heads)}"] = None
            if told:
                break
        return ", ".join(reversed(told)) or "x".join(map(str, ours.shapes[0]))

    def _axes(self, ours: Weighted, theirs: Weighted) -> Iterator[tuple[Axis, Axis]]:
        """The axes that both layers' weights have, those left out that nothing is known of."""
        for weight, other in _weights(ours, theirs):
            for place in range(len(weight.axes)):
                a, b = self._axis(weight, other, place)
                if a is not None:
                    yield a, b

    def _axis(self, weight: Weight, other: Weight, place: int) -> tuple[Any, Any]:
        """An axis in the student, None if nothing is known of it, and what it is in the teacher."""
        a, b = weight.axes[place], other.axes[place]
        if a is None:
            return None, None
        if b is None:
            return a, Leaf(-1, other.variable.shape[place])
        if isinstance(a, Concat) and isinstance(b, Concat) and len(a.parts) < len(b.parts):
            return a, self._without_skipped(a, b)
        return a, b

    def _without_skipped(self, student: Concat, teacher: Concat) -> Concat:
        """A concatenation less the parts that come from layers that were skipped."""
        kept = {self.partners.get(part.group) for part in student.parts if isinstance(part, Leaf)}
        parts = [p for p in teacher.parts if not isinstance(p, Leaf) or p.group in kept]
        return Concat(tuple(parts)) if len(parts) == len(student.parts) else teacher

    def _value(self, weight: Weight) -> np.ndarray:
        key = id(weight.variable)
        if key not in self.arrays:
            value = self.given.get(key, weight.variable)
            self.arrays[key] = np.asarray(ops.convert_to_numpy(value))
        return self.arrays[key]


def _weights(ours: Weighted, theirs: Weighted) -> Iterator[tuple[Weight, Weight]]:
    return zip(ours.weights, theirs.weights, strict=True)


def _places(kept: Axis, whole: Axis) -> np.ndarray:
    """Where the channels of some parts of a concatenation are in the whole."""
    parts = () if isinstance(whole, Leaf) else whole.parts
    mask = [np.full(size_of(p), isinstance(kept, Concat) and p in kept.parts) for p in parts]
    return np.flatnonzero(np.concatenate(mask))


def _noun(makes: bool, heads: bool) -> str:
    return "channels" if makes else "heads" if heads else "inputs"


def _leaves(layer: Weighted) -> Iterator[Leaf]:
    for weight in layer.weights:
        for axis in weight.axes:
            if axis is not None:
                yield from leaves_of(axis)


def _makers(model: Follower) -> dict[int, list[Weighted]]:
    """For each group, the layers that make its channels."""
    makers: dict[int, list[Weighted]] = {}
    for layer in model.layers:
        for weight in layer.weights:
            for place in weight.makes:
                axis = weight.axes[place]
                for leaf in leaves_of(axis) if axis is not None else []:
                    makers.setdefault(leaf.group, []).append(layer)
    return makers


def _largest(scores: np.ndarray | None, width: _Width) -> np.ndarray:
    """The channels with the largest scores, in their order."""
    if scores is None or width.size == width.of:
        return np.arange(width.of)
    return np.sort(np.argsort(-scores, kind="stable")[: width.size])
