"""Which groups lose how many channels, from what each of them costs and what it is worth."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from tfcompress.errors import check, expected_one_of
from tfcompress.post_training.hessians import kernel_of
from tfcompress.surgery.hull import lower_hull
from tfcompress.surgery.pruning.groups import ChannelGroup, Choice, Structure, deciding
from tfcompress.surgery.pruning.judging import Batch, Objective, batches, judge, labelled, mean_loss
from tfcompress.surgery.pruning.judging import objective as objective_of
from tfcompress.surgery.pruning.limits import Limits, Reach, Sizes, Target
from tfcompress.surgery.pruning.measuring import latencies
from tfcompress.surgery.pruning.ranking import Scores, competing, kept_channels
from tfcompress.surgery.pruning.refitting import Reader, inputs_of, readers_of, solved

GAINS = ("macs", "latency")

# The loss before training says little of layers that lose more: ResNet-8 ended 4 and 10 points
# lower when some lost 7 of 8 channels, cheap alone, than with the same MACs gone elsewhere.
FRACTIONS = (0.125, 0.25, 0.375, 0.5, 0.625)

# The growth of a loss that is NaN or infinite.
_WORST = 1e12

# A group alone, with so many channels.
Trial = tuple[str, int]

# Whether it goes beyond the largest fraction, growth of the loss for each unit of gain, the group,
# and -(its size at the end of the piece).
Piece = tuple[bool, float, str, int]


def sensitivity_choice(
    structure: Structure,
    scores: Scores,
    target: Target,
    *,
    data: Any,
    loss: Any,
    round_to: int = 8,
    max_sparsity: float | Mapping[str, float] = 0.9,
    gain: str = "macs",
    fractions: Sequence[float] = FRACTIONS,
    batch_size: int = 32,
    samples: int | None = None,
    refit: bool = False,
    progress: Callable[[int, int], Any] | None = None,
) -> Choice:
    """Which channels stay, so that a target costs as little loss as possible.

    The channels of each group with the lowest scores are switched off, group by group and at
    several fractions, and the growth of the loss is measured. To first order these add up, as do
    the gains; so the groups are cut along the lower convex hulls of loss over gain, the piece that
    costs the least loss for its gain first, until the whole choice meets the target.

    Args:
        scores: {name of a group: array of shape (channels,)} of all groups that may lose some.
        data: (x, y) or (x, y, sample_weight), or a batched dataset that can be read again and
            again.
        fractions: of the channels of a group, in (0, 1), at which it is measured. A group loses
            more than the largest one only if all have lost that, and the target is not met.
        refit: whether what reads them is fitted to the others before.
        progress: called as `progress(done, total)` after each measurement.

    Returns {name of a group that loses channels: sorted indices of those that stay}.
    """
    _check(target, data, gain, fractions)
    objective = objective_of(structure.model, loss)
    scores = competing(structure, scores)
    groups = {name: structure.groups[name] for name in scores}
    reach = Reach.of(structure, target, groups, round_to, max_sparsity)
    limits = reach.limits
    sizes = {name: _sizes(limit, fractions) for name, limit in limits.items()}
    total = sum(map(len, sizes.values()))
    tell = _counted(progress, 1 + total * (2 if gain == "latency" else 1))

    def reading() -> Iterator[Batch]:
        every = batches(data, structure.model, batch_size, samples)
        return labelled(every, "the scope 'sensitivity'")

    readers: Mapping[str, Sequence[Reader]] = {}
    if refit:
        readers = readers_of(structure, groups, inputs_of(structure, data, batch_size, samples))
    growths = _growths(structure, scores, sizes, objective, reading, readers, tell)
    if gain == "latency":
        gains = _latency_saved(structure, scores, sizes, next(reading()).x, tell)
    else:
        gains = _cost_saved(reach, sizes)
    pieces = [
        piece
        for name, each in sizes.items()
        for piece in _pieces(
            name,
            [(gains[name, n], growths[name, n], n) for n in each],
            limits[name].rounded(limits[name].size * (1 - max(fractions))),
        )
    ]
    return kept_channels(scores, _spent(reach, sorted(pieces)))


def _check(target: Target, data: Any, gain: str, fractions: Sequence[float]) -> None:
    if gain not in GAINS:
        raise ValueError(f"unknown gain {gain!r}; {expected_one_of(str(gain), GAINS)}")
    wanted = target.per_layer is None
    check(wanted, "the target", "macs, params or sparsity", "per_layer", "Use another scope.")
    fits = len(fractions) > 0 and all(0 < fraction < 1 for fraction in fractions)
    check(fits, "fractions", "one or more numbers in (0, 1)", fractions)
    if data is None:
        raise ValueError(
            "the scope 'sensitivity' needs data, as it measures the loss; received none. Pass "
            "data=(x, y)."
        )
    if isinstance(data, Iterator):
        raise TypeError(
            f"data must be readable again and again; received a {type(data).__name__}. Pass (x, y) "
            "arrays or a dataset."
        )


def _sizes(limit: Limits, fractions: Sequence[float]) -> list[int]:
    """The sizes of a group that are tried, falling, down to the least."""
    found = {limit.rounded(limit.size * (1 - fraction)) for fraction in fractions}
    return sorted((found | {limit.least}) - {limit.size}, reverse=True)


def _growths(
    structure: Structure,
    scores: Scores,
    sizes: Mapping[str, list[int]],
    objective: Objective,
    reading: Callable[[], Iterable[Batch]],
    readers: Mapping[str, Sequence[Reader]],
    tell: Callable[[], None],
) -> dict[Trial, float]:
    """By how much the loss grows once a group alone has a size."""
    twin = judge(structure.model, objective)
    before = mean_loss(twin, reading())
    check(math.isfinite(before), "the model's own loss", "finite", before)
    tell()
    found = {}
    for name, each in sizes.items():
        order = np.argsort(-scores[name], kind="stable")
        for size in each:
            with _switched_off(structure.groups[name], order[size:], readers.get(name, ())):
                growth = mean_loss(twin, reading()) - before
            found[name, size] = growth if math.isfinite(growth) else _WORST
            tell()
    return found


@contextlib.contextmanager
def _switched_off(group: ChannelGroup, gone: np.ndarray, readers: Sequence[Reader]):
    """Nothing reads some channels of a group meanwhile.

    Kernels that read it are fitted to what they gave.
    """
    members = deciding(group)
    biases = [k.layer.bias for k, _, _ in readers if k.layer.use_bias]
    variables = {id(v): v for v in [*(member.variable for member in members), *biases]}
    old = {key: np.array(ops.convert_to_numpy(v)) for key, v in variables.items()}
    new = {key: value.copy() for key, value in old.items()}
    for member in members:
        np.moveaxis(new[id(member.variable)], member.axis, 0)[member.index[gone]] = 0
    for kernel, rows, moments in readers:
        matrix = solved(moments, ~rows[gone].any(0))
        new[id(kernel.variable)] = kernel_of(kernel.layer, matrix, tuple(kernel.variable.shape))
        if kernel.layer.use_bias:
            new[id(kernel.layer.bias)] += moments.shift(matrix).reshape(-1)
    try:
        for key, variable in variables.items():
            variable.assign(new[key])
        yield
    finally:
        for key, variable in variables.items():
            variable.assign(old[key])


def _cost_saved(reach: Reach, sizes: Mapping[str, list[int]]) -> dict[Trial, float]:
    """MACs that go once a group alone has a size; parameters, if they are the target."""
    return {
        (name, size): float(reach.whole - reach.cost({name: size}))
        for name, each in sizes.items()
        for size in each
    }


def _latency_saved(
    structure: Structure,
    scores: Scores,
    sizes: Mapping[str, list[int]],
    calibration: Any,
    tell: Callable[[], None],
) -> dict[Trial, float]:
    """The share of the latency of the whole model that goes once a group alone has a size."""
    pairs = [(name, size) for name, each in sizes.items() for size in each]
    choices = [kept_channels(scores, {name: size}) for name, size in pairs]
    left = latencies(structure, choices, calibration, tell)
    return {pair: 1 - share for pair, share in zip(pairs, left, strict=True)}


def _pieces(name: str, points: list[tuple[float, float, int]], deepest: int) -> Iterator[Piece]:
    """The pieces of the lower convex hull of the growth of the loss over the gain.

    Args:
        points: (gain, growth, size), with falling sizes.
    """
    curve, size_at = [(0.0, 0.0)], {}
    for gain, growth, size in points:
        # Fewer channels never gain or cost less: where it was measured so, that is noise.
        gain = max(gain, math.nextafter(curve[-1][0], math.inf))
        curve.append((gain, max(growth, curve[-1][1])))
        size_at[gain] = size
    within = [point for point in curve if size_at.get(point[0], deepest) >= deepest]
    for (g0, loss0), (g1, loss1) in itertools.pairwise(
        [*lower_hull(within), *curve[len(within) :]]
    ):
        yield size_at[g1] < deepest, (loss1 - loss0) / (g1 - g0), name, -size_at[g1]


def _spent(reach: Reach, pieces: list[Piece]) -> Sizes:
    """The sizes at which the target is just met, if the first pieces are taken first."""
    sizes = {name: limit.size for name, limit in reach.limits.items()}
    for _, _, name, negative in pieces:
        if reach.met({**sizes, name: -negative}):
            between = {reach.limits[name].rounded(n) for n in range(-negative, sizes[name])}
            fitting = (n for n in sorted(between, reverse=True) if reach.met({**sizes, name: n}))
            sizes[name] = next(fitting)
            break
        sizes[name] = -negative
    return sizes


def _counted(progress: Callable[[int, int], Any] | None, total: int) -> Callable[[], None]:
    """A function that tells of one more measurement that is done."""
    done = itertools.count(1)

    def tell() -> None:
        if progress is not None:
            progress(next(done), total)

    return tell
