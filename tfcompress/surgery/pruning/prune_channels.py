"""prune_channels: a model with fewer channels, neurons and heads."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.channels.terms import Axis, Concat, leaves_of, size_of, size_under
from tfcompress.channels.weighted import Weighted
from tfcompress.errors import check, did_you_mean, expected_one_of, is_whole
from tfcompress.surgery.base import Change, SurgeryReport, opened, with_report
from tfcompress.surgery.pruning.groups import ChannelGroup, Choice, Structure
from tfcompress.surgery.pruning.judging import objective
from tfcompress.surgery.pruning.limits import Target
from tfcompress.surgery.pruning.measuring import check_measured, measured_choice
from tfcompress.surgery.pruning.ranking import SCOPES, choose, competing, equal_scores
from tfcompress.surgery.pruning.refitting import inputs_of, refit_readers, with_statistics
from tfcompress.surgery.pruning.resizing import resized
from tfcompress.surgery.pruning.scores import check_score, needs_loss, score_groups
from tfcompress.surgery.pruning.trimming import sensitivity_choice

Score = str | Callable[[ChannelGroup], np.ndarray]


def prune_channels(
    model: keras.Model,
    *,
    macs: float | None = None,
    params: float | None = None,
    sparsity: float | None = None,
    per_layer: Mapping[str, float] | None = None,
    latency: float | None = None,
    score: Score | None = None,
    scope: str = "global",
    round_to: int | str = 8,
    max_sparsity: float | Mapping[str, float] = 0.9,
    keep: Iterable[str] = (),
    data: Any = None,
    refit: bool = True,
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
    channels, as inputs and outputs of the model do, and is named in the report.

    Quality falls: give `data`. Then the weights that read what goes are fitted to what stays, so
    that they give what they gave (as He et al. 2017, arXiv:1707.06168), which keeps most of the
    quality without training: a ResNet-8 lost 2 points with half of its MACs, instead of 85. Train
    the copy after it for the rest.

    Args:
        model: any built Keras 3 model that `flatten` takes; it is left untouched.
        macs, params: the share of the model's that may remain, such as 0.5.
        sparsity: the fraction of channels to remove.
        per_layer: {name of a layer: fraction of its channels to remove}.
        latency: the share of the model's, as an int8 file measured on this machine, that may
            remain: alone, or beside one of the above, which is lowered until both hold. It needs
            `data`.
        score: how important channels are: "l1", "l2", "max", "bn_gamma", "fpgm", "random"; with
            `data` "reconstruction", "taylor", "fisher" and "apoz"; or a function f(group) -> array
            of shape (channels,), given a `ChannelGroup`. See `tfcompress.surgery.pruning.scores`.
            None is "reconstruction" with `data`, else "l2".
        scope: "global": all channels compete; "local": each layer loses the same fraction;
            "sensitivity": each layer loses what costs least, by trying it on `data`.
        round_to: the number of channels that stay in a layer is a multiple of it, or all. Where
            that cannot reach the target, as in narrow models, of its half, a quarter and so on,
            with a warning. "latency" tries 4, 8, 16 and 32 and takes what is measured to be
            fastest; it needs `data`.
        max_sparsity: no layer loses more than this fraction; `per_layer` goes before it. Or
            {name of a group: fraction}, where other groups stay whole.
        keep: names of layers, or patterns such as "stem*", whose channels stay.
        data: (x, y) or a dataset of batches as for `model.evaluate`: some hundred samples from
            all over the training data, of which the first alone may be of one kind: an autoencoder
            that was cut by its first 200 frames lost 20 points, by as many spread ones 0.3. x alone
            will do, but for "taylor", "fisher" and "sensitivity".
        refit: whether weights are fitted to `data`, and BatchNormalization gets its statistics
            anew; False leaves the weights that stay as they are.
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
    alone = latency is not None and macs is params is sparsity is per_layer is None
    target = Target(latency if alone else macs, params, sparsity, per_layer)
    check_measured(latency, round_to, target, data)
    check_settings(scope, 8 if round_to == "latency" else round_to, max_sparsity)
    if score is None:
        score = "l2" if data is None else "reconstruction"
    check_score(score, data)
    # What can be read once is read for scores and for weights.
    data, again = itertools.tee(data) if isinstance(data, Iterator) else (data, data)
    structure = Structure(opened(model))
    structure.keep(kept_names(structure, keep))
    if not structure.prunable():
        raise ValueError(nothing_to_prune(structure))
    if scope == "sensitivity" or needs_loss(score):
        loss = objective(model, loss)
    settings = {"data": data, "loss": loss, "batch_size": batch_size, "samples": samples}
    scores = score_groups(structure, score, seed=seed, **settings)

    def chosen(target: Target, round_to: int) -> Choice:
        limits: dict[str, Any] = {"round_to": round_to, "max_sparsity": max_sparsity}
        if scope != "sensitivity":
            return choose(structure, scores, target, scope=scope, **limits)
        limits |= {"gain": gain, "refit": refit}
        return sensitivity_choice(structure, scores, target, **limits, **settings)

    given = [] if again is None else inputs_of(structure, again, batch_size, samples)
    choice = measured_choice(structure, chosen, target, round_to, latency, given)
    report = report_of("prune_channels", structure, choice)
    if again is None or not refit:
        return with_report(resized(structure, choice), report)
    refit_readers(structure, choice, given)
    return with_report(with_statistics(resized(structure, choice), given), report)


def check_settings(
    scope: str,
    round_to: int | str,
    max_sparsity: float | Mapping[str, float],
    scopes: Sequence[str] = (*SCOPES, "sensitivity"),
) -> None:
    """Raises a ValueError unless settings of `prune_channels` are in their ranges."""
    if scope not in scopes:
        raise ValueError(f"unknown scope {scope!r}; {expected_one_of(str(scope), scopes)}")
    mend = "8 suits most kernels."
    check(is_whole(round_to), "round_to", "a whole number, 1 or more", round_to, mend)
    if isinstance(max_sparsity, Mapping):
        for name, share in max_sparsity.items():
            check(0 <= share <= 1, f"max_sparsity[{name!r}]", "in [0, 1]", share)
        return
    mend = "Did you mean 0.9?" if max_sparsity == 90 else "0.9 is usual."
    check(0 < max_sparsity <= 1, "max_sparsity", "in (0, 1]", max_sparsity, mend)


def kept_names(structure: Structure, keep: Iterable[str]) -> dict[str, str]:
    """The groups that touch layers which are to keep their channels.

    Returns {name of a group: reason}.
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


