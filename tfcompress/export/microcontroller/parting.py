"""Large FULLY_CONNECTED in parts, so that less of a weight is decoded at once.

Each part gives some of the outputs, which CONCATENATION puts together: the same bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.tflite import flatbuffer
from tfcompress.tflite.flatbuffer import add_buffer, changed, dtype_name, op_code, op_name
from tfcompress.tflite.plain_weights import copied

# CONCATENATION of TFLite Micro takes no more.
MOST_PARTS = 10
_WIDTHS = {"int8": 1, "int4": 1, "float32": 4}  # bytes of a value, once it is decoded


def with_parts(model: Any, most: int, buffers: Collection[int]) -> Any:
    """A copy of a file in which FULLY_CONNECTED with larger weights are in parts.

    Args:
        most: bytes of a decoded weight, above which there are parts of about that many.
        buffers: of the weights that may be parted.
    """
    model = copied(model)
    tensors = [t for graph in model.subgraphs for t in graph.tensors]
    users = [tensor.buffer for tensor in tensors]
    for graph in model.subgraphs:
        operators: list[Any] = []
        for op in graph.operators:
            parts = _parts(model, graph, op, most, buffers, users)
            operators += [op] if parts < 2 else _parted(model, graph, op, parts)
        graph.operators = operators
    return model


def _parts(
    model: Any, graph: Any, op: Any, most: int, buffers: Collection[int], users: list[int]
) -> int:
    if op_name(model, op) != "FULLY_CONNECTED" or len(op.inputs) < 2 or len(op.outputs) != 1:
        return 1
    weight, output = graph.tensors[op.inputs[1]], graph.tensors[op.outputs[0]]
    read = sum(other.inputs.count(op.inputs[1]) for other in graph.operators)
    alone = weight.buffer in buffers and users.count(weight.buffer) == read == 1
    if not alone or dtype_name(weight) not in _WIDTHS or len(weight.shape) != 2:
        return 1
    rows, columns = weight.shape
    if list(output.shape)[-1:] != [rows] or columns % 2:  # int4 has two in a byte
        return 1
    return min(-(-rows * columns * _WIDTHS[dtype_name(weight)] // most), MOST_PARTS, rows)


def _parted(model: Any, graph: Any, op: Any, parts: int) -> list[Any]:
    output = graph.tensors[op.outputs[0]]
    rows = output.shape[-1]
    limits = [rows * i // parts for i in range(parts + 1)]
    made, given = [], []
    for number, (begin, end) in enumerate(itertools.pairwise(limits)):
        constants = [
            -1 if index == -1 else _slice(model, graph, index, begin, end)
            for index in op.inputs[1:]
        ]
        name = (output.name or b"") + b"/%d" % number
        graph.tensors.append(changed(output, name=name, shape=[*output.shape[:-1], end - begin]))
        given.append(len(graph.tensors) - 1)
        made.append(changed(op, inputs=[op.inputs[0], *constants], outputs=[given[-1]]))
    options = schema.ConcatenationOptionsT()
    options.axis = len(output.shape) - 1
    code = op_code(model, schema.BuiltinOperator.CONCATENATION)
    kind = schema.BuiltinOptions.ConcatenationOptions
    joined = schema.OperatorT(code, given, op.outputs, kind, options)
    return [*made, joined]


def _slice(model: Any, graph: Any, index: int, begin: int, end: int) -> int:
    """A constant of some of the rows of another."""
    tensor = graph.tensors[index]
    values = flatbuffer.tensor_values(model, tensor)
    assert values is not None
    part = np.ascontiguousarray(values[begin:end])
    stored = flatbuffer.packed(part, 4) if dtype_name(tensor) == "int4" else part.tobytes()
    told = tensor.quantization
    if told is not None and told.scale is not None and len(told.scale) > 1:
        points = told.zeroPoint if len(told.zeroPoint) == 1 else told.zeroPoint[begin:end]
        told = changed(told, scale=told.scale[begin:end], zeroPoint=points)
    buffer = add_buffer(model, stored)
    graph.tensors.append(changed(tensor, shape=list(part.shape), buffer=buffer, quantization=told))
    return len(graph.tensors) - 1
