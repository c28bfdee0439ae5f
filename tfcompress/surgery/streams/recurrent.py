"""The rule of recurrent layers: their states go in and out."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from tfcompress.graph.nodes import Node
from tfcompress.layers.compressed import Compressed
from tfcompress.layers.step_rnn import StepRNN
from tfcompress.quantization.cells import Cell, cell_of
from tfcompress.quantization.kernels import inner_layer
from tfcompress.quantization.loops import why_not
from tfcompress.surgery.streams.lines import Ahead
from tfcompress.surgery.streams.making import Maker

# Steps that are written out one by one; LiteRT has loops of floats alone.
_UNROLLED = 64

_BACKWARDS = "runs backwards from the window's end"
_GIVEN = (
    "begins with states that the model computes: make what comes from there on a model of its own, "
    "with these as inputs"
)


def recurrent(maker: Maker, node: Node, lines: list, args: tuple, kwargs: dict):
    """A recurrent layer that takes its states and gives them back."""
    layer, line = inner_layer(node.operation), lines[0]
    _require_plain(layer, line, args, kwargs)
    _require_inputs(maker, node)
    x, line, start = maker.begun(node.name, args[0], line)
    states = _states(maker, node, layer, x, start)
    given, frames = [state for state, _ in states], maker.frames(line)
    cell = None if isinstance(node.operation, Compressed) else _cell_of(layer, x)
    if cell is not None and frames <= _UNROLLED:
        y, after = _stepped(layer, cell, x, given)
    else:
        # The states of a layer that keeps them from batch to batch are the model's now.
        settings: dict[str, Any] = {"return_state": True, "stateful": False}
        if frames <= _UNROLLED:
            settings["unroll"] = True
        twin = maker.layer(node.operation, **settings)
        nested = layer.get_initial_state(batch_size=1)
        first = given[0] if len(given) == 1 else keras.tree.pack_sequence_as(nested, given)
        y, *after = keras.tree.flatten(twin(x, initial_state=first))
    for (_, name), value in zip(states, after, strict=True):
        maker.keep(name, value)
    latest = line.changed(axis=None)
    made = line if layer.return_sequences else latest
    if layer.return_state:
        return [y, *after], [made, *[latest] * len(after)]
    return y, made


def stepped(maker: Maker, node: Node, lines: list, args: tuple, kwargs: dict):
    """A recurrent layer of integers: its step once for each frame, with states in and out."""
    loop, line = node.operation, lines[0]
    sequences, _ = loop.parted(args[0])
    _require_inputs(maker, node)
    if loop.go_backwards:
        raise Ahead(_BACKWARDS)
    if any(other != line for other in lines[: loop.sequences]) or line.zeros or line.axis != 1:
        raise Ahead("reads sequences that do not come together")
    if maker.call_of(line) is None:
        raise Ahead(
            f"reads a first frame that is not the first of a call: pass a chunk that divides "
            f"{line.first * line.stride}",
            window=False,
        )
    start, count = maker.call_of(line) or 0, len(loop.state_specs)
    names = [node.name if count == 1 else f"{node.name}_{i}" for i in range(count)]
    given = [
        maker.state(name, spec, (sequences[0].shape[0], *spec.shape[1:]), start)
        for name, spec in zip(names, loop.state_specs, strict=True)
    ]
    new, made, graph = [state for state, _ in given], [], loop.graph

    def call(part: Node, *values, **settings):
        return values[0] if part.is_input else maker.layer(part.operation)(*values, **settings)

    if states_given(node):
        new = [loop.on_grid(place, state, call=call) for place, state in enumerate(new)]
    for time in range(sequences[0].shape[1]):
        frames = [x[:, time] for x in sequences]
        y, *new = keras.tree.flatten(graph.run([*frames, *new], call))
        made.append(y)
    for (_, name), value in zip(given, new, strict=True):
        maker.keep(name, value)
    latest = line.changed(axis=None)
    y = _sequence(made) if loop.return_sequences else made[-1]
    own = line if loop.return_sequences else latest
    return ([y, *new], [own, *[latest] * len(new)]) if loop.return_state else (y, own)


def integer_lstm(maker: Maker, node: Node, lines: list, args: tuple, kwargs: dict):
    """LiteRT's one operator, which keeps its states by itself."""
    line = lines[0]
    if not maker.variables:
        raise Ahead("keeps its states inside of one operator: pass states='variables'")
    if line.zeros or line.axis != 1:
        raise Ahead("reads padded frames, or has them at another axis than the second")
    if line.first:
        raise Ahead(
            "begins with a later call than the first, but variables with the first: pad in front "
            "instead of padding='valid' before it",
            window=False,
        )
    y = maker.layer(node.operation, stateful=True)(*args, **kwargs)
    sequences = inner_layer(node.operation).return_sequences
    return y, line if sequences else line.changed(axis=None)


def _sequence(made: list):
    return ops.expand_dims(made[0], 1) if len(made) == 1 else ops.stack(made, axis=1)


def states_given(node: Node) -> list:
    """What a recurrent layer begins with."""
    layer = inner_layer(node.operation)
    if isinstance(layer, StepRNN):
        return node.inputs[layer.sequences :]
    if not isinstance(layer, layers.RNN):
        return []
    given = keras.tree.flatten((node.args[1:2], node.kwargs.get("initial_state")))
    return [x for x in given if x is not None]


def _require_inputs(maker: Maker, node: Node) -> None:
    """Raises if a layer begins with other states than zeros or inputs, whose place states take."""
    given = states_given(node)
    if any(id(x) not in maker.begins for x in given):
        raise Ahead(_GIVEN, window=False)
    if given and maker.variables:
        raise Ahead(
            "begins with states that are given, variables with zeros: pass states='io'",
            window=False,
        )


def _require_plain(layer, line, args: tuple, kwargs: dict) -> None:
    if layer.go_backwards:
        raise Ahead(_BACKWARDS)
    if any(mask is not None for mask in (*args[2:3], kwargs.get("mask"))):
        raise Ahead("reads masks of padded windows, which a stream has not: leave them out")
    if line.axis != 1:
        raise Ahead("has the frames at another axis than the second")
    if line.zeros:
        raise Ahead("reads padded frames", window=False)


def _states(maker: Maker, node: Node, layer, x, start: int) -> list:
    """The states of a recurrent layer, as inputs, and their names."""
    if type(layer).__name__.startswith("ConvLSTM"):
        raise Ahead("is a convolution with states, which no rule is for")
    flat = keras.tree.flatten(layer.get_initial_state(batch_size=1))
    if any(keras.ops.any(state != 0) for state in flat):
        raise Ahead("begins with states that are not 0", window=False)
    letters = ["h", "c"] if type(layer) is layers.LSTM else [str(i) for i in range(len(flat))]
    what = [node.name] if len(flat) == 1 else [f"{node.name}_{letter}" for letter in letters]
    return [
        maker.state(name, x, (x.shape[0], *state.shape[1:]), start)
        for name, state in zip(what, flat, strict=True)
    ]


def _stepped(layer, cell: Cell, x, states: list):
    """A layer's steps written out in operations that have integer kernels."""
    frames, made = cell.project(x), []
    for time in range(x.shape[1]):
        y, states = cell.step(frames[:, time], states)
        made.append(y)
    return (_sequence(made) if layer.return_sequences else made[-1]), states


def _cell_of(layer, x) -> Cell | None:
    """The parts of a layer's cell; None if it has none in integers."""
    if why_not(layer.cell) is not None:
        return None
    return cell_of(layer.cell, layer, tuple(x.shape[2:]), layer.name)
