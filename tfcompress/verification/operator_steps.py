"""How many steps each operator of an integer file is off from what the model simulates, alone.

The simulation is the float file of the model whose tensors are rounded to the grids of the integer
file. Each integer operator is run on the codes that the simulation has for its inputs, so that no
error of those before it is in its own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.tflite import flatbuffer, run
from tfcompress.tflite.flatbuffer import changed, op_code, op_name
from tfcompress.tflite.run import INTEGERS, Port, Runner, port, ports


def operator_steps(
    file: Any,
    exact: Any,
    pairs: dict[int, int],
    batches: Iterable[dict[str, np.ndarray]],
    *,
    reference: bool = True,
) -> dict[int, tuple[float, float]]:
    """Measures each operator of a file whose activations are integers.

    Args:
        exact: the float file of the model, with the operations of the integer file.
        pairs: index of an activation in the file -> index of the tensor in `exact`.
        batches: values by the file's input names.
        reference: take LiteRT's reference kernels, else its default ones.

    Returns index of an operator's output -> its greatest difference in steps, and the mean one.
    """
    grids = {i: port(file, i) for i in pairs}
    pairs = {i: e for i, e in pairs.items() if grids[i].dtype in INTEGERS and grids[i].scale}
    simulation, codes = _simulation(file, exact, pairs)
    content = flatbuffer.write(simulation)
    simulated = Runner(simulation, content, "the simulation", reference=True, keep=True)
    parted, given = _parted(file, pairs)
    kernels = run.REFERENCE if reference else run.DEFAULT
    alone = run.Loaded(flatbuffer.write(parted), kernels, keep=True)
    made = [
        i
        for op in file.subgraphs[0].operators
        for i in op.outputs
        if i in pairs and op_name(file, op) not in ("QUANTIZE", "DEQUANTIZE")
    ]
    found: dict[int, list[np.ndarray]] = {index: [] for index in made}
    for batch in batches:
        simulated.run(as_named(simulated, batch, ports(file)[0]))
        wanted = {
            i: grids[i].quantize(simulated.tensor(port(simulation, codes[e])))
            for i, e in pairs.items()
        }
        outputs = alone.run({fed: wanted[index] for index, fed in given.items()}, made)
        for index, codes_of in zip(made, outputs, strict=True):
            off = codes_of.astype(int) - wanted[index].astype(int)
            found[index].append(np.abs(off).ravel())
    every = {index: np.concatenate(values) for index, values in found.items() if values}
    return {i: (float(v.max(initial=0)), float(v.mean())) for i, v in every.items() if v.size}


def as_named(
    runner: Runner, batch: dict[str, np.ndarray], taken: list[Port]
) -> dict[str, np.ndarray]:
    """A batch for another file of the model, which may bear other names than the model has now.

    Args:
        taken: the inputs of the file by whose names the batch is.
    """
    ours, theirs = [entry.name for entry in taken], [entry.name for entry in runner.inputs]
    if set(ours) == set(theirs):
        return batch
    return {name: batch[own] for own, name in zip(ours, theirs, strict=True)}


def _simulation(file: Any, exact: Any, pairs: dict[int, int]) -> tuple[Any, dict[int, int]]:
    """A float file whose tensors are rounded to the grids of the integer file.

    Returns (its `ModelT`, index of a tensor of `exact` -> that of its rounded values).
    """
    model = copy.deepcopy(exact)
    graph = model.subgraphs[0]
    grid_of: dict[int, int] = {}
    for op in file.subgraphs[0].operators:  # before what is requantized
        for i in op.outputs:
            if i in pairs and op_name(file, op) != "QUANTIZE":
                grid_of.setdefault(pairs[i], i)
    for i, e in pairs.items():
        grid_of.setdefault(e, i)
    rounded: dict[int, int] = {}
    operators = []

    def round_off(index: int) -> None:
        if index not in grid_of or index in rounded:
            return
        tensor, like = graph.tensors[index], file.subgraphs[0].tensors[grid_of[index]]
        name = bytes(tensor.name)
        made = {"name": name + b"_codes", "type": like.type, "quantization": like.quantization}
        graph.tensors += [changed(tensor, **made), changed(tensor, name=name + b"_rounded")]
        rounded[index] = len(graph.tensors) - 1
        pair = [(index, rounded[index] - 1), (rounded[index] - 1, rounded[index])]
        for kind, (source, target) in zip(("QUANTIZE", "DEQUANTIZE"), pair, strict=True):
            code = op_code(model, getattr(schema.BuiltinOperator, kind), version=2)
            operators.append(schema.OperatorT(code, [source], [target]))

    for index in graph.inputs:
        round_off(int(index))
    for op in graph.operators:
        op.inputs = [rounded.get(int(i), int(i)) for i in op.inputs]
        operators.append(op)
        for index in op.outputs:
            round_off(int(index))
    graph.operators = operators
    return model, {index: rounded[index] for index in grid_of}


def _parted(file: Any, pairs: dict[int, int]) -> tuple[Any, dict[int, int]]:
    """The file with its operators apart: each reads from inputs of the file alone.

    Returns (its `ModelT`, index of a tensor -> that of the input that stands for it).
    """
    model = copy.deepcopy(file)
    graph = model.subgraphs[0]
    given: dict[int, int] = {}
    outputs = []
    for op in graph.operators:
        for index in op.inputs:
            if index in pairs and index not in given:
                graph.tensors.append(changed(graph.tensors[index], name=f"given{index}".encode()))
                given[int(index)] = len(graph.tensors) - 1
        op.inputs = [given.get(int(i), int(i)) for i in op.inputs]
        outputs += [int(i) for i in op.outputs]
    graph.inputs = [i for i in graph.inputs if i not in given] + list(given.values())
    graph.outputs = outputs
    model.signatureDefs = []
    return model, given
