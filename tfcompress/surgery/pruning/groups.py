"""Channel groups: which slices of which weights must go together."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

import keras
import numpy as np
from keras import KerasTensor

from tfcompress.channels.following import Follower
from tfcompress.channels.terms import (
    Axis,
    Leaf,
    Product,
    indices,
    leaves_of,
    places,
    size_of,
    size_under,
)
from tfcompress.channels.weighted import Weight, Weighted
from tfcompress.graph.nodes import Graph, Node
from tfcompress.kinds import is_depthwise
from tfcompress.surgery.macs import macs_of
from tfcompress.surgery.shapes import Shape, input_shapes, specs_of

Role = Literal["makes", "carries", "reads"]

# The kept channels of each group that loses some, by its name: sorted indices.
Choice = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """The slices of one weight that belong to the channels of a group.

    Attributes:
        layer: name in the flat model.
        variable: the weight.
        axis: the axis of the weight that counts the channels.
        index: integer array of shape (channels, k): the k places of each channel on that axis.
        role: "makes" if the weight computes the channels, "carries" if it scales or shifts them,
            "reads" if it computes other channels of them.
    """

    layer: str
    variable: Any
    axis: int
    index: np.ndarray
    role: Role

    def slices(self, values: np.ndarray) -> np.ndarray:
        """The slices of each channel, of an array with the shape of the weight: (channels, n)."""
        moved = np.moveaxis(values, self.axis, 0)[self.index]
        return moved.reshape(len(self.index), -1)


@dataclasses.dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels, neurons or heads that many weights share, so that they go from all or from none.

    Attributes:
        name: the first layer that makes them; numbered if it makes several groups.
        size: how many channels it has.
        unit: "channels" or "heads".
        repeats: how many channels of a tensor each of them stands for, as in grouped convolutions.
        makers: names of the layers that make them.
        members: the slices of weights.
        kept: why all of them stay; None if they can be removed.
    """

    name: str
    size: int
    unit: Literal["channels", "heads"]
    repeats: int
    makers: tuple[str, ...]
    members: tuple[Member, ...]
    kept: str | None


def deciding(group: ChannelGroup) -> list[Member]:
    """The slices that a group's channels act through: once they are 0, it is as if removed.

    They are those that read the channels; where none does, as where two tensors are multiplied,
    all others.
    """
    reading = [member for member in group.members if member.role == "reads"]
    return reading or list(group.members)


