"""The shapes of all tensors of a model for one sample, and what each operation is called with."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
from keras import KerasTensor, tree

from tfcompress.errors import expected_one_of
from tfcompress.graph.flatten import flatten
from tfcompress.graph.nodes import Graph, Node, has_own_call
from tfcompress.graph.tracing import is_composite

Shape = tuple[int | None, ...]

# By the identity of a tensor of a graph.
Specs = dict[int, KerasTensor]


def graph_to_read(model: keras.Model) -> Graph:
    """The graph of a flat model itself, or that of the flat copy of any other."""
    functional = hasattr(model, "_inputs_struct") and not has_own_call(type(model))
    if functional and not any(map(is_composite, model.operations)):
        return Graph.of(model)
    return Graph.of(flatten(model))


def specs_of(graph: Graph, shapes: Iterable[Shape | None] = ()) -> Specs:
    """Shape and dtype of every tensor of a graph for a batch of 1.

    An axis that a model merges with the batch, as the windows of a Swin transformer, is known so.

    Args:
        shapes: of the inputs, the batch included; by default those of the graph with a batch of 1.

    Returns {id of a tensor: a `KerasTensor`}, whose shape has None where it stays unknown.
    """
    specs: Specs = {}

    def call(node: Node, *args, **kwargs):
        new = args[0] if node.is_input else _spec(node, args, kwargs)
        for tensor, spec in zip(node.outputs, tree.flatten(new), strict=True):
            specs.setdefault(id(tensor), spec)
        return new

    leaves = tree.flatten(graph.inputs)
    given = list(shapes) or [(1, *tensor.shape[1:]) if tensor.shape else () for tensor in leaves]
    starts = [
        KerasTensor(shape if shape is not None else tensor.shape, tensor.dtype)
        for tensor, shape in zip(leaves, given, strict=True)
    ]
    specs.update({id(tensor): start for tensor, start in zip(leaves, starts, strict=True)})
    graph.run(starts, call)
    return specs


def _spec(node: Node, args: tuple, kwargs: dict) -> Any:
    """What an operation gives; as the graph has it where that fails, as with a fixed batch."""
    try:
        new = node.operation.compute_output_spec(*args, **kwargs)
        found = tree.flatten(new)
        ranks = [len(t.shape) for t in found]
    except Exception:
        return node.outputs
    return new if ranks == [len(t.shape) for t in node.outputs] else node.outputs


def input_shapes(node: Node, shape_of: Callable[[Any], Shape] | None = None) -> list[Shape]:
    """Shapes of the tensors and arrays that a node's operation is called with.

    They come in the order of the arguments of its `call`, also if they were given by name.

    Args:
        shape_of: tensor -> shape; by default as the graph has it.
    """
    try:
        bound = inspect.signature(node.operation.call).bind(*node.args, **node.kwargs)
        values: list[Any] = list(bound.arguments.values())
    except (TypeError, ValueError):
        values = [node.args, node.kwargs]
    found = [leaf for value in values for leaf in tree.flatten(value) if hasattr(leaf, "shape")]
    return [
        shape_of(x) if shape_of is not None and isinstance(x, KerasTensor) else tuple(x.shape)
        for x in found
    ]


def own_shape(variable) -> Shape:
    """The shape that a variable has."""
    return tuple(variable.shape)


def size(shape: Iterable[int | None]) -> int:
    """How many numbers a shape holds; what is unknown counts as 1."""
    return math.prod(1 if axis is None else int(axis) for axis in shape)


def positions(shape: Shape, data_format: str | None) -> int:
    """How many places a tensor of channels has, the batch included."""
    data_format = data_format or keras.config.image_data_format()
    channel = 1 if data_format == "channels_first" else len(shape) - 1
    return size(axis for place, axis in enumerate(shape) if place != channel)


def asked_shapes(graph: Graph, shapes: Mapping[str, Shape] | Shape | None) -> list[Shape]:
    """The shapes of a graph's inputs for one sample, where the user gives some.

    Args:
        shapes: {name of an input: shape without the batch}, or the shape of the only input.
    """
    leaves = tree.flatten(graph.inputs)
    known = {tensor.name: tensor for tensor in leaves}
    if shapes is None:
        return []
    if not isinstance(shapes, Mapping):
        if len(leaves) != 1:
            raise ValueError(
                f"shapes must name the model's {len(leaves)} inputs {', '.join(known)}; received "
                f"{shapes!r}. Pass {{name: shape}}."
            )
        shapes = {leaves[0].name: tuple(shapes)}
    for name, shape in shapes.items():
        if name not in known:
            raise ValueError(f"unknown input '{name}' in shapes; {expected_one_of(name, known)}")
        _require_fit(name, tuple(shape), tuple(known[name].shape[1:]))
    return [(1, *shapes.get(t.name, t.shape[1:])) if t.shape else () for t in leaves]


def _require_fit(name: str, shape: Shape, wanted: Shape) -> None:
    pairs = list(zip(shape, wanted, strict=False))
    fits = len(shape) == len(wanted) and all(
        isinstance(a, int) and a > 0 and b in (None, a) for a, b in pairs
    )
    if not fits:
        raise ValueError(
            f"the shape of input '{name}' must be positive integers that fit {wanted} (None is "
            f"free, without the batch); received {shape}."
        )
