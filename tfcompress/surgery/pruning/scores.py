"""How important the channels of each group are, by name of a score; the scores of weights alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import KerasTensor, ops

from tfcompress.channels.terms import places
from tfcompress.errors import check, did_you_mean
from tfcompress.graph.nodes import Node, unique
from tfcompress.surgery.pruning.groups import ChannelGroup, Member, Structure, deciding
from tfcompress.surgery.pruning.judging import (
    Batch,
    Objective,
    batches,
    gradients_of,
    judge,
    labelled,
    objective,
)
from tfcompress.surgery.pruning.refitting import inputs_of, reconstruction

Scores = dict[str, np.ndarray]
ScoreFunction = Callable[[ChannelGroup], np.ndarray]


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
    "max"          see `largest`.
    "bn_gamma"     see `bn_gamma`.
    "fpgm"         see `geometric_median`.
    "random"       uniform in [0, 1): what other scores have to beat.
    "taylor"       the first-order change of the loss of batches, see `taylor`.
    "fisher"       that of single samples, see `fisher`.
    "apoz"         the share of values that are not zero, see `apoz`.
    "reconstruction"  what is lost of what reads a channel, see `reconstruction`.

    Args:
        score: one of these, or a function f(group) -> array of shape (channels,), higher for more
            important channels; given a `ChannelGroup`.
        data: (x, y), (x, y, sample_weight) or a batched dataset as for `model.evaluate`, for
            "taylor" and "fisher"; for "apoz" and "reconstruction" x alone will do. Other scores
            take none.

    Returns {name of a group: float64 array of shape (channels,)}, higher = more important. Channels
    that are all zeros have the lowest of their group, but with "fpgm" and "random".
    """
    check_score(score, data)
    groups = structure.prunable()
    if callable(score):
        return {name: _checked(score, group) for name, group in groups.items()}
    if score in WITHOUT_DATA:
        of = WITHOUT_DATA[score](structure, seed)
        return {name: of(group) for name, group in groups.items()}
    if score == "reconstruction":
        return reconstruction(structure, groups, inputs_of(structure, data, batch_size, samples))
    judged = objective(structure.model, loss) if needs_loss(score) else None
    read = batches(data, structure.model, batch_size, samples)
    if judged is None:
        return apoz(structure, groups, read)
    read = labelled(read, f"the score '{score}'")
    return _BY_LOSS[score](structure, groups, read, judged)


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
        what = "data=(x, y)" if needs_loss(score) else "data=x"
        raise ValueError(
            f"the score '{score}' needs data; received none. Pass {what}, or choose a score that "
            f"needs none: {', '.join(WITHOUT_DATA)}."
        )


