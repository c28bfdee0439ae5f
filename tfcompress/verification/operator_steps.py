"""How many steps each operator of an integer file is off from what the model simulates, alone.

Each integer operator is run on the codes that the simulation has for its inputs, so that no error
of those before it is in its own. A model from `quantize_aware` is itself the simulation; of another
it is its float file, whose tensors are rounded to the grids of the integer file.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from keras import tree

from tfcompress.conversion.ranges import Range
from tfcompress.graph.nodes import Graph, Node
from tfcompress.quantization.unrolling import in_steps
from tfcompress.tflite import flatbuffer, run
from tfcompress.tflite.flatbuffer import changed, op_code, op_name
from tfcompress.tflite.run import INTEGERS, Port, Runner, port, ports

# A file's scale is that of the model up to float32; one that was widened is another.
_EQUAL = 1e-5


class Simulation:
    """The codes that a model has for tensors of its integer file.

    Args:
        grids: of these tensors, by their indices in the file.
        values: gives the model's values of a batch for these tensors, in their order.
    """

    def __init__(self, grids: dict[int, Port], values: Callable[[dict[str, np.ndarray]], list]):
        self.grids, self.values = grids, values

    def codes(self, batch: dict[str, np.ndarray]) -> dict[int, np.ndarray]:
        """The codes of a batch, by index."""
        rows = zip(self.grids.items(), self.values(batch), strict=True)
        return {i: grid.quantize(np.asarray(v)).reshape(grid.shape) for (i, grid), v in rows}


def operator_steps(
    file: Any,
    simulation: Simulation,
    batches: Iterable[dict[str, np.ndarray]],
    *,
    reference: bool = True,
) -> dict[int, tuple[float, float]]:
    """Measures each operator of a file whose activations are integers.

    Args:
        batches: values by the file's input names.
        reference: take LiteRT's reference kernels, else its default ones.

    Returns index of an operator's output -> (its greatest difference in steps, share of values
    that are off).
    """
    taken = ports(file)[0]
    parted, given = _parted(file, simulation.grids)
    kernels = run.REFERENCE if reference else run.DEFAULT
    alone = run.Loaded(flatbuffer.write(parted), kernels, keep=True)
    rest = [entry for entry in taken if entry.index in alone.inputs]
    made = [
        i
        for op in file.subgraphs[0].operators
        for i in op.outputs
        if i in simulation.grids and op_name(file, op) not in ("QUANTIZE", "DEQUANTIZE")
    ]
    worst, off, count = (dict.fromkeys(made, 0) for _ in range(3))
    for batch in batches:
        wanted = simulation.codes(batch)
        feed = {fed: wanted[index] for index, fed in given.items()}
        feed |= {entry.index: entry.quantize(batch[entry.name]) for entry in rest}
        for index, codes in zip(made, alone.run(feed, made), strict=True):
            error = np.abs(codes.astype(np.int32) - wanted[index])
            worst[index] = max(worst[index], int(error.max(initial=0)))
            off[index] += int(np.count_nonzero(error))
            count[index] += error.size
    return {i: (float(worst[i]), off[i] / count[i]) for i in made if count[i]}


def simulation_of(
    model: keras.Model, file: Any, exact: Any, known: dict[int, Range], pairs: dict[int, int]
) -> Simulation:
    """What simulates a file: the model itself if it rounds, else its float file, rounded.

    Args:
        exact: the float file of the model, with the operations of the integer file.
        known: the model's ranges of tensors of `exact`.
        pairs: index of an activation in the file -> index of the tensor in `exact`.
    """
    every = {i: port(file, i) for i in pairs}
    grids = {i: g for i, g in every.items() if g.dtype in INTEGERS and g.scale}
    taken = ports(file)[0]
    if any(found.node is not None for found in known.values()):
        graph = Graph.of(in_steps(model)[0])
        told = {i: _node_of(known.get(pairs[i]), grid) for i, grid in grids.items()}
        nodes = _in_order(file, {i: graph.nodes[n] for i, n in told.items() if n is not None})
        grids = {i: port(file, i) for i in nodes}
        return Simulation(grids, _own_values(graph, list(nodes.values()), taken))
    simulation, codes = _rounded(file, exact, {i: pairs[i] for i in grids})
    content = flatbuffer.write(simulation)
    runner = Runner(simulation, content, "the simulation", reference=True, keep=True)
    names = [entry.name for entry in runner.inputs]

    def values(batch):
        runner.run(as_named(names, batch, taken))
        return [runner.tensor(port(simulation, codes[pairs[i]])) for i in grids]

    return Simulation(grids, values)


def _node_of(known: Range | None, grid: Port) -> int | None:
    """The number of the node that rounds to the grid of a tensor; None if none does."""
    if known is None or grid.scale is None:
        return None
    step = (known.maximum - known.minimum) / (2**known.bits - 1)
    return known.node if abs(step - grid.scale) <= _EQUAL * step else None


def _in_order(file: Any, nodes: dict[int, Node]) -> dict[int, Node]:
    """Which tensors hold a node's values in the node's own order, of those of the same codes.

    The converter may move a TRANSPOSE or RESHAPE to before what the node rounds.
    """
    tensors, batch = file.subgraphs[0].tensors, port(file, file.subgraphs[0].inputs[0]).shape[0]
    makers = {int(i): op for op in file.subgraphs[0].operators for i in op.outputs}
    found: dict[int, Node] = {}
    for index, node in nodes.items():
        sizes = [batch if n is None else n for n in node.outputs[0].shape]
        orders = [[index]]
        while (op := makers.get(orders[-1][-1])) and op_name(file, op) in ("RESHAPE", "TRANSPOSE"):
            if int(op.inputs[0]) in nodes or int(op.inputs[0]) not in makers:
                break
            if op_name(file, op) == "RESHAPE":
                orders[-1].append(int(op.inputs[0]))
            else:
                orders.append([int(op.inputs[0])])
        like = [o for o in orders if any(_sides(tensors[i].shape) == _sides(sizes) for i in o)]
        if len(like) == 1 or len(orders) == 1:
            found.update(dict.fromkeys((like or orders)[0], node))
    return found


def _sides(shape: Iterable[int]) -> list[int]:
    return [int(size) for size in shape if size != 1]


def _own_values(graph: Graph, nodes: list[Node], taken: list[Port]) -> Callable:
    """A function that gives what nodes of a flat model give for a batch."""
    part = keras.Model(graph.inputs, [node.outputs[0] for node in nodes])
    names = [tensor.name for tensor in tree.flatten(graph.inputs)]
    run_part = tf.function(functools.partial(part, training=False), jit_compile=False)

    def values(batch):
        named = as_named(names, batch, taken)
        given = tree.pack_sequence_as(graph.inputs, [named[name] for name in names])
        return run_part(given)

    return values


def as_named(
    names: list[str], batch: dict[str, np.ndarray], taken: list[Port]
) -> dict[str, np.ndarray]:
    """A batch for another file of the model, which may bear other names than the model has now.

    Args:
        names: of the inputs of the other.
        taken: the inputs of the file by whose names the batch is.
    """
    if set(names) == set(batch):
        return batch
    return {name: batch[entry.name] for entry, name in zip(taken, names, strict=True)}


def _rounded(file: Any, exact: Any, pairs: dict[int, int]) -> tuple[Any, dict[int, int]]:
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


def _parted(file: Any, pairs: Collection[int]) -> tuple[Any, dict[int, int]]:
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
