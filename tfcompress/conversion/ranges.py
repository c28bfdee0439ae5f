"""Activation ranges, spread to where they hold too, and the tensors of a file that have them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.conversion import states
from tfcompress.kinds import FIXED_RANGES, share_range
from tfcompress.targets.targets import io_pair
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.flatbuffer import add_buffer, changed, op_code, op_name
from tfcompress.tflite.unused import drop_tensors

# Ops whose outputs have the scale of their (first) input, and which tensors of them take part.
SAME_SCALE = set(
    "MAX_POOL_2D AVERAGE_POOL_2D RESHAPE PAD PADV2 MIRROR_PAD TRANSPOSE SLICE STRIDED_SLICE SPLIT "
    "SPLIT_V UNPACK PACK CONCATENATION GATHER GATHER_ND RESIZE_NEAREST_NEIGHBOR RESIZE_BILINEAR "
    "EXPAND_DIMS SQUEEZE TILE BROADCAST_TO SPACE_TO_DEPTH DEPTH_TO_SPACE SPACE_TO_BATCH_ND "
    "BATCH_TO_SPACE_ND REVERSE_V2 REDUCE_MAX REDUCE_MIN MAXIMUM MINIMUM DYNAMIC_UPDATE_SLICE "
    "SELECT SELECT_V2 CUMSUM".split()
)

# Narrower ones LiteRT's multipliers do not reach.
LEAST = 1e-6

_INT32, _BOOL = schema.TensorType.INT32, schema.TensorType.BOOL


@dataclasses.dataclass
class Range:
    """The range of an activation: minimum, maximum in real units, and its bits (8 or 16).

    `node` is the number, in the graph of the flat model, of the call that rounds to it, if known.
    """

    minimum: float
    maximum: float
    bits: int = 8
    node: int | None = dataclasses.field(default=None, compare=False)


# What a truth is as int8: its own codes 0 and 1.
_TRUTH = Range(-128.0, 127.0)


def with_zero(low: float, high: float) -> Range:
    """The range of values from `low` to `high`: it holds zero, and is not empty.

    What was 0 all along gets the range that it has in trained models.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    return Range(low, max(high, low + LEAST) if high > low else 1.0)


def ends(op) -> tuple[int, int]:
    """The first tensor that an op reads and the first that it writes, -1 for none."""
    return op.inputs[0] if len(op.inputs) else -1, op.outputs[0] if len(op.outputs) else -1


def width(known: Range) -> float:
    return known.maximum - known.minimum


def step_of(known: Range) -> float:
    """Between two codes of a range."""
    return wide_step(known) if known.bits == 16 else width(known) / 255


def wide_step(known: Range) -> float:
    return max(abs(known.minimum), abs(known.maximum)) / 32767


