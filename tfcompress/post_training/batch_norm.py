"""reestimate_batch_norm: the statistics of BatchNormalization from data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import layers

from tfcompress.graph.flatten import flatten
from tfcompress.graph.folding import batch_norm_of
from tfcompress.graph.inputs import require_model
from tfcompress.graph.layers import FixedTraining
from tfcompress.graph.nodes import Graph, Node
from tfcompress.layers.batch_norm import FusedBatchNorm
from tfcompress.post_training.corrections import reported
from tfcompress.post_training.walk import Call, batched, moments, run, walk


def reestimate_batch_norm(
    model: keras.Model,
    data: Any,
    *,
    batch_size: int = 32,
    samples: int | None = 1000,
    reference: keras.Model | None = None,
) -> keras.Model:
    """A copy of a model whose BatchNormalizations have the statistics of some data.

    Weights that were pruned, clustered or rounded give other activations than those whose moving
    mean and variance training left; here each layer gets the exact mean and variance of all
    samples together, one layer after the other, so that later ones see what the earlier ones give
    now. Nothing else changes (Nagel et al. 2022, arXiv:2203.11086).

    Args:
        model: any built Keras 3 model, also one of `compress` or `quantize_aware`; it is left
            untouched.
        data: samples of the training inputs in any form that `tfcompress.convert` takes as
            calibration; labels are left out.
        batch_size: samples that are computed at once; the statistics do not depend on it.
        samples: how many samples to use; None for all. Their activations of a layer are held
            together in memory.
        reference: the model as it was before its weights were changed. Then its statistics change
            only by what is another on these data, which need not be like the training data, nor
            many.

    Returns:
        A flat Functional `keras.Model`, not compiled. Its `correction_report` names every
        BatchNormalization that got new statistics, and every one that did not and why.

    Raises:
        TypeError: the model is not a Keras 3 model.
        ValueError: it is not built or cannot be flattened, or the data do not fit it.

    Example:
        >>> import keras, numpy as np
        >>> norm = keras.layers.BatchNormalization(name="norm")
        >>> model = keras.Sequential([keras.Input((1,)), norm])
        >>> model = reestimate_batch_norm(model, np.array([[1.0], [3.0], [5.0]]))
        >>> float(np.asarray(model.get_layer("norm").moving_mean)[0])
        3.0
    """
    require_model(model)
    flat = flatten(model)
    graph = Graph.of(flat)
    batches = batched(graph, data, batch_size, samples)
    before = {} if reference is None else _statistics(reference, batches)
    calls = Counter(id(node.operation) for node in graph.nodes)
    changes: dict[str, str] = {}
    kept = {x.name: f"is inside of '{whole}', which is one node" for x, whole in _inside(flat)}

    def visit(node: Node, given: list[Call]) -> list[Any]:
        layer = _batch_norm_of(node.operation)
        if layer is None:
            return run(node, given)
        if isinstance(node.operation, FixedTraining) or node.kwargs.get("training"):
            kept[node.name] = "normalizes by the statistics of each batch"
        elif calls[id(node.operation)] > 1:
            kept[node.name] = f"is called {calls[id(node.operation)]} times"
        else:
            mean, variance, count = moments([args[0] for args, _ in given], layer.axis)
            if node.name in before:
                mean, variance = _changed(layer, (mean, variance), before[node.name])
            layer.moving_mean.assign(mean.astype(np.float32))
            layer.moving_variance.assign(variance.astype(np.float32))
            changes[node.name] = f"mean and variance of {count:,} values a channel"
        return run(node, given)

    walk(graph, batches, visit)
    return reported(flat, "reestimate_batch_norm", changes, kept)


def settled(
    model: keras.Model, data: Any, lost: Callable[[keras.Model], float]
) -> tuple[keras.Model, float, float] | None:
    """A flat model with the statistics of its last weights, if that is better.

    The moving averages of BatchNormalization lag behind weights that change much in few steps.

    Args:
        data: see `reestimate_batch_norm`; all of it is used.
        lost: a model -> what is to be small.

    Returns (the model, what was lost before, and after); None if it is no better, or none is there.
    """
    if not any(map(_batch_norm_of, model.layers)):
        return None
    new = reestimate_batch_norm(model, data, samples=None)
    before, after = lost(model), lost(new)
    return (new, before, after) if after < before else None


Statistics = tuple[np.ndarray, np.ndarray]


def _statistics(model: keras.Model, batches: list[list[np.ndarray]]) -> dict[str, Statistics]:
    """The mean and variance of what each BatchNormalization of a model is given, by its name."""
    require_model(model)
    found: dict[str, Statistics] = {}

    def visit(node: Node, given: list[Call]) -> list[Any]:
        layer = _batch_norm_of(node.operation)
        if layer is not None:
            mean, variance, _ = moments([args[0] for args, _ in given], layer.axis)
            found[node.name] = mean, variance
        return run(node, given)

    walk(Graph.of(flatten(model)), batches, visit)
    return found


def _changed(layer, now: Statistics, before: Statistics) -> Statistics:
    """Statistics that training left, changed by what data tell of now and of before."""
    mean, variance = map(keras.ops.convert_to_numpy, (layer.moving_mean, layer.moving_variance))
    least = np.finfo(np.float32).tiny
    factor = np.where(before[1] > least, now[1] / np.maximum(before[1], least), 1.0)
    return mean + now[0] - before[0], variance * factor


def _batch_norm_of(operation: Any) -> Any:
    """The BatchNormalization that an operation is or wraps; None if it is another."""
    return batch_norm_of(operation.layer if isinstance(operation, FusedBatchNorm) else operation)


def _inside(flat: keras.Model) -> Iterator[tuple[Any, str]]:
    """The BatchNormalizations inside of layers that are one node, and their names."""
    for layer in flat.layers:
        if _batch_norm_of(layer) is None:
            for part in layer._flatten_layers(include_self=False):
                if isinstance(part, layers.BatchNormalization):
                    yield part, layer.name
