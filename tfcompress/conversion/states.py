"""The states of a step model in its file: each has one scale, as it comes in and as it goes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.graph.states import is_variable, out_of, states_of
from tfcompress.kinds import FIXED_RANGES
from tfcompress.tflite.flatbuffer import (
    add_buffer,
    changed,
    dtype_name,
    op_code,
    op_name,
    scales_of,
    text,
)
from tfcompress.tflite.signature import first_signature
from tfcompress.tflite.unused import drop_tensors

# What kernels of 16 bits give for a softmax, a sigmoid or tanh has steps of 1/32768.
_WIDE = (0.0, 32767 / 32768)


def pairs(model: Any) -> list[list[int]]:
    """The tensors of a file that its states come in and go out as."""
    return list(_named(model).values())


def _named(model: Any) -> dict[str, list[int]]:
    """The same by name, of a file that has a signature, as those have that are made here."""
    signature = first_signature(model)
    entries = ([], []) if signature is None else (signature.inputs, signature.outputs)
    given, made = ({text(x.name): int(x.tensorIndex) for x in side} for side in entries)
    return {name: [given[name], made[out_of(name)]] for name in states_of(given, made)}


def kept(model: Any) -> list[list[int]]:
    """The tensors of those states that a file is to keep by itself, as they come and as they go."""
    return [pair for name, pair in _named(model).items() if is_variable(name)]


def keep(model: Any) -> None:
    """Makes resource variables of such states, neither inputs nor outputs any more. Changes
    `model`.

    A second subgraph, which CALL_ONCE runs before the first call, sets them to zeros.
    """
    graph, named = model.subgraphs[0], _named(model)
    found = {name: pair for name, pair in named.items() if is_variable(name)}
    start = schema.SubGraphT([], [], [], [], b"begin")
    once = schema.CallOnceOptionsT(len(model.subgraphs))
    before = [_operator(model, "CALL_ONCE", [], [], schema.BuiltinOptions.CallOnceOptions, once)]
    for name, (given, made) in found.items():
        given, made = _integers(model, given, made)
        pattern = graph.tensors[given]
        first = changed(pattern, name=name.encode() + b"_begin", buffer=_zeros(model, pattern))
        start.tensors.append(first)
        zeros = len(start.tensors) - 1
        for side in (start, graph):
            side.tensors.append(_handle(name))
        handles = len(start.tensors) - 1, len(graph.tensors) - 1
        begin, own = (_opened(model, name, handle) for handle in handles)
        start.operators += [begin, _operator(model, "ASSIGN_VARIABLE", [handles[0], zeros], [])]
        before += [own, _operator(model, "READ_VARIABLE", [handles[1]], [given])]
        graph.operators.append(_operator(model, "ASSIGN_VARIABLE", [handles[1], made], []))
    model.subgraphs.append(start)
    graph.operators = before + graph.operators
    entry = first_signature(model)
    entry.inputs = [x for x in entry.inputs if text(x.name) not in found]
    ends = {out_of(name) for name in found}
    entry.outputs = [x for x in entry.outputs if text(x.name) not in ends]
    # What a layer gives may be its state as well.
    left = {int(x.tensorIndex) for x in (*entry.inputs, *entry.outputs)}
    graph.inputs = [index for index in graph.inputs if index in left]
    graph.outputs = [index for index in graph.outputs if index in left]
    drop_tensors(model)


def _integers(model: Any, given: int, made: int) -> tuple[int, int]:
    """What stands for a state inside of a file that exchanges floats: its codes, where both ends
    have them. Takes the conversions out of `model`.
    """
    graph = model.subgraphs[0]
    readers = [op for op in graph.operators if given in op.inputs]
    makers = [op for op in graph.operators if made in op.outputs or made in op.inputs]
    ends = [op_name(model, op) for op in (*readers, *makers)]
    if ends != ["QUANTIZE", "DEQUANTIZE"]:
        return given, made
    codes = readers[0].outputs[0], makers[0].inputs[0]
    grids = [(dtype_name(graph.tensors[i]), scales_of(graph.tensors[i])) for i in codes]
    if grids[0] != grids[1]:
        return given, made
    graph.operators = [op for op in graph.operators if op is not readers[0] and op is not makers[0]]
    return int(codes[0]), int(codes[1])


def _operator(model: Any, name: str, inputs: list, outputs: list, kind: int = 0, options=None):
    code = op_code(model, getattr(schema.BuiltinOperator, name))
    return schema.OperatorT(code, inputs, outputs, kind, options)


def _opened(model: Any, name: str, handle: int) -> Any:
    """The operator that gives the handle of a variable."""
    options = schema.VarHandleOptionsT(b"", name.encode())
    kind = schema.BuiltinOptions.VarHandleOptions
    return _operator(model, "VAR_HANDLE", [], [handle], kind, options)


def _handle(name: str) -> Any:
    return schema.TensorT([], schema.TensorType.RESOURCE, 0, name.encode() + b"_handle")


def _zeros(model: Any, tensor: Any) -> int:
    """A buffer with the codes of zeros."""
    _, points = scales_of(tensor)
    values = np.full(tensor.shape, points[0] if points else 0, dtype_name(tensor))
    return add_buffer(model, values.tobytes())


def tie(model: Any, limits: dict[int, tuple], same_scale: Callable, wide: set[int]) -> None:
    """Gives all that has the scale of a state the range of all together. Changes `limits`.

    Args:
        limits: least and greatest values by tensor, as calibration saw them.
        same_scale: (model, operator) -> the tensors that it keeps on one scale.
        wide: tensors that operators of 16 bits give.
    """
    groups = [{*pair} for pair in pairs(model)]
    operators = model.subgraphs[0].operators if groups else []
    every = [{*map(int, same_scale(model, op))} for op in operators]
    fixed = {
        int(op.outputs[0]): _WIDE if op.outputs[0] in wide else FIXED_RANGES[name]
        for op in operators
        if (name := op_name(model, op)) in FIXED_RANGES
    }
    for group in groups:
        size = 0
        while size < len(group):
            size = len(group)
            group.update(*(other for other in [*every, *groups] if not group.isdisjoint(other)))
        known = [fixed[i] for i in group if i in fixed]
        known = known or [limits[i] for i in group if i in limits]
        if known:
            low, high = min(low for low, _ in known), max(high for _, high in known)
            limits.update((i, (low, high)) for i in group if i in limits)