def needs_loss(score: Any) -> bool:
    """Whether a score comes from the gradients of a loss."""
    return isinstance(score, str) and score in _BY_LOSS


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

    Returns an array of shape (channels,).
    """
    sums = [
        sum(np.sum(np.abs(_slices(m)) ** power, axis=1) for m in group.members if m.role == role)
        for role in ("makes", "reads")
    ]
    made, read = sums[0], sums[1] if np.ndim(sums[1]) else np.ones(group.size)
    return np.asarray((made * read) ** (1 / power))


def largest(group: ChannelGroup) -> np.ndarray:
    """The largest absolute weight that makes each channel times the largest of those that read it.

    The product, and what is left out, as of `norms`.

    Returns an array of shape (channels,).
    """
    made, read = (
        [np.abs(_slices(m)).max(axis=1) for m in group.members if m.role == role]
        for role in ("makes", "reads")
    )
    return np.max(made, axis=0) * (np.max(read, axis=0) if read else 1.0)


def bn_gamma(group: ChannelGroup, gammas: Collection[int]) -> np.ndarray:
    """The factor |gamma| of BatchNorm (Liu et al. 2017, https://arxiv.org/abs/1708.06519).

    The mean of those of all BatchNorms of the group; a group without any has the score "l2".
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

    Returns an array of shape (channels,), the sum over these layers.
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


# A weight and one of its axes.
Place = tuple[Any, int]


def taylor(
    structure: Structure,
    groups: Mapping[str, ChannelGroup],
    data: Iterable[Batch],
    objective: Objective,
) -> Scores:
    """First-order Taylor importance (Molchanov et al. 2019, https://arxiv.org/abs/1906.10771).

    A factor of 1 on a channel, where it is read, has the gradient g = sum of weight * gradient over
    the weights that read it, so that the loss changes by -g, to first order, once it is removed.
    The score is the root of the mean, over batches, of the g^2 of a batch's mean loss.

    Returns {name of a group: array of shape (channels,)}.
    """
    return _root_mean_squares(structure, groups, data, objective)


def fisher(
    structure: Structure,
    groups: Mapping[str, ChannelGroup],
    data: Iterable[Batch],
    objective: Objective,
) -> Scores:
    """Fisher importance (Theis et al. 2018, https://arxiv.org/abs/1801.05787).

    The mean, over single samples, of the square of the g of `taylor`; summed over all layers that
    read a channel before it is squared, as Liu et al. 2021 (https://arxiv.org/abs/2108.00708) do
    for channels that several layers share. The score is its root, which compares the layers of a
    model better. Every sample takes a gradient of its own.

    Args and returns: see `taylor`.
    """
    singles = (batch.cut(slice(i, i + 1)) for batch in data for i in range(len(batch)))
    return _root_mean_squares(structure, groups, singles, objective)


def apoz(structure: Structure, groups: Mapping[str, ChannelGroup], data: Iterable[Batch]) -> Scores:
    """1 - the average percentage of zeros (Hu et al. 2016, https://arxiv.org/abs/1607.03250).

    Zeros are counted over samples and positions of all tensors that the layers which read a group
    are called with. Channels that no layer reads from a tensor, as heads inside of an attention
    layer, have a score of 1.

    Args and returns: see `taylor`; the data needs no labels.
    """
    counted = list(_read_tensors(structure, groups))
    outputs = [_zeros(tensor, axis) for tensor, axis, _ in counted]
    sums = [np.zeros((2, 1)) for _ in counted]
    if counted:
        counter = keras.Model(structure.model._inputs_struct, outputs)
        for batch in data:
            found = keras.tree.flatten(counter.predict_on_batch(batch.x))
            sums = [
                total + np.asarray(new, "float64") for total, new in zip(sums, found, strict=True)
            ]
    scores = {}
    for name, group in groups.items():
        zeros = np.zeros((2, group.size))
        for (_, _, mine), total in zip(counted, sums, strict=True):
            if name in mine:
                zeros += total[:, mine[name]].sum(-1)
        scores[name] = 1 - zeros[0] / np.maximum(zeros[1], 1)
    return scores


def _read_tensors(
    structure: Structure, groups: Mapping[str, ChannelGroup]
) -> Iterator[tuple[KerasTensor, int, dict[str, np.ndarray]]]:
    """(tensor, axis, {group: places of its channels there}) of what the layers read."""
    names = {structure.numbers[name]: name for name in groups}
    reading = {
        name: {m.layer for m in deciding(g) if m.role == "reads"} for name, g in groups.items()
    }
    for tensor in unique(t for node in structure.graph.nodes for t in node.inputs):
        readers = set().union(*map(_names(structure), structure.graph.consumers(tensor)))
        for axis, term in enumerate(structure.axes_of(tensor)):
            found = {} if term is None else places(term)
            mine = {names[n]: index for n, index in found.items() if n in names}
            mine = {name: index for name, index in mine.items() if reading[name] & readers}
            if mine:
                yield tensor, axis, mine


def _names(structure: Structure) -> Callable[[Node], set[str]]:
    """Of a node: its name and those of the nodes inside of it."""

    def names(node: Node) -> set[str]:
        inner = structure.follower.opened.get(id(node))
        return {node.name} | ({part.name for part in inner.nodes} if inner else set())

    return names


def _zeros(tensor: KerasTensor, axis: int) -> KerasTensor:
    """Zeros and values of each channel, of shape (2, channels)."""
    others = tuple(i for i in range(len(tensor.shape)) if i != axis)
    zero = ops.cast(ops.equal(tensor, 0), "float32")
    return ops.stack([ops.sum(x, axis=others) for x in (zero, ops.ones_like(zero))])


def _root_mean_squares(
    structure: Structure,
    groups: Mapping[str, ChannelGroup],
    data: Iterable[Batch],
    objective: Objective,
) -> Scores:
    """The root mean square over batches, by their samples, of sums of weight * gradient."""
    members = {name: deciding(group) for name, group in groups.items()}
    every = [(m.variable, m.axis) for each in members.values() for m in each]
    index = {(id(variable), axis): i for i, (variable, axis) in enumerate(_unique(every))}
    products = _products(structure, _unique(every), objective)
    sums = {name: np.zeros(group.size) for name, group in groups.items()}
    count = 0
    for batch in data:
        found = [np.asarray(ops.convert_to_numpy(x), "float64") for x in products(batch)]
        check(
            all(np.isfinite(x).all() for x in found), "the gradients", "finite", "NaN or infinity"
        )
        for name, each in members.items():
            gates = sum(found[index[id(m.variable), m.axis]][m.index].sum(1) for m in each)
            sums[name] += len(batch) * np.square(gates)
        count += len(batch)
    return {name: np.sqrt(total / count) for name, total in sums.items()}


def _unique(every: Sequence[Place]) -> list[Place]:
    return list({(id(variable), axis): (variable, axis) for variable, axis in every}.values())


def _products(
    structure: Structure, wanted: list[Place], objective: Objective
) -> Callable[[Batch], list]:
    """Batch -> for each weight and axis, weight * gradient summed over the other axes."""
    twin = judge(structure.model, objective)
    variables = list({id(variable): variable for variable, _ in wanted}.values())
    order = {id(variable): i for i, variable in enumerate(variables)}

    def loss(batch: Batch) -> Any:
        y_pred = twin(batch.x, training=False)
        return twin.compute_loss(batch.x, batch.y, y_pred, batch.sample_weight, training=False)

    def sums(gradients: Sequence[Any]) -> list:
        found = []
        for variable, axis in wanted:
            product = gradients[order[id(variable)]] * ops.convert_to_tensor(variable)
            others = tuple(i for i in range(len(variable.shape)) if i != axis)
            found.append(ops.sum(product, axis=others))
        return found

    return gradients_of(loss, variables, sums)


def _random(structure: Structure, seed: int) -> ScoreFunction:
    generator = np.random.default_rng(seed)
    return lambda group: generator.random(group.size)


def _bn_gamma(structure: Structure, seed: int) -> ScoreFunction:
    return functools.partial(bn_gamma, gammas=batch_norm_factors(structure))


# The scores, by name: functions of (structure, seed) that give one of a group,
WITHOUT_DATA: dict[str, Callable[[Structure, int], ScoreFunction]] = {
    "l1": lambda structure, seed: functools.partial(norms, power=1),
    "l2": lambda structure, seed: functools.partial(norms, power=2),
    "max": lambda structure, seed: largest,
    "bn_gamma": _bn_gamma,
    "fpgm": lambda structure, seed: geometric_median,
    "random": _random,
}
# and functions of (structure, groups, data, objective). `surgery.shrink` lists the names of all.
_BY_LOSS = {"taylor": taylor, "fisher": fisher}
WITH_DATA = (*_BY_LOSS, "apoz", "reconstruction")
