"""Each operator of a file alone, fed with what LiteRT feeds it: rounding cannot add up."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.acceptance.subject import Subject, grid_of, tensors_of, unit, zero
from tfcompress.tflite import flatbuffer


def operators_alone(file: Subject) -> Subject | None:
    """Cut a file's graph between all operators.

    What an operator reads becomes an input of the new file, what it makes an output; they are
    float where those of the whole are. The samples are what LiteRT's reference kernels compute on
    the way through the whole file.

    Args:
        file: the whole.

    Returns:
        The `Subject` of the cut file; None if it has state or control flow.
    """
    model = flatbuffer.read(file.data)
    graph = model.subgraphs[0]
    if len(model.subgraphs) > 1 or any(tensor.isVariable for tensor in graph.tensors):
        return None
    floats = any(value.dtype.kind == "f" for value in file.inputs[0].values())
    if floats:  # Those at the new inputs and outputs do the same.
        graph.operators = [op for op in graph.operators if not _is_edge(model, op)]
    fixed = _fixed(model)
    made = [i for op in graph.operators for i in op.outputs if i not in fixed]
    fed = _cut(graph, fixed, made)
    values = tensors_of(file.data, list(file.inputs), sorted({*fed, *made}))
    units = [unit(model, index) for index in made]
    given, taken = list(fed.values()), made
    if floats:
        values = [_real(graph, sample) for sample in values]
        units = [_scale(graph.tensors[i]) or u for i, u in zip(made, units, strict=True)]
        given = [_add(model, i, "QUANTIZE", f"fed_{n}") for n, i in fed.items()]
        taken = [_add(model, i, "DEQUANTIZE", f"made_{i}") for i in made]
    for index, number in zip(taken, made, strict=True):
        graph.tensors[index].name = f"made_{number}"
    graph.inputs, graph.outputs, model.signatureDefs = given, taken, []
    return dataclasses.replace(
        file,
        data=flatbuffer.write(model),
        inputs=[{f"fed_{i}": sample[i] for i in fed} for sample in values],
        expected=[{f"made_{i}": sample[i] for i in made} for sample in values],
        units={f"made_{i}": unit for i, unit in zip(made, units, strict=True)},
        zeros={f"made_{i}": zero(graph.tensors[j]) for i, j in zip(made, taken, strict=True)},
    )


def _is_edge(model: Any, op: Any) -> bool:
    """Whether an operator brings an input of the file to codes, or codes to an output."""
    ends = {*model.subgraphs[0].inputs, *model.subgraphs[0].outputs}
    name = flatbuffer.op_name(model, op)
    return name in ("QUANTIZE", "DEQUANTIZE") and not ends.isdisjoint({*op.inputs, *op.outputs})


def _cut(graph: Any, fixed: set[int], made: list[int]) -> dict[int, int]:
    """Let operators read new tensors; returns which one stands for which tensor."""
    fed: dict[int, int] = {}
    for op in graph.operators:
        inputs = [int(index) for index in op.inputs]
        for place, index in enumerate(inputs):
            if index < 0 or index in fixed:
                continue
            if index not in fed:
                tensor = copy.copy(graph.tensors[index])
                tensor.name = f"fed_{index}"
                fed[index] = len(graph.tensors)
                graph.tensors.append(tensor)
            inputs[place] = fed[index]
        op.inputs = inputs
    return fed


def _fixed(model: Any) -> set[int]:
    """Tensors that do not depend on the inputs: constants, and what is made of them alone."""
    graph = model.subgraphs[0]
    fixed = {i for i, t in enumerate(graph.tensors) if flatbuffer.is_constant(model, t)}
    for op in graph.operators:  # In the order of execution.
        if all(index < 0 or index in fixed for index in op.inputs):
            fixed.update(int(index) for index in op.outputs)
    return fixed


def _real(graph: Any, sample: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Codes as the real numbers that they stand for, in float32."""
    found = {}
    for index, value in sample.items():
        tensor = graph.tensors[index]
        grid = grid_of(tensor)
        if grid is not None:
            value = (value.astype(np.float32) - grid[1]) * np.float32(grid[0])
        found[index] = value
    return found


def _scale(tensor: Any) -> float | None:
    grid = grid_of(tensor)
    return None if grid is None else grid[0]


def _add(model: Any, index: int, name: str, title: str) -> int:
    """Put QUANTIZE before or DEQUANTIZE after a tensor of codes; returns the float tensor."""
    graph = model.subgraphs[0]
    if grid_of(graph.tensors[index]) is None:
        return index
    kind = getattr(schema.BuiltinOperator, name)
    codes = [max(c.builtinCode, c.deprecatedBuiltinCode) for c in model.operatorCodes]
    if kind not in codes:
        code = schema.OperatorCodeT(deprecatedBuiltinCode=kind, builtinCode=kind, version=1)
        codes, model.operatorCodes = [*codes, kind], [*model.operatorCodes, code]
    tensor = copy.copy(graph.tensors[index])
    tensor.name, tensor.type, tensor.quantization = title, schema.TensorType.FLOAT32, None
    new = len(graph.tensors)
    graph.tensors.append(tensor)
    before = name == "QUANTIZE"
    ends = ([new], [index]) if before else ([index], [new])
    op = schema.OperatorT(opcodeIndex=codes.index(kind), inputs=ends[0], outputs=ends[1])
    graph.operators.insert(0 if before else len(graph.operators), op)
    return new