class Structure:
    """A flat model, and which of its channels belong together.

    Args:
        model: a flat Functional model.

    Attributes:
        groups: {name: group}, in the order of the model; those that stay among them.
    """

    def __init__(self, model: keras.Model):
        self.model, self.graph = model, Graph.of(model)
        self.follower = Follower(self.graph)
        self.axes = {
            id(weight.variable): weight.axes
            for layer in self.follower.layers
            for weight in layer.weights
        }
        self.specs = specs_of(self.graph)
        self._tensors: dict[int, list[Axis | None]] = {}
        found = self._found()
        self.groups = {group.name: group for group in found.values()}
        self.numbers = {group.name: number for number, group in found.items()}

    def prunable(self) -> dict[str, ChannelGroup]:
        """The groups of which channels can be removed."""
        return {name: group for name, group in self.groups.items() if group.kept is None}

    def keep(self, reasons: Mapping[str, str]) -> None:
        """Lets groups keep all of their channels: {name: reason}."""
        for name, reason in reasons.items():
            group = self.groups[name]
            self.groups[name] = dataclasses.replace(group, kept=group.kept or reason)

    def touching(self, layers: Collection[str]) -> set[str]:
        """The groups that layers make or put out, by the names of nodes of the graph."""
        numbers = {
            leaf.group
            for node in self.graph.nodes
            if node.name in layers
            for tensor in node.outputs
            for axis in self.axes_of(tensor)
            if axis is not None
            for leaf in leaves_of(axis)
        }
        made = {n for n, group in self.groups.items() if not set(layers).isdisjoint(group.makers)}
        return made | {name for name, number in self.numbers.items() if number in numbers}

    def multiplied(self) -> set[frozenset[int]]:
        """Pairs of groups, by number, that are factors of the same axis of a weight."""
        terms = [axis for axes in self.axes.values() for axis in axes if axis is not None]
        return {pair for term in terms for pair in _factors(term)}

    def sizes(self, choice: Choice) -> dict[int, int]:
        """The sizes of the groups that lose channels, by number."""
        return {self.numbers[name]: len(kept) for name, kept in choice.items()}

    def positions(self, axis: Axis, choice: Choice) -> np.ndarray:
        """Which places of an axis stay."""
        kept = _Kept({self.numbers[name]: each for name, each in choice.items()})
        for leaf in leaves_of(axis):
            kept.sizes[leaf.group] = leaf.size
        return indices(axis, axis, kept)

    def axes_of(self, tensor) -> list[Axis | None]:
        """What the axes of a tensor of the graph count, resolved."""
        if id(tensor) not in self._tensors:
            resolve, axes = self.follower.channels.resolve, self.follower.axes_of(tensor)
            self._tensors[id(tensor)] = [axis and resolve(axis) for axis in axes]
        return self._tensors[id(tensor)]

    def cost(self, sizes: Mapping[int, int]) -> tuple[int, int]:
        """MACs and parameters once groups have other sizes."""
        macs = sum(self._macs(node, sizes) for node in self._costly)
        shapes = (self._shape(variable, sizes) for variable in self.model.weights)
        return macs, sum(math.prod(shape) for shape in shapes)

    @functools.cached_property
    def _costly(self) -> list[Node]:
        """The calls of operations that multiply and accumulate."""
        return [node for node in self._every_node() if self._macs(node, {})]

    def _every_node(self):
        for node in self.graph.nodes:
            inner = self.follower.opened.get(id(node))
            yield from [node] if inner is None else inner.nodes

    def _macs(self, node: Node, sizes: Mapping[int, int]) -> int:
        if node.is_input:
            return 0
        inputs = input_shapes(node, lambda tensor: self._tensor_shape(tensor, sizes))
        outputs = [self._tensor_shape(tensor, sizes) for tensor in node.outputs]
        return macs_of(node.operation, lambda v: self._shape(v, sizes), inputs, outputs)

    def _shape(self, variable, sizes: Mapping[int, int]) -> tuple[int, ...]:
        shape = tuple(variable.shape)
        axes = self.axes.get(id(variable), (None,) * len(shape))
        pairs = zip(axes, shape, strict=True)
        return tuple(n if axis is None else size_under(axis, sizes) for axis, n in pairs)

    def _tensor_shape(self, tensor: KerasTensor, sizes: Mapping[int, int]) -> Shape:
        shape = self.specs.get(id(tensor), tensor).shape
        axes = self.axes_of(tensor)
        # What is open stays so, as `macs.count` sees it.
        known = (axis if n is not None else None for axis, n in zip(axes, shape, strict=True))
        pairs = zip(known, shape, strict=True)
        return tuple(n if axis is None else size_under(axis, sizes) for axis, n in pairs)

    def _found(self) -> dict[int, ChannelGroup]:
        """The groups that weights make, by number."""
        channels = self.follower.channels
        reasons = {**channels.fixed(), **channels.kept()}
        members: dict[int, list[Member]] = {}
        makers: dict[int, list[tuple[Weighted, Axis]]] = {}
        for layer in self.follower.layers:
            for weight in layer.weights:
                for axis, term in enumerate(weight.axes):
                    if term is None:
                        continue
                    role = _role(layer, weight, axis)
                    for number, index in places(term).items():
                        member = Member(layer.name, weight.variable, axis, index, role)
                        members.setdefault(number, []).append(member)
                        if role == "makes":
                            makers.setdefault(number, []).append((layer, term))
        makers = {n: each for n, each in makers.items() if len(members[n][0].index) > 1}
        names = _names({number: each[0][0].name for number, each in makers.items()})
        return {
            number: ChannelGroup(
                name=names[number],
                size=len(members[number][0].index),
                unit="heads" if _counts_heads(each, number) else "channels",
                repeats=_repeats(each[0][1], number),
                makers=tuple(dict.fromkeys(layer.name for layer, _ in each)),
                members=tuple(members[number]),
                kept=reasons.get(number),
            )
            for number, each in makers.items()
        }


class _Kept(dict[int, np.ndarray]):
    """The kept channels of groups; of those that are not there, all."""

    def __init__(self, known: dict[int, np.ndarray]):
        super().__init__(known)
        self.sizes: dict[int, int] = {}

    def __missing__(self, group: int) -> np.ndarray:
        return np.arange(self.sizes[group])


def _role(layer: Weighted, weight: Weight, axis: int) -> Role:
    if axis in weight.makes:
        return "makes"
    scales = not weight.makes or is_depthwise(layer.layer, weight.variable.name)
    return "carries" if scales else "reads"


def _counts_heads(makers: list[tuple[Weighted, Axis]], number: int) -> bool:
    names = ("num_heads", "num_key_value_heads")
    counted = [layer.counts.get(name) for layer, _ in makers for name in names]
    axes = [axis for axis in counted if axis is not None and not isinstance(axis, tuple)]
    return any(leaf.group == number for axis in axes for leaf in leaves_of(axis))


def _repeats(axis: Axis, number: int) -> int:
    """How many channels of an axis each one of a group stands for."""
    parts = [] if not hasattr(axis, "parts") else axis.parts
    mine = next((p for p in parts if any(x.group == number for x in leaves_of(p))), None)
    if mine is None:
        return 1
    others = size_of(axis) // size_of(mine) if isinstance(axis, Product) else 1
    return others * _repeats(mine, number)


def _factors(axis: Axis) -> Iterator[frozenset[int]]:
    """Pairs of groups that are multiplied in an axis."""
    parts = () if isinstance(axis, Leaf) else axis.parts
    for part in parts:
        yield from _factors(part)
    for a, b in itertools.combinations(parts if isinstance(axis, Product) else (), 2):
        for pair in itertools.product(leaves_of(a), leaves_of(b)):
            yield frozenset(leaf.group for leaf in pair)


def _names(firsts: dict[int, str]) -> dict[int, str]:
    """Names of groups: of their first layers, numbered where that makes several."""
    counts = collections.Counter(firsts.values())
    seen: collections.Counter[str] = collections.Counter()
    names = {}
    for number, name in firsts.items():
        seen[name] += 1
        names[number] = name if counts[name] == 1 else f"{name}:{seen[name]}"
    return names
