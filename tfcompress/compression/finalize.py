"""finalize: techniques baked into plain weights when training is over."""

import dataclasses
from typing import Any

import keras

from tfcompress.dispatch import is_legacy, legacy
from tfcompress.graph.copying import copy_operation, copy_weights
from tfcompress.graph.flatten import flatten
from tfcompress.graph.inputs import require_model
from tfcompress.graph.nodes import Graph, Node
from tfcompress.layers.batch_norm import FusedBatchNorm
from tfcompress.layers.compressed import (
    Compressed,
    assign,
    baked_weight,
    is_compressed,
    require_advanced,
    target_variables,
)
from tfcompress.layers.step_rnn import StepRNN
from tfcompress.techniques import Quantize
from tfcompress.techniques.quantize import Granularity


def finalize(model: keras.Model) -> keras.Model:
    """A copy of a compressed model with its techniques baked into plain weights.

    Quantization is carried out by the converted file itself, so that layers and activations
    trained with `Quantize` keep its simulation; the outputs of the two models are equal.

    Args:
        model: a model from `compress` or `quantize_aware`, trained; it is left untouched. A plain
            model has nothing to bake and comes back as `flatten` gives it.

    Returns:
        A Functional `keras.Model`.

    Raises:
        ValueError: if a schedule was never advanced, because `UpdateCompression()` was not among
            the callbacks of `fit`, or if training ended before a technique began.
    """
    if is_legacy(model):
        return legacy("finalize")(model)
    require_model(model)
    if not is_compressed(model):
        return flatten(model)
    require_advanced(model)
    return rebuild_copy(model, _bake)


def rebuild_copy(model: keras.Model, replace) -> keras.Model:
    """A copy of a flat model in which `replace` may exchange operations."""
    copies: dict[int, Any] = {}
    fill = []

    def call(node: Node, *args, **kwargs):
        operation = node.operation
        if node.is_input:
            return args[0]
        if id(operation) not in copies:
            new = replace(operation)
            if new is None:
                twin = copy_operation(operation)
                new = (twin, lambda: copy_weights([(operation, twin)]))
            copies[id(operation)], filler = new
            fill.append(filler)
        return copies[id(operation)](*args, **kwargs)

    copied = Graph.of(model).rebuild(call)
    for filler in fill:
        filler()
    return copied


def _bake(operation):
    if isinstance(operation, FusedBatchNorm):
        twin = copy_operation(operation.layer)
        return twin, lambda: copy_weights([(operation.layer, twin)])
    if isinstance(operation, StepRNN):
        return operation.with_step(rebuild_copy(operation.step, _bake)), lambda: None
    if not isinstance(operation, Compressed):
        return None
    kept = [_unbound(t) for t in operation.bound[0].techniques if isinstance(t, Quantize)]
    inner = copy_operation(operation.layer)
    twin = Compressed(inner, kept, operation.targets) if kept else inner

    def fill():
        copy_weights([(operation.layer, inner)])
        copied = target_variables(inner, operation.targets)
        baked = twin.bound if kept else [None] * len(copied)
        for source, (_, variable), target in zip(operation.bound, copied, baked, strict=True):
            variable.assign(baked_weight(source, stop=Quantize))
            if target is not None:
                pairs = zip(source.techniques, source.states, strict=True)
                old = [state for technique, state in pairs if isinstance(technique, Quantize)]
                for new, state in zip(target.states, old, strict=True):
                    assign(new, state)
        if kept and twin.scheduled:
            twin.last_step.assign(operation.last_step)

    return twin, fill


def _unbound(quantize: Quantize) -> Quantize:
    """The technique with the granularity that it has, which may come from one before it."""
    kind: Granularity = "per_channel" if quantize.axes else "per_tensor"
    return dataclasses.replace(quantize, dense=kind, convolution=kind)
