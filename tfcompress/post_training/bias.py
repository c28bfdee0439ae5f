"""correct_bias: biases by which layers with rounded kernels give the means they gave before."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any

import keras
import numpy as np
from keras import activations, ops, tree

from tfcompress.graph.flatten import as_flat, flatten
from tfcompress.graph.folding import batch_norm_of, fold, statistics_after, with_values
from tfcompress.graph.inputs import require_model
from tfcompress.graph.nodes import Graph, Node, has_own_call
from tfcompress.kinds import MOVING, POOLING_ALL, SPATIAL, channel_place, is_exactly
from tfcompress.layers.compressed import require_plain
from tfcompress.post_training.corrections import Statistics, reported
from tfcompress.post_training.kernels import kernels_of
from tfcompress.post_training.scaling import PASSING, clip_of
from tfcompress.post_training.walk import Call, batched, before_activation, mean_of, run, walk

# What gives the mean of its outputs where it is given that of its inputs.
_AFFINE = {
    *(name for name in SPATIAL | POOLING_ALL | MOVING if "Max" not in name),
    *("Add", "Subtract", "Average", "Rescaling"),
}


def correct_bias(
    quantized: keras.Model,
    reference: keras.Model,
    data: Any = None,
    *,
    batch_size: int = 32,
    samples: int | None = 500,
) -> keras.Model:
    """A copy of a model with rounded kernels whose layers give the means of the float model.

    Rounding moves the mean of what a layer gives, which its bias takes back. With data, in the
    order of the model, each linear layer's bias gets the mean difference by channel between what
    the float model gives there and what the rounded one gives, after all corrections before it
    (Finkelstein et al. 2019, arXiv:1906.03193). Without, it gets what the change of its kernel
    makes of the mean of its inputs, as BatchNormalization and the ReLU, LeakyReLU, PReLU or ReLU6
    behind it tell that (Nagel et al. 2019, arXiv:1906.04721, section 4.2). Kernels stay as they
    are; a layer without bias gets one.

    Args:
        quantized: a built Keras 3 model, not one of `compress`, with the layers of `reference`
            by their names, whose kernels were rounded, clustered or pruned; it is left untouched.
        reference: the model as it was before. Where `quantized` has no BatchNormalization any
            more, that of `reference` is folded.
        data: samples of the training inputs in any form that `tfcompress.convert` takes as
            calibration; None for the correction by BatchNormalization: of `reference`, or as
            `equalize` told it, which made `reference`.
        batch_size: samples that are computed at once.
        samples: how many of `data` to use; None for all.

    Returns:
        A flat Functional `keras.Model`, not compiled. Its `correction_report` names every layer
        whose bias changed, and every one whose did not and why.

    Raises:
        TypeError: a model is not a Keras 3 model.
        ValueError: a model is not built, cannot be flattened, or comes from `compress`; the layers
            of the two differ; the data do not fit; or none are given for inputs of open sizes.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> model.set_weights([np.array([[1.3]]), np.zeros(1)])
        >>> rounded = keras.models.clone_model(model)
        >>> rounded.set_weights([np.array([[1.0]]), np.zeros(1)])
        >>> new = correct_bias(rounded, model, np.array([[1.0], [3.0]]))
        >>> round(float(np.asarray(new.layers[-1].bias)[0]), 3)
        0.6
    """
    for model in (quantized, reference):
        require_model(model)
        require_plain(model)
    flat = _with_biases(flatten(quantized))
    graph = Graph.of(flat)
    float_graph, statistics = _reference(reference, graph)
    sites, kept = _sites(graph)
    _require_alike(sites, float_graph)
    if data is None:
        correction: Any = _Analytic(sites, statistics)
        walk(float_graph, [_unknown(float_graph)], correction.visit)
    else:
        batches = batched(graph, data, batch_size, samples)
        correction = _Empirical(sites)
        walk(float_graph, batches, correction.remember)
        walk(graph, batches, correction.visit)
    return reported(flat, "correct_bias", correction.changes, {**kept, **correction.kept})


def _with_biases(flat: keras.Model) -> keras.Model:
    """A copy, which is used up, with biases for all linear layers."""
    graph = Graph.of(flat)
    lacking = [k.layer for k in kernels_of(graph) if not k.layer.use_bias]
    values = {id(layer): {"bias": np.zeros(1)} for layer in lacking}
    return with_values(graph, values) if lacking else flat


def _sites(graph: Graph) -> tuple[dict[str, Any], dict[str, str]]:
    """The layers whose biases are corrected, by name, and why others are not."""
    calls = Counter(id(node.operation) for node in graph.nodes)
    sites, kept = {}, {}
    for kernel in kernels_of(graph):
        if calls[id(kernel.layer)] > 1:
            kept[kernel.name] = f"is called {calls[id(kernel.layer)]} times"
        elif has_own_call(type(kernel.layer)):
            kept[kernel.name] = f"computes what {type(kernel.layer).__name__}.call says"
        else:
            sites[kernel.name] = kernel.layer
    return sites, kept


def _reference(model: keras.Model, graph: Graph) -> tuple[Graph, Statistics]:
    """The float model's graph, folded as `graph` is; statistics of what its layers give."""
    report = getattr(model, "correction_report", None)
    told = {} if report is None else report.statistics
    own = Graph.of(as_flat(model))
    if _norms(own) == _norms(graph):
        return own, told
    folding = fold(flatten(model))
    return Graph.of(folding.model), {**folding.statistics, **told}