CURVES = ("geometric", "linear")

# Below it nothing is left to ask of a round.
_TINY = 1e-9
Settings = dict[str, Any]

# Layer, which of its weights and which axis of that makes the channels of a group.
Key = tuple[str, int, int]


def prune_channels_iteratively(
    model: keras.Model,
    steps: int,
    fit: Callable[[keras.Model], Any],
    *,
    macs: float | None = None,
    params: float | None = None,
    sparsity: float | None = None,
    per_layer: Mapping[str, float] | None = None,
    curve: str | Sequence[float] = "geometric",
    **settings: Any,
) -> keras.Model:
    """A smaller copy of a model, which loses its channels in rounds and trains after each.

    What is removed in small parts, with scores that are found anew after each training, costs less
    quality than what is removed at once (as Molchanov et al. 2017, arXiv:1611.06440).

    Args:
        model: any built Keras 3 model that `flatten` takes; it is left untouched.
        steps: the number of rounds.
        fit: called as `fit(model)` with the smaller model of each round, which is not compiled; it
            trains it in place. What it returns is not used.
        macs, params: the share of the given model's that may remain after the last round.
        sparsity: the fraction of its channels that are gone then.
        per_layer: {name of a layer: fraction of its channels that are gone then}.
        curve: "geometric": each round removes the same fraction of what is left; "linear": each
            removes as much; or for each round how far the way to the target is, such as
            [0.5, 0.8, 1.0].
        **settings: further arguments of `prune_channels`. `max_sparsity` is of the given model's
            channels, over all rounds.

    Returns:
        A flat Functional `keras.Model`, trained by `fit`. Its `surgery_report` tells the size of
        each layer after each round.

    Raises:
        TypeError: the model is not a Keras 3 model, or `fit` cannot be called.
        ValueError: as `prune_channels`, before the first round; or `steps` or `curve` is out of
            its range.

    Example:
        >>> def fit(model):
        ...     model.compile("adam", "sparse_categorical_crossentropy")
        ...     model.fit(x, y, epochs=2)
        >>> small = prune_channels_iteratively(model, 5, fit, macs=0.3)  # doctest: +SKIP
    """
    target = Target(macs, params, sparsity, per_layer)
    mend = "3 to 10 are usual."
    check(is_whole(steps), "steps", "a whole number of rounds, 1 or more", steps, mend)
    if not callable(fit):
        raise TypeError(
            f"fit must be a function that trains a model, called as fit(model); received {fit!r}."
        )
    if settings.get("latency") is not None or settings.get("round_to") == "latency":
        raise ValueError(
            "prune_channels_iteratively does not measure latency; received latency, or "
            "round_to='latency'. Find the share of the MACs with prune_channels, and pass macs=."
        )
    asks = [_on_the_way(target, curve, k, steps) for k in range(1, steps + 1)]
    first = structure = _structure(model, settings)
    _require_reachable(first, target, settings)
    widths = [_widths(first)]
    for ask in asks:
        wanted = _relative(ask, first, structure)
        if wanted is not None:
            bounds = _bounds(first, structure, settings.get("max_sparsity", 0.9))
            model = prune_channels(model, **wanted, **{**settings, "max_sparsity": bounds})
        fit(model)
        structure = _structure(model, settings)
        widths.append(_widths(structure))
    return with_report(model, _report(first, structure, widths))


