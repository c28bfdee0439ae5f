"""LSTMs as the one operator that LiteRT has for them, UNIDIRECTIONAL_SEQUENCE_LSTM.

TensorFlow has no such operation: the converter is given a function that it takes for a custom
operator, in whose place the real one is written, in floats. What litert-quantizer leaves of that
becomes integers here (activations and weights of 8 bits, a cell state of 16: the variant that
LiteRT, TFLite Micro and Vela know).

The operator keeps its states in variables from one run to the next, as a stateful LSTM does. Before
any other two SLICEs of constants write zeros there, so that each run begins anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from keras import ops

from tfcompress.conversion.grids import find_grid
from tfcompress.conversion.ranges import Range, constant
from tfcompress.layers.integer_lstm import CELL_POWERS, IntegerLSTM, float_step
from tfcompress.tflite import flatbuffer, run
from tfcompress.tflite.flatbuffer import add_buffer, changed, op_code, op_name

NAME = "UNIDIRECTIONAL_SEQUENCE_LSTM"

# What the converter takes the operator for, until it is written.
STAND_IN = "TfcompressLSTM"
_IMPLEMENTS = f'name: "{STAND_IN}" attr {{ key: "tfl_fusable_op" value {{ b: true }} }}'

_NAMELESS = b"tfl.custom"

# Where the operator has its operands, each of the gates (input, forget, cell, output) in turn.
KERNELS, RECURRENT, BIASES = range(1, 5), range(5, 9), range(12, 16)
HIDDEN, CELL = 18, 19
_OPERANDS = 24

_FLOAT, _INT32, _INT8, _INT16 = 0, 2, 9, 7
_TANH = schema.ActivationFunctionType.TANH
# Steps of what sums come to; the kernel has no others.
_SUM = 2.0**-12


class FusedLSTM(IntegerLSTM):
    """An IntegerLSTM as the converter is given it: the function that stands for the operator."""

    def call(self, x, training=False):
        limits = [*self.hidden.limits(), self.cell.limits()[1]]
        # The converter forgets where the function was called.
        name = f"{tf.compat.v1.get_default_graph().get_name_scope()}/lstm".encode()
        every = (*limits, self.stateful, *name)
        told = tf.stack([tf.cast(told, "float32") for told in every])
        kernels = (tf.convert_to_tensor(x) for x in (self.kernel, self.recurrent_kernel))
        bias = tf.zeros((4, self.units)) if self.bias is None else tf.convert_to_tensor(self.bias)

        @tf.function(experimental_implements=_IMPLEMENTS)
        def stand_in(x, kernel, recurrent, bias, told):
            return tf.zeros((*x.shape[:2], recurrent.shape[0]))

        y = stand_in(x, *kernels, bias, told)
        return y if self.return_sequences else y[:, -1]


class FloatLSTM(IntegerLSTM):
    """An IntegerLSTM that rounds nothing, for files of floats."""

    def call(self, x, training=False):
        states, _ = self._run(ops.cast(x, "float32"), float_step)
        return states if self.return_sequences else states[:, -1]


def plain_layer(layer: IntegerLSTM, integer: bool) -> IntegerLSTM:
    """A copy of an IntegerLSTM without weights that the converter can be given."""
    return (FusedLSTM if integer else FloatLSTM).from_config(layer.get_config())


def is_in(model: Any) -> bool:
    """Whether a Keras model has layers that stand for the operator."""
    return any(isinstance(layer, FusedLSTM) for layer in model._flatten_layers())


def unknown_operators(model: Any) -> set[str]:
    """The custom operators of a file that are no stand-ins, nor of TensorFlow."""
    custom = schema.BuiltinOperator.CUSTOM
    names = {
        flatbuffer.text(code.customCode)
        for code in model.operatorCodes
        if max(code.builtinCode, code.deprecatedBuiltinCode) == custom
    }
    return {name for name in names if name != STAND_IN and not name.startswith("Flex")}


def operators_of(model: Any) -> Iterator[Any]:
    """The LSTM operators of a file."""
    return (op for op in model.subgraphs[0].operators if op_name(model, op) == NAME)


def write_floats(model: Any) -> dict[int, tuple[Range, float]]:
    """Writes operators of floats in the place of stand-ins. Changes `model`.

    Returns by the tensors that they give what training told: the range of the hidden state, and
    the greatest value of the cell state.
    """
    graph, written, told = model.subgraphs[0], [], {}
    for op in graph.operators:
        if op_name(model, op) != STAND_IN:
            written.append(op)
            continue
        x, *operands = op.inputs
        kernel, recurrent, bias, limits = (constant(model, index) for index in operands)
        low, high, most, stateful, *name = map(float, limits)
        tensor = graph.tensors[op.outputs[0]]
        if bytes(tensor.name).startswith(_NAMELESS):
            tensor.name = bytes(map(int, name))
        if high > low:
            told[op.outputs[0]] = Range(low, high), most
        written += _float_operators(model, op, x, (kernel, recurrent, bias), bool(stateful))
    graph.operators = written
    return told


def _float_operators(
    model: Any, op: Any, x: int, weights: Sequence[np.ndarray], stateful: bool
) -> list[Any]:
    made = op.outputs[0]
    name = bytes(model.subgraphs[0].tensors[made].name)
    inputs = [-1] * _OPERANDS
    inputs[0] = x
    for places, values, kind in zip(
        (KERNELS, RECURRENT, BIASES), weights, (b"kernel", b"recurrent", b"bias"), strict=True
    ):
        for gate, place in enumerate(places):
            part = values[..., gate, :].T  # the file has outputs first
            tensor = _Tensor(name + b"_%s_%d" % (kind, gate), part.astype(np.float32))
            inputs[place] = tensor.add(model)
    batch, units = model.subgraphs[0].tensors[made].shape[0], weights[1].shape[0]
    zeros = np.zeros((batch, units), np.float32)
    hidden, cell = (_Tensor(name + end, zeros) for end in (b"_hidden", b"_cell"))
    return _with_states(model, name, inputs, made, (hidden, cell), stateful)


class _Tensor:
    """A tensor that is to be: its name, values, and the scale and zero point of these."""

    def __init__(self, name: bytes, values: np.ndarray, scale: float | None = None, zero=0):
        self.name, self.values = name, np.ascontiguousarray(values)
        self.scale, self.zero = scale, zero

    def add(self, model: Any, *, variable: bool = False) -> int:
        """Adds it to the graph of a file, as a constant unless it is a variable."""
        types = {"float32": _FLOAT, "int32": _INT32, "int8": _INT8, "int16": _INT16}
        quantization = None
        if self.scale is not None:
            zeros = [int(self.zero)]
            quantization = schema.QuantizationParametersT(scale=[self.scale], zeroPoint=zeros)
        tensor = schema.TensorT(
            list(self.values.shape),
            types[self.values.dtype.name],
            0 if variable else add_buffer(model, self.values.tobytes()),
            self.name + b"_state" * variable,
            quantization,
            isVariable=variable,
        )
        model.subgraphs[0].tensors.append(tensor)
        return len(model.subgraphs[0].tensors) - 1


def _with_states(
    model: Any, name: bytes, inputs: list[int], made: int, states: Sequence[_Tensor], stateful: bool
) -> list[Any]:
    """The operator, after what sets its hidden and cell state to what they begin with."""
    operators: list[Any] = []
    places: tuple[int, ...] = ()
    if not stateful:
        shape = np.asarray(states[0].values.shape, np.int32)
        ends = ((b"_begin", 0 * shape), (b"_size", shape))
        places = tuple(_Tensor(name + end, values).add(model) for end, values in ends)
    for place, state in zip((HIDDEN, CELL), states, strict=True):
        inputs[place] = state.add(model, variable=True)
        if stateful:
            continue
        operators.append(
            schema.OperatorT(
                _code(model, schema.BuiltinOperator.SLICE, 3 if state.scale else 1),
                [state.add(model), *places],
                [inputs[place]],
                schema.BuiltinOptions.SliceOptions,
                schema.SliceOptionsT(),
            )
        )
    options = schema.UnidirectionalSequenceLSTMOptionsT(fusedActivationFunction=_TANH)
    operators.append(
        schema.OperatorT(
            op_code(model, schema.BuiltinOperator.UNIDIRECTIONAL_SEQUENCE_LSTM),
            inputs,
            [made],
            schema.BuiltinOptions.UnidirectionalSequenceLSTMOptions,
            options,
        )
    )
    return operators


def _code(model: Any, builtin: int, version: int) -> int:
    """The number of an operator's code of this version at least."""
    number = op_code(model, builtin, version)
    code = model.operatorCodes[number]
    code.version = max(code.version, version)
    return number