def _norms(graph: Graph) -> set[str]:
    return {node.name for node in graph.nodes if batch_norm_of(node.operation) is not None}


def _require_alike(sites: dict[str, Any], graph: Graph) -> None:
    found = {kernel.name: kernel.layer for kernel in kernels_of(graph)}
    for name, layer in sites.items():
        shape, twin = tuple(layer.kernel.shape), found.get(name)
        other = None if twin is None else tuple(twin.kernel.shape)
        if other != shape:
            raise ValueError(
                "reference must be the model that quantized was made from: received one whose "
                f"layer '{name}' {f'has a kernel of {other}' if other else 'is not there'}; "
                f"expected a kernel of {shape}. Pass the float model, or quantize it anew."
            )


class _Correction:
    """Biases that get what their layers lack.

    Args:
        sites: the layers by their names.
    """

    def __init__(self, sites: dict[str, Any]):
        self.sites = sites
        self.changes: dict[str, str] = {}
        self.kept: dict[str, str] = {}

    def add(self, name: str, lack: np.ndarray) -> None:
        """Adds what the mean of a layer lacks by channel to its bias."""
        layer, largest = self.sites[name], float(np.abs(lack).max(initial=0.0))
        if not math.isfinite(largest):
            self.kept[name] = "the mean of what it reads is not known without data"
        elif largest == 0.0:
            self.kept[name] = "its means are those of the float model"
        else:
            layer.bias.assign(ops.convert_to_numpy(layer.bias) + lack.astype(np.float32))
            self.changes[name] = f"means of {len(lack)} channels corrected by up to {largest:.3g}"


class _Empirical(_Correction):
    """By the means of data."""

    def __init__(self, sites: dict[str, Any]):
        super().__init__(sites)
        self.means: dict[str, np.ndarray] = {}

    def remember(self, node: Node, calls: list[Call]) -> list[Any]:
        """Notes the means that the float model gives."""
        if node.name not in self.sites:
            return run(node, calls)
        made = before_activation(node, calls)
        self.means[node.name] = _mean(node, made)
        return made if node.operation.activation is activations.linear else run(node, calls)

    def visit(self, node: Node, calls: list[Call]) -> list[Any]:
        """Corrects a layer, before others read it."""
        if node.name in self.sites:
            lack = self.means[node.name] - _mean(node, before_activation(node, calls))
            self.add(node.name, lack)
        return run(node, calls)


def _mean(node: Node, made: list[Any]) -> np.ndarray:
    return mean_of(made, channel_place(node.operation))[0]


