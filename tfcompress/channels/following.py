"""Follows channels through a flat graph: which axes of the weights of a model belong together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
from keras import tree

from tfcompress.channels.axes import Axis, size_of
from tfcompress.channels.layer_axes import handler
from tfcompress.channels.unification import Channels
from tfcompress.channels.weighted import Axes, Call, Count, Weight, Weighted, variable_of
from tfcompress.flat_layers import FixedTraining
from tfcompress.graph import Graph, Node, trace
from tfcompress.layers import Compressed, FusedBatchNorm
from tfcompress.nodes import has_own_call, unique


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
        """Notes the weights of a layer; at its second call, that they are the same.

        Args:
            call: of the layer.
            weights: its variables; None among them is left out.
            inputs: see `Weighted`.
            **counts: arguments of the layer's class -> the axes whose sizes they are.
        """
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
        if has_own_call(type(layer)) and not layer._layers:
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
