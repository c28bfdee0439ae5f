"""Biases moved by a fraction of a step against the double rounding of LiteRT's integer kernels.

The reference kernels (and those of microcontrollers) bring an int32 accumulator to int8 in two
rounded steps, both with halves upwards (Jacob et al. 2018, arXiv:1712.05877, section 2.2),
so that one result in some hundred is a code too high; XNNPACK rounds once. A quarter of the bias'
first rounding step lies in the middle between the two.
"""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.tflite.flatbuffer import op_name
from tfcompress.tflite.ranges import Range, constant, is_constant

_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
_OPERANDS = (0, 2)  # activation, bias
_SHARE = 0.25


def center(model, op, ranges: dict[int, Range], scale: np.ndarray) -> None:
    """Moves the bias of one convolution. Changes `model`.

    Args:
        model: a float `ModelT` without markers.
        op: one of its operators, whose weights lie on an integer grid.
        ranges: ranges by tensor index.
        scale: the scale of the weights, or of each of their channels.
    """
    if op_name(model, op) not in _CONVOLUTIONS or len(op.inputs) < 3:
        return
    x, bias = (op.inputs[operand] for operand in _OPERANDS)
    known = x in ranges and op.outputs[0] in ranges and bias >= 0 and is_constant(model, bias)
    if not known or ranges[x].bits != 8:
        return
    step = _scale(ranges[x]) * scale.ravel()
    mantissa = np.frexp(step / _scale(ranges[op.outputs[0]]))[0]
    shift = np.divide(_SHARE * step, mantissa, out=np.zeros_like(step), where=step > 0)
    moved = (constant(model, bias) - shift).astype(np.float32)
    op.inputs[2] = _replace_constant(model, bias, moved)


def _scale(known: Range) -> float:
    return (known.maximum - known.minimum) / (2**known.bits - 1)


def _replace_constant(model, index: int, values: np.ndarray) -> int:
    """Gives a constant new values; a new tensor, if others share it. Returns its index."""
    graph = model.subgraphs[0]
    tensor = graph.tensors[index]
    readers = sum(list(op.inputs).count(index) for op in graph.operators)
    holders = sum(other.buffer == tensor.buffer for other in graph.tensors)
    if readers == holders == 1:
        model.buffers[tensor.buffer].data = np.frombuffer(values.tobytes(), np.uint8)
        return index
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    model.buffers.append(buffer)
    tensor = schema.TensorT()
    tensor.__dict__.update(graph.tensors[index].__dict__)
    tensor.buffer = len(model.buffers) - 1
    tensor.name = bytes(tensor.name) + f"_{len(graph.tensors)}".encode()
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1
