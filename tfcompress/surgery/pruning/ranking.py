"""Which channels go: from scores and a target to a choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from tfcompress.errors import did_you_mean
from tfcompress.surgery.pruning.groups import ChannelGroup, Choice, Structure
from tfcompress.surgery.pruning.limits import Limits, Reach, Sizes, Target

Scores = Mapping[str, np.ndarray]
SCOPES = ("global", "local")

# Sparsities that "local" tries on its way to a target.
_STEPS = 1000


def choose(
    structure: Structure,
    scores: Scores,
    target: Target,
    *,
    scope: str = "global",
    round_to: int = 8,
    max_sparsity: float | Mapping[str, float] = 0.9,
) -> Choice:
    """Which channels stay, so that a target is met.

    With the scope "global" all channels compete: scores are divided by the mean of their group, so
    that thin and wide layers are comparable (as Fang et al. 2023, arXiv:2301.12900), and the lowest
    go. With "local" each group loses the same fraction.

    Args:
        scores: {name of a group: array of shape (channels,)} of all groups that may lose some; the
            channels with the lowest ones go.

    Returns {name of a group that loses channels: sorted indices of those that stay}.
    """
    if target.per_layer is not None:
        wanted = target.per_layer.keys()
        scores = {n: x for n, x in scores.items() if wanted & set(structure.groups[n].makers)}
    scores = competing(structure, scores)
    groups = {name: structure.groups[name] for name in scores}
    if target.per_layer is not None:
        sizes = _per_layer_sizes(structure, target.per_layer, groups, round_to)
    else:
        reach = Reach.of(structure, target, groups, round_to, max_sparsity)
        sizes = _target_sizes(reach, scores, scope)
    return kept_channels(scores, sizes)


def _target_sizes(reach: Reach, scores: Scores, scope: str) -> Sizes:
    """The sizes with which macs, params or sparsity are just met."""
    is_global = scope == "global"
    plan = _global_plan(scores, reach.limits) if is_global else _local_plan(reach.limits)
    found, before = _searched(reach, *plan)
    if reach.target.name == "sparsity":
        return min(before, found, key=lambda each: abs(reach.left(each) - reach.wanted))
    # Groups that are to lose the same fraction may differ by one step.
    whole = {name: limit.size for name, limit in reach.limits.items()}
    return _given_back(found, whole if is_global else before, reach, _worth(scores))


def competing(structure: Structure, scores: Scores) -> dict[str, np.ndarray]:
    """The scores of the groups that may lose channels at the same time.

    Where the channels of an axis are those of one group times those of another, as in grouped
    convolutions, a layer that lost some of both would lose more than it should: the larger group
    goes on, the others stay whole.
    """
    rivals = structure.multiplied()
    taken: dict[int, str] = {}
    for name in sorted(scores, key=lambda n: -structure.groups[n].size):
        number = structure.numbers[name]
        if not any({number, other} in rivals for other in taken):
            taken[number] = name
    return {name: values for name, values in scores.items() if name in taken.values()}


def equal_scores(structure: Structure) -> dict[str, np.ndarray]:
    """The same score for all channels that can go, to see what a target can reach."""
    return {name: np.ones(group.size) for name, group in structure.prunable().items()}


def kept_channels(scores: Scores, sizes: Mapping[str, int]) -> Choice:
    """The channels with the highest scores, in their order; of equal ones the first.

    Args:
        scores: {group: array of shape (channels,)}.

    Returns {group: sorted indices}; groups that stay whole are left out.
    """
    return {
        name: np.sort(np.argsort(-scores[name], kind="stable")[:size])
        for name, size in sizes.items()
        if size < len(scores[name])
    }


def _global_plan(scores: Scores, limits: Mapping[str, Limits]) -> tuple[Callable, int]:
    """(function: number of channels that go -> sizes of groups, most that can go)."""
    means = {name: float(np.mean(np.abs(values))) or 1.0 for name, values in scores.items()}
    pairs = [(values / means[name], i) for i, (name, values) in enumerate(scores.items())]
    values = np.concatenate([np.asarray(v, "float64") for v, _ in pairs])
    owners = np.concatenate([np.full(len(v), i) for v, i in pairs])
    owners = owners[np.argsort(values, kind="stable")]

    def sizes(gone: int) -> Sizes:
        lost = np.bincount(owners[:gone], minlength=len(pairs))
        each = zip(limits.items(), lost, strict=True)
        return {name: limit.rounded(limit.size - n) for (name, limit), n in each}

    return sizes, len(owners)


def _local_plan(limits: Mapping[str, Limits]) -> tuple[Callable, int]:
    """As `_global_plan`, of thousandths of each group."""

    def sizes(gone: int) -> Sizes:
        share = 1 - gone / _STEPS
        return {name: limit.rounded(limit.size * share) for name, limit in limits.items()}

    return sizes, _STEPS


def _searched(reach: Reach, sizes: Callable[[int], Sizes], most: int) -> tuple[Sizes, Sizes]:
    """The first sizes of a plan with which a target is met, and those before them."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reach.met(sizes(middle)) else (middle + 1, high)
    return sizes(low), sizes(max(0, low - 1))


