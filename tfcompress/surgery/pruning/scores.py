"""How important the channels of each group are, by name of a score; the scores of weights alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from keras import ops

from tfcompress.suggestions import did_you_mean
from tfcompress.surgery.pruning import data_scores
from tfcompress.surgery.pruning.groups import ChannelGroup, Member, Structure
from tfcompress.surgery.pruning.judging import batches, labelled, objective

Scores = dict[str, np.ndarray]
ScoreFunction = Callable[[ChannelGroup], np.ndarray]
WITHOUT_DATA = ("l1", "l2", "bn_gamma", "fpgm", "random")
WITH_DATA = ("taylor", "fisher", "apoz")


def score_groups(
    structure: Structure,
    score: str | ScoreFunction,
    data: Any = None,
    *,
    loss: Any = None,
    batch_size: int = 32,
    samples: int | None = None,
    seed: int = 0,
) -> Scores:
    """How important each channel of each group is that can be pruned.

    "l1" and "l2"  see `norms`.
    "bn_gamma"     see `bn_gamma`.
    "fpgm"         see `geometric_median`.
    "random"       uniform in [0, 1): what other scores have to beat.
    "taylor"       the first-order change of the loss of batches, see `data_scores.taylor`.
    "fisher"       that of single samples, see `data_scores.fisher`.
    "apoz"         the share of values that are not zero, see `data_scores.apoz`.

    Args:
        structure: of a flat model.
        score: one of these, or a function f(group) -> array of shape (channels,), higher for more
            important channels; given a `ChannelGroup`.
        data: (x, y), (x, y, sample_weight) or a batched dataset as for `model.evaluate`, for
            "taylor" and "fisher"; for "apoz" x alone will do. Other scores take none.
        loss: as `compile` takes it, for "taylor" and "fisher".
        batch_size: of arrays.
        samples: at most so many, spread evenly over arrays, the first ones of a dataset. A few
            hundred serve; None takes all.
        seed: of "random".

    Returns:
        {name of a group: float64 array of shape (channels,)}, higher = more important. Channels
        that are all zeros have the lowest of their group, but with "fpgm" and "random".

    Raises:
        TypeError: the score is neither a name nor a function, or returns no numbers.
        ValueError: the name is unknown, the score needs data or a loss that is not there, the data
            does not fit the model, or a function returns another shape or values that are not
            finite.

    Example:
        >>> structure = Structure(flatten(model))  # doctest: +SKIP
        >>> scores = score_groups(structure, "taylor", (x, y), loss="mse")  # doctest: +SKIP
    """
    check_score(score, data)
    groups = structure.prunable()
    if callable(score):
        return {name: _checked(score, group) for name, group in groups.items()}
    if score == "random":
        random = np.random.default_rng(seed)
        return {name: random.random(group.size) for name, group in groups.items()}
    if score not in WITH_DATA:
        of = _of_weights(structure, score)
        return {name: of(group) for name, group in groups.items()}
    judged = None if score == "apoz" else objective(structure.model, loss)
    read = batches(data, structure.model, batch_size, samples)
    if judged is None:
        return data_scores.apoz(structure, groups, read)
    function = data_scores.taylor if score == "taylor" else data_scores.fisher
    return function(structure, groups, labelled(read, f"the score '{score}'"), judged)


def check_score(score: Any, data: Any) -> None:
    """Raises unless a score is known and has the data that it needs; see `score_groups`."""
    names = (*WITHOUT_DATA, *WITH_DATA)
    if not isinstance(score, str):
        if not callable(score):
            raise TypeError(
                f"score must be one of {', '.join(names)}, or a function f(group) -> array; "
                f"received {score!r}."
            )
    elif score not in names:
        hint = did_you_mean(score, names)
        raise ValueError(
            f"unknown score {score!r}; expected one of {', '.join(names)}, or a function "
            f"f(group) -> array. {hint}".strip()
        )
    elif score in WITH_DATA and data is None:
        what = "data=x" if score == "apoz" else "data=(x, y)"
        raise ValueError(
            f"the score '{score}' needs data; received none. Pass {what}, or choose a score that "
            f"needs none: {', '.join(WITHOUT_DATA)}."
        )


def _of_weights(structure: Structure, score: str) -> ScoreFunction:
    if score == "bn_gamma":
        return functools.partial(bn_gamma, gammas=batch_norm_factors(structure))
    if score == "fpgm":
        return geometric_median
    return functools.partial(norms, power=int(score[1]))


def _checked(function: ScoreFunction, group: ChannelGroup) -> np.ndarray:
    """What a user's function says of a group."""
    found = function(group)
    try:
        array = np.asarray(ops.convert_to_numpy(found), "float64")
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"score must return an array of numbers; received {type(found).__name__} for group "
            f"'{group.name}'."
        ) from error
    if array.shape != (group.size,):
        raise ValueError(
            f"score must return one number for each channel; received shape {array.shape} for "
            f"group '{group.name}', expected ({group.size},)."
        )
    if not np.isfinite(array).all():
        raise ValueError(
            f"score must return finite numbers; received NaN or infinity for group '{group.name}'."
        )
    return array


