"""Blocks of a flat model that can be left out, as what they read is shaped as what they give."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

import keras
from keras import KerasTensor

from tfcompress.graph.flatten import flatten
from tfcompress.graph.nodes import Graph, Node, exchanged
from tfcompress.kinds import CONVOLUTIONS, DEPTHWISE, POINTWISE, SEPARABLE, is_of

# What may follow a convolution in its block.
_AFTER = POINTWISE - {"Add", "Subtract", "Multiply", "Average"} | {"BatchNormalization", "PReLU"}
_CONVOLVING = CONVOLUTIONS | DEPTHWISE | SEPARABLE


@dataclasses.dataclass(frozen=True)
class Block:
    """A part of a model between two tensors of one shape.

    Attributes:
        start: the name of the node whose output it reads.
        end: the name of the node whose output becomes that of `start` where it is left out.
        inside: the names of its nodes, the end among them.
        residual: whether it is added to what it reads.
    """

    start: str
    end: str
    inside: frozenset[str]
    residual: bool = False


def stages_of(graph: Graph) -> list[tuple[Block, ...]]:
    """Blocks that can be left out, in order; those of a kind in a row are one stage."""
    found, taken = [], set[str]()
    for block in (*_residual(graph), *_chained(graph)):
        if taken.isdisjoint(block.inside):
            found.append(block)
            taken |= block.inside
    place = {node.name: number for number, node in enumerate(graph.nodes)}
    nodes = {node.name: node for node in graph.nodes}
    stages: list[list[Block]] = []
    for block in sorted(found, key=lambda block: place[block.end]):
        last = stages[-1][-1] if stages else block
        alike = block is not last and block.residual == last.residual
        if alike and _follows(graph, nodes[block.start], last.end):
            stages[-1].append(block)
        else:
            stages.append([block])
    return [tuple(stage) for stage in stages]


def without(flat: keras.Model, blocks: Collection[Block]) -> keras.Model:
    """A copy of a flat model without some of its blocks."""
    starts = {block.end: block.start for block in blocks}
    made: dict[str, Any] = {}

    def call(node: Node, *args, **kwargs):
        skipped = node.name in starts
        made[node.name] = made[starts[node.name]] if skipped else node.operation(*args, **kwargs)
        return made[node.name]

    return exchanged(Graph.of(flatten(flat)), call)


def _residual(graph: Graph) -> Iterator[Block]:
    """What is computed beside a shortcut and added to it."""
    for node in graph.nodes:
        if type(node.operation).__name__ != "Add" or len(node.inputs) != 2:
            continue
        first, second = node.inputs
        for shortcut, branch in ((first, second), (second, first)):
            inside = _between(graph, shortcut, branch, node)
            start = graph.producer(shortcut)
            if inside and start is not None and not start.is_input and _is_same(shortcut, branch):
                yield Block(start.name, node.name, frozenset(inside | {node.name}), True)
                break


def _between(graph: Graph, start: KerasTensor, end: KerasTensor, reader: Node) -> set[str]:
    """The names of the nodes between two tensors; none if they touch anything else."""
    inside: dict[str, Node] = {}
    waiting = [end]
    while waiting:
        tensor = waiting.pop()
        node = graph.producer(tensor)
        if tensor is start or (node is not None and node.name in inside):
            continue
        if node is None or node.is_input:
            return set()
        inside[node.name] = node
        waiting += node.inputs
    names = inside.keys() | {reader.name}
    tensors = [t for node in inside.values() for t in node.outputs]
    readers = {reader.name for t in tensors for reader in graph.consumers(t)}
    convolving = any(is_of(node.operation, _CONVOLVING) for node in inside.values())
    return set(inside) if readers <= names and convolving else set()


def _chained(graph: Graph) -> Iterator[Block]:
    """Convolutions with what follows them, of which the shape of the result is that of the input.

    A depthwise one is taken together with the pointwise one behind it.
    """
    for node in graph.nodes:
        if not is_of(node.operation, _CONVOLVING) or len(node.inputs) != 1:
            continue
        start, unit = graph.producer(node.inputs[0]), _unit(graph, node)
        if is_of(node.operation, DEPTHWISE):
            following = graph.only_consumer(unit[-1].outputs[0])
            if following is None or not is_of(following.operation, CONVOLUTIONS):
                continue
            unit += _unit(graph, following)
        end, known = unit[-1], start is not None and not start.is_input
        leaves = graph.is_output(end.outputs[0])
        if start is not None and known and not leaves and _is_same(node.inputs[0], end.outputs[0]):
            yield Block(start.name, end.name, frozenset(each.name for each in unit))


def _unit(graph: Graph, node: Node) -> list[Node]:
    """A convolution and what follows it alone, place by place."""
    unit = [node]
    while True:
        following = graph.only_consumer(unit[-1].outputs[0])
        if following is None or len(following.inputs) != 1:
            return unit
        if not is_of(following.operation, _AFTER):
            return unit
        unit.append(following)


def _is_same(a: KerasTensor, b: KerasTensor) -> bool:
    return tuple(a.shape) == tuple(b.shape) and a.dtype == b.dtype


def _follows(graph: Graph, node: Node | None, end: str) -> bool:
    """Whether a node gives what another one does, changed place by place at most."""
    while node is not None and node.name != end:
        if len(node.inputs) != 1 or not is_of(node.operation, _AFTER):
            return False
        node = graph.producer(node.inputs[0])
    return node is not None
