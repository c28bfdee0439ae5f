"""prune_channels: a model with fewer channels, neurons and heads."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np

from tfcompress.channels.axes import Axis, Concat, leaves_of, size_of, size_under
from tfcompress.channels.weighted import Weighted
from tfcompress.suggestions import did_you_mean, expected_one_of
from tfcompress.surgery.model import opened
from tfcompress.surgery.pruning.groups import ChannelGroup, Choice, Structure
from tfcompress.surgery.pruning.judging import objective
from tfcompress.surgery.pruning.ranking import SCOPES, choose
from tfcompress.surgery.pruning.resizing import resized
from tfcompress.surgery.pruning.scores import check_score, score_groups
from tfcompress.surgery.pruning.target import Target
from tfcompress.surgery.pruning.trimming import sensitivity_choice
from tfcompress.surgery.report import Change, SurgeryReport, with_report
from tfcompress.techniques.technique import check

Score = str | Callable[[ChannelGroup], np.ndarray]


def prune_channels(
    model: keras.Model,
    *,
    macs: float | None = None,
    params: float | None = None,
    sparsity: float | None = None,
    per_layer: Mapping[str, float] | None = None,
    score: Score = "l2",
    scope: str = "global",
    round_to: int = 8,
    max_sparsity: float | Mapping[str, float] = 0.9,
    keep: Iterable[str] = (),
    data: Any = None,
    loss: Any = None,
    gain: str = "macs",
    batch_size: int = 32,
    samples: int | None = None,
    seed: int = 0,
) -> keras.Model:
    """A smaller copy of a model: whole channels, neurons and heads are removed from all weights.

    Channels that belong together are found by a dependency graph (as Fang et al. 2023,
    arXiv:2301.12900): those of layers whose outputs are added, of the normalization and the
    depthwise convolution between two layers, and so on. What the graph cannot see through keeps its
    channels, as inputs and outputs of the model do, and is named in the report. Train the copy
    after it; quality falls at first.

    Args:
        model: any built Keras 3 model that `flatten` takes; it is left untouched.
        macs, params: the share of the model's that may remain, such as 0.5.
        sparsity: the fraction of channels to remove.
        per_layer: {name of a layer: fraction of its channels to remove}.
        score: how important channels are: "l1", "l2", "bn_gamma", "fpgm", "random"; with `data`
            "taylor", "fisher" and "apoz"; or a function f(group) -> array of shape (channels,),
            given a `ChannelGroup`. See `tfcompress.surgery.pruning.scores`.
        scope: "global": all channels compete; "local": each layer loses the same fraction;
            "sensitivity": each layer loses what costs least, by trying it on `data`.
        round_to: the number of channels that stay in a layer is a multiple of it, or all.
        max_sparsity: no layer loses more than this fraction; `per_layer` goes before it. Or
            {name of a group: fraction}, where other groups stay whole.
        keep: names of layers, or patterns such as "stem*", whose channels stay.
        data: (x, y) or a dataset of batches as for `model.evaluate`, for scores and scopes that
            need it; x alone for "apoz".
        loss: Keras loss for these; by default the one that the model was compiled with.
        gain: what "sensitivity" buys with the loss: "macs" or measured "latency".
        batch_size: of arrays.
        samples: at most so many of `data`.
        seed: of random scores.

    Returns:
        A flat Functional `keras.Model` with smaller layers, not compiled. `surgery_report` tells
        what was removed, what was kept and why, and MACs and parameters before and after.

    Raises:
        TypeError: the model is not a Keras 3 model.
        ValueError: the model is not built or is wrapped by `compress`, an argument is out of its
            range, a layer does not exist, the score needs data, or the target is out of reach.

    Example:
        >>> small = prune_channels(model, macs=0.5)  # doctest: +SKIP
        >>> print(small.surgery_report)  # doctest: +SKIP
        conv1  64 -> 40 channels
        ...
    """
    target = Target(macs, params, sparsity, per_layer)
    check_settings(scope, round_to, max_sparsity)
    check_score(score, data)
    structure = Structure(opened(model))
    structure.keep(kept_names(structure, keep))
    if not structure.prunable():
        raise ValueError(nothing_to_prune(structure))
    if scope == "sensitivity" or score in ("taylor", "fisher"):
        loss = objective(model, loss)
    settings = {"data": data, "loss": loss, "batch_size": batch_size, "samples": samples}
    scores = score_groups(structure, score, seed=seed, **settings)
    limits: dict[str, Any] = {"round_to": round_to, "max_sparsity": max_sparsity}
    if scope == "sensitivity":
        choice = sensitivity_choice(structure, scores, target, gain=gain, **limits, **settings)
    else:
        choice = choose(structure, scores, target, scope=scope, **limits)
    small = resized(structure, choice)
    return with_report(small, report_of("prune_channels", structure, choice))


def check_settings(scope: str, round_to: int, max_sparsity: float | Mapping[str, float]) -> None:
    """Raises a ValueError unless settings of `prune_channels` are in their ranges."""
    scopes = (*SCOPES, "sensitivity")
    if scope not in scopes:
        raise ValueError(f"unknown scope {scope!r}; {expected_one_of(str(scope), scopes)}")
    whole = isinstance(round_to, int) and not isinstance(round_to, bool) and round_to >= 1
    check(whole, "round_to", "a whole number, 1 or more", round_to, "8 suits most kernels.")
    if isinstance(max_sparsity, Mapping):
        for name, share in max_sparsity.items():
            check(0 <= share <= 1, f"max_sparsity[{name!r}]", "in [0, 1]", share)
        return
    mend = "Did you mean 0.9?" if max_sparsity == 90 else "0.9 is usual."
    check(0 < max_sparsity <= 1, "max_sparsity", "in (0, 1]", max_sparsity, mend)


def kept_names(structure: Structure, keep: Iterable[str]) -> dict[str, str]:
    """The groups that touch layers which are to keep their channels.

    Args:
        structure: of the model.
        keep: names of layers or patterns.

    Returns:
        {name of a group: reason}.

    Raises:
        ValueError: a name or pattern matches no layer.
    """
    patterns = [keep] if isinstance(keep, str) else list(keep)
    names = [node.name for node in structure.graph.nodes]
    reasons: dict[str, str] = {}
    for pattern in patterns:
        matched = {name for name in names if name == pattern or fnmatch.fnmatch(name, pattern)}
        if not matched:
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise ValueError(
                f"keep must name layers of the model; received {pattern!r}, which is none. "
                f"{did_you_mean(pattern, names, f'It has: {shown}.')}"
            )
        for group in structure.touching(matched):
            reasons[group] = f"keep names {pattern!r}"
    return reasons


def report_of(operation: str, structure: Structure, choice: Choice) -> SurgeryReport:
    """What a choice does to a model, layer by layer."""
    sizes = structure.sizes(choice)
    groups = {structure.numbers[name]: group for name, group in structure.groups.items()}
    changes: list[Change] = []
    kept: list[Change] = []
    for layer in structure.follower.layers:
        for part in _parts_made(layer):
            mine = [groups[leaf.group] for leaf in leaves_of(part) if leaf.group in groups]
            before, after = size_of(part), size_under(part, sizes)
            if before != after:
                unit = "heads" if any(group.unit == "heads" for group in mine) else "channels"
                changes.append(Change(layer.name, f"{before} -> {after} {unit}"))
            first = [group for group in mine if group.makers[0] == layer.name]
            kept += [Change(layer.name, group.kept) for group in first if group.kept is not None]
        if not any(axis is not None for weight in layer.weights for axis in weight.axes):
            kept.append(Change(layer.name, f"what {layer.kind} does with channels is not known"))
    costs = zip(structure.cost({}), structure.cost(sizes), strict=True)
    return SurgeryReport(operation, tuple(changes), tuple(dict.fromkeys(kept)), *costs)


def _parts_made(layer: Weighted) -> list[Axis]:
    """What a layer makes, each part once: channels one after the other are parts of their own."""
    made = [weight.axes[place] for weight in layer.weights for place in weight.makes]
    parts = [axis.parts if isinstance(axis, Concat) else (axis,) for axis in made if axis]
    return list(dict.fromkeys(part for each in parts for part in each))


def nothing_to_prune(structure: Structure) -> str:
    reasons = [f"{group.makers[0]}: {group.kept}" for group in structure.groups.values()]
    listed = "; ".join(reasons[:4]) or "no layer makes any"
    return (
        f"model '{structure.model.name}' must have channels that can be removed; it has none: "
        f"{listed}. Keep fewer layers, or give the model a hidden layer."
    )