def norms(group: ChannelGroup, power: int) -> np.ndarray:
    """The norm of the weights that make each channel times that of those that read it.

    As of filters (Li et al. 2017, https://arxiv.org/abs/1608.08710) and of all weights of a group
    (Fang et al. 2023, https://arxiv.org/abs/2301.12900); but the product, which bounds what a
    channel adds to the layers after it: it is 0 if either side is, and stays what it is if a
    factor moves from one side to the other. The factors |gamma| / sqrt(variance) of BatchNorm are
    left out; see "bn_gamma" for gamma.

    Args:
        group: of channels.
        power: 1 or 2.

    Returns:
        An array of shape (channels,).

    Example:
        A Dense layer with the kernel [[3, 1], [4, 0]], read by one with [[2], [5]]:

        >>> norms(group, 2)  # doctest: +SKIP
        array([10.,  5.])
    """
    sums = [
        sum(np.sum(np.abs(_slices(m)) ** power, axis=1) for m in group.members if m.role == role)
        for role in ("makes", "reads")
    ]
    made, read = sums[0], sums[1] if np.ndim(sums[1]) else np.ones(group.size)
    return np.asarray((made * read) ** (1 / power))


def bn_gamma(group: ChannelGroup, gammas: Collection[int]) -> np.ndarray:
    """The factor |gamma| of BatchNorm (Liu et al. 2017, https://arxiv.org/abs/1708.06519).

    The mean of those of all BatchNorms of the group; a group without any has the score "l2".

    Args:
        group: of channels.
        gammas: identities of the factors of all BatchNorms, see `batch_norm_factors`.
    """
    found = [np.abs(_slices(m)).mean(1) for m in group.members if id(m.variable) in gammas]
    return np.mean(found, axis=0) if found else norms(group, 2)


def batch_norm_factors(structure: Structure) -> set[int]:
    """Identities of the gammas of all BatchNorms."""
    return {
        id(layer.layer.gamma)
        for layer in structure.follower.layers
        if layer.kind == "BatchNormalization" and layer.layer.scale
    }


def geometric_median(group: ChannelGroup) -> np.ndarray:
    """How far a channel is from the others (FPGM, He et al. 2019, https://arxiv.org/abs/1811.00250).

    The sum of the distances between its weights and those of every other channel, in each layer
    that makes them: channels near the geometric median are those that the others can stand for.

    Returns:
        An array of shape (channels,), the sum over these layers.
    """
    making = [_slices(member) for member in group.members if member.role == "makes"]
    return np.sum([_distances(each).sum(1) for each in making], axis=0)


def _distances(points: np.ndarray) -> np.ndarray:
    """Between all pairs of rows; by one product of matrices, as there may be thousands."""
    squares = np.sum(points**2, axis=1)
    found = squares[:, None] + squares - 2 * points @ points.T
    np.fill_diagonal(found, 0)
    return np.sqrt(np.maximum(found, 0))


def _slices(member: Member) -> np.ndarray:
    values = np.asarray(ops.convert_to_numpy(member.variable), "float64")
    return member.slices(values)