def spread(model, ranges: dict[int, Range], wide: Collection[int] = ()) -> dict[int, Range]:
    """Ranges for all tensors that must have the same one as a tensor whose range is known.

    Args:
        wide: tensors that operators of 16 bits give.
    """
    graph, known = model.subgraphs[0], dict(ranges)
    own: set[int] = set()  # given by the kernel, whatever the others of a group have
    for op in graph.operators:
        fixed = FIXED_RANGES.get(op_name(model, op))
        bits = next((known[i].bits for i in op.inputs if i in known), 8)
        if fixed and bits == 8:
            known[op.outputs[0]] = Range(*fixed)
            own.add(op.outputs[0])
        elif ends(op)[1] not in wide and _makes_numbers_of(_BOOL, model, op):
            known[op.outputs[0]] = _TRUTH
        elif _makes_numbers_of(None, model, op) and (found := known.get(op.outputs[0])):
            # What was 0 all along may be another whole number.
            high = found.maximum if width(found) >= 1 else found.minimum + 1
            known[op.outputs[0]] = Range(found.minimum, high, found.bits)
    # A constant that is selected need not be in the range of what it is selected from.
    pairs = states.pairs(model)
    moved = [same_scale(model, op) for op in graph.operators if not _selects(model, op)] + pairs
    every = [same_scale(model, op)[:: -1 if _selects(model, op) else 1] for op in graph.operators]
    every += pairs
    for groups, left_out in ((moved, own), (every, own), (every, set[int]())):
        changed = True
        while changed:
            changed = False
            for group in groups + groups[::-1]:
                found = next((known[i] for i in group if i in known and i not in left_out), None)
                missing = [i for i in group if i not in known]
                if found is not None and missing:
                    known.update((i, found) for i in missing)
                    changed = True
    for op in graph.operators:
        source, made = ends(op)
        trained = made in ranges and ranges[made].node is not None
        if op_name(model, op) == "MEAN" and known.get(source) == _TRUTH and not trained:
            sizes = [math.prod(graph.tensors[i].shape) for i in (source, made)]
            if (shares := share_range(sizes[0] // sizes[1])) is not None:
                known[made] = Range(*shares)
    return known


def with_bits(model, ranges: dict[int, Range], wide: Collection[int]) -> dict[int, Range]:
    """Ranges with 16 bits where operators of 16 bits give a tensor, or alone read what none gives.

    Args:
        wide: tensors that operators of 16 bits give.
    """
    readers: dict[int, list[bool]] = {}
    for op in model.subgraphs[0].operators:
        for index in op.inputs:
            readers.setdefault(index, []).append(ends(op)[1] in wide)
    given = {i for op in model.subgraphs[0].operators for i in op.outputs}
    read = {i for i, found in readers.items() if all(found)} - given
    return {
        i: dataclasses.replace(known, bits=16) if i in wide or i in read else known
        for i, known in ranges.items()
    }


def _makes_numbers_of(kind: int | None, model, op) -> bool:
    """Whether an op makes floats of a type, or of any that is no float."""
    if op_name(model, op) != "CAST":
        return False
    given, made = (model.subgraphs[0].tensors[i[0]].type for i in (op.inputs, op.outputs))
    return made == 0 and (given != 0 if kind is None else given == kind)


def _selects(model, op) -> bool:
    return op_name(model, op) in ("SELECT", "SELECT_V2")


def drop_clipped_relus(model, ranges: dict[int, Range]) -> None:
    """Takes out a ReLU that the range of its output carries out. Changes both arguments.

    A tensor with range [0, m] saturates at 0 and m, so that the op before can write it directly,
    but in 16 bits, which have no zero points.
    """
    graph = model.subgraphs[0]
    readers: dict[int, int] = {}
    for op in graph.operators:
        for index in op.inputs:
            readers[index] = readers.get(index, 0) + 1
    producer = {index: op for op in graph.operators for index in op.outputs}
    kept = []
    for op in graph.operators:
        source, target = ends(op)
        clips = op_name(model, op) in ("RELU", "RELU6") and source not in ranges
        alone = readers.get(source) == 1 and source in producer and source not in graph.outputs
        begins = target in ranges and ranges[target].minimum >= 0 and ranges[target].bits == 8
        if clips and alone and begins:
            before = producer[source]
            before.outputs = [target if i == source else i for i in before.outputs]
        else:
            kept.append(op)
    graph.operators = kept


def floats_of(model, op) -> list[int]:
    """The float activations that an op reads and writes (constants, states and -1 left out)."""
    tensors = model.subgraphs[0].tensors
    indices = [i for i in (*op.inputs, *op.outputs) if i >= 0 and not tensors[i].isVariable]
    return [i for i in indices if tensors[i].type == 0 and not is_constant(model, i)]


def is_constant(model, index: int) -> bool:
    """Whether a tensor holds data in the file."""
    return flatbuffer.is_constant(model, model.subgraphs[0].tensors[index])


def constant(model, index: int) -> Any:
    """A constant of the file as an array."""
    return flatbuffer.tensor_values(model, model.subgraphs[0].tensors[index])


def same_scale(model, op) -> list[int]:
    """The float tensors, constants among them, that an op keeps on one scale."""
    if op_name(model, op) not in SAME_SCALE:
        return []
    tensors = model.subgraphs[0].tensors
    return [i for i in (*op.inputs, *op.outputs) if i >= 0 and tensors[i].type == 0]


def drop_unused(model, *known: dict[int, Any] | set[int]) -> None:
    """Takes out tensors and constants that nothing refers to. Changes `model`, and what is `known`
    of tensors by their indices.
    """
    new = drop_tensors(model)
    held = {t.buffer for g in model.subgraphs for t in g.tensors}
    held |= {entry.buffer for entry in model.metadata or ()}
    for number, buffer in enumerate(model.buffers):
        if number not in held:
            buffer.data = None
    for told in known:
        if isinstance(told, dict):
            kept = {new[i]: found for i, found in told.items() if i in new}
            told.clear()
            told.update(kept)
        else:
            moved = {new[i] for i in told if i in new}
            told.clear()
            told |= moved


def part_outputs(model, *known: dict[int, Any] | set[int]) -> None:
    """Gives every output a tensor that nothing else reads or is. Changes `model`, and what is
    `known` of tensors by their indices.

    litert-quantizer makes a file that does not run where an output is an input, is read by an
    operation too, or is given twice: there a RESHAPE to its own shape stands between.
    """
    graph = model.subgraphs[0]
    old = [int(index) for index in graph.outputs]
    shared = {i for op in graph.operators for i in op.inputs} | set(graph.inputs)
    shared |= {index for index in old if old.count(index) > 1}
    new = [reshaped(model, graph.operators, i, b"_output") if i in shared else i for i in old]
    for told in known:
        for source, made in zip(old, new, strict=True):
            if isinstance(told, set):
                told.update([made] if source in told else [])
            elif source in told:
                told[made] = told[source]
    for signature in model.signatureDefs:
        remaining = list(zip(old, new, strict=True))
        for entry in signature.outputs:
            pair = next(pair for pair in remaining if pair[0] == entry.tensorIndex)
            remaining.remove(pair)
            entry.tensorIndex = pair[1]
    graph.outputs = new


def require_ranges(model, ranges: dict[int, Range], io_dtype: str) -> None:
    """Raises if an input or output cannot be of the integer type asked for."""
    graph = model.subgraphs[0]
    sides = (("input", graph.inputs), ("output", graph.outputs))
    for (kind, indices), dtype in zip(sides, io_pair(io_dtype), strict=True):
        for index in indices:
            asked = dtype != "float32" and graph.tensors[index].type == 0
            if asked and index not in ranges:
                name = bytes(graph.tensors[index].name).decode()
                raise ValueError(
                    f"{kind} '{name}' belongs to a layer that stays float, so that its range is "
                    f"not known; received io_dtype='{dtype}' for it. Pass 'float32' there, or "
                    "quantize that layer too."
                )


def reshaped(model, operators: list, index: int, suffix: bytes) -> int:
    """A new tensor that a RESHAPE to its own shape, behind other operators, makes of another."""
    graph = model.subgraphs[0]
    source = graph.tensors[index]
    shape, name = np.asarray(source.shape, np.int32), bytes(source.name)
    buffer = add_buffer(model, shape.tobytes())
    sizes = schema.TensorT([len(shape)], _INT32, buffer, name + b"_shape")
    graph.tensors += [sizes, changed(source, name=name + suffix, buffer=0)]
    made = len(graph.tensors) - 1
    op = schema.OperatorT(
        op_code(model, schema.BuiltinOperator.RESHAPE),
        [index, made - 1],
        [made],
        schema.BuiltinOptions.ReshapeOptions,
        schema.ReshapeOptionsT(shape.tolist()),
    )
    operators.append(op)
    return made


def type_unread_outputs(model) -> None:
    """Gives outputs of a SPLIT that nobody reads the type of the others. Changes `model`.

    The quantizer leaves them float, and XNNPACK refuses the file: an unrolled LSTM, whose first
    step has no use for its forget gate, is such a case.
    """
    for graph in model.subgraphs:
        read = {i for op in graph.operators for i in op.inputs} | set(graph.outputs)
        for op in graph.operators:
            if op_name(model, op) not in ("SPLIT", "SPLIT_V", "UNPACK"):
                continue
            tensors = [graph.tensors[i] for i in op.outputs]
            pattern = next((t for t in tensors if t.quantization and t.type != 0), None)
            for index, tensor in zip(op.outputs, tensors, strict=True):
                if pattern is not None and tensor.type == 0 and index not in read:
                    tensor.type, tensor.quantization = pattern.type, pattern.quantization
