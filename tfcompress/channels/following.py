"""Follows channels through a flat graph: which axes of the weights of a model belong together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
from keras import tree

from tfcompress.channels.layers import handler
from tfcompress.channels.terms import Axis, Concat, Leaf, Product, leaves_of, parts_of, size_of
from tfcompress.channels.weighted import Axes, Call, Count, Weight, Weighted, variable_of
from tfcompress.graph.layers import FixedTraining
from tfcompress.graph.nodes import Graph, Node, has_own_call, unique
from tfcompress.graph.tracing import trace
from tfcompress.layers.batch_norm import FusedBatchNorm
from tfcompress.layers.compressed import Compressed


class Follower:
    """What the axes of all tensors and weights of a flat model count.

    Args:
        graph: of the flat model.
        sources: id of an operation of the graph -> the user's own layer or variable in its place.

    Attributes:
        channels: the groups of channels.
        layers: the layers with weights, in the order of the graph.
        made: id of a node -> the layers that are called there for the first time.
        opened: id of a node -> what is inside of the user's layer that it calls.
    """

    def __init__(self, graph: Graph, sources: Mapping[int, Any] | None = None):
        self.graph, self.sources = graph, sources or {}
        self.channels = Channels()
        self.layers: list[Weighted] = []
        self.made: dict[int, list[Weighted]] = {}
        self.opened: dict[int, Graph] = {}
        self._known: dict[int, Weighted] = {}
        self._axes: dict[int, Axes] = {}
        self._at: Node | None = None
        for node in graph.nodes:
            self._at = node
            self._visit(node)
        for tensor in tree.flatten(graph.outputs):
            for axis in self._axes[id(tensor)]:
                if axis is not None:
                    self.channels.keep(axis, "they are an output of the model")
        for layer in self.layers:
            layer.weights = [self._resolved(weight) for weight in layer.weights]
            layer.inputs = [self.channels.resolve(axis) for axis in layer.inputs]
            layer.counts = {name: self._resolved_count(x) for name, x in layer.counts.items()}

    def _resolved(self, weight: Weight) -> Weight:
        axes = [axis if axis is None else self.channels.resolve(axis) for axis in weight.axes]
        return dataclasses.replace(weight, axes=tuple(axes))

    def _resolved_count(self, count: Count) -> Count:
        if isinstance(count, tuple):
            return tuple(axis and self.channels.resolve(axis) for axis in count)
        return self.channels.resolve(count)

    def fresh(self, shape: Sequence[int | None], source: str) -> Axes:
        """Axes of a tensor of which nothing is known."""
        sizes = [None, *list(shape)[1:]] if shape else []
        axes: Axes = [None if n is None else self.channels.new(n, source) for n in sizes]
        self.fix(axes, f"they are tied to what {source} gives")
        return axes

    def constant(self, shape: Sequence[int], source: str) -> Axes:
        """Axes of an array, of which nothing is cut."""
        axes: Axes = [self.channels.new(n, source) for n in shape]
        self.fix(axes, f"{source} computes with a constant for each")
        return axes

    def fix(self, axes: Iterable[Axis | None], reason: str) -> None:
        """Notes that axes have their sizes for another reason than the weights that make them."""
        for axis in axes:
            if axis is not None:
                self.channels.fix(axis, reason)

    def same(self, a: Axis | None, b: Axis | None) -> None:
        """Notes that two axes count the same channels."""
        if a is not None and b is not None:
            self.channels.unify(a, b)

    def register(self, call: Call, weights: Iterable[Weight], inputs=(), **counts: Count) -> None:
        """Notes the weights of a layer; at its second call, that they are the same."""
        kept = [weight for weight in weights if weight.variable is not None]
        key = id(variable_of(call.layer))
        if key in self._known:
            for old, new in zip(self._known[key].weights, kept, strict=True):
                for pair in zip(old.axes, new.axes, strict=True):
                    self.same(*pair)
            for name, count in counts.items():
                before = self._known[key].counts[name]
                if not isinstance(before, tuple) and not isinstance(count, tuple):
                    self.same(before, count)
        elif kept or counts:
            kind = type(call.layer).__name__.removeprefix("Frozen")  # called with training=False
            layer = Weighted(call.name, kind, call.layer, kept, list(inputs), counts)
            self._known[key] = layer
            self.layers.append(layer)
            self.made.setdefault(id(self._at), []).append(layer)

    def follow(self, call: Call) -> list[Axes]:
        """The axes of the outputs of a call."""
        found = handler(call.layer)
        outputs = None
        if found is not None:
            outputs = found(self, call)
        elif isinstance(call.layer, keras.Layer):
            outputs = self._open(call)
        if not outputs:
            unknown = f"what {call.source} does with them is not known"
            for axes in call.inputs:
                self.fix(axes, unknown)
        return [
            self._fitting(outputs[i] if outputs and i < len(outputs) else None, shape, call)
            for i, shape in enumerate(call.shapes)
        ]

    def _fitting(self, axes: Axes | None, shape, call: Call) -> Axes:
        """The axes, if they are right; those of an unknown tensor otherwise."""
        fresh = self.fresh(shape, call.source)
        if axes is None or len(axes) != len(shape):
            self.fix(axes or [], f"what {call.source} does with them is not known")
            return fresh
        fitting: Axes = []
        for axis, size, new in zip(axes, shape, fresh, strict=True):
            if axis is not None and size is not None and size_of(axis) != size:
                self.fix([axis], f"what {call.source} does with them is not known")
                axis = new
            fitting.append(axis)
        return fitting

    def _visit(self, node: Node) -> None:
        shapes = [tuple(tensor.shape) for tensor in node.outputs]
        if node.is_input:
            axes = [self.fresh(shape, f"the model's input '{node.name}'") for shape in shapes]
        else:
            layer = unwrapped(self.sources.get(id(node.operation), node.operation))
            inputs = [self._axes[id(tensor)] for tensor in node.inputs]
            axes = self.follow(Call(node.name, layer, inputs, shapes, node))
        for tensor, found in zip(node.outputs, axes, strict=True):
            self._axes[id(tensor)] = found

    def axes_of(self, tensor) -> Axes:
        """The axes of a tensor of the graph."""
        return self._axes[id(tensor)]

    def _open(self, call: Call) -> list[Axes]:
        """Follows channels inside of a user's layer, if it can be traced."""
        layer, node = call.layer, call.node
        written = has_own_call(type(layer)) or isinstance(layer, keras.layers.Lambda)
        if written and not layer._layers:
            try:
                inner = trace(layer, node.args, node.kwargs)
            except ValueError:
                inner = None
            if inner is not None:
                self.opened[id(node)] = inner
                for outer, tensor in zip(unique(node.inputs), inner.inputs, strict=True):
                    self._axes[id(tensor)] = self._axes[id(outer)]
                for part in inner.nodes:
                    if not part.is_input:
                        self._visit(part)
                return [self._axes[id(t)] for t in tree.flatten(inner.outputs)]
        return self.unknown(call)

    def unknown(self, call: Call) -> list[Axes]:
        """Notes the weights of a layer that can be copied, but not cut."""
        whole = [Weight(v, (None,) * len(v.shape)) for v in call.layer.weights]
        inputs = [axis for axes in call.inputs for axis in axes if axis is not None]
        self.register(call, whole, inputs)
        return []


def unwrapped(operation):
    """The layer inside of those that compression and flattening put around it."""
    while isinstance(operation, Compressed | FusedBatchNorm | FixedTraining):
        operation = operation.layer
    return operation


class Channels:
    """The groups of channels of one model.

    Attributes:
        sources: for each group, where its channels come from, in words.
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
        """Notes that two axes count the same channels."""
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
