"""What the axes of the weights of recurrent layers count."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import keras

from tfcompress.channels.axes import Axis, Concat, size_of
from tfcompress.channels.weighted import Axes, Call, Weight

if TYPE_CHECKING:
    from tfcompress.channels.following import Follower

# Blocks of `units` columns in the weights of a cell.
GATES = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}


def recurrent(flow: Follower, call: Call) -> list[Axes]:
    layer, x = call.layer, call.inputs[0]
    out = flow.channels.new(layer.units, call.source)
    flow.register(call, _cell_weights(layer, x[-1], out), units=out)
    flow.fix(x[1:2], f"they are steps of {call.source}")
    for state in call.inputs[1:]:
        if state[-1] is not None and size_of(state[-1]) == layer.units:  # no mask
            flow.same(state[-1], out)
    return _sequence(layer, x, [out], len(call.shapes))


def _cell_weights(layer, into: Axis | None, out: Axis) -> Iterator[Weight]:
    cell = layer.cell
    gates = Concat((out,) * next(n for name, n in GATES.items() if _is_a(layer, name)))
    yield Weight(cell.kernel, (into, gates), (1,))
    yield Weight(cell.recurrent_kernel, (out, gates), (1,))
    if cell.use_bias:
        two = len(cell.bias.shape) == 2  # a GRU's input and recurrent biases
        yield Weight(cell.bias, (None, gates) if two else (gates,))


def _is_a(layer, name: str) -> bool:
    return isinstance(layer, getattr(keras.layers, name))


def _sequence(layer, x: Axes, outs: list[Axis], count: int) -> list[Axes]:
    whole: Axis = Concat(tuple(outs)) if len(outs) > 1 else outs[0]
    first: Axes = [*x[:2], whole] if layer.return_sequences else [x[0], whole]
    states = (count - 1) // len(outs)
    return [first, *([x[0], out] for out in outs for _ in range(states))]


def bidirectional(flow: Follower, call: Call) -> list[Axes] | None:
    layer, x = call.layer, call.inputs[0]
    directions = [layer.forward_layer, layer.backward_layer]
    plain = all(any(_is_a(part, name) for name in GATES) for part in directions)
    if not plain or len(call.inputs) > 1 or layer.merge_mode is None:
        return flow.unknown(call)
    outs: list[Axis] = [flow.channels.new(part.units, call.source) for part in directions]
    pairs = zip(directions, outs, strict=True)
    weights = [w for part, out in pairs for w in _cell_weights(part, x[-1], out)]
    counts = dict(zip(("layer.units", "backward_layer.units"), outs, strict=True))
    flow.register(call, weights, **counts)
    flow.fix(x[1:2], f"they are steps of {call.source}")
    flow.same(*outs)  # Keras takes both directions to be equally wide
    if layer.merge_mode != "concat":
        outs = outs[:1]
    return _sequence(layer, x, outs, 1)
