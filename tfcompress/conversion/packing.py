"""Weights of a quantized file stored in what litert-quantizer does not write: 4 bits of depthwise
and transposed convolutions, 2 bits, and floats of 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.conversion.ranges import constant, is_constant
from tfcompress.tflite.flatbuffer import add_buffer, changed, op_code, packed, scales_of

_TYPES = {4: schema.TensorType.INT4, 2: schema.TensorType.INT2}
_INT8, _FLOAT32, _FLOAT16 = (
    schema.TensorType.INT8,
    schema.TensorType.FLOAT32,
    schema.TensorType.FLOAT16,
)
_GREATEST_HALF = 65504.0


def pack(model: Any, bits_of: dict[int, int]) -> None:
    """Stores int8 weights in fewer bits. Changes `model`.

    Args:
        bits_of: by the index of a weight in the first subgraph, 4 or 2; greater codes are clipped.
    """
    tensors = model.subgraphs[0].tensors
    for index, bits in bits_of.items():
        if tensors[index].type == _INT8:
            most = 2 ** (bits - 1) - 1
            codes = np.clip(constant(model, index), -most, most)
            buffer = add_buffer(model, packed(codes, bits))
            tensors[index].buffer, tensors[index].type = buffer, _TYPES[bits]


# From as many inputs on scales of all channels are smaller than weights of 4 bits would be.
_INPUTS = 48


def repeat_scales(model: Any) -> None:
    """Gives 2-bit weights of one scale that scale for each channel, as XNNPACK asks.

    LiteRT's own kernel, which takes one, is nine times slower. Small weights stay. Changes `model`.
    """
    for tensor in model.subgraphs[0].tensors:
        scales, _ = scales_of(tensor)
        if tensor.type == _TYPES[2] and len(scales) == 1 and tensor.shape[-1] > _INPUTS:
            count = int(tensor.shape[0])
            each, zeros = np.full(count, scales[0], np.float32), np.zeros(count, np.int64)
            known = {"scale": each, "zeroPoint": zeros, "quantizedDimension": 0}
            tensor.quantization = changed(tensor.quantization, **known)


def bits_of(model: Any, index: int) -> int:
    """The bits of the codes of a weight of the first subgraph; 8 of any other type."""
    types = {kind: bits for bits, kind in _TYPES.items()}
    return types.get(model.subgraphs[0].tensors[index].type, 8)


def widen(model: Any, index: int, fits: Callable[[], bool]) -> bool:
    """Stores a weight in the least more bits with which something fits. Changes `model`.

    Returns False, and changes nothing, if there are none.
    """
    tensor = model.subgraphs[0].tensors[index]
    before, codes = (tensor.type, tensor.buffer), constant(model, index)
    for bits, kind in ((4, _TYPES[4]), (8, _INT8)):
        if bits > bits_of(model, index):
            tensor.type, tensor.buffer = kind, add_buffer(model, packed(codes, bits))
            if fits():
                return True
    tensor.type, tensor.buffer = before
    return False


def halve(model: Any, operators: list[Any]) -> None:
    """Stores the weights of float operators of the first subgraph as float16. Changes `model`.

    A DEQUANTIZE stands before each operator, which LiteRT carries out once.
    """
    graph, known, written = model.subgraphs[0], dict[int, int](), []
    chosen = {id(op) for op in operators}
    for op in graph.operators:
        for index in op.inputs if id(op) in chosen else ():
            if index in known or not _is_weight(model, index):
                continue
            tensor = graph.tensors[index]
            values = np.clip(constant(model, index), -_GREATEST_HALF, _GREATEST_HALF)
            buffer = add_buffer(model, values.astype(np.float16).tobytes())
            half = {"name": bytes(tensor.name) + b"_half", "type": _FLOAT16, "buffer": buffer}
            graph.tensors += [changed(tensor, **half), changed(tensor, buffer=0)]
            known[index] = len(graph.tensors) - 1
            code = op_code(model, schema.BuiltinOperator.DEQUANTIZE, version=3)
            written.append(schema.OperatorT(code, [known[index] - 1], [known[index]]))
        if id(op) in chosen:
            op.inputs = [known.get(i, i) for i in op.inputs]
        written.append(op)
    graph.operators = written


def _is_weight(model: Any, index: int) -> bool:
    if index < 0 or not is_constant(model, index):
        return False
    tensor = model.subgraphs[0].tensors[index]
    return tensor.type == _FLOAT32 and len(tensor.shape) > 1
