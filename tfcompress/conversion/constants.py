"""Constants of a float .tflite, made ready for each operation to take them in its own way."""

from __future__ import annotations

import copy
import math
from collections import Counter

from ai_edge_litert import schema_py_generated as schema

from tfcompress.conversion.ranges import Range, drop_unused, is_constant
from tfcompress.tflite import flatbuffer, run
from tfcompress.tflite.flatbuffer import add_buffer, changed, op_name

# Operands that hold weights or rows of them, which must not be in the file twice.
_HELD_ONCE = {
    "FULLY_CONNECTED": (1, 2),
    "CONV_2D": (1, 2),
    "DEPTHWISE_CONV_2D": (1, 2),
    "TRANSPOSE_CONV": (1, 3),
    "GATHER": (0,),
    "EMBEDDING_LOOKUP": (1,),
}

# What broadcasts its operands to one rank.
_BROADCASTING = set(
    "ADD SUB MUL DIV MAXIMUM MINIMUM SQUARED_DIFFERENCE SELECT_V2 "
    "EQUAL NOT_EQUAL GREATER GREATER_EQUAL LESS LESS_EQUAL".split()
)

# Elements from which a result is left to be computed, as it would make the file larger.
_LARGE = 2**20


def fold(model, ranges: dict[int, Range], floats: set[int]) -> None:
    """Carries out operations on constants alone, which their markers kept from being folded.

    What they give gets the range that it is marked with, or of what it is a reshape of. Changes
    all arguments, as `take_markers` gives them.
    """
    graph, made, folded = model.subgraphs[0], set(), []
    for op in graph.operators:
        known = [i for i in op.inputs if i >= 0]
        fixed = bool(known and len(op.outputs)) and all(
            i in made or is_constant(model, i) for i in known
        )
        if fixed and _is_foldable(model, op, ranges):
            folded.append(op)
            made.update(op.outputs)
            if op_name(model, op) == "RESHAPE" and op.inputs[0] in ranges:
                ranges.setdefault(op.outputs[0], ranges[op.inputs[0]])
    if not folded:
        return
    read = {i for op in graph.operators if op not in folded for i in op.inputs}
    for index, values in _evaluated(model, folded, sorted(made & (read | {*graph.outputs}))):
        # A buffer of its own: the converter lets equal constants share one.
        graph.tensors[index].buffer = add_buffer(model, values.tobytes())
    graph.operators = [op for op in graph.operators if op not in folded]
    drop_unused(model, ranges, floats)


def _is_foldable(model, op, ranges: dict[int, Range]) -> bool:
    tensors = [model.subgraphs[0].tensors[i] for i in op.outputs]
    if any(t.type not in _PLAIN or math.prod(t.shape) > _LARGE for t in tensors):
        return False
    name = op_name(model, op)
    if name == "RESHAPE":
        return True
    # Where their ranges are known, training rounded them, as the operation itself will do.
    rounded = any(i in ranges for i in op.inputs)
    return not rounded and not name.startswith(_NEVER)


_PLAIN = (0, 2, 4, 6)  # float32, int32, int64, bool
_NEVER = ("RANDOM", "MULTINOMIAL", "CUSTOM", "WHILE", "IF", "STABLEHLO")


def _evaluated(model, operators, wanted: list[int]):
    """Yields (tensor, its values) of what operators on constants give."""
    graph, alone = model.subgraphs[0], copy.copy(model)
    used = {graph.tensors[i].buffer for op in operators for i in op.inputs if i >= 0}
    buffers = enumerate(model.buffers)
    alone.buffers = [held if n in used else schema.BufferT() for n, held in buffers]
    alone.subgraphs = [changed(graph, operators=operators, inputs=[], outputs=wanted)]
    alone.signatureDefs = []
    values = run.Loaded(flatbuffer.write(alone), run.DEFAULT).run({}, wanted)
    yield from zip(wanted, values, strict=True)


def part(model, ranges: dict[int, Range]) -> None:
    """Gives every operation constants of its own, of its rank, but for weights.

    What one operation makes of a constant, such as a scale, would be that of the others, too: of
    float ones, and of those on other scales. Changes both arguments.
    """
    graph = model.subgraphs[0]
    # The converter lets equal constants share a buffer, too, such as zeros with a bias of zeros.
    uses = Counter(graph.tensors[i].buffer for op in graph.operators for i in op.inputs if i >= 0)
    for op in graph.operators:
        held = _HELD_ONCE.get(op_name(model, op), ())
        for operand, index in enumerate(op.inputs):
            if index < 0 or operand in held or graph.tensors[index].type != 0:
                continue
            if not is_constant(model, index):
                continue
            if uses[graph.tensors[index].buffer] > 1:
                uses[graph.tensors[index].buffer] -= 1
                op.inputs[operand] = _twin(model, index)
                if index in ranges:
                    ranges[op.inputs[operand]] = ranges[index]
            if op_name(model, op) in _BROADCASTING:
                tensor = graph.tensors[op.inputs[operand]]
                missing = len(graph.tensors[op.outputs[0]].shape) - len(tensor.shape)
                # litert-quantizer refuses scales of another rank than the constant's.
                tensor.shape = [1] * (missing if len(tensor.shape) else 0) + list(tensor.shape)


def _twin(model, index: int) -> int:
    graph = model.subgraphs[0]
    tensor, number = graph.tensors[index], len(graph.tensors)
    buffer = add_buffer(model, flatbuffer.tensor_bytes(model, tensor) or b"")
    name = bytes(tensor.name) + f"_{number}".encode()
    graph.tensors.append(changed(tensor, name=name, buffer=buffer))
    return number
