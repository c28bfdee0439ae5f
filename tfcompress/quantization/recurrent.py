"""LSTMs opened into the one operator that LiteRT has for them, on integers."""

from __future__ import annotations

import functools
from collections.abc import Callable

import keras
from keras import layers, ops

from tfcompress.graph.inputs import mask_of
from tfcompress.layers.integer_lstm import IntegerLSTM
from tfcompress.quantization.pieces import fill
from tfcompress.techniques.quantize import Quantize


def opener_of(layer, technique: Quantize | None, otherwise: Callable | None) -> Callable | None:
    """The function that opens a layer whose inside is LSTMs that become one operator each.

    Args:
        technique: how its activations are quantized: the operator is used in 8 bits.
        otherwise: opens the layer where it is called in a way that the operator has not, if
            anything does.
    """
    technique, otherwise = technique or Quantize(), otherwise or _as_it_is
    if technique.activation_bits != 8:
        return None
    if is_fusable(layer):
        return functools.partial(open_lstm, technique, otherwise)
    inner = (getattr(layer, f"{way}_layer", None) for way in ("forward", "backward"))
    ways = type(layer) is layers.Bidirectional and not layer.stateful
    if ways and all(map(is_fusable, inner)):
        return functools.partial(open_bidirectional, technique, otherwise)
    return None


def is_fusable(layer) -> bool:
    """Whether a layer is an LSTM with the gates that the operator has, of one output."""
    return (
        type(layer) is layers.LSTM
        and not (layer.return_state or layer.recurrent_dropout)
        and layer.activation is keras.activations.tanh
        and layer.recurrent_activation is keras.activations.sigmoid
    )


def _as_it_is(layer, *args, **kwargs):
    return layer(*args, **kwargs)


def open_lstm(technique: Quantize, otherwise, layer, x, initial_state=None, mask=None, **kwargs):
    """LSTM -> dropout, flip, IntegerLSTM."""
    fixed = x.shape[0] is not None or not layer.stateful
    if not (fixed and _is_plain_call(x, initial_state, mask)):
        return otherwise(layer, x, initial_state=initial_state, mask=mask, **kwargs)
    return _fused(technique, layer, x)


def open_bidirectional(
    technique: Quantize, otherwise, layer, x, initial_state=None, mask=None, **kwargs
):
    """Bidirectional -> two IntegerLSTMs, one of them between flips, and what merges them."""
    if not _is_plain_call(x, initial_state, mask):
        return otherwise(layer, x, initial_state=initial_state, mask=mask, **kwargs)
    parts = layer.forward_layer, layer.backward_layer
    forward, backward = (_fused(technique, part, x) for part in parts)
    if layer.return_sequences:
        backward = ops.flip(backward, axis=1)
    if layer.merge_mode is None:
        return [forward, backward]
    if layer.merge_mode == "concat":
        return ops.concatenate([forward, backward], axis=-1)
    if layer.merge_mode == "mul":
        return ops.multiply(forward, backward)
    total = ops.add(forward, backward)
    return total if layer.merge_mode == "sum" else ops.multiply(total, 0.5)


def _is_plain_call(x, initial_state, mask) -> bool:
    masked = mask is not None or mask_of(x) is not None
    return not masked and initial_state is None and x.shape[-1] is not None


def _fused(technique: Quantize, layer, x):
    """What an LSTM gives for a sequence, by the layer that stands for the operator."""
    cell = layer.cell
    if layer.dropout:
        shape = (None, 1, None)  # the same for all steps
        name = f"{layer.name}_dropout"
        x = layers.Dropout(layer.dropout, noise_shape=shape, name=name, dtype=x.dtype)(x)
    if layer.go_backwards:
        x = ops.flip(x, axis=1)
    twin = IntegerLSTM(
        layer.units,
        cell.use_bias,
        layer.return_sequences,
        layer.stateful,
        momentum=technique.momentum,
        delay=technique.delay,
        freeze=technique.freeze,
        name=layer.name,
        trainable=layer.trainable,
    )
    y = twin(x)
    for name in ("kernel", "recurrent_kernel", "bias"):
        if (weight := getattr(cell, name)) is not None:
            fill(twin, name, weight)
    return y