def states_of(model: Any) -> set[int]:
    """The tensors that hold the states of LSTMs."""
    return {int(op.inputs[place]) for op in operators_of(model) for place in (HIDDEN, CELL)}


def is_stateful(model: Any, op: Any) -> bool:
    """Whether an LSTM goes on with the states that the last run ended with."""
    graph = model.subgraphs[0]
    return not any(op.inputs[CELL] in other.outputs for other in graph.operators)


def keeps_states(model: Any) -> bool:
    """Whether an LSTM of a file goes on from run to run."""
    return any(is_stateful(model, op) for op in operators_of(model))


def greatest_cells(model: Any, batches: Sequence[dict]) -> dict[int, float]:
    """The greatest values of the cell states for some samples, by the tensors that LSTMs give.

    Args:
        model: a float file.
    """
    found = {int(op.outputs[0]): 0.0 for op in operators_of(model)}
    if not found:
        return found
    opened, graph = changed(model, subgraphs=list(model.subgraphs)), model.subgraphs[0]
    read = [int(op.inputs[0]) for op in operators_of(model)]
    opened.subgraphs[0] = changed(graph, outputs=[*graph.outputs, *read])
    runner = run.Runner(model, flatbuffer.write(opened), "the float file", reference=False)
    kept: dict[int, Any] = {}
    for batch in batches:
        runner.run(batch)
        for op in operators_of(model):
            made, x = int(op.outputs[0]), runner.tensor(run.port(model, op.inputs[0]))
            cells, states = _cells(model, op, x, kept.get(made))
            found[made] = max(found[made], float(np.abs(cells).max(initial=0.0)))
            if is_stateful(model, op):
                kept[made] = states
    return found


