"""Operations that were given shapes, sizes or slices: what these become with fewer channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from keras import ops

from tfcompress.channels.axes import size_of
from tfcompress.channels.weighted import Axes
from tfcompress.nodes import Node

if TYPE_CHECKING:
    from tfcompress.surgery.pruning.resizing import _Resizer

# Kind of operation -> its attribute or argument that holds the shape of the result.
_SHAPES = {"Reshape": ("target_shape", "newshape"), "BroadcastTo": ("shape",)}
_SHAPES["RepeatBatch"] = ("shape",)


def shape_changes(resizer: _Resizer, node: Node) -> dict[str, Any]:
    """What the sizes become that an operation keeps.

    Args:
        resizer: knows the sizes of axes.
        node: a call of the operation.

    Returns:
        {attribute or argument of its class: value}.
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


def uniform(x, shape: tuple[int, ...]):
    """The first elements of a constant whose values are all the same."""
    return ops.convert_to_tensor(ops.convert_to_numpy(x)[tuple(map(slice, shape))], x.dtype)
