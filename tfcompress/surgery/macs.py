"""Multiply-accumulate operations (MACs) of layers and models.

Counted is what linear layers and products of matrices multiply, as is usual: convolutions, Dense
and EinsumDense, projections, scores and values of attention, input and recurrent kernels of RNNs,
`keras.ops` products. Biases, activations, normalization, pooling and all else that works on single
values count 0. Padding counts as values do, and a transposed convolution applies its whole kernel
to every value of its input.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence

import keras
from keras import KerasTensor

from tfcompress.graph import Graph, trace
from tfcompress.nodes import has_own_call
from tfcompress.surgery.mac_rules import Call, ShapeOf, rule_of, total
from tfcompress.surgery.shapes import (
    Shape,
    Specs,
    graph_to_read,
    input_shapes,
    size,
    specs_of,
)


def macs_of(operation, shape_of: ShapeOf, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    """MACs of one call of one operation; 0 if they are not known, see `known_macs_of`.

    Args:
        operation: a built layer, or an operation of `keras.ops`.
        shape_of: variable -> shape, such as `lambda v: tuple(v.shape)`; another one tells what
            would be left with other weights.
        inputs: shapes of the tensors and arrays that it is called with, see `input_shapes`. What
            is None, as the batch, counts as 1.
        outputs: shapes of the tensors that it gives.

    Example:
        >>> dense = keras.layers.Dense(3)
        >>> dense.build((None, 4))
        >>> macs_of(dense, lambda v: tuple(v.shape), [(None, 4)], [(None, 3)])
        12
    """
    return known_macs_of(operation, shape_of, inputs, outputs) or 0


def known_macs_of(
    operation, shape_of: ShapeOf, inputs: Sequence[Shape], outputs: Sequence[Shape]
) -> int | None:
    """See `macs_of`; None if it is not known what the operation computes."""
    call = Call(operation, shape_of, list(inputs), list(outputs), known_macs_of)
    if isinstance(operation, keras.Model) and not has_own_call(type(operation)):
        return _of_model(call)
    if has_own_call(type(operation)) or isinstance(operation, keras.layers.Lambda):
        return _of_user_code(call)
    rule = rule_of(operation)
    return 0 if rule is None else rule(call)


def count(model: keras.Model) -> tuple[int, int]:
    """MACs of one sample and parameters of a model.

    Args:
        model: any built Keras 3 model; axes of unknown size count as 1. A batch size that an
            operation of the model writes down, as in reshape(x, (8, 12)), counts as it is.

    Returns:
        (MACs, numbers in all weights). Weights that the outputs do not depend on are left out.

    Example:
        >>> count(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
        (12, 15)
    """
    graph = graph_to_read(model)
    seen: set[int] = set()
    params = sum(params_of(node.operation, seen) for node in graph.nodes)
    macs = [known for _, known in macs_by_node(graph, specs_of(graph))]
    return sum(known or 0 for known in macs), params


def params_of(operation, seen: set[int]) -> int:
    """Numbers in the weights of an operation that are not in `seen`, to which they are added."""
    if type(operation).__name__ == "FakeQuant":  # its ranges are no weights of the model
        return 0
    if type(operation).__name__ in ("Compressed", "FusedBatchNorm"):
        operation = operation.layer
    new = {id(v): size(v.shape) for v in getattr(operation, "weights", ()) if id(v) not in seen}
    seen.update(new)
    return sum(new.values())


def macs_by_node(graph: Graph, specs: Specs, shape_of: ShapeOf | None = None) -> list:
    """(node, its MACs or None if they are not known) for every node of a graph."""

    def shape(tensor) -> Shape:
        return tuple(specs[id(tensor)].shape)

    weights = shape_of or _shape
    return [
        (
            node,
            0
            if node.is_input
            else known_macs_of(
                node.operation,
                weights,
                input_shapes(node, shape),
                [shape(tensor) for tensor in node.outputs],
            ),
        )
        for node in graph.nodes
    ]


def _shape(variable) -> Shape:
    return tuple(variable.shape)


def _of_model(call: Call) -> int | None:
    """A model inside of a layer, such as TimeDistributed."""
    graph = graph_to_read(call.layer)
    return _of_graph(graph, specs_of(graph, call.inputs), call.shape_of)


def _of_graph(graph: Graph, specs: Specs, shape_of: ShapeOf) -> int | None:
    return total(known for _, known in macs_by_node(graph, specs, shape_of))


def _of_user_code(call: Call) -> int | None:
    """A user's layer or function of tensors, if Keras can trace it."""
    if not isinstance(call.layer, keras.Layer) or call.layer._layers:
        return None
    tensors = [KerasTensor(shape, call.layer.input_dtype) for shape in call.inputs]
    parameters = inspect.signature(call.layer.call).parameters.values()
    wanted = [p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    as_list = len(wanted) == 1 and len(tensors) > 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = trace(call.layer, (tensors,) if as_list else tuple(tensors), {})
            specs = specs_of(graph, call.inputs)
    except Exception:
        return None
    return _of_graph(graph, specs, call.shape_of)
