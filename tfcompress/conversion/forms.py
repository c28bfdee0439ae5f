"""Operations of a float .tflite in forms for which LiteRT has integer kernels, or right ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.conversion.ranges import Range, constant, is_constant
from tfcompress.tflite.flatbuffer import add_buffer, changed, op_code, op_name

_OPERATORS, _OPTIONS = schema.BuiltinOperator, schema.BuiltinOptions
_BOOL = schema.TensorType.BOOL
# What moves values about before a bias is added to them.
_MOVING = ("RESHAPE", "BATCH_TO_SPACE_ND")
_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
_PLAIN: dict[str, Any] = {"builtinOptions": None, "builtinOptionsType": 0}  # types tell themselves


def rewrite(model, ranges: dict[int, Range], floats: set[int]) -> None:
    """Writes SQUARE and a third power as products, and SUM as a multiple of MEAN.

    LiteRT's reference kernels sum integers wrong. Truths become floats at once, not by way of whole
    numbers; biases are added inside of convolutions. Changes `model`, and gives `ranges` to what
    comes between; what is to stay float is left.
    """
    _take_biases_in(model, {*ranges, *floats, *model.subgraphs[0].outputs}, floats)
    graph, written = model.subgraphs[0], []
    truths = _truths(model)
    for op in graph.operators:
        name = op_name(model, op)
        if any(graph.tensors[i].type != 0 or i in floats for i in op.outputs):
            written.append(op)
        elif name == "SQUARE":
            written.append(_product(model, op.inputs[0], op.inputs[0], op.outputs[0]))
        elif name == "POW" and _exponent(model, op) == 3.0:
            between = _tensor(model, op.outputs[0], b"_square")
            written.append(_product(model, op.inputs[0], op.inputs[0], between))
            written.append(_product(model, between, op.inputs[0], op.outputs[0]))
        elif name == "SUM":
            written += _mean(model, op, ranges)
        elif name == "CAST" and op.inputs[0] in truths:
            written.append(changed(op, inputs=[truths[op.inputs[0]]], **_PLAIN))
        else:
            written.append(op)
    unread = truths.keys() - {i for op in written for i in op.inputs} - set(graph.outputs)
    graph.operators = [op for op in written if not unread.intersection(op.outputs)]


def _take_biases_in(model, told: Collection[int], floats: Collection[int]) -> None:
    """Adds to the bias of a convolution what is added to its result.

    The converter leaves that where dilated convolutions share the blocks that they read.

    Args:
        told: tensors that must stay what they are.
    """
    graph = model.subgraphs[0]
    readers = Counter(i for op in graph.operators for i in op.inputs)
    makers = {i: op for op in graph.operators for i in op.outputs}

    def convolution_of(index: int) -> Any:
        maker = makers.get(index)
        if maker is None or index in told or readers[index] != 1:
            return None
        name, first = op_name(model, maker), maker.inputs[0]
        if name in _MOVING and _channels(model, first) == _channels(model, index):
            return convolution_of(first)
        plain = name in _CONVOLUTIONS and maker.builtinOptions.fusedActivationFunction == 0
        has_bias = plain and len(maker.inputs) == 3 and maker.inputs[2] >= 0
        return maker if has_bias and is_constant(model, maker.inputs[2]) else None

    kept = []
    for op in graph.operators:
        source, bias = _biased(model, op)
        convolution = None if source is None or op.outputs[0] in floats else convolution_of(source)
        if convolution is None:
            kept.append(op)
            continue
        old = graph.tensors[convolution.inputs[2]]
        values = (constant(model, convolution.inputs[2]).ravel() + bias).astype(np.float32)
        graph.tensors.append(changed(old, buffer=add_buffer(model, values.tobytes())))
        convolution.inputs = [*convolution.inputs[:2], len(graph.tensors) - 1]
        activation = op.builtinOptions.fusedActivationFunction
        convolution.builtinOptions.fusedActivationFunction = activation
        makers[source].outputs = [op.outputs[0]]
        makers[op.outputs[0]] = makers[source]
    graph.operators = kept


def _channels(model, index: int) -> int:
    return int(model.subgraphs[0].tensors[index].shape[-1])


def _biased(model, op) -> tuple[int | None, Any]:
    """The tensor and the vector along its last axis that an ADD adds; None if it is no such."""
    if op_name(model, op) != "ADD":
        return None, None
    for source, added in (op.inputs, op.inputs[::-1]):
        if is_constant(model, added) and not is_constant(model, source):
            values = constant(model, added)
            if values.shape[-1:] == (values.size,) and values.size == _channels(model, source):
                return int(source), values.ravel()
    return None, None


def _truths(model) -> dict[int, int]:
    """Whole numbers that are cast truths -> the truths."""
    tensors = model.subgraphs[0].tensors
    casts = [op for op in model.subgraphs[0].operators if op_name(model, op) == "CAST"]
    return {
        op.outputs[0]: op.inputs[0]
        for op in casts
        if tensors[op.inputs[0]].type == _BOOL and tensors[op.outputs[0]].type != 0
    }


def slice_splits(model, known: dict[int, Range]) -> None:
    """Writes SPLIT_V of 16 bits, which litert-quantizer leaves float, as SLICE. Changes `model`."""
    graph, written = model.subgraphs[0], []
    for op in graph.operators:
        wide = all(i in known and known[i].bits == 16 for i in op.outputs)
        if op_name(model, op) != "SPLIT_V" or not wide:
            written.append(op)
            continue
        code = op_code(model, _OPERATORS.SLICE)
        options = (_OPTIONS.SliceOptions, schema.SliceOptionsT())
        axis = int(constant(model, op.inputs[2]))
        begin = [0] * len(graph.tensors[op.inputs[0]].shape)
        for output in op.outputs:
            size = [int(n) for n in graph.tensors[output].shape]
            given = [op.inputs[0], _whole(model, begin), _whole(model, size)]
            written.append(schema.OperatorT(code, given, [output], *options))
            begin[axis] += size[axis]
    graph.operators = written


def _whole(model, values: list[int]) -> int:
    """A constant of whole numbers."""
    tensors = model.subgraphs[0].tensors
    buffer = add_buffer(model, np.array(values, np.int32).tobytes())
    tensors.append(schema.TensorT([len(values)], schema.TensorType.INT32, buffer, b"places"))
    return len(tensors) - 1


def _exponent(model, op) -> float | None:
    known = is_constant(model, op.inputs[1]) and constant(model, op.inputs[1]).size == 1
    return float(constant(model, op.inputs[1]).ravel()[0]) if known else None


def _mean(model, op, ranges: dict[int, Range]) -> list:
    """A MEAN and a product with the number of summands, which take the place of a SUM."""
    graph, total = model.subgraphs[0], op.outputs[0]
    sizes = [math.prod(graph.tensors[i].shape) for i in (op.inputs[0], total)]
    count = sizes[0] / sizes[1]
    mean = _tensor(model, total, b"_mean")
    if total in ranges:
        found = ranges[total]
        ranges[mean] = Range(found.minimum / count, found.maximum / count, found.bits)
    buffer = add_buffer(model, np.float32(count).tobytes())
    graph.tensors.append(schema.TensorT([], 0, buffer, bytes(graph.tensors[mean].name) + b"_count"))
    code = op_code(model, _OPERATORS.MEAN, version=2)
    averaged = changed(op, opcodeIndex=code, outputs=[mean])
    return [averaged, _product(model, mean, len(graph.tensors) - 1, total)]


def _tensor(model, like: int, suffix: bytes) -> int:
    """A new float tensor of another's shape."""
    tensors = model.subgraphs[0].tensors
    tensors.append(changed(tensors[like], name=bytes(tensors[like].name) + suffix, buffer=0))
    return len(tensors) - 1


def _product(model, a: int, b: int, to: int):
    code = op_code(model, _OPERATORS.MUL)
    return schema.OperatorT(code, [a, b], [to], _OPTIONS.MulOptions, schema.MulOptionsT())
