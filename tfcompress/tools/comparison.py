"""Outputs of another tool against those of LiteRT's reference kernels."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.tflite import flatbuffer
from tfcompress.tools.driving import Answer, Figure, Outcome, Refused
from tfcompress.tools.subject import Subject, grid_of, tensors_of, unit_of, with_other_kernels, zero

# Of outputs as a whole where single steps do not count, in dB; a wrong import is far below it.
SQNR = 20.0


@dataclasses.dataclass(frozen=True)
class Difference:
    """The largest differences over all samples and outputs.

    Attributes:
        lsb: in steps of the integer grids of the outputs; None if none has a grid.
        relative: of outputs computed in float, to the largest value that is expected of an
            output; None if all have a grid.
        sqnr: signal to noise of all outputs with a grid, in dB; infinite if they are equal.
    """

    lsb: float | None
    relative: float | None
    sqnr: float


def compare(
    file: Subject,
    run: Callable[[Subject], Answer],
    *,
    lsb: int,
    figures: Sequence[str] = (),
) -> Outcome:
    """Run a tool and judge its outputs.

    It passes if outputs on an integer grid differ by at most `lsb` steps, and outputs computed in
    float as `file.relative` lets them, from LiteRT's reference kernels, or else from its XNNPACK
    or its optimized ones: these three round differently, and most tools round as one of them does.
    Where steps of single operators have added up to more, it also passes if each operator alone,
    fed with what LiteRT feeds it, differs by at most 1 step, and the outputs have an SQNR of 20 dB.
    """
    answer = run(file)
    measured = {name: answer.figures[name] for name in figures}
    found = difference(file, answer.outputs)
    if isinstance(found, str):
        return Outcome("failed", found, measured)
    told = {**figures_of(found), **measured}
    if not _near(found.relative, file.relative):
        return Outcome(
            "failed",
            f"float outputs differ from LiteRT's by {found.relative:.1e} of the largest; expected "
            f"at most {file.relative:g}",
            told,
        )
    if _near(found.lsb, lsb * file.step):
        return Outcome("passed", "", told)
    reason = (
        f"outputs differ from LiteRT's by {found.lsb:g} LSB; expected at most {lsb * file.step}"
    )
    kernels, other = _nearest(file, answer)
    if other is not None and _near(other.lsb, lsb * file.step):
        apart = {"kernels": kernels, "LSB to reference": told["max LSB"]}
        return Outcome("passed", "", {**figures_of(other), **apart, **measured})
    alone = operators_alone(file)
    if alone is None:
        return Outcome("failed", reason, told)
    try:
        return _judge_operators(alone, run(alone), found, reason, told)
    except Refused as refusal:
        return Outcome("failed", f"{reason}; its operators alone: {refusal}", told)


def _nearest(file: Subject, answer: Answer) -> tuple[str, Difference | None]:
    """Which of LiteRT's other kernels the outputs are nearest to, and how far from them."""
    best: tuple[str, Difference | None] = ("", None)
    for name, subject in with_other_kernels(file).items():
        found = difference(subject, answer.outputs)
        if isinstance(found, str) or found.lsb is None or not _near(found.relative, file.relative):
            continue
        if best[1] is None or found.lsb < (best[1].lsb or 0):
            best = (name, found)
    return best


def _judge_operators(
    alone: Subject, answer: Answer, whole: Difference, reason: str, told: dict[str, Figure]
) -> Outcome:
    found = difference(alone, answer.outputs)
    if isinstance(found, str) or found.lsb is None:
        return Outcome("failed", reason, told)
    step = figures_of(found)["max LSB"]
    told = {"max LSB": told["max LSB"], "max LSB of an op": step, **told}
    if not (_near(found.lsb, alone.step) and _near(found.relative, alone.relative)):
        return Outcome("failed", f"{reason}. Operators alone differ by up to {step} LSB", told)
    if whole.sqnr < SQNR:
        return Outcome(
            "failed",
            f"{reason}. Operators alone are within {alone.step} LSB, but the outputs have an SQNR "
            f"of {whole.sqnr:.0f} dB; expected at least {SQNR:g}",
            told,
        )
    remark = (
        f"its operators alone differ from LiteRT's by at most {step} LSB, which adds up to "
        f"{whole.lsb:g} LSB at the outputs (SQNR {whole.sqnr:.0f} dB)"
    )
    return Outcome("passed", remark, told)


