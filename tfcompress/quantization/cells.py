"""One step of a recurrent layer: its cell as operations that LiteRT has integer kernels for."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import layers, ops, tree

from tfcompress.graph.nodes import Graph
from tfcompress.quantization.loops import is_from_keras, is_partable, why_not
from tfcompress.quantization.pieces import activate, dense_of, fill, hand_on
from tfcompress.quantization.traced import open_user_layer


@dataclasses.dataclass(frozen=True)
class Cell:
    """What a cell computes, in two parts.

    Attributes:
        project: what is computed of all frames at once, before the loop.
        step: (what that gives of a frame, states) -> (output, new states).
        shapes: those of the states, without the batch.
        output: which of the states is what a step gives; None if none is.
        dropout, recurrent_dropouts: the rates of inputs and, by state, of what steps read of it.
    """

    project: Callable[[Any], Any]
    step: Callable[[Any, list], tuple[Any, list]]
    shapes: list[tuple[int, ...]]
    output: int | None = 0
    dropout: float = 0.0
    recurrent_dropouts: tuple[float, ...] = ()


def cell_of(cell, layer, frame: tuple[int, ...], name: str) -> Cell | None:
    """The parts of a cell; None if it cannot be opened.

    Args:
        layer: that the pieces train as.
        frame: the shape of what the cell reads, without the batch.
        name: of the pieces, the start of it.
    """
    known = _CELLS.get(type(cell).__name__) if is_from_keras(cell) else _traced
    return None if known is None else known(cell, layer, frame, name)


def _settings(cell, count: int) -> dict[str, Any]:
    rate = cell.recurrent_dropout
    rates = (rate, *(0.0 for _ in range(count - 1))) if rate else ()
    return {"dropout": cell.dropout, "recurrent_dropouts": rates}


def _simple(cell, layer, frame, name) -> Cell:
    inputs = dense_of(layer, cell.kernel, cell.bias, f"{name}_inputs")
    recurrent = dense_of(layer, cell.recurrent_kernel, None, f"{name}_recurrent")

    def step(x, states):
        h = activate(cell.activation, ops.add(x, recurrent(states[0])), f"{name}_output")
        return h, [h]

    return Cell(inputs, step, [(cell.units,)], **_settings(cell, 1))


def _lstm(cell, layer, frame, name) -> Cell:
    inputs = dense_of(layer, cell.kernel, cell.bias, f"{name}_inputs")
    recurrent = dense_of(layer, cell.recurrent_kernel, None, f"{name}_recurrent")
    step = functools.partial(_gates_of_lstm, cell, recurrent, name)
    return Cell(inputs, step, [(cell.units,)] * 2, **_settings(cell, 2))


def _gates_of_lstm(cell, recurrent, name, x, states):
    h, c = states
    i, f, g, o = ops.split(ops.add(x, recurrent(h)), 4, axis=-1)
    i, f, o = (
        activate(cell.recurrent_activation, gate, f"{name}_{kind}")
        for gate, kind in ((i, "input"), (f, "forget"), (o, "output"))
    )
    g = activate(cell.activation, g, f"{name}_candidate")
    c = ops.add(ops.multiply(f, c), ops.multiply(i, g))
    h = ops.multiply(o, activate(cell.activation, c, f"{name}_cell"))
    return h, [h, c]


def _gru(cell, layer, frame, name) -> Cell | None:
    if not is_partable(cell):
        return None
    biases = (None, None)
    if cell.use_bias:
        biases = (cell.bias[0], cell.bias[1]) if cell.reset_after else (cell.bias, None)
    inputs = dense_of(layer, cell.kernel, biases[0], f"{name}_inputs")
    units, kernel = cell.units, cell.recurrent_kernel
    if cell.reset_after:
        parts = [dense_of(layer, kernel, biases[1], f"{name}_recurrent")]
        if cell.use_bias:  # an indexed variable does not hand on how it trains
            hand_on(inputs, "bias", cell.bias)
            hand_on(parts[0], "bias", cell.bias)
    else:
        gates, candidate = kernel[:, : 2 * units], kernel[:, 2 * units :]
        parts = [
            dense_of(layer, gates, None, f"{name}_recurrent"),
            dense_of(layer, candidate, None, f"{name}_recurrent_candidate"),
        ]
        for part in parts:
            hand_on(part, "kernel", kernel)

    def step(x, states):
        (h,) = states
        gates, n_x = ops.split(x, [2 * units], axis=-1)
        if cell.reset_after:
            of_h, n_h = ops.split(parts[0](h), [2 * units], axis=-1)
        else:
            of_h, n_h = parts[0](h), None
        gates = activate(cell.recurrent_activation, ops.add(gates, of_h), f"{name}_gates")
        z, r = ops.split(gates, 2, axis=-1)
        n_h = parts[1](ops.multiply(r, h)) if n_h is None else ops.multiply(r, n_h)
        n = activate(cell.activation, ops.add(n_x, n_h), f"{name}_candidate")
        h = ops.add(n, ops.multiply(z, ops.subtract(h, n)))
        return h, [h]

    return Cell(inputs, step, [(units,)], **_settings(cell, 1))


def _conv_lstm(cell, layer, frame, name) -> Cell | None:
    if why_not(cell) is not None:
        return None
    kind = layers.Conv1D if cell.rank == 1 else layers.Conv2D
    shared = {"trainable": layer.trainable, "dtype": layer.dtype_policy}
    inputs = kind(
        4 * cell.filters,
        cell.kernel_size,
        strides=cell.strides,
        padding=cell.padding,
        dilation_rate=cell.dilation_rate,
        use_bias=cell.use_bias,
        name=f"{name}_inputs",
        **shared,
    )
    recurrent = kind(
        4 * cell.filters,
        cell.kernel_size,
        padding="same",
        use_bias=False,
        name=f"{name}_recurrent",
        **shared,
    )
    shape = tuple(inputs.compute_output_shape((None, *frame))[1:])
    state = (*shape[:-1], cell.filters)
    inputs.build((None, *frame))
    recurrent.build((None, *state))
    fill(inputs, "kernel", cell.kernel)
    fill(recurrent, "kernel", cell.recurrent_kernel)
    if cell.use_bias:
        fill(inputs, "bias", cell.bias)

    def project(x):
        if len(x.shape) == len(frame) + 1:  # inside of a step
            return inputs(x)
        length = x.shape[1]
        return ops.reshape(inputs(ops.reshape(x, (-1, *frame))), (-1, length, *shape))

    step = functools.partial(_gates_of_lstm, cell, recurrent, name)
    return Cell(project, step, [state] * 2, **_settings(cell, 2))


def _stacked(cell, layer, frame, name) -> Cell | None:
    parts = []
    for number, inner in enumerate(cell.cells):
        part = cell_of(inner, layer, frame, f"{name}_{number}")
        if part is None:
            return None
        parts.append(part)
        frame = _output_shape(inner)
    first = parts[0]

    def step(x, states):
        states, new = list(states), []
        for number, part in enumerate(parts):
            mine, states = states[: len(part.shapes)], states[len(part.shapes) :]
            if number and part.dropout:
                x = layers.Dropout(part.dropout, name=f"{name}_{number}_dropout")(x)
            x, made = part.step(part.project(x) if number else x, mine)
            new += made
        return x, new

    shapes = [shape for part in parts for shape in part.shapes]
    rates = tuple(r for p in parts for r in (p.recurrent_dropouts or (0.0,) * len(p.shapes)))
    last = parts[-1].output
    output = None if last is None else len(shapes) - len(parts[-1].shapes) + last
    return Cell(first.project, step, shapes, output, first.dropout, rates if any(rates) else ())


def _output_shape(cell) -> tuple[int, ...]:
    size = getattr(cell, "output_size", None)
    if size is None:
        size = tree.flatten(cell.state_size)[0]
    return (size,) if isinstance(size, int) else tuple(size)


def _traced(cell, layer, frame, name) -> Cell | None:
    """A cell of the user's own: the operations of its code."""
    if why_not(cell) is not None:
        return None
    sizes = cell.state_size
    single = isinstance(sizes, int)
    shapes = [(s,) if isinstance(s, int) else tuple(s) for s in ([sizes] if single else sizes)]

    def step(x, states):
        y, new = open_user_layer(cell, x, list(states))
        new = list(new) if isinstance(new, list | tuple) else [new]
        return y, new

    x = keras.Input(frame)
    states = [keras.Input(shape) for shape in shapes]
    try:
        y, new = step(x, states)
        made = Graph([x, *states], [y, *new])
    except Exception:  # What users' layers raise is of any kind.
        return None
    if any(node.operation is cell for node in made.nodes) or len(new) != len(shapes):
        return None
    output = next((i for i, each in enumerate(new) if each is y), None)
    return Cell(lambda x: x, step, shapes, output)