def _cells(model: Any, op: Any, x: np.ndarray, states: Any) -> tuple[np.ndarray, Any]:
    """The cell states of all steps that an LSTM of floats goes through, and its last states.

    Args:
        states: that it begins with; None for zeros.
    """
    kernel, recurrent, bias = (
        np.concatenate([constant(model, op.inputs[place]) for place in places])
        for places in (KERNELS, RECURRENT, BIASES)
    )
    zeros = np.zeros((x.shape[0], recurrent.shape[1]), np.float32)
    h, c = (zeros, zeros) if states is None else states
    cells = []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ kernel.T + h @ recurrent.T + bias, 4, axis=-1)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        cells.append(c)
    return np.stack(cells, axis=1), (h, c)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def integer_operators(
    model: Any, op: Any, x: int, made: int, most: float, widths: Sequence[int] | None
) -> list[Any]:
    """The operator of integers that stands for one of floats, after what sets its states.

    Args:
        x, made: what it reads and gives, of 8 bits, with their scales.
        most: the greatest value of the cell state.
        widths: the bits of weights that lie on a grid already; None if they were not trained.
    """
    tensors = model.subgraphs[0].tensors
    name = bytes(tensors[op.outputs[0]].name)
    (scale,), (zero,) = flatbuffer.scales_of(tensors[made])
    (step,), _ = flatbuffer.scales_of(tensors[x])
    inputs = [x, *op.inputs[1:]]
    for place in (*KERNELS, *RECURRENT):
        values = constant(model, op.inputs[place])
        grid = _weight_step(values, widths)
        codes = np.clip(np.rint(values / grid), -127, 127).astype(np.int8)
        old = bytes(tensors[op.inputs[place]].name)
        inputs[place] = _Tensor(old, codes, grid).add(model)
    for kernel, place in zip(KERNELS, BIASES, strict=True):
        grid = step * flatbuffer.scales_of(tensors[inputs[kernel]])[0][0]
        values = constant(model, op.inputs[place]).astype(np.float64)
        codes = np.clip(np.rint(values / grid), -(2**31), 2**31 - 1).astype(np.int32)
        old = bytes(tensors[op.inputs[place]].name)
        inputs[place] = _Tensor(old, codes, grid).add(model)
    shape = tensors[op.inputs[HIDDEN]].shape
    hidden = _Tensor(name + b"_hidden", np.full(shape, zero, np.int8), scale, zero)
    cell = _Tensor(name + b"_cell", np.zeros(shape, np.int16), _cell_step(most))
    kept = is_stateful(model, op)
    written = _with_states(model, name, inputs, made, (hidden, cell), kept)
    gates = [_Tensor(name + b"_gate", np.zeros(0, np.int16), _SUM)] * 4
    inner = [*gates, _Tensor(name + b"_inner", np.zeros(0, np.int8), scale, zero)]
    written[-1].intermediates = [_empty(model, tensor) for tensor in inner]
    return written


def _empty(model: Any, tensor: _Tensor) -> int:
    index = tensor.add(model)
    model.subgraphs[0].tensors[index].buffer = 0
    return index


def _weight_step(values: np.ndarray, widths: Sequence[int] | None) -> float:
    grid = find_grid(values, 0, sorted(widths)) if widths else None
    if grid is not None and grid.kind == "t" and grid.scale.max() > 0:
        return float(grid.scale.max())
    return float(np.abs(values).max(initial=0.0) or 1.0) / 127


def _cell_step(most: float) -> float:
    power = math.ceil(math.log2(max(most, 1e-9) / 32767) - 1e-6)
    return 2.0 ** min(max(power, CELL_POWERS[0]), CELL_POWERS[1])
