"""A model cut into blocks, and blocks that repeat.

A block ends where a single tensor leads on, so that a residual branch lies in one block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tfcompress.channels.following import Follower
from tfcompress.channels.weighted import Weighted
from tfcompress.nodes import Node, unique


@dataclasses.dataclass(frozen=True)
class Block:
    """Layers between two places where a single tensor leads on.

    Attributes:
        layers: those with weights.
        kinds: what a block that repeats it has, too.
        merges: whether branches meet in it.
    """

    layers: tuple[Weighted, ...]
    kinds: tuple[Any, ...]
    merges: bool


@dataclasses.dataclass(frozen=True)
class Run:
    """A unit of blocks that is repeated."""

    repeats: tuple[tuple[Block, ...], ...]


def blocks_of(model: Follower, without: Collection[str] = ()) -> list[Block]:
    """The blocks of a model, in order.

    Args:
        model: its layers.
        without: names of layers to leave out.
    """
    blocks: list[Block] = []
    layers: list[Weighted] = []
    merges: list[str] = []
    ends = _single_tensors(model)
    for node in model.graph.nodes:
        made = model.made.get(id(node), [])
        layers += [layer for layer in made if layer.name not in without]
        heavy = [t for t in unique(node.inputs) if id(t) in ends.heavy]
        merges += [type(node.operation).__name__] if len(heavy) > 1 else []
        if id(node) in ends.cuts and layers:
            _close(blocks, layers, merges)
            layers, merges = [], []
    if layers:
        _close(blocks, layers, merges)
    return blocks


def _close(blocks: list[Block], layers: list[Weighted], merges: list[str]) -> None:
    """Adds a block; to the one before, if it makes no channels of its own."""
    kinds = tuple(_kind(layer) for layer in layers)
    makes = any(weight.makes or weight.variable.ndim > 1 for x in layers for weight in x.weights)
    if blocks and not makes and not merges:
        before = blocks.pop()
        layers, kinds = [*before.layers, *layers], (*before.kinds, *kinds)
        blocks.append(Block(tuple(layers), kinds, before.merges))
    else:
        blocks.append(Block(tuple(layers), (*kinds, *merges), bool(merges)))


def _kind(layer: Weighted) -> tuple[Any, ...]:
    """What repeats of a layer have in common: the class, positions and channels that it makes."""
    kept = []
    for weight, shape in zip(layer.weights, layer.shapes, strict=True):
        places = zip(weight.axes, shape, strict=True)
        kept.append(
            tuple(n for i, (axis, n) in enumerate(places) if axis is None or i in weight.makes)
        )
    return layer.kind, tuple(kept)


@dataclasses.dataclass(frozen=True)
class _Ends:
    """Ids of the tensors that depend on weights, and of the nodes after which only one leads on."""

    heavy: set[int]
    cuts: set[int]


def _single_tensors(model: Follower) -> _Ends:
    heavy: set[int] = set()
    last: dict[int, int] = {}
    makers: list[tuple[int, Node]] = []
    for place, node in enumerate(model.graph.nodes):
        inputs = [t for t in node.inputs if id(t) in heavy]
        for tensor in inputs:
            last[id(tensor)] = place
        lone = node.is_input or all(x.kind == "Parameter" for x in model.made.get(id(node), []))
        if inputs or not lone:
            heavy.update(id(t) for t in node.outputs)
            makers.append((place, node))
    cuts: set[int] = set()
    live: list[Node] = []
    for place, node in makers:
        live = [maker for maker in (*live, node) if _end(maker, last) > place]
        if len(live) <= 1:
            cuts.add(id(node))
    return _Ends(heavy, cuts)


def _end(node: Node, last: Mapping[int, int]) -> int:
    """The place of the last node that reads what a node gives."""
    return max((last.get(id(tensor), -1) for tensor in node.outputs), default=-1)


def runs_of(blocks: Sequence[Block]) -> list[Run]:
    """Blocks as units that are repeated once or more, from the left, the longest runs first."""
    runs: list[Run] = []
    start = 0
    while start < len(blocks):
        best = (1, 1, 1)  # blocks, repeats, blocks in a unit
        for length in range(1, (len(blocks) - start) // 2 + 1):
            count = _count_repeats(blocks[start:], length)
            if count > 1 and count * length > best[0]:
                best = (count * length, count, length)
        whole, _, length = best
        places = range(start, start + whole, length)
        runs.append(Run(tuple(tuple(blocks[i : i + length]) for i in places)))
        start += whole
    return runs


def _count_repeats(blocks: Sequence[Block], length: int) -> int:
    first, second = blocks[:length], blocks[length : 2 * length]
    if not all(map(begins, first, second)):
        return 1
    count = 2
    while [b.kinds for b in blocks[count * length : (count + 1) * length]] == [
        b.kinds for b in second
    ]:
        count += 1
    return count


def begins(first: Block, later: Block) -> bool:
    """Whether a block may be the first of a run: it may have more in it, as a projection."""
    if first.kinds == later.kinds:
        return True
    rest = iter(first.kinds)
    return first.merges and later.merges and all(kind in rest for kind in later.kinds)
