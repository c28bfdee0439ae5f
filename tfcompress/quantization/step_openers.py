"""Recurrent layers opened step by step: a StepRNN over one step of primitive operations."""

from __future__ import annotations

from collections.abc import Callable

import keras
from keras import layers, ops, tree

from tfcompress.graph.inputs import mask_of
from tfcompress.layers.step_rnn import StepRNN
from tfcompress.quantization.cells import Cell, cell_of, step_model
from tfcompress.quantization.loops import is_recurrent, loop_reason


def is_bidirectional(layer) -> bool:
    """Whether a layer runs one forward and one backward that can be opened."""
    if type(layer) is not layers.Bidirectional:
        return False
    return is_recurrent(layer.forward_layer) and is_recurrent(layer.backward_layer)


def open_recurrent(deepened: Callable, layer, x, initial_state=None, mask=None, **settings):
    """A recurrent layer -> what is computed of all frames at once, and a StepRNN.

    Args:
        deepened: opens the operations of a model of one step.
    """
    # With states given Keras hands no masks on.
    mask = mask_of(x) if mask is None and initial_state is None else mask
    parts = _parts(layer, x)
    if parts is None:
        return layer(x, initial_state=initial_state, mask=mask, **settings)
    given = [] if initial_state is None else tree.flatten(initial_state)
    if parts.dropout:
        noise = (None, 1, *(None for _ in x.shape[2:]))
        x = layers.Dropout(parts.dropout, noise_shape=noise, name=f"{layer.name}_dropout")(x)
    sequences = [parts.project(_bare(x))]
    if mask is not None:
        mask = mask if mask.dtype == "bool" else ops.cast(mask, "bool")
        sequences.append(ops.expand_dims(mask, -1))
    zeros = bool(layer.zero_output_for_mask)
    keeps = mask is not None and not zeros and (bool(given) or parts.output is None)
    frame = keras.KerasTensor((None, *sequences[0].shape[2:]), sequences[0].dtype)
    how = {"masked": mask is not None, "keeps_output": keeps, "zeros": zeros}
    step = deepened(step_model(parts, frame, layer.name, **how))
    rates = (*parts.recurrent_dropouts, *[0.0] * keeps) if parts.recurrent_dropouts else ()
    made = _loop(layer, step, len(sequences), rates)([*sequences, *given])
    if not layer.return_state:
        return made
    y, *states = made[: len(made) - keeps]
    if isinstance(layer.cell, layers.StackedRNNCells):
        states = tree.pack_sequence_as(list(layer.cell.state_size), states)
    return [y, *states]


def _parts(layer, x) -> Cell | None:
    if loop_reason(layer) is not None or None in x.shape[1:]:
        return None
    return cell_of(layer.cell, layer, tuple(x.shape[2:]), layer.name)


def _loop(layer, step: keras.Model, sequences: int, recurrent_dropout: tuple) -> StepRNN:
    """The layer that runs a step as another runs its cell."""
    return StepRNN(
        step,
        sequences=sequences,
        return_sequences=layer.return_sequences,
        return_state=layer.return_state,
        go_backwards=layer.go_backwards,
        recurrent_dropout=recurrent_dropout,
        seed=getattr(layer, "seed", None),
        activity_regularizer=layer.activity_regularizer,
        name=layer.name,
        dtype=layer.dtype_policy,
        trainable=layer.trainable,
    )


def _bare(x):
    """A tensor without its mask, which steps read by themselves."""
    return ops.copy(x) if mask_of(x) is not None else x


def open_bidirectional(opener: Callable, layer, x, initial_state=None, mask=None, **_):
    """Bidirectional -> a layer forward, one backward, and what merges them."""
    mask = mask_of(x) if mask is None and initial_state is None else mask
    half = len(initial_state) // 2 if initial_state is not None else 0
    states = (initial_state[:half], initial_state[half:]) if half else (None, None)
    made: list[list] = []
    for inner, given in zip((layer.forward_layer, layer.backward_layer), states, strict=True):
        made.append(tree.flatten(_direction(opener, inner, x, given, mask, made != [])))
    (y, *forward), (z, *backward) = made
    output = _merged(layer, y, z)
    if not layer.return_state:
        return output
    if layer.merge_mode is None:
        return (*output, *forward, *backward)
    return (output, *forward, *backward)


def _direction(opener: Callable, inner, x, states, mask, backward: bool):
    """What one of the two layers gives, in the order of the frames."""
    function = opener(inner)
    turned = backward and inner.return_sequences
    if function is None:
        made = inner(x, initial_state=states, mask=mask)
    else:
        made = function(inner, x, initial_state=states, mask=mask)
    if not turned:
        return made
    y, *others = tree.flatten(made)
    loop = y._keras_history.operation
    if isinstance(loop, StepRNN) and not loop.in_order:
        loop.in_order = True  # instead of turning the sequence once more
        return [y, *others]
    return [ops.flip(y, axis=1), *others]


def _merged(layer, y, z):
    mode = layer.merge_mode
    if mode is None:
        return (y, z)
    if mode == "concat":
        return ops.concatenate([y, z], axis=-1)
    if mode == "mul":
        return ops.multiply(y, z)
    total = ops.add(y, z)
    return ops.multiply(total, 0.5) if mode == "ave" else total
