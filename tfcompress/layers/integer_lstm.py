"""IntegerLSTM: an LSTM that computes what LiteRT's integer kernel will, while it trains.

The kernel is UNIDIRECTIONAL_SEQUENCE_LSTM with activations and weights of 8 bits and a cell state
of 16 (https://github.com/tensorflow/tensorflow/blob/master/tensorflow/lite/kernels/lstm_eval.cc):
sums of products become gates in steps of 2**-12, what their functions give has steps of 2**-15,
the step of the cell state is a power of two, and the hidden state has a scale of its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.layers.fake_quant import FakeQuant
from tfcompress.layers.fixed_point import sigmoid_table, tanh_table
from tfcompress.layers.kernel_rounding import grid_step, rescaled, scale_before
from tfcompress.techniques.quantize import quantize_activation

# Steps of what sums come to, and of what the functions of the gates give.
_SUM, _GATE = 2.0**-12, 2.0**-15
_LOWEST, _HIGHEST = -(2.0**15), 2.0**15 - 1.0

# The powers of two that the step of the cell state may be: the kernel knows tanh of others not.
CELL_POWERS = (-15, -9)

# So many steps are written one after the other, as that runs faster than a loop.
_UNROLLED = 64

_RULES = ("regularizer", "constraint")
_WEIGHTS = ("kernel", "recurrent_kernel", "bias")


@keras.saving.register_keras_serializable("tfcompress")
class IntegerLSTM(keras.layers.Layer):
    """An LSTM whose hidden and cell state are rounded to integers.

    While training the hidden state is rounded, and the ranges of both states are observed; in
    inference everything is computed in whole numbers, as the kernel does.

    Args:
        units: how many cells there are.
        use_bias: whether a bias is added.
        return_sequences: whether it gives the hidden state of all steps, else that of the last.
        stateful: whether each batch begins with the states that the one before it ended with,
            instead of zeros.
        momentum, delay, freeze: of the ranges of the states, see `Quantize`.
        **kwargs: also regularizers and constraints of the weights, by their names: those of Keras's
            LSTM, whose gates are an axis of their own here: (inputs, 4, units).
    """

    # Gives the layer that gives it its weights under techniques.
    wrapped_by: Callable[[], Any] = staticmethod(lambda: None)

    def __init__(
        self,
        units: int,
        use_bias: bool = True,
        return_sequences: bool = False,
        stateful: bool = False,
        momentum: float = 0.99,
        delay=0,
        freeze=None,
        **kwargs,
    ):
        for name in (f"{weight}_{rule}" for weight in _WEIGHTS for rule in _RULES):
            get = getattr(keras, name.rpartition("_")[2] + "s").get
            setattr(self, f"_given_{name}", get(kwargs.pop(name, None)))
        kwargs.setdefault("dtype", "float32")
        super().__init__(autocast=False, **kwargs)
        for name in (f"{weight}_{rule}" for weight in _WEIGHTS for rule in _RULES):
            setattr(self, name, self.__dict__.pop(f"_given_{name}"))
        self.units, self.use_bias, self.return_sequences = units, use_bias, return_sequences
        self.stateful = stateful
        self.states: list[Any] = []
        self.momentum, self.delay, self.freeze = momentum, delay, freeze
        settings = {"momentum": momentum, "delay": delay, "freeze": freeze}
        self.hidden = FakeQuant(8, name=f"{self.name}_hidden_range", **settings)
        self.cell = FakeQuant(16, name=f"{self.name}_cell_range", **settings)

    def build(self, input_shape):
        shapes = {
            "kernel": (input_shape[-1], 4, self.units),
            "recurrent_kernel": (self.units, 4, self.units),
            "bias": (4, self.units),
        }
        self.bias = None
        for name in _WEIGHTS[: 3 if self.use_bias else 2]:
            rules = {rule: getattr(self, f"{name}_{rule}") for rule in _RULES}
            setattr(self, name, self.add_weight(name=name, shape=shapes[name], **rules))
        for part in (self.hidden, self.cell):
            part.build(None)
        if self.stateful:
            kept = {"shape": (input_shape[0], self.units), "initializer": "zeros"}
            names = ("hidden_state", "cell_state")
            self.states = [self.add_weight(name=n, trainable=False, **kept) for n in names]

    def call(self, x, training=False):
        x32 = ops.cast(x, "float32")
        if training:
            hidden, cells, last = self._train(x32)
            # Observed after use: a batch is rounded by what was seen before it.
            self.hidden._observe(hidden, 0, False)
            self.cell._observe(cells, 0, False)
            states = last, cells[:, -1]
        else:
            rounds = self._rounds()
            hidden, *states = ops.cond(rounds, lambda: self._infer(x32), lambda: self._plain(x32))
        for kept, state in zip(self.states, states, strict=False):
            kept.assign(state)
        return ops.cast(hidden if self.return_sequences else hidden[:, -1], x.dtype)

    def reset_states(self) -> None:
        """Sets the states to zeros that are kept from batch to batch."""
        for state in self.states:
            state.assign(ops.zeros_like(state))

    reset_state = reset_states  # Keras has both names

    def _rounds(self):
        """Whether the ranges of the states are known, and rounding has begun."""
        known = [high > low for low, high in (self.hidden.limits(), self.cell.limits())]
        if self.delay:
            known.append(ops.convert_to_tensor(self.hidden.phase) > 0)
        return functools.reduce(ops.logical_and, map(ops.convert_to_tensor, known))

    def _train(self, x):
        """Hidden states, rounded by the range so far, cell states, and the last hidden one."""
        low, high = (ops.stop_gradient(ops.convert_to_tensor(v)) for v in self.hidden.limits())
        rounds = self._rounds()

        def round_state(h):
            return ops.where(rounds, quantize_activation(h, low, ops.where(rounds, high, 1.0)), h)

        hidden, cells = self._run(x, functools.partial(float_step, rounded=round_state))
        return hidden, cells, hidden[:, -1]

    def _plain(self, x):
        """Hidden states in floats, and the last of both."""
        hidden, cells = self._run(x, float_step)
        return hidden, hidden[:, -1], cells[:, -1]

    def _run(self, x, step: Callable):
        """Hidden and cell states of all steps."""
        sums = self._product(x, self.kernel)
        if self.bias is not None:
            sums = sums + ops.convert_to_tensor(self.bias)
        start = self._start(sums)
        return self._loop(sums, start, lambda h: self._product(h, self.recurrent_kernel), step)

    def _start(self, sums):
        """The states before the first step."""
        if self.stateful:
            return tuple(
                ops.cast(ops.convert_to_tensor(state), sums.dtype) for state in self.states
            )
        return (ops.zeros_like(sums[:, 0, 0]),) * 2

    def _product(self, x, kernel):
        """Sums of products by gate: (..., 4, units)."""
        flat = ops.reshape(ops.convert_to_tensor(kernel), (-1, 4 * self.units))
        sums = ops.matmul(x, ops.cast(flat, x.dtype))
        return ops.reshape(sums, (*ops.shape(sums)[:-1], 4, self.units))

    def _loop(self, sums, start: tuple, recur: Callable, step: Callable):
        """(hidden states, cell states) of all steps: (batch, time, units)."""

        def advance(states, z):
            h, c = step(z + recur(states[0]), states[1])
            return (h, c), (h, c)

        count = sums.shape[1]
        if count is None or count > _UNROLLED:
            _, found = ops.scan(advance, start, ops.moveaxis(sums, 1, 0))
            hidden, cells = (ops.moveaxis(states, 0, 1) for states in found)
            return hidden, cells
        states, found = start, []
        for t in range(count):
            states, made = advance(states, sums[:, t])
            found.append(made)
        hidden, cells = (ops.stack(states, axis=1) for states in zip(*found, strict=True))
        return hidden, cells

    def _infer(self, x):
        """Hidden states as the kernel computes them in whole numbers, and the last of both."""
        low, high = self.hidden.limits()
        step = grid_step(low, high)
        lowest, scale = _wide(ops.round(low / step)), _wide(step)
        cell = cell_step(_wide(self.cell.limits()[1]))
        read, kernel, recurrent = self._units()
        bias = None if self.bias is None else _wide(ops.convert_to_tensor(self.bias))
        sums = self._gates(x, read, self.kernel, kernel, bias)

        def recur(h):
            return self._gates(h * scale, scale, self.recurrent_kernel, recurrent)

        def advance(z, c):
            i, f, o = (_look_up(_SIGMOID, z[:, gate]) for gate in (0, 1, 3))
            new = _nearest(i * _look_up(_TANH, z[:, 2]) * (_GATE * _GATE / cell))
            c = ops.clip(_nearest(f * c * _GATE) + new, _LOWEST, _HIGHEST)
            h = rescaled(o * _tanh_of_cell(c, cell), _single(_GATE * _GATE / scale))
            return ops.clip(h, lowest, lowest + 255.0), c

        sums = ops.clip(sums, _LOWEST, _HIGHEST)
        h, c = self._start(sums)
        start = ops.round(h / scale), ops.round(c / cell)
        hidden, cells = self._loop(sums, start, recur, advance)
        found = hidden * scale, hidden[:, -1] * scale, cells[:, -1] * cell
        return tuple(ops.cast(states, "float32") for states in found)

    def _units(self) -> list:
        """The scale of what is read, and by gate those of the kernels; None if they have none."""
        wrapper = self.wrapped_by()
        read = None if wrapper is None else scale_before(wrapper)
        steps = [None, None]
        for number, name in enumerate(_WEIGHTS[:2]):
            for target in wrapper.bound if read is not None else ():
                if target.variable.name == name and hasattr(target.techniques[-1], "step_of"):
                    steps[number] = _wide(wrapper.step_of(target))[0]
        return [None if read is None else _wide(read()), *steps]

    def _gates(self, x, scale, kernel, step, bias=None):
        """Sums of products, with a bias, in the steps that they have as gates; not clipped."""
        if scale is None or step is None:  # neither of those that files are made from
            sums = self._product(_wide(x), kernel)
            return _nearest((sums if bias is None else sums + bias) / _SUM)
        # Whole numbers, which wide floats hold.
        codes = ops.round(_wide(x) / scale)
        weights = ops.round(_wide(ops.convert_to_tensor(kernel)) / step)
        sums = self._product(codes, weights)
        if bias is not None:
            sums = sums + ops.round(bias / (scale * step))
        return rescaled(sums, _single(scale * step / _SUM))

    def compute_output_spec(self, x, training=False):
        shape = (x.shape[0], x.shape[1], self.units)
        return keras.KerasTensor(shape if self.return_sequences else (shape[0], shape[2]), x.dtype)

    def get_config(self):
        names = "units use_bias return_sequences stateful momentum delay freeze".split()
        config: dict[str, Any] = {name: getattr(self, name) for name in names}
        for name in (f"{weight}_{rule}" for weight in _WEIGHTS for rule in _RULES):
            kind = getattr(keras, name.rpartition("_")[2] + "s")
            config[name] = kind.serialize(getattr(self, name))
        return {**super().get_config(), **config}


def cell_step(most):
    """The step of a cell state up to some value: the least power of two that the kernel takes."""
    power = ops.ceil(ops.log(ops.maximum(most, 1e-9) / _HIGHEST) / math.log(2.0) - 1e-6)
    return 2.0 ** ops.clip(power, *map(float, CELL_POWERS))


def float_step(z, c, rounded: Callable = lambda h: h):
    """A step of an LSTM in floats."""
    i, f, o = (ops.sigmoid(z[:, gate]) for gate in (0, 1, 3))
    c = f * c + i * ops.tanh(z[:, 2])
    return rounded(o * ops.tanh(c)), c


def _look_up(table: Callable, codes):
    """A function of codes of 16 bits, by a table; codes beyond are those at its ends."""
    codes = ops.cast(ops.clip(codes, _LOWEST, _HIGHEST) - _LOWEST, "int32")
    return _wide(ops.take(ops.convert_to_tensor(table()), codes))


def _tanh_of_cell(codes, step):
    """tanh of the codes of a cell state, by the table for its step."""
    row = ops.cast(ops.round(ops.log(step) / math.log(2.0)) - CELL_POWERS[0], "int32")
    places = ops.cast(codes - _LOWEST, "int32") + row * 2**16
    return _wide(ops.take(ops.convert_to_tensor(_cell_tables()), places))


# Sums have three bits for whole numbers.
_SIGMOID, _TANH = (functools.partial(table, 3) for table in (sigmoid_table, tanh_table))


@functools.cache
def _cell_tables() -> np.ndarray:
    """tanh for all steps that a cell state may have, one after the other."""
    first, last = CELL_POWERS
    return np.concatenate([tanh_table(15 + power) for power in range(first, last + 1)])


def _nearest(x):
    """The nearest whole number, halves away from 0."""
    return ops.sign(x) * ops.floor(ops.abs(x) + 0.5)


def _single(factor):
    """A factor as the kernel keeps it before it makes a multiplier of 32 bits of it."""
    return _wide(ops.cast(factor, "float32"))


def _wide(x):
    """A number as precise as the backend has it."""
    return ops.cast(x, "float64" if keras.backend.backend() == "tensorflow" else "float32")