_CELLS: dict[str, Callable] = {
    "SimpleRNNCell": _simple,
    "LSTMCell": _lstm,
    "GRUCell": _gru,
    "ConvLSTMCell": _conv_lstm,
    "StackedRNNCells": _stacked,
}


def step_model(cell: Cell, frame, name: str, *, masked=False, keeps_output=False, zeros=False):
    """One step as a model: a frame (a mask) and states in, the output and new states out.

    Args:
        cell: whose `project` gave the frames.
        frame: a symbolic tensor of the shape and type of a frame, with its batch.
        masked: whether there is a mask, (batch, 1), by which states stay what they are.
        keeps_output: whether the output that a mask keeps is a state of its own, the last one.
        zeros: whether a mask makes zeros of the output instead.
    """
    dtype = frame.dtype
    x = keras.Input(frame.shape[1:], dtype=dtype, name=f"{name}_frame")
    states = [
        keras.Input(shape, dtype=dtype, name=f"{name}_state_{i}")
        for i, shape in enumerate(cell.shapes)
    ]
    y, new = cell.step(x, states)
    inputs = [x, *states]
    if masked:
        mask = keras.Input((1,), dtype="bool", name=f"{name}_mask")
        kept = [_where(mask, a, b) for a, b in zip(new, states, strict=True)]
        inputs = [x, mask, *states]
        if zeros:
            y = _where(mask, y, 0.0)
        elif keeps_output:
            last = keras.Input(y.shape[1:], dtype=dtype, name=f"{name}_kept")
            inputs.append(last)
            y = _where(mask, y, last)
            kept.append(y)
        else:
            y = kept[cell.output or 0]
        new = kept
    return keras.Model(inputs, [y, *new], name=f"{name}_step")


def _where(mask, x, other):
    rank = len(x.shape)
    if rank > 2:
        mask = ops.reshape(mask, (-1, *(1 for _ in range(rank - 1))))
    return ops.where(mask, x, other)
