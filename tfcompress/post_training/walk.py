"""A flat model run node by node over calibration samples, so that what is read can be changed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import KerasTensor, activations, ops, tree

from tfcompress.errors import check, is_whole
from tfcompress.files import samples as samples_of
from tfcompress.graph.inputs import mask_of
from tfcompress.graph.nodes import Graph, Node, call_node

# What a node is called with for one batch: its arguments and keyword arguments.
Call = tuple[tuple, dict[str, Any]]
Visit = Callable[[Node, list[Call]], list[Any]]


def batched(graph: Graph, data: Any, size: int, samples: int | None) -> list[list[np.ndarray]]:
    """Calibration data as `walk` takes them.

    Args:
        data: in any form that `tfcompress.convert` takes.
        size: samples in a batch; those of unlike shapes are never in one.
        samples: how many to take; None for all.
    """
    check(is_whole(size), "batch_size", "a whole number of at least 1", size, "32 is usual.")
    inputs = tree.flatten(graph.inputs)
    rows = samples_of.batches(data, inputs, limit=samples)
    found = []
    for _, alike in itertools.groupby(rows, lambda row: [row[t.name].shape for t in inputs]):
        while some := list(itertools.islice(alike, size)):
            found.append([np.concatenate([row[t.name] for row in some]) for t in inputs])
    return found


def run(node: Node, calls: Sequence[Call]) -> list[Any]:
    """What a node gives for each batch, in inference."""
    found = []
    for args, kwargs in calls:
        given = {**kwargs, "training": False} if kwargs.get("training") is not None else kwargs
        found.append(call_node(node, *args, **given))
    return found


def before_activation(node: Node, calls: Sequence[Call]) -> list[Any]:
    """What a linear layer gives for each batch before its activation."""
    layer = node.operation
    kept, layer.activation = layer.activation, activations.linear
    try:
        return run(node, calls)
    finally:
        layer.activation = kept


def moments(tensors: Sequence[Any], axis: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The mean and variance of the values of all tensors together that their masks keep.

    Returns (mean, variance) by place on `axis`, float64, and how many values there are of each.
    """
    mean, count = mean_of(tensors, axis)
    squares = [np.square(_rows(x, axis) - mean).sum(0) for x in tensors]  # float64, as the mean is
    return mean, np.sum(squares, axis=0) / max(count, 1), count


def mean_of(tensors: Sequence[Any], axis: int) -> tuple[np.ndarray, int]:
    """The mean of `moments`, and how many values there are."""
    rows = [_rows(x, axis) for x in tensors]
    count = sum(len(x) for x in rows)
    return np.sum([x.sum(0, dtype=np.float64) for x in rows], axis=0) / max(count, 1), count


def _rows(x: Any, axis: int) -> np.ndarray:
    mask = mask_of(x)
    values = np.moveaxis(ops.convert_to_numpy(x), axis, -1)
    if mask is None:
        return values.reshape(-1, values.shape[-1])
    return values[ops.convert_to_numpy(mask).astype(bool)]


def walk(graph: Graph, batches: Sequence[Sequence[Any]], visit: Visit = run) -> list[Any]:
    """Runs all batches through one node after the other; what no other node reads is forgotten.

    Args:
        graph: of a flat model.
        batches: of each batch the arrays (rows, *shape) for the inputs, in their order. There may
            be several kinds of batches, as float ones and quantized ones: `visit` knows which.
        visit: called as `visit(node, calls)` in topological order with the arguments of all
            batches; returns what the node gives for each.

    Returns:
        The outputs of the graph for each batch, in its structure.
    """
    inputs = tree.flatten(graph.inputs)
    values: dict[int, list[Any]] = {
        id(t): [batch[i] for batch in batches] for i, t in enumerate(inputs)
    }
    readers = Counter(key for node in graph.nodes for key in {id(t) for t in node.inputs})
    readers.update({id(t) for t in tree.flatten(graph.outputs)})
    for node in graph.nodes:
        if node.is_input:
            continue
        made = visit(node, [_call(node, values, i) for i in range(len(batches))])
        flat = [tree.flatten(each) for each in made]
        for position, tensor in enumerate(node.outputs):
            values[id(tensor)] = [each[position] for each in flat]
        for key in {id(t) for t in node.inputs} | {id(t) for t in node.outputs}:
            readers[key] -= key in {id(t) for t in node.inputs}
            if readers[key] <= 0:
                values.pop(key, None)
    return [
        tree.map_structure(lambda t, i=i: values[id(t)][i], graph.outputs)
        for i in range(len(batches))
    ]


def _call(node: Node, values: dict[int, list[Any]], batch: int) -> Call:
    return tree.map_structure(
        lambda x: values[id(x)][batch] if isinstance(x, KerasTensor) else x,
        (node.args, node.kwargs),
    )
