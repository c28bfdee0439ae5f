"""BatchNormalization taken into the weights beside it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

from tfcompress.graph.copying import copy_operation, copy_trainable
from tfcompress.graph.layers import FixedTraining
from tfcompress.graph.nodes import Graph, Node, call_node, exchanged, has_own_call, tensors_in
from tfcompress.kinds import (
    DEPTHWISE,
    LINEAR,
    SEPARABLE,
    TRANSPOSED,
    channel_place,
    has_plain_weights,
    is_of,
)

# What a BatchNormalization can go into.
_TAKING = LINEAR - {"EinsumDense"}

# The least part of the largest scale that weights can be divided by.
_LEAST = 1e-6

# A weight's name and its new value, in double precision.
Values = dict[str, np.ndarray]

# How a layer takes in a scale and an offset: `after_outputs` or `before_inputs`.
_Change = Callable[[Any, Values, np.ndarray, np.ndarray], Values]


@dataclasses.dataclass(frozen=True)
class Folding:
    """What became of the BatchNormalizations of a flat model.

    Attributes:
        model: a flat model without those that were folded.
        into: name of one that was folded -> name of the layer that took it in.
        kept: name of one that stays -> why.
        statistics: name of a layer that took in what came after it -> mean and standard deviation
            of what it gives now, by channel, as training saw them.
    """

    model: keras.Model
    into: dict[str, str]
    kept: dict[str, str]
    statistics: dict[str, tuple[np.ndarray, np.ndarray]]


def fold(flat: keras.Model) -> Folding:
    """Folds the BatchNormalizations of a copy that `flatten` made, which is used up."""
    graph = Graph.of(flat)
    folder = _Folder(graph)
    into: dict[str, str] = {}
    kept: dict[str, str] = {}
    for node in graph.nodes:
        if batch_norm_of(node.operation) is None:
            continue
        target = folder.fold(node)
        if isinstance(target, Node):
            into[node.name] = target.name
        else:
            kept.setdefault(node.name, target)
    new = with_values(graph, folder.values, dict.fromkeys(folder.gone, 0))
    return Folding(new, into, kept, folder.statistics)


def folded(flat: keras.Model) -> keras.Model:
    """The model of `fold`: layers keep their names, and `flat` is used up."""
    return fold(flat).model


def unfolded(flat: keras.Model, other: keras.Model, names: Iterable[str]) -> keras.Model:
    """A model with BatchNormalization that computes what one does into which it was folded.

    Args:
        flat: a copy that `flatten` made, which is used up.
        other: what `folded` made of another such copy.
        names: the layers whose weights have changed there since.
    """
    graph = Graph.of(flat)
    folder = _Folder(graph)
    for node in graph.nodes:
        if batch_norm_of(node.operation) is not None:
            folder.fold(node)
    values: dict[int, Values] = {}
    for name in names:
        layer, found = flat.get_layer(name), values_of(other.get_layer(name))
        taken = folder.taken.get(id(layer), [])
        for norm, change in reversed(taken):
            scale, offset = scale_and_offset(norm)
            # A channel that is worth nothing stays so.
            divisor = np.where(np.abs(scale) > _LEAST * np.abs(scale).max(), scale, 1.0)
            found = change(layer, found, 1 / divisor, -offset / divisor)
        if not layer.use_bias:
            # What comes after takes it off the mean.
            after = next((norm for norm, change in taken if change is after_outputs), None)
            if after is not None:
                bias = np.broadcast_to(found.pop("bias"), after.moving_mean.shape)
                after.moving_mean.assign_sub(bias)
            elif not found["bias"].any():
                del found["bias"]
        values[id(layer)] = found
    return with_values(graph, values)


@dataclasses.dataclass
class _Folder:
    """Folds BatchNormalizations one by one.

    `values` has the new weights of layers, by their identity; `gone` the identity of
    the nodes that were folded -> the node that took them in; `taken` what layers took in, by their
    identity, and how; `statistics` those of `Folding`.
    """

    graph: Graph

    def __post_init__(self):
        self.calls = Counter(id(node.operation) for node in self.graph.nodes)
        self.values: dict[int, Values] = {}
        self.gone: dict[int, Node] = {}
        self.taken: dict[int, list[tuple[Any, _Change]]] = {}
        self.statistics: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def fold(self, node: Node) -> Node | str:
        """Folds a BatchNormalization; the layer that took it in, or why none can."""
        layer = batch_norm_of(node.operation)
        if isinstance(node.operation, FixedTraining) or node.kwargs.get("training"):
            return "is called with training=True"
        if self.calls[id(node.operation)] > 1:
            return f"is called {self.calls[id(node.operation)]} times"
        if has_own_call(type(layer)):
            return f"computes what {type(layer).__name__}.call says"
        source, reader = self._source(node), self.graph.only_consumer(node.outputs[0])
        refusals = []
        if source is not None and is_of(source.operation, _TAKING):
            refusals.append(self._refusal_after(node, source))
            if refusals[-1] is None:
                self.statistics[source.name] = statistics_after(layer)
                return self._take_in(node, source, after_outputs)
        if reader is not None and is_of(reader.operation, _TAKING):
            refusals.append(self._refusal_before(node, reader))
            if refusals[-1] is None:
                return self._take_in(node, reader, before_inputs)
        if refusals:
            return str(refusals[0])
        return f"comes after {_said(source)} and before {_said(reader)}: no weights to go into"

    def _source(self, node: Node) -> Node | None:
        """The node that a BatchNormalization normalizes the output of."""
        source = self.graph.producer(node.inputs[0])
        while source is not None and id(source) in self.gone:
            before = self.graph.producer(source.inputs[0])
            if before is not self.gone[id(source)]:  # it went into the layer after it
                return source
            source = before
        return source

    def _refusal_after(self, node: Node, source: Node) -> str | None:
        layer = source.operation
        refusal = self._refusal(node, layer)
        if refusal is not None:
            return refusal
        if self.graph.only_consumer(node.inputs[0]) is not node:
            return f"others read what '{layer.name}' gives, too"
        if layer.activation is not keras.activations.linear:
            return f"'{layer.name}' has an activation before it"
        if layer.activity_regularizer is not None:
            return f"'{layer.name}' has an activity regularizer before it"
        return None

    def _refusal_before(self, node: Node, reader: Node) -> str | None:
        layer = reader.operation
        refusal = self._refusal(node, layer)
        if refusal is not None:
            return refusal
        _, offset = scale_and_offset(batch_norm_of(node.operation))
        if pads(layer) and offset.any():
            return f"'{layer.name}' pads with zeros what it gives"
        return None

    def _refusal(self, node: Node, layer) -> str | None:
        """Why a layer cannot take in a BatchNormalization, whichever of them comes first."""
        rank, axis = len(node.outputs[0].shape), batch_norm_of(node.operation).axis
        if axis % rank != channel_place(layer) % rank:
            return f"normalizes axis {axis}, which is not that of the channels of '{layer.name}'"
        if self.calls[id(layer)] > 1:
            return f"'{layer.name}' is called {self.calls[id(layer)]} times"
        if has_own_call(type(layer)):
            return f"'{layer.name}' computes what {type(layer).__name__}.call says"
        if not has_plain_weights(layer):
            return f"'{layer.name}' has no plain weights (LoRA or quantized)"
        return None

    def _take_in(self, node: Node, target: Node, change: _Change) -> Node:
        layer, norm = target.operation, batch_norm_of(node.operation)
        values = self.values.get(id(layer)) or values_of(layer)
        self.values[id(layer)] = change(layer, values, *scale_and_offset(norm))
        self.taken.setdefault(id(layer), []).append((norm, change))
        self.gone[id(node)] = target
        return target


def with_values(
    graph: Graph, values: Mapping[int, Values], gone: Mapping[int, int] | None = None
) -> keras.Model:
    """A new model of the graph of a copy that is used up, with new weights of its layers.

    Args:
        values: identity of a layer -> its new weights, which are broadcast. A linear layer without
            bias that has one here gets it.
        gone: identity of a node -> the place of that of the tensors it is given which it gives.
    """
    twins, gone = {}, gone or {}
    for layer in {id(node.operation): node.operation for node in graph.nodes}.values():
        if id(layer) in values:
            lacks = "bias" in values[id(layer)] and not layer.use_bias
            twins[id(layer)] = copy_operation(layer, {"use_bias": True}) if lacks else layer

    def call(node: Node, *args, **kwargs):
        if id(node) in gone:
            return tensors_in((args, kwargs))[gone[id(node)]]
        if id(node.operation) in twins:
            return twins[id(node.operation)](*args, **kwargs)
        return call_node(node, *args, **kwargs)

    new = exchanged(graph, call)
    for node in graph.nodes:
        twin = twins.pop(id(node.operation), None)
        if twin is None:
            continue
        new_values = values[id(node.operation)]
        if twin is not node.operation:
            new_values = {**values_of(node.operation), **new_values}
        for name, value in new_values.items():
            variable = getattr(twin, name)
            variable.assign(np.broadcast_to(value, variable.shape))
        if twin is not node.operation:
            copy_trainable(node.operation, twin)
    return new


def batch_norm_of(operation) -> Any:
    """The BatchNormalization that an operation is; None if it is another."""
    inner = operation.layer if isinstance(operation, FixedTraining) else operation
    return inner if isinstance(inner, layers.BatchNormalization) else None


def scale_and_offset(layer) -> tuple[np.ndarray, np.ndarray]:
    """What a BatchNormalization computes in inference: x * scale + offset, by channel.

    Returns two float64 arrays of shape (channels,).
    """

    scale = 1.0 / np.sqrt(_double(layer.moving_variance) + layer.epsilon)
    if layer.scale:
        scale *= _double(layer.gamma)
    offset = -_double(layer.moving_mean) * scale
    return scale, offset + _double(layer.beta) if layer.center else offset


def statistics_after(layer) -> tuple[np.ndarray, np.ndarray]:
    """The mean and standard deviation of what a BatchNormalization gives, by channel, float64."""
    variance = _double(layer.moving_variance)
    std = np.sqrt(variance / (variance + layer.epsilon))
    if layer.scale:
        std *= np.abs(_double(layer.gamma))
    return _double(layer.beta) if layer.center else np.zeros_like(std), std


def _said(node: Node | None) -> str:
    if node is None:
        return "several or an output"
    return "the input" if node.is_input else f"'{node.name}' ({type(node.operation).__name__})"


def values_of(layer) -> Values:
    """The weights of a linear layer; a bias of 0 if it has none."""
    values = {name: _double(getattr(layer, name)) for name in _kernels(layer)}
    return {**values, "bias": _double(layer.bias) if layer.use_bias else np.zeros(1)}


def _kernels(layer) -> tuple[str, ...]:
    return ("depthwise_kernel", "pointwise_kernel") if is_of(layer, SEPARABLE) else ("kernel",)


def pads(layer) -> bool:
    """Whether zeros may stand beside the input of a layer, or kernels reach beyond it."""
    if isinstance(layer, layers.Dense):
        return False
    if is_of(layer, TRANSPOSED):
        return True
    return layer.padding != "valid" and any(size > 1 for size in layer.kernel_size)


def _double(variable) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable).astype("float64")


def after_outputs(layer, values: Values, scale: np.ndarray, offset: np.ndarray) -> Values:
    """Weights of a linear layer whose outputs were multiplied by `scale`, and `offset` added."""
    name = _kernels(layer)[-1]
    kernel = values[name]
    if is_of(layer, TRANSPOSED):
        kernel = kernel * scale[:, None]
    elif is_of(layer, DEPTHWISE):
        kernel = kernel * scale.reshape(kernel.shape[-2:])
    else:
        kernel = kernel * scale
    return {**values, name: kernel, "bias": values["bias"] * scale + offset}


def before_inputs(layer, values: Values, scale: np.ndarray, offset: np.ndarray) -> Values:
    """Weights of a linear layer whose inputs were multiplied by `scale`, and `offset` added."""
    name = _kernels(layer)[0]
    kernel = values[name]
    if is_of(layer, TRANSPOSED):  # only without an offset, see `pads`
        return {**values, name: kernel * scale, "bias": values["bias"]}
    if getattr(layer, "groups", 1) > 1:
        shape = (layer.groups, -1, 1)
        each = kernel.shape[-1] // layer.groups
        scale, offset = (
            np.repeat(x.reshape(shape), each, axis=2).swapaxes(0, 1).reshape(kernel.shape[-2:])
            for x in (scale, offset)
        )
    else:
        scale, offset = scale[:, None], offset[:, None]
    places = tuple(range(kernel.ndim - 2))
    shift = (kernel * offset).sum(places)
    if is_of(layer, DEPTHWISE | SEPARABLE):
        shift = shift.reshape(-1)
        if is_of(layer, SEPARABLE):
            shift = shift @ values["pointwise_kernel"].reshape(len(shift), -1)
    else:
        shift = shift.sum(0)
    return {**values, name: kernel * scale, "bias": values["bias"] + shift}
