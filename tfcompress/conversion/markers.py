"""Activation ranges read from the markers of a float .tflite.

A converted fake-quantization op is a QUANTIZE -> DEQUANTIZE pair around nothing. A marker is two of
them in a row, the second one so many times as wide: it tells the range of the tensor before it. All
pairs are then taken out, also those that the converter added, which leaves a float file.
"""

from __future__ import annotations

import re
from typing import Any

from tfcompress.conversion.ranges import LEAST, Range, drop_unused, ends, reshaped, width
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.flatbuffer import changed, op_name

# How many times as wide a marker's second pair is; and where what gives the tensor stays float.
MARKED, MARKED_FLOAT = 3.0, 5.0

# The converter takes ranges narrower than a millionth for those of zeros. Narrow ones are told as
# so many times as wide, by pairs that differ by so much more.
_NARROW, _WIDENED, _MORE = 1e-4, 2.0**20, 4.0


def told_as(low: float, high: float, floats: bool) -> tuple[float, float, float]:
    """What a pair of markers says of a range: the first one's limits, and by what the other's are
    wider.
    """
    wider = MARKED_FLOAT if floats else MARKED
    if high - low > _NARROW:
        return low, high, wider
    return _WIDENED * low, _WIDENED * max(high, low + LEAST), wider + _MORE


def named_for(node: int) -> str:
    """The name by which a marker tells the number of a node."""
    return f"node_{node}_rounds"


def _node_of(name: str) -> int | None:
    found = re.findall(r"/node_(\d+)_rounds", name)
    return int(found[-1]) if found else None


def take_markers(model) -> tuple[dict[int, Range], set[int]]:
    """Takes the markers out of a float model and tells what they said. Changes `model`."""
    graph = model.subgraphs[0]
    alias: dict[int, int] = {}
    ranges: dict[int, Range] = {}
    floats: set[int] = set()
    before: dict[int, Range] = {}  # what the pair said that gives a tensor
    first: dict[int, int] = {}  # what the first of two pairs reads
    kept: list[Any] = []
    for op in graph.operators:
        name = op_name(model, op)
        if name not in ("QUANTIZE", "DEQUANTIZE"):
            kept.append(op)
            continue
        read, made = op.inputs[0], op.outputs[0]
        source = alias[made] = alias.get(read, read)
        if name == "DEQUANTIZE":
            if read in before:
                before[made], first[made] = before[read], first[read]
            continue
        before[made], first[made] = _range_of(graph.tensors[made]), read
        wider = width(before[made]) / width(before[read]) if read in before else 0.0
        stays, by = _said(wider)
        if by:
            said, node = before[read], _node_of(flatbuffer.text(graph.tensors[read].name))
            told = Range(said.minimum / by, said.maximum / by, said.bits, node)
            if not _is_same(ranges.get(source, told), told):
                if first[read] == source:
                    source = _made_again(model, kept, source)
                else:  # what was rounded is rounded to another range, too
                    source = reshaped(model, kept, source, b"_rounded")
                alias[made] = source
            ranges.setdefault(source, told)
        if stays:
            floats.add(source)
    graph.operators = kept
    for op in graph.operators:
        op.inputs = [alias.get(i, i) for i in op.inputs]
    _mark_before_reshapes(model, ranges, floats)
    _move_outputs(model, alias)
    drop_unused(model, ranges, floats)
    return ranges, floats


def _is_same(one: Range, other: Range) -> bool:
    limits = [(one.minimum, other.minimum), (one.maximum, other.maximum)]
    return one.bits == other.bits and all(abs(a - b) < 1e-4 * width(one) for a, b in limits)


def _made_again(model, operators: list, source: int) -> int:
    """A twin of a tensor, with an operator of its own: the converter takes equal ones for one,
    though they were rounded to several ranges. An input is its own twin.
    """
    maker = next((op for op in operators if source in op.outputs), None)
    tensors = model.subgraphs[0].tensors
    if maker is None:
        if flatbuffer.is_constant(model, tensors[source]):  # such as zeros of several states
            tensors.append(changed(tensors[source], name=bytes(tensors[source].name) + b"_again"))
            return len(tensors) - 1
        return source
    twins = {}
    for index in maker.outputs:
        twins[index] = len(tensors)
        tensors.append(changed(tensors[index], name=bytes(tensors[index].name) + b"_again"))
    operators.append(changed(maker, outputs=[twins[index] for index in maker.outputs]))
    return twins[source]


def _said(wider: float) -> tuple[bool, float]:
    """Whether a pair of markers says float, and how many times too wide it tells a range, or 0."""
    for stays, marked in ((False, MARKED), (True, MARKED_FLOAT)):
        for more, by in ((0.0, 1.0), (_MORE, _WIDENED)):
            if _is_near(wider, marked + more):
                return stays, by
    return False, 0.0


def _mark_before_reshapes(model, ranges: dict[int, Range], floats: set[int]) -> None:
    """Says of what is reshaped that it is float, where the converter moved the reshape ahead."""
    for op in reversed(model.subgraphs[0].operators):
        source, made = ends(op)
        if op_name(model, op) == "RESHAPE" and made in floats and source not in ranges:
            floats.remove(made)
            floats.add(source)
            ranges[source] = ranges[made]


def _is_near(value: float, wanted: float) -> bool:
    return abs(value - wanted) < 1e-4 * wanted


def _range_of(tensor) -> Range:
    (scale,), points = flatbuffer.scales_of(tensor)
    zero = points[0] if points else 0
    bits, signed = {3: (8, False), 9: (8, True), 7: (16, True), 16: (16, False)}[tensor.type]
    lowest = -(2 ** (bits - 1)) if signed else 0
    narrow = bits == 16  # of which LiteRT takes the greater half for a grid without a zero point
    return Range((lowest + narrow - zero) * scale, (lowest + 2**bits - 1 - zero) * scale, bits)


def _move_outputs(model, alias: dict[int, Any]) -> None:
    graph = model.subgraphs[0]
    graph.outputs = [alias.get(i, i) for i in graph.outputs]
    for signature in model.signatureDefs:
        for entry in signature.outputs:
            entry.tensorIndex = alias.get(entry.tensorIndex, entry.tensorIndex)