def _on_the_way(target: Target, curve: Any, round_number: int, steps: int) -> Target:
    """What is wanted of the given model after a round."""
    done = round_number / steps
    if not isinstance(curve, str):
        done = _points(curve, steps)[round_number - 1]
    elif curve not in CURVES:
        raise ValueError(f"unknown curve {curve!r}; {expected_one_of(curve, CURVES)}")

    def left(share: float) -> float:
        return share**done if curve == "geometric" else 1 - done * (1 - share)

    return target.changed(left)


def _points(curve: Any, steps: int) -> list[float]:
    """A curve that is given as numbers."""
    points = [float(point) for point in curve] if isinstance(curve, Iterable) else []
    grows = all(a < b for a, b in itertools.pairwise([0.0, *points]))
    if len(points) != steps or not grows or points[-1] != 1:
        raise ValueError(
            f"curve must be one of {', '.join(CURVES)}, or {steps} numbers that grow to 1, one for "
            f"each round; received {curve!r}."
        )
    return points


def _structure(model: keras.Model, settings: Settings) -> Structure:
    structure = Structure(opened(model))
    structure.keep(kept_names(structure, settings.get("keep", ())))
    return structure


def _require_reachable(structure: Structure, target: Target, settings: Settings) -> None:
    """Raises a ValueError now if settings are wrong or no scores could lead to the target."""
    scope = settings.get("scope", "global")
    limits = settings.get("round_to", 8), settings.get("max_sparsity", 0.9)
    check_settings(scope, *limits)
    scores = equal_scores(structure)
    if scores:  # else prune_channels says why
        choose(structure, scores, target, round_to=limits[0], max_sparsity=limits[1])


def _relative(target: Target, first: Structure, now: Structure) -> Settings | None:
    """What to ask of the model of a round, for a target of the given one; None if it is met."""
    if target.per_layer is not None:
        shares = {}
        for name, share in target.per_layer.items():
            before, after = _size(first, first, name), _size(now, first, name)
            if 1 - before * (1 - share) / after > _TINY:
                shares[name] = 1 - before * (1 - share) / after
        return {"per_layer": shares} if shares else None
    if target.sparsity is not None:
        share = 1 - _channels(first, first) * (1 - target.sparsity) / _channels(now, first)
        return {"sparsity": share} if share > _TINY else None
    at = ("macs", "params").index(target.name)
    share = target.value * first.cost({})[at] / now.cost({})[at]
    return {target.name: share} if share < 1 - _TINY else None


def _size(now: Structure, first: Structure, layer: str) -> int:
    """How many channels a layer makes; of several groups those of the largest at first."""
    made = [(g.size, key) for key, g in _groups(first).items() if layer in g.makers and not g.kept]
    groups = _groups(now)
    return groups[max(made)[1]].size if max(made)[1] in groups else 1


def _channels(now: Structure, first: Structure) -> int:
    """How many channels can go; one that is left of a group is no group any more."""
    sizes, whole = ([len(x) for x in competing(s, equal_scores(s)).values()] for s in (now, first))
    return sum(sizes) + len(whole) - len(sizes)


def _bounds(first: Structure, now: Structure, max_sparsity: float) -> dict[str, float]:
    """The fraction of each group that may still go."""
    whole, bounds = _groups(first), {}
    for key, group in _groups(now).items():
        before = whole[key].size if key in whole else group.size
        bounds[group.name] = max(0.0, 1 - before * (1 - max_sparsity) / group.size)
    return bounds


def _groups(structure: Structure) -> dict[Key, ChannelGroup]:
    """The groups, by what names them in every round: names tell how many a layer makes."""
    places = {
        id(weight.variable): (layer.name, number)
        for layer in structure.follower.layers
        for number, weight in enumerate(layer.weights)
    }
    found = {}
    for group in structure.groups.values():
        made = next(member for member in group.members if member.role == "makes")
        layer, number = places[id(made.variable)]
        found[layer, number, made.axis] = group
    return found


def _widths(structure: Structure) -> dict[Key, int]:
    return {key: group.size * group.repeats for key, group in _groups(structure).items()}


def _report(first: Structure, last: Structure, widths: list[dict[Key, int]]) -> SurgeryReport:
    changes = []
    for key, group in _groups(first).items():
        sizes = [found.get(key, 1) for found in widths]
        if sizes[-1] != sizes[0]:
            told = f"{' -> '.join(map(str, sizes))} {group.unit}"
            changes += [Change(maker, told) for maker in group.makers]
    kept = [Change(g.makers[0], g.kept) for g in first.groups.values() if g.kept is not None]
    macs, params = zip(first.cost({}), last.cost({}), strict=True)
    name = "prune_channels_iteratively"
    return SurgeryReport(name, tuple(changes), tuple(kept), macs, params)
