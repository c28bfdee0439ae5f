"""Which layer of a teacher a layer of a student starts from.

Where a unit of blocks is repeated in the teacher, whole units are matched, whatever number is in
the names of their layers: of N repeats M take those at round(linspace(0, N - 1, M)), as DistilBERT
takes 6 of 12 (Sanh et al. 2019, arXiv:1910.01108). The rest is an alignment in order that first
matches many layers, then equal names, then equal shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tfcompress.channels.following import Follower
from tfcompress.channels.weighted import Weighted
from tfcompress.distillation.blocks import Block, Run, begins, blocks_of, runs_of

Pairs = list[tuple[Weighted, Weighted]]
# What a pair counts, and what equal names, equal shapes and a place further off add to that.
_NAME, _SHAPES, _PLACE = 1e-3, 1e-6, 1e-9


def difference(student: Weighted, teacher: Weighted) -> str | None:
    """Why a layer cannot start from another; None if it can.

    Example:
        >>> difference(narrow, wide) is None  # doctest: +SKIP
        True
    """
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
    """Pairs of a layer of the student and the layer of the teacher that it starts from.

    Args:
        student, teacher: their layers.
        given: names of layers of the student -> names of layers of the teacher, which are taken
            out of the alignment.

    Returns:
        The pairs in the order of the student's layers.
    """
    ours = {layer.name: layer for layer in student.layers}
    theirs = {layer.name: layer for layer in teacher.layers}
    fixed = [(ours[a], theirs[b]) for a, b in given.items()]
    first = blocks_of(student, set(given))
    second = blocks_of(teacher, set(given.values()))
    single = [Run(((block,),)) for block in second]
    layers = [Run(((block,),)) for block in _one_block(second)]
    best: Pairs = []
    # From the strictest to the loosest; the first that matches most layers.
    for blocks, runs in (first, runs_of(second)), (first, single), (_one_block(first), layers):
        best = max(best, _align(blocks, runs), key=len)
        if len(best) == sum(len(block.layers) for block in first):
            break
    order = {id(layer): place for place, layer in enumerate(student.layers)}
    return sorted([*fixed, *best], key=lambda pair: order[id(pair[0])])


def spread(count: int, total: int) -> list[int]:
    """Places that are spread evenly, the first and the last among them.

    Example:
        >>> spread(6, 12)
        [0, 2, 4, 7, 9, 11]
    """
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
    length = len(run.repeats[0])
    for count in range(1, len(student) // length + 1):
        units = [student[k * length : (k + 1) * length] for k in range(count)]
        if count > 1 and not _is_repeated(units):
            return
        score = 0.0
        pairs: Pairs = []
        for ours, theirs in _spread_pairs(units, run.repeats):
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
