"""Integer kernels that LiteRT has and ai-edge-quantizer does not use yet.

What it leaves as DEQUANTIZE -> float op -> QUANTIZE becomes the op itself on integers.
"""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.tflite.flatbuffer import op_name
from tfcompress.tflite.ranges import Range

# Ops with int8 kernels (and the version from which they have them).
KERNELS = {
    "LEAKY_RELU": 2, "RELU6": 2, "RELU_N1_TO_1": 2, "PRELU": 1, "ELU": 1, "EXPAND_DIMS": 1,
    "SQUEEZE": 1, "TILE": 2, "REDUCE_MAX": 2, "MINIMUM": 2, "ABS": 2, "EXP": 2, "LOG": 2,
    "DEPTH_TO_SPACE": 1, "SPACE_TO_BATCH_ND": 2, "BATCH_TO_SPACE_ND": 2, "REVERSE_V2": 1,
    "SPLIT_V": 2,
}  # fmt: skip
_INT8 = 9


def fold(model, ranges: dict[str, Range]) -> None:
    """Turns float ops between DEQUANTIZE and QUANTIZE into integer ones. Changes `model`.

    Args:
        model: a quantized `ModelT`.
        ranges: ranges by tensor name, for what is known of the tensors.
    """
    for graph in model.subgraphs:
        _fold_graph(model, graph)


def _fold_graph(model, graph) -> None:
    source = {op.outputs[0]: op.inputs[0] for op in _ops(model, graph, "DEQUANTIZE")}
    changed = True
    while changed:
        changed = False
        targets: dict[int, list] = {}
        readers: dict[int, int] = {}
        for op in graph.operators:
            for index in op.inputs:
                readers[index] = readers.get(index, 0) + 1
            if op_name(model, op) == "QUANTIZE":
                targets.setdefault(op.inputs[0], []).append(op)
        for op in graph.operators:
            if op_name(model, op) in KERNELS and _fold_op(
                model, graph, op, source, targets, readers
            ):
                changed = True
                break
    _drop_unread(model, graph)


def _fold_op(model, graph, op, source, targets, readers) -> bool:
    """Moves one op onto integer tensors, if all of its neighbours allow it."""
    tensors = graph.tensors
    inputs = [i for i in op.inputs if i >= 0 and tensors[i].type == 0]
    activations = [i for i in inputs if i in source and tensors[source[i]].type == _INT8]
    constants = [i for i in inputs if i not in activations]
    if not activations or any(model.buffers[tensors[i].buffer].data is None for i in constants):
        return False
    if constants and op_name(model, op) not in ("PRELU", "MINIMUM"):
        return False
    quantizes = [targets.get(o, []) for o in op.outputs]
    for output, ops in zip(op.outputs, quantizes, strict=True):
        whole = ops and readers.get(output, 0) == len(ops) and output not in graph.outputs
        if not whole or len({q.outputs[0] for q in ops}) != 1:
            return False
        if tensors[ops[0].outputs[0]].type != _INT8:
            return False
    op.inputs = [source[i] if i in activations else i for i in op.inputs]
    for index in constants:
        same = op_name(model, op) == "MINIMUM"
        _quantize_constant(model, tensors[index], tensors[op.inputs[0]] if same else None)
    op.outputs = [ops[0].outputs[0] for ops in quantizes]
    gone = {id(q) for ops in quantizes for q in ops}
    graph.operators = [other for other in graph.operators if id(other) not in gone]
    _raise_version(model, op)
    return True


def _quantize_constant(model, tensor, like) -> None:
    """Makes a constant int8: symmetric by its own range, or on the grid of another tensor."""
    raw = np.asarray(model.buffers[tensor.buffer].data, np.uint8).tobytes()
    values = np.frombuffer(raw, np.float32)
    if like is None:
        scale, zero, lowest = max(float(np.abs(values).max(initial=0.0)), 1e-9) / 127, 0, -127
    else:
        scale, zero = float(like.quantization.scale[0]), int(like.quantization.zeroPoint[0])
        lowest = -128
    codes = np.clip(np.rint(values / scale) + zero, lowest, 127).astype(np.int8)
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(codes.tobytes(), np.uint8)
    model.buffers.append(buffer)
    tensor.buffer, tensor.type = len(model.buffers) - 1, _INT8
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale, tensor.quantization.zeroPoint = [scale], [zero]


def _raise_version(model, op) -> None:
    """Integer kernels of some ops came with a later version of the op."""
    code = model.operatorCodes[op.opcodeIndex]
    needed = KERNELS[op_name(model, op)]
    if code.version < needed:
        twin = type(code)()
        twin.__dict__.update(code.__dict__)
        twin.version = needed
        model.operatorCodes.append(twin)
        op.opcodeIndex = len(model.operatorCodes) - 1


def _drop_unread(model, graph) -> None:
    """Takes out DEQUANTIZE ops that nobody reads any more."""
    read = {i for op in graph.operators for i in op.inputs} | set(graph.outputs)
    graph.operators = [
        op for op in graph.operators if op_name(model, op) != "DEQUANTIZE" or op.outputs[0] in read
    ]


def _ops(model, graph, name: str) -> list:
    return [op for op in graph.operators if op_name(model, op) == name]
