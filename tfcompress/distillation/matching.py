"""Which layer of a teacher a layer of a student starts from.

Where a unit of blocks is repeated in the teacher, whole units are matched, whatever number is in
the names of their layers: of N repeats M take those at round(linspace(0, N - 1, M)), as DistilBERT
takes 6 of 12 (Sanh et al. 2019, arXiv:1910.01108). The rest is an alignment in order that first
matches many layers, then equal names, then equal shapes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from tfcompress.channels.following import Follower
from tfcompress.channels.weighted import Weighted
from tfcompress.graph.nodes import Node, unique

Pairs = list[tuple[Weighted, Weighted]]

# What a pair counts, and what equal names, equal shapes and a place further off add to that.
_NAME, _SHAPES, _PLACE = 1e-3, 1e-6, 1e-9


def difference(student: Weighted, teacher: Weighted) -> str | None:
    """Why a layer cannot start from another; None if it can."""
    if student.kind != teacher.kind:
        return f"the teacher's is a {teacher.kind}, it is a {student.kind}"
    ours, theirs = student.shapes, teacher.shapes
    if len(ours) != len(theirs):
        return f"the teacher's has {len(theirs)} weights, it has {len(ours)}"
    for weight, a, b in zip(student.weights, ours, theirs, strict=True):
        if len(a) != len(b):
            return f"the teacher's weight has the shape {b}, its own {a}"
        if any(n > m for n, m in zip(a, b, strict=True)):
            return f"the teacher's is narrower: {b} for {a}"
        pairs = zip(weight.axes, a, b, strict=True)
        if any(axis is None and n != m for axis, n, m in pairs):
            return f"the teacher's weight {b} cannot be cut to {a}"
    return None


def match_layers(student: Follower, teacher: Follower, given: Mapping[str, str]) -> Pairs:
    """Pairs of a layer of the student and the layer of the teacher that it starts from."""
    ours = {layer.name: layer for layer in student.layers}
    theirs = {layer.name: layer for layer in teacher.layers}
    fixed = [(ours[a], theirs[b]) for a, b in given.items()]
    first = blocks_of(student, set(given))
    second = blocks_of(teacher, set(given.values()))
    single = [((block,),) for block in second]
    layers = [((block,),) for block in _one_block(second)]
    best: Pairs = []
    # From the strictest to the loosest; the first that matches most layers.
    for blocks, runs in (first, runs_of(second)), (first, single), (_one_block(first), layers):
        best = max(best, _align(blocks, runs), key=len)
        if len(best) == sum(len(block.layers) for block in first):
            break
    order = {id(layer): place for place, layer in enumerate(student.layers)}
    return sorted([*fixed, *best], key=lambda pair: order[id(pair[0])])


def spread(count: int, total: int) -> list[int]:
    """Places that are spread evenly, the first and the last among them."""
    return [int(place) for place in np.rint(np.linspace(0, total - 1, count))]


def _align(student: Sequence[Block], teacher: Sequence[Run]) -> Pairs:
    """The best alignment of blocks with runs, both in order."""
    best: dict[tuple[int, int], tuple[float, Pairs]] = {}
    for i in range(len(student), -1, -1):
        for r in range(len(teacher), -1, -1):
            options: list[tuple[float, Pairs]] = [(0.0, [])]
            if i < len(student) and r < len(teacher):
                for score, pairs, taken in _repeats(student[i:], teacher[r]):
                    after, rest = best[i + taken, r + 1]
                    options.append((score + after, pairs + rest))
            options += [best[key] for key in ((i + 1, r), (i, r + 1)) if key in best]
            best[i, r] = max(options, key=lambda option: option[0])
    return best[0, 0][1]


def _repeats(student: Sequence[Block], run: Run):
    """Ways to match the next blocks of a student with a run: (score, pairs, blocks taken)."""
    length = len(run[0])
    for count in range(1, len(student) // length + 1):
        units = [student[k * length : (k + 1) * length] for k in range(count)]
        if count > 1 and not _is_repeated(units):
            return
        score = 0.0
        pairs: Pairs = []
        for ours, theirs in _spread_pairs(units, run):
            for block, other in zip(ours, theirs, strict=True):
                gain, found = _align_layers(block.layers, other.layers)
                score, pairs = score + gain, pairs + found
        if not pairs:
            return
        yield score, pairs, count * length


def _is_repeated(units: list[Sequence[Block]]) -> bool:
    later = [[block.kinds for block in unit] for unit in units[1:]]
    return all(x == later[0] for x in later) and all(map(begins, units[0], units[1]))


def _spread_pairs(units, repeats):
    """Units of the student with those of the teacher; of the longer run evenly spread ones."""
    if len(units) > len(repeats):
        places = spread(len(repeats), len(units))
        return [(units[place], other) for place, other in zip(places, repeats, strict=True)]
    names = [[[x.name for b in unit for x in b.layers] for unit in run] for run in (units, repeats)]
    named = [names[1].index(name) for name in names[0] if name in names[1]]
    counted = list(range(len(units)))
    # Names say more than places, if they do not just count.
    if len(named) == len(units) and named == sorted(named) and named != counted:
        places = named
    else:
        places = spread(len(units), len(repeats))
    return [(unit, repeats[place]) for unit, place in zip(units, places, strict=True)]


def _align_layers(student: Sequence[Weighted], teacher: Sequence[Weighted]) -> tuple[float, Pairs]:
    """The best alignment of layers in order."""
    rows, columns = len(student), len(teacher)
    gains = [[_gain(a, b) for b in teacher] for a in student]
    score = np.zeros((rows + 1, columns + 1))
    for i in range(rows - 1, -1, -1):
        for j in range(columns - 1, -1, -1):
            off = i / max(rows - 1, 1) - j / max(columns - 1, 1)
            taken = gains[i][j] - _PLACE * off**2 + score[i + 1, j + 1] if gains[i][j] else 0.0
            score[i, j] = max(taken, score[i + 1, j], score[i, j + 1])
    pairs, i, j = [], 0, 0
    while i < rows and j < columns:
        if score[i, j] == score[i + 1, j]:
            i += 1
        elif score[i, j] == score[i, j + 1]:
            j += 1
        else:
            pairs.append((student[i], teacher[j]))
            i, j = i + 1, j + 1
    return float(score[0, 0]), pairs


def _gain(student: Weighted, teacher: Weighted) -> float:
    if difference(student, teacher) is not None:
        return 0.0
    equal = _SHAPES * (student.shapes == teacher.shapes)
    return 1.0 + _NAME * (student.name == teacher.name) + equal


def _one_block(blocks: Sequence[Block]) -> list[Block]:
    return [Block(tuple(layer for block in blocks for layer in block.layers), (), False)]


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


# The repeats of a unit of blocks.
Run = tuple[tuple[Block, ...], ...]


def blocks_of(model: Follower, without: Collection[str] = ()) -> list[Block]:
    """The blocks of a model, in order."""
    blocks: list[Block] = []
    layers: list[Weighted] = []
    merges: list[str] = []
    heavy_ids, cuts = _single_tensors(model)
    for node in model.graph.nodes:
        made = model.made.get(id(node), [])
        layers += [layer for layer in made if layer.name not in without]
        heavy = [t for t in unique(node.inputs) if id(t) in heavy_ids]
        merges += [type(node.operation).__name__] if len(heavy) > 1 else []
        if id(node) in cuts and layers:
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


def _single_tensors(model: Follower) -> tuple[set[int], set[int]]:
    """Ids of the tensors that depend on weights, and of the nodes after which only one leads on."""
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
    return heavy, cuts


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
        runs.append(tuple(tuple(blocks[i : i + length]) for i in places))
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
