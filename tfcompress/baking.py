"""finalize: techniques baked into plain weights when training is over."""

import dataclasses
import warnings
from typing import Any

import keras

from tfcompress.graph import Graph, Node, copy_operation, copy_weights, flatten
from tfcompress.layers import (
    Compressed,
    FakeQuant,
    FusedBatchNorm,
    assign,
    baked_weight,
    target_variables,
)
from tfcompress.legacy import is_legacy
from tfcompress.model_inputs import require_model
from tfcompress.techniques import Quantize
from tfcompress.techniques.quantize import as_tensor


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
        from tfcompress.legacy.compression import finalize as from_tfmot

        return from_tfmot(model)
    require_model(model)
    if not is_compressed(model):
        return flatten(model)
    require_advanced(model)
    return rebuild_copy(model, _bake)


def rebuild_copy(model: keras.Model, replace) -> keras.Model:
    """A copy of a flat model in which `replace` may exchange operations.

    Args:
        model: a Functional model without nested models.
        replace: `replace(operation) -> (new operation, function that fills its weights)`, or None
            for a plain copy.

    Returns:
        A Functional model with weights of its own.
    """
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


def require_advanced(model: keras.Model) -> None:
    """Raises if a technique has not begun, warns if its schedule has not ended."""
    short = []
    for layer in model._flatten_layers():
        if not getattr(layer, "scheduled", False):
            continue
        last = int(as_tensor(layer.last_step))
        if last < 0:
            raise ValueError(
                f"layer '{layer.name}' follows a schedule that never advanced: its techniques are "
                "as before the first step. Train with "
                "fit(..., callbacks=[tfcompress.UpdateCompression()])."
            )
        for technique in (t for target in getattr(layer, "bound", ()) for t in target.techniques):
            kind = type(technique).__name__
            if last < technique.begins():
                raise ValueError(
                    f"{kind} of layer '{layer.name}' begins at step {technique.begins()}; received "
                    f"a model trained for {last} steps. Train it longer, or let it begin earlier."
                )
            rest = technique.unfinished(last)
            short += [f"{kind} of '{layer.name}': {rest}"] if rest else []
    if short:
        more = f" and {len(short) - 3} more" if len(short) > 3 else ""
        warnings.warn(
            f"training ended before its schedules did: {'; '.join(short[:3])}{more}. Train longer; "
            "if EarlyStopping restored an earlier epoch, let it start_from_epoch after their end.",
            stacklevel=3,
        )


def is_compressed(model: keras.Model) -> bool:
    """Whether a model comes from `compress`, trained or not."""
    kinds = (Compressed, FakeQuant, FusedBatchNorm)
    is_keras = isinstance(model, keras.Model)
    return is_keras and any(isinstance(layer, kinds) for layer in model._flatten_layers())


def _bake(operation):
    if isinstance(operation, FusedBatchNorm):
        twin = copy_operation(operation.layer)
        return twin, lambda: copy_weights([(operation.layer, twin)])
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
    if quantize.axes:
        return quantize
    return dataclasses.replace(quantize, dense="per_tensor", convolution="per_tensor")
