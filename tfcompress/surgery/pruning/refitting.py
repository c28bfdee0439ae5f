"""What reads channels that go made to give, from those that stay, what it gave before."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from tfcompress.post_training.batch_norm import reestimate_batch_norm
from tfcompress.post_training.hessians import Moments, matrix_of
from tfcompress.post_training.kernels import Kernel, kernels_of
from tfcompress.post_training.layerwise import exchange
from tfcompress.post_training.walk import batched
from tfcompress.surgery.pruning.groups import ChannelGroup, Choice, Member, Structure, deciding
from tfcompress.surgery.pruning.judging import batches

# Of the mean of the squares of what a kernel reads: how firmly it is held to what it was.
_DAMP = 1e-2
# Samples that kernels are fitted to; of large tensors fewer, so that one of all samples has no more
# numbers than are held.
_MOST, _FEWEST, _HELD = 512, 32, 1e8
# Numbers that a channel of a kernel reads at most, if it is fitted: it takes the square of memory.
_WIDEST = 6144


def refit_readers(structure: Structure, choice: Choice, batches: Sequence[Sequence[Any]]) -> None:
    """Fits the kernels that read channels which go to the outputs that they gave, in place.

    The rows of what goes become 0, and the others those that give, of what the model with fewer
    channels gives on samples, the outputs of the model as it was with the least squared error (as
    He et al. 2017, arXiv:1707.06168).

    Args:
        structure: of the model whose kernels are changed.
        choice: the channels that stay.
        batches: of samples, see `tfcompress.post_training.walk.walk`.
    """
    kept: dict[str, np.ndarray] = {}
    for name, stay in choice.items():
        group = structure.groups[name]
        gone = np.setdiff1d(np.arange(group.size), stay)
        for kernel, rows in reading(structure, group):
            mask = kept.setdefault(kernel.name, np.ones(rows.shape[1:], bool))
            mask &= ~rows[gone].any(0)

    def change(kernel: Kernel, moments: Moments) -> np.ndarray:
        return solved(moments, kept[kernel.name])

    exchange(structure.model, batches, kept, change)


def with_statistics(model: keras.Model, batches: Sequence[Sequence[Any]]) -> keras.Model:
    """A model whose BatchNormalizations have the statistics of samples."""
    if not any(isinstance(x, keras.layers.BatchNormalization) for x in model._flatten_layers()):
        return model
    inputs = tree.flatten(model._inputs_struct)
    named = ({t.name: a for t, a in zip(inputs, each, strict=True)} for each in batches)
    found = reestimate_batch_norm(model, named, samples=None)
    del found.correction_report  # it tells of no choice of the user's
    return found


def reading(structure: Structure, group: ChannelGroup) -> Iterator[tuple[Kernel, np.ndarray]]:
    """The kernels that read a group, and which rows of their matrices read each channel.

    The latter as bool arrays of shape (channels, groups, d), see `post_training.hessians`.
    """
    kernels = {id(k.variable): k for k in kernels_of(structure.graph)}
    for member in group.members:
        kernel = kernels.get(id(member.variable))
        if kernel is None or member.role != "reads":
            continue
        if matrix_of(kernel.layer, kernel.value).shape[1] > _WIDEST:
            continue
        numbers = np.full(tuple(member.variable.shape), -1)
        moved = np.moveaxis(numbers, member.axis, 0)
        for channel, places in enumerate(member.index):
            moved[places] = channel
        rows = matrix_of(kernel.layer, numbers)[:, :, 0]
        yield kernel, np.arange(group.size)[:, None, None] == rows


def solved(moments: Moments, kept: np.ndarray) -> np.ndarray:
    """The matrix, of which only the rows that are kept are not 0, that gives what is wanted best.

    Args:
        kept: bool, (groups, d).
    """
    new = np.zeros_like(moments.matrix)
    for group, rows in enumerate(kept):
        old = moments.matrix[group][rows].astype(np.float64)
        second = moments.second[group][np.ix_(rows, rows)]
        if not rows.any():
            continue
        damp = _DAMP * np.mean(np.diag(second)) + 1e-12
        missing = moments.product[group][rows] - second @ old
        new[group][rows] = old + np.linalg.solve(second + damp * np.eye(len(second)), missing)
    return new


# A kernel that reads a group, which of its rows read each channel, and its moments.
Reader = tuple[Kernel, np.ndarray, Moments]


def readers_of(
    structure: Structure,
    groups: Mapping[str, ChannelGroup],
    batches: Sequence[Sequence[Any]],
) -> dict[str, list[Reader]]:
    """The kernels that read each group, with their moments in the model as it is."""
    found = {name: list(reading(structure, group)) for name, group in groups.items()}
    moments: dict[str, Moments] = {}

    def change(kernel: Kernel, of: Moments) -> None:
        moments[kernel.name] = of

    names = {kernel.name for each in found.values() for kernel, _ in each}
    exchange(structure.model, batches, names, change)
    return {name: [(k, rows, moments[k.name]) for k, rows in each] for name, each in found.items()}


def inputs_of(
    structure: Structure, data: Any, batch_size: int = 32, samples: int | None = None
) -> list[list[np.ndarray]]:
    """Batches of as many inputs as kernels are fitted to.

    Args:
        data, batch_size, samples: see `judging.batches`.
    """
    shapes = [t.shape[1:] for node in structure.graph.nodes for t in node.outputs]
    largest = max(math.prod(n or 1 for n in shape) for shape in shapes)
    most = int(np.clip(_HELD / largest, _FEWEST, _MOST))
    read = batches(data, structure.model, batch_size, min(samples or most, most))
    names = [t.name for t in tree.flatten(structure.graph.inputs)]
    named = (
        x if isinstance(x, Mapping) else dict(zip(names, tree.flatten(x), strict=True))
        for x, _, _ in read
    )
    return batched(structure.graph, named, batch_size, most)


def reconstruction(
    structure: Structure,
    groups: Mapping[str, ChannelGroup],
    batches: Sequence[Sequence[Any]],
) -> dict[str, np.ndarray]:
    """How much of what reads a channel is lost without it, once kernels are fitted to the others.

    Channels go one after the other, each time the one without which the squared errors of the
    kernels that read them, as shares of the squares of their outputs, grow least: the optimal
    brain surgeon on whole channels (as Kurtic et al. 2023, arXiv:2302.04089).

    Returns {name of a group: array of shape (channels,)}, the errors once a channel has gone.
    """
    found = readers_of(structure, groups, batches)
    return {name: _eliminated(group, found[name]) for name, group in groups.items()}


def _eliminated(group: ChannelGroup, readers: Sequence[Reader]) -> np.ndarray:
    """The scores of a group, channel by channel as they go."""
    parts = [part for _, rows, moments in readers for part in _parts(moments, rows)]
    known = {id(kernel.variable) for kernel, _, _ in readers}
    # What is not fitted loses what it gave for the channel, whatever else has gone.
    others = [m for m in deciding(group) if id(m.variable) not in known]
    fixed = sum((_squares(member) for member in others), np.zeros(group.size))
    gone, total, scores = np.zeros(group.size, bool), 0.0, np.zeros(group.size)
    for _ in range(group.size):
        costs = fixed + sum(part.costs() for part in parts)
        channel = int(np.argmin(np.where(gone, np.inf, costs)))
        total += max(costs[channel], 0.0)
        gone[channel], scores[channel] = True, total
        for part in parts:
            part.remove(channel)
    return scores


def _squares(member: Member) -> np.ndarray:
    """The share of each channel in the squares of a weight."""
    values = np.asarray(ops.convert_to_numpy(member.variable), "float64")
    found = np.square(member.slices(values)).sum(1)
    return found / (found.sum() or 1.0)


@dataclasses.dataclass
class _Part:
    """A group of a kernel: weights, the inverse of the second moments, and rows by channel."""

    weights: np.ndarray
    inverse: np.ndarray
    rows: np.ndarray
    power: float

    def costs(self) -> np.ndarray:
        """By how much the error grows without each channel."""
        rows = self.rows
        mine = self.weights[rows]
        pressed = np.linalg.solve(self.inverse[rows[:, :, None], rows[:, None, :]], mine)
        return np.einsum("nkc,nkc->n", mine, pressed) / self.power

    def remove(self, channel: int) -> None:
        rows = self.rows[channel]
        column = self.inverse[:, rows]
        pressed = np.linalg.solve(column[rows], np.c_[self.weights[rows], column.T])
        count = self.weights.shape[1]
        self.weights -= column @ pressed[:, :count]
        self.inverse -= column @ pressed[:, count:]
        self.inverse[rows] = self.inverse[:, rows] = self.weights[rows] = 0.0
        self.inverse[rows, rows] = 1.0


def _parts(moments: Moments, rows: np.ndarray) -> Iterator[_Part]:
    power = float(moments.power.sum()) or 1.0
    for group, second in enumerate(moments.second):
        counts = rows[:, group].sum(1)
        if not counts[0] or np.any(counts != counts[0]):
            continue
        damp = _DAMP * np.mean(np.diag(second)) + 1e-12
        inverse = np.linalg.inv(second + damp * np.eye(len(second)))
        places = np.nonzero(rows[:, group])[1].reshape(len(rows), -1)
        yield _Part(moments.matrix[group].astype(np.float64), inverse, places, power)