def _worth(scores: Scores) -> Callable[[str, int, int], float]:
    """(group, size, larger size) -> the mean score, relative to its group, of what it gets back."""
    ranked = {n: np.sort(x / (np.mean(np.abs(x)) or 1.0))[::-1] for n, x in scores.items()}
    return lambda name, size, larger: float(np.mean(ranked[name][size:larger]))


def _given_back(
    sizes: Sizes, largest: Sizes, reach: Reach, worth: Callable[[str, int, int], float]
) -> Sizes:
    """Sizes without what rounding took beyond the target: the most important channels stay."""
    found, open_ones = dict(sizes), set(sizes)
    while open_ones:
        steps = {n: reach.limits[n].larger(found[n], largest[n]) for n in open_ones}
        open_ones = {name for name in open_ones if steps[name] > found[name]}
        order = sorted(open_ones, key=lambda n: (-worth(n, found[n], steps[n]), n))
        taken = next((n for n in order if reach.met({**found, n: steps[n]})), None)
        # What does not fit now never will.
        open_ones -= set(order if taken is None else order[: order.index(taken)])
        if taken is not None:
            found[taken] = steps[taken]
    return found


def _per_layer_sizes(
    structure: Structure,
    per_layer: Mapping[str, float],
    groups: Mapping[str, ChannelGroup],
    round_to: int,
) -> Sizes:
    sizes: Sizes = {}
    asked: dict[str, tuple[str, float]] = {}
    makers = {name for group in structure.groups.values() for name in group.makers}
    for layer, sparsity in per_layer.items():
        if layer not in makers:
            raise ValueError(
                f"per_layer must name layers that make channels; received {layer!r}. "
                f"{did_you_mean(layer, sorted(makers), f'There are: {_listed(makers)}.')}"
            )
        mine = [group for group in groups.values() if layer in group.makers]
        if not mine:
            stay = next(g for g in structure.groups.values() if layer in g.makers)
            raise ValueError(
                f"per_layer must name layers that can lose channels; received {layer!r}, whose "
                f"channels stay: {stay.kept}. Leave it out."
            )
        for group in mine:
            other, before = asked.setdefault(group.name, (layer, sparsity))
            if before != sparsity:
                raise ValueError(
                    f"layers that share their channels must lose the same fraction; received "
                    f"{other!r}: {before:g} and {layer!r}: {sparsity:g}. Name one of them."
                )
            limit = Limits.of(group, round_to, 1.0)
            sizes[group.name] = limit.rounded(group.size * (1 - sparsity))
    return sizes


def _listed(names) -> str:
    listed = sorted(names)
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")
