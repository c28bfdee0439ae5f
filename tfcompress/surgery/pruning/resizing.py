"""A model rebuilt with fewer channels."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import KerasTensor, layers, ops, tree

from tfcompress.channels.following import unwrapped
from tfcompress.channels.terms import Axis, size_of, size_under
from tfcompress.channels.weighted import Axes, Weighted
from tfcompress.graph.copying import copy_operation, copy_trainable
from tfcompress.graph.layers import FixedTraining, Parameter
from tfcompress.graph.nodes import Node, tensors_in, unique
from tfcompress.graph.tracing import source_of
from tfcompress.kinds import JOINT, MIXING, POINTWISE
from tfcompress.surgery.pruning.groups import Choice, Structure


def resized(structure: Structure, choice: Choice) -> keras.Model:
    """A new model that keeps only some channels of some groups."""
    return _Resizer(structure, choice).run()


class _Resizer:
    """Calls copies of the operations of a structure, with smaller weights.

    `copies` maps the identity of an operation to (it, its copy).
    """

    def __init__(self, structure: Structure, choice: Choice):
        self.structure, self.choice = structure, choice
        self.sizes = structure.sizes(choice)
        self.copies: dict[int, tuple[Any, Any]] = {}
        self.positions: dict[Axis, np.ndarray] = {}
        self.layers = {id(layer.layer): layer for layer in structure.follower.layers}

    def run(self) -> keras.Model:
        small = self.structure.graph.rebuild(self.call)
        for old, new in self.copies.values():
            self._copy_values(old, new)
        return small

    def call(self, node: Node, *args, **kwargs):
        """Calls a smaller copy of a node's operation."""
        if node.is_input:
            return args[0]
        inner = self.structure.follower.opened.get(id(node))
        if inner is not None and any(self._is_changed(part) for part in inner.nodes):
            return inner.run(unique(tensors_in((args, kwargs))), self.call)
        operation = node.operation
        key = source_of(operation)
        changes = {} if isinstance(operation, layers.Layer) else self._shape_changes(node)
        if key not in self.copies:
            if isinstance(operation, layers.Layer):
                changes = self._shape_changes(node) | self._counts(operation)
            self.copies[key] = operation, copy_operation(operation, changes)
        args, kwargs = self._arguments(node, args, kwargs)
        return self.copies[key][1](*args, **kwargs)

    def kept(self, axis: Axis) -> np.ndarray:
        """Which places of an axis stay."""
        if axis not in self.positions:
            self.positions[axis] = self.structure.positions(axis, self.choice)
        return self.positions[axis]

    def size(self, axis: Axis) -> int:
        return size_under(axis, self.sizes)

    def changes_size(self, axis: Axis | None) -> bool:
        return axis is not None and self.size(axis) != size_of(axis)

    def _is_changed(self, node: Node) -> bool:
        axes_of = self.structure.axes_of
        tensors = [*node.inputs, *node.outputs]
        return any(self.changes_size(axis) for tensor in tensors for axis in axes_of(tensor))

    def _counts(self, operation) -> dict[str, Any]:
        """What the arguments of a layer's class become."""
        layer, inside = operation, ""
        while id(layer) not in self.layers and hasattr(layer, "layer"):
            layer, inside = layer.layer, f"{inside}layer."
        found = self.layers.get(id(layer))
        if found is None:
            return {}
        changes = {f"{inside}{name}": n for name, n in self._new_counts(found).items()}
        if isinstance(layer, layers.Bidirectional) and changes:
            backward = keras.saving.serialize_keras_object(layer.backward_layer)
            changes = {f"{inside}backward_layer": backward, **changes}
        return changes

    def _new_counts(self, layer: Weighted) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        for name, count in layer.counts.items():
            if not isinstance(count, tuple):
                if self.changes_size(count):
                    changes[name] = self.size(count)
            elif any(map(self.changes_size, count)):
                changes[name] = tuple(axis and self.size(axis) for axis in count)
        out = layer.counts.get("output_shape")
        if "num_heads" in layer.counts and out is not None and not isinstance(out, tuple):
            changes["output_shape"] = (self.size(out),)  # by default that of the queries
        return changes

    def _shape_changes(self, node: Node) -> dict[str, Any]:
        """What the shapes that an operation was given become."""
        if not self._is_changed(node):
            return {}
        return shape_changes(self, node)

    def _arguments(self, node: Node, args, kwargs):
        """The arguments of a call: slices and constants fit the smaller tensors."""
        if not self._is_changed(node):
            return args, kwargs
        if type(node.operation).__name__ == "GetItem":
            return key_changes(self, node, args, kwargs)
        if type(node.operation).__name__ == "Slice":
            return start_changes(self, node, args, kwargs)
        if type(node.operation).__name__ not in _BESIDE:
            return args, kwargs
        fit = self._fitting(node)
        return tree.map_structure(fit, (args, kwargs))

    def _fitting(self, node: Node):
        """A function that cuts a constant that has a value for each of some channels."""
        axes = self.structure.axes_of(node.outputs[0])

        def fit(x):
            if isinstance(x, KerasTensor) or not tuple(getattr(x, "shape", ())):
                return x
            shape = tuple(x.shape)
            last = axes[-len(shape) :] if len(shape) <= len(axes) else [None] * len(shape)
            value = np.array(ops.convert_to_numpy(x))
            for place, (axis, size) in enumerate(zip(last, shape, strict=True)):
                if axis is not None and self.changes_size(axis) and size == size_of(axis):
                    value = value.take(self.kept(axis), axis=place)
            return x if value.shape == shape else ops.convert_to_tensor(value, x.dtype)

        return fit

    def _copy_values(self, old, new) -> None:
        ours, theirs = getattr(new, "variables", []), getattr(old, "variables", [])
        if isinstance(old, FixedTraining):
            copy_trainable(old.layer, new.layer)
        copy_trainable(old, new)
        if isinstance(old, Parameter) and "source" in vars(old):
            theirs = [vars(old)["source"]]
        for variable, source in zip(ours, theirs, strict=True):
            value = self.cut(source)
            if value.shape == tuple(variable.shape):  # not so the states of a stateful layer
                variable.assign(value)
            if variable.trainable != source.trainable:
                variable.trainable = source.trainable
        if isinstance(unwrapped(new), layers.Normalization):
            unwrapped(new).finalize_state()

    def cut(self, variable) -> np.ndarray:
        """The value of a weight without the channels that go."""
        # JAX arrays would be shared, and are gone once one of the models trains.
        value = np.array(ops.convert_to_numpy(variable))
        axes = self.structure.axes.get(id(variable), ())
        for place, axis in enumerate(axes):
            if axis is not None and self.changes_size(axis):
                value = value.take(self.kept(axis), axis=place)
        return value


