"""Operations of a float .tflite in forms for which LiteRT has integer kernels, or right ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.conversion.ranges import Range, constant, is_constant
from tfcompress.tflite.flatbuffer import add_buffer, changed, op_code, op_name

_OPERATORS, _OPTIONS = schema.BuiltinOperator, schema.BuiltinOptions
_BOOL = schema.TensorType.BOOL
_PLAIN: dict[str, Any] = {"builtinOptions": None, "builtinOptionsType": 0}  # types tell themselves


def rewrite(model, ranges: dict[int, Range], floats: set[int]) -> None:
    """Writes SQUARE and a third power as products, and SUM as a multiple of MEAN.

    LiteRT's reference kernels sum integers wrong. Truths become floats at once, not by way of whole
    numbers. Changes `model`, and gives `ranges` to what comes between; what is to stay float is
    left.
    """
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


def _truths(model) -> dict[int, int]:
    """Whole numbers that are cast truths -> the truths."""
    tensors = model.subgraphs[0].tensors
    casts = [op for op in model.subgraphs[0].operators if op_name(model, op) == "CAST"]
    return {
        op.outputs[0]: op.inputs[0]
        for op in casts
        if tensors[op.inputs[0]].type == _BOOL and tensors[op.outputs[0]].type != 0
    }


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