def _near(value: float | None, limit: float) -> bool:
    return value is None or value <= limit


def figures_of(found: Difference) -> dict[str, Figure]:
    """A difference as figures to show."""
    told: dict[str, Figure] = {}
    if found.lsb is not None:
        told["max LSB"] = int(found.lsb) if found.lsb == int(found.lsb) else found.lsb
    if found.relative is not None:
        told["max relative"] = float(f"{found.relative:.1e}")
    return told


def difference(file: Subject, outputs: Sequence[Sequence[np.ndarray]]) -> Difference | str:
    """Measure how far outputs are from what is expected."""
    if len(outputs) != len(file.expected):
        return f"gave outputs for {len(outputs)} samples; expected {len(file.expected)}"
    for expected, given in zip(file.expected, outputs, strict=True):
        if len(given) != len(expected):
            return f"gave {len(given)} outputs; expected {len(expected)}"
        for (name, wanted), value in zip(expected.items(), given, strict=True):
            if np.size(value) != wanted.size:
                return f"output '{name}' has shape {np.shape(value)}; expected {wanted.shape}"
    steps: list[float] = []
    relatives: list[float] = []
    signal = noise = 0.0
    for place, (name, unit) in enumerate(file.units.items()):
        wanted = np.concatenate([_flat(expected[name]) for expected in file.expected])
        value = np.concatenate([_flat(sample[place]) for sample in outputs])
        gap = _gap(wanted, value)
        if unit is None:
            largest = float(np.max(np.abs(wanted), initial=0.0))
            relatives.append(gap / max(largest, float(np.finfo(np.float32).tiny)))
            continue
        # Real numbers on a grid are off by rounding of floats, not by parts of a step.
        steps.append(float(np.round(gap / unit, 3)))
        signal += float(np.sum((wanted - file.zeros[name]) ** 2)) / unit**2
        noise += float(np.sum((wanted - value) ** 2)) / unit**2
    sqnr = 10 * math.log10(max(signal, 1e-300) / noise) if noise else math.inf
    return Difference(max(steps, default=None), max(relatives, default=None), sqnr)


def _flat(values: np.ndarray) -> np.ndarray:
    return np.asarray(values).ravel().astype(np.float64)


def _gap(wanted: np.ndarray, value: np.ndarray) -> float:
    same = (wanted == value) | (np.isnan(wanted) & np.isnan(value))
    gaps = np.where(same, 0.0, np.abs(wanted - value))
    return float(np.max(np.where(np.isnan(gaps), np.inf, gaps), initial=0.0))


def operators_alone(file: Subject) -> Subject | None:
    """Cut a file's graph between all operators.

    What an operator reads becomes an input of the new file, what it makes an output; they are
    float where those of the whole are. The samples are what LiteRT's reference kernels compute on
    the way through the whole file.

    What is written to a variable before it is read stays with its reader.

    Returns the `Subject` of the cut file; None if it has other state or control flow.
    """
    model = flatbuffer.read(file.data)
    graph = model.subgraphs[0]
    variables = {i for i, tensor in enumerate(graph.tensors) if tensor.isVariable}
    if len(model.subgraphs) > 1 or variables - {i for op in graph.operators for i in op.outputs}:
        return None
    floats = any(value.dtype.kind == "f" for value in file.inputs[0].values())
    if floats:  # Those at the new inputs and outputs do the same.
        graph.operators = [op for op in graph.operators if not _is_edge(model, op)]
    fixed = _fixed(model) | variables
    made = [i for op in graph.operators for i in op.outputs if i not in fixed]
    fed = _cut(graph, fixed, made)
    values = tensors_of(file.data, list(file.inputs), sorted({*fed, *made}))
    units = [unit_of(model, index) for index in made]
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