# Operations that take constants of the shape of their result.
_BESIDE = POINTWISE | MIXING | JOINT | {"Concatenate"}

# Kind of operation -> its attribute or argument that holds the shape of the result.
_SHAPES = {"Reshape": ("target_shape", "newshape"), "BroadcastTo": ("shape",)}
_SHAPES["RepeatBatch"] = _SHAPES["Slice"] = ("shape",)


def shape_changes(resizer: _Resizer, node: Node) -> dict[str, Any]:
    """What the sizes become that an operation keeps.

    Returns {attribute or argument of its class: value}.
    """
    operation, kind = node.operation, type(node.operation).__name__
    for name in _SHAPES.get(kind, ()):
        old = getattr(operation, name, None)
        if old is not None:
            axes = resizer.structure.axes_of(node.outputs[0])
            return {name: _new_shape(resizer, tuple(old), axes)}
    if kind == "Split":
        axis = resizer.structure.axes_of(node.inputs[0])[operation.axis]
        if resizer.changes_size(axis):
            places = [resizer.structure.axes_of(t)[operation.axis] for t in node.outputs]
            sizes = [resizer.size(place) for place in places if place is not None]
            return {"indices_or_sections": tuple(np.cumsum(sizes[:-1]).tolist())}
    return {}


def _new_shape(resizer: _Resizer, old: tuple, axes: Axes) -> tuple:
    """A shape with the new sizes of axes; what is inferred (-1) or not known stays."""
    last = axes[len(axes) - len(old) :]
    pairs = zip(old, last, strict=True)
    return tuple(n if axis is None or n in (-1, None) else resizer.size(axis) for n, axis in pairs)


def key_changes(resizer: _Resizer, node: Node, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The arguments of a slicing: bounds are moved by the channels that are gone before them."""
    axes = resizer.structure.axes_of(node.inputs[0])
    given = kwargs["key"] if "key" in kwargs else args[1]
    key = tuple(given) if isinstance(given, tuple | list) else (given,)
    if Ellipsis in key:
        at = key.index(Ellipsis)
        named = sum(part is not None for part in key) - 1
        key = (*key[:at], *[slice(None)] * (len(axes) - named), *key[at + 1 :])
    rest, new = list(axes), []
    for part in key:
        axis = None if part is None else rest.pop(0)
        if isinstance(part, slice) and axis is not None and resizer.changes_size(axis):
            bounds = part.indices(size_of(axis))
            part = slice(*np.searchsorted(resizer.kept(axis), bounds[:2]).tolist())
        new.append(part)
    if "key" in kwargs:
        return args, {**kwargs, "key": tuple(new)}
    return (args[0], tuple(new), *args[2:]), kwargs


def start_changes(resizer: _Resizer, node: Node, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The arguments of `ops.slice`, whose starts are moved as bounds are."""
    axes = resizer.structure.axes_of(node.inputs[0])
    name = "start_indices"
    starts = list(kwargs[name] if name in kwargs else args[1])
    for place, axis in enumerate(axes):
        if axis is not None and resizer.changes_size(axis):
            starts[place] = int(np.searchsorted(resizer.kept(axis), starts[place]))
    if name in kwargs:
        return args, {**kwargs, name: tuple(starts)}
    return (args[0], tuple(starts), *args[2:]), kwargs