class _Analytic(_Correction):
    """By the means that BatchNormalization tells: a sample of them goes through the float model.

    Args:
        statistics: of what layers give before their activations.
    """

    def __init__(self, sites: dict[str, Any], statistics: Statistics):
        super().__init__(sites)
        self.statistics = statistics
        # Identity of a tensor -> mean and standard deviation of its normal distribution.
        self.normal: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def visit(self, node: Node, calls: list[Call]) -> list[Any]:
        """The means of what a node gives; NaN where they are not known."""
        operation = node.operation
        norm = batch_norm_of(operation)
        if node.name in self.sites:
            other = dataclasses.replace(node, operation=self.sites[node.name])
            wanted, given = (before_activation(each, calls) for each in (node, other))
            self.add(node.name, _mean(node, wanted) - _mean(node, given))
        if norm is not None:
            return self._normal(node, statistics_after(norm), norm.axis, activations.linear)
        if node.name in self.sites and node.name in self.statistics:
            found, place = self.statistics[node.name], channel_place(operation)
            return self._normal(node, found, place, operation.activation)
        before = self.normal.get(id(node.inputs[0]))
        if is_exactly(operation, PASSING) and before is not None:
            self.normal[id(node.outputs[0])] = before
        if is_exactly(operation, PASSING | _AFFINE) or (
            node.name in self.sites and operation.activation is activations.linear
        ):
            return run(node, calls)
        if before is not None and len(node.inputs) == 1 and clip_of(operation) is not None:
            return [_filled(node.outputs[0], _rectified(*before, operation))]
        return [tree.map_structure(lambda t: _filled(t, math.nan), _packed(node))]

    def _normal(self, node: Node, found, axis: int, activation: Any) -> list[Any]:
        tensor = node.outputs[0]
        shape = [1] * len(tensor.shape)
        shape[axis] = -1
        mean, std = (x.reshape(shape) for x in found)
        if activation is activations.linear:
            self.normal[id(tensor)] = mean, std
        known = clip_of(activation) is not None
        return [_filled(tensor, _rectified(mean, std, activation) if known else math.nan)]


def _unknown(graph: Graph) -> list[np.ndarray]:
    """A sample of unknown values for all inputs."""
    tensors = tree.flatten(graph.inputs)
    for tensor in tensors:
        if None in tensor.shape[1:]:
            raise ValueError(
                f"input '{tensor.name}' leaves sizes open: {tuple(tensor.shape)}; expected fixed "
                "ones where no data are given. Pass data, samples of the training inputs."
            )
    return [_filled(tensor, math.nan) for tensor in tensors]


def _packed(node: Node) -> Any:
    """What a node gives, alone or as a list."""
    return node.outputs[0] if len(node.outputs) == 1 else node.outputs


def _filled(tensor: Any, values: Any) -> Any:
    """One sample of a tensor's shape."""
    return np.broadcast_to(np.float32(values), (1, *tensor.shape[1:]))


def _rectified(mean: np.ndarray, std: np.ndarray, operation: Any) -> np.ndarray:
    """The mean of normal values after an operation that `clip_of` knows."""
    operation = getattr(operation, "activation", operation)
    if operation is activations.linear:
        return mean
    limit, slope = clip_of(operation), getattr(operation, "negative_slope", 0.0)
    if operation is activations.leaky_relu:
        slope = 0.2
    if is_exactly(operation, {"PReLU"}):
        slope = ops.convert_to_numpy(operation.alpha)
    found = _above(mean, std)
    if limit is not None and limit < math.inf:
        found = found - _above(mean - limit, std)
    return found - slope * _above(-mean, std)


def _above(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """The mean of max(0, x) of normal x."""
    safe = np.maximum(std, 1e-30)
    z = mean / safe
    share = 0.5 * (1.0 + np.vectorize(math.erf, otypes=[float])(z / math.sqrt(2.0)))
    return mean * share + safe * np.exp(-0.5 * np.square(z)) / math.sqrt(2.0 * math.pi)
