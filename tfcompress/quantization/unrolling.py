"""Loops over steps unrolled: a graph with every step's operations, which share their weights."""

from __future__ import annotations

import functools
from typing import Any

import keras
from keras import ops, tree

from tfcompress.graph.copying import copy_operation, copy_weights
from tfcompress.graph.flatten import as_flat
from tfcompress.graph.nodes import Graph, Node, call_node
from tfcompress.layers.step_rnn import StepRNN


def has_loops(model: keras.Model) -> bool:
    """Whether a flat model has loops over steps."""
    return any(isinstance(operation, StepRNN) for operation in model.operations)


def in_steps(model: keras.Model) -> tuple[keras.Model, dict[int, Any]]:
    """A model as its file is made of it: flat, without loops; and see `unrolled`."""
    flat = as_flat(model)
    return unrolled(flat) if has_loops(flat) else (flat, {})


def unrolled(model: keras.Model) -> tuple[keras.Model, dict[int, Any]]:
    """A copy of a flat model without loops, and what each of its operations is a copy of.

    The operations of a loop's steps are, too, those of the loop.
    """
    copies: dict[int, tuple[Any, Any]] = {}
    loops: dict[int, Any] = {}

    def twin(operation):
        if id(operation) not in copies:
            copies[id(operation)] = operation, copy_operation(operation)
        return copies[id(operation)][1]

    def call(loop: StepRNN | None, node: Node, *args, **kwargs):
        operation = node.operation
        if node.is_input:
            return args[0]
        if isinstance(operation, StepRNN):
            return unroll(operation, args[0], functools.partial(call, operation))
        made = twin(operation)
        if loop is not None:
            loops[id(made)] = loop
        return made(*args, **kwargs)

    made = Graph.of(model).rebuild(functools.partial(call, None))
    copy_weights(list(copies.values()))
    return made, {id(new): loops.get(id(new), old) for old, new in copies.values()}


def unroll(loop: StepRNN, inputs, call=call_node):
    """What a loop computes, as the operations of each of its steps.

    Args:
        call: (node of the step, its arguments) -> what it gives.
    """
    y, states = steps_of(loop, inputs, call)
    return [y, *states] if loop.return_state else y


def steps_of(loop: StepRNN, inputs, call=call_node) -> tuple[Any, list]:
    """See `unroll`: the output, and the states after the last step."""
    sequences, states = loop.parted(inputs)
    graph = loop.graph
    length = sequences[0].shape[1]
    frames = list(zip(*(_frames(x, length) for x in sequences), strict=True))
    states = [loop.on_grid(place, x, call=call) for place, x in enumerate(states)]
    for place in range(len(states), len(loop.state_specs)):
        states.append(_zeros(loop, place, frames[0][0], call))
    order = range(length)[::-1] if loop.go_backwards else range(length)
    outputs: list[Any] = []
    for time in order:
        y, *states = tree.flatten(graph.run([*frames[time], *states], call))
        outputs.append(y)
    if loop.return_sequences:
        turned = loop.go_backwards and loop.in_order
        y = ops.stack(outputs[::-1] if turned else outputs, axis=1)
    return y, states


def _frames(x, length: int) -> list:
    if x.dtype == "bool":  # which TFLite Micro's UNPACK does not take
        return [x[:, time] for time in range(length)]
    return ops.unstack(x, num=length, axis=1)


def _zeros(loop: StepRNN, place: int, frame, call):
    """A state of zeros on the grid that it has later, made of a frame as constants have no batch.

    Rounded, so that the converter leaves the first step what the others are.
    """
    shape = loop.state_specs[place].shape[1:]
    key = [slice(None), *(slice(0, 1) for _ in frame.shape[1:])]
    first = frame[tuple(key)]
    if len(first.shape) != len(shape) + 1:
        first = ops.reshape(first, (-1, *(1 for _ in shape)))
    zeros = ops.multiply(first, ops.zeros((1, *shape), frame.dtype))
    node = loop.rounding_of(place)
    return zeros if node is None else call(node, zeros, **node.kwargs)
