"""Clustering: weights that share a few values, which are trained."""

from __future__ import annotations

import dataclasses
import math
import numbers
import zlib
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import keras
import numpy as np
from keras import ops

from tfcompress.errors import check
from tfcompress.kinds import is_depthwise, weight_axes
from tfcompress.schedules import Step, step_of, whole
from tfcompress.techniques.prune import Prune
from tfcompress.techniques.technique import Technique, check_table, table_axes


@keras.saving.register_keras_serializable("tfcompress")
@dataclasses.dataclass(frozen=True)
class Cluster(Technique):
    """Lets weights share a few trained values (Han et al. 2016, arXiv:1510.00149).

    Each weight takes the nearest one, so that a file zips to a fraction. The weights behind are
    trained on, too, and pick their value anew every `frequency` steps. After `Prune`, zeros stay
    zeros and count as one of the clusters.

    Args:
        clusters: values per tensor, or per channel: 2 to 65535.
        init: how centroids start: "kmeans++", "linear", "density" or "random".
        per_channel: each output channel has centroids of its own.
        begin: optimizer step at which weights are clustered, or a share of the training such as
            "50%"; None begins when the pruning before it has ended, or at once.
        frequency: steps between choices of the nearest centroid, or a share.
        gradient: of a centroid: the "sum" of its weights' gradients, or their "mean".
        keep_zeros: whether zeros stay zeros; None where `Prune` comes before.
        depthwise: also clusters depthwise kernels.
        seed: of random starts.
        target: "microcontroller" has the values fit the tables from which TFLite Micro decodes
            weights: at most 128, and one table for each channel in convolutions alone, as Dense has
            one scale.
        channels: axes of output channels, filled in by `compress`, as is `follows`, whether `Prune`
            comes before.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> cluster = Cluster(16, init="linear")
    """

    clusters: int
    init: str = "kmeans++"
    per_channel: bool = False
    begin: Step | None = None
    frequency: Step = 10
    gradient: Literal["sum", "mean"] = "sum"
    keep_zeros: bool | None = None
    depthwise: bool = False
    seed: int = 0
    channels: tuple[int, ...] = ()
    follows: bool = False
    target: str | None = None

    order: ClassVar[int] = 2
    trainable_states: ClassVar[tuple[str, ...]] = ("centroids",)

    def __post_init__(self):
        if isinstance(self.clusters, numbers.Integral) and not isinstance(self.clusters, bool):
            object.__setattr__(self, "clusters", int(self.clusters))  # also NumPy's
        many = type(self.clusters) is int and 2 <= self.clusters <= 65535
        check(many, "clusters", "2 to 65535", self.clusters, "16 is usual.")
        known = self.init in INITS
        check(known, "init", f"one of {', '.join(INITS)}", self.init)
        if self.begin is not None:
            object.__setattr__(self, "begin", step_of("begin", self.begin, 0))
        object.__setattr__(self, "frequency", step_of("frequency", self.frequency, 1))
        check(self.gradient in ("mean", "sum"), "gradient", "'mean' or 'sum'", self.gradient)
        object.__setattr__(self, "channels", tuple(self.channels))
        check_table(self.target, "clusters", self.clusters)

    @property
    def scheduled(self) -> bool:
        return True

    def begins(self) -> int:
        return whole(self.begin or 0)

    def next_step(self, step: int) -> int | None:
        begin, every = self.begins(), whole(self.frequency)
        return begin if step < begin else step + every - (step - begin) % every

    def refuses(self, layer, variable) -> str | None:
        if is_depthwise(layer, variable.name) and not self.depthwise:
            return "a depthwise kernel (pass depthwise=True to cluster it)"
        size = int(np.prod(variable.shape))
        axes = self._channels(layer, variable.name, len(variable.shape))
        size //= int(np.prod([variable.shape[axis] for axis in axes]))
        if size < self.clusters:
            where = " in each channel" if axes else ""
            return f"with {size} weights{where}, fewer than clusters={self.clusters}"
        return None

    def _channels(self, layer, weight: str, rank: int | None = None) -> tuple[int, ...]:
        """The axes of a weight along which centroids differ."""
        axes = weight_axes(layer, weight, rank)[1] if self.per_channel else ()
        return table_axes(self.target, layer, axes)

    def bind(self, layer, weight: str, before: Sequence[Technique] = ()) -> Cluster:
        pruning = [t for t in before if isinstance(t, Prune)]
        begin = self.begin
        if begin is None:
            begin = next((t.schedule.end or t.schedule.begin for t in pruning), 0)
        return dataclasses.replace(
            self,
            begin=begin,
            keep_zeros=bool(pruning) if self.keep_zeros is None else self.keep_zeros,
            follows=bool(pruning),
            channels=self._channels(layer, weight),
            seed=zlib.crc32(f"{self.seed}/{layer.name}/{weight}".encode()),
        )

    def initial_state(self, weight) -> dict[str, Any]:
        # Centroids are found when clustering begins: until then weights may change much.
        channels = int(np.prod([weight.shape[axis] for axis in self.channels]))
        return {
            "centroids": ops.zeros((self.clusters, channels)),
            "indices": ops.zeros(weight.shape, self._index_dtype),
            "counts": ops.ones((self.clusters, channels)),
            "active": ops.zeros(()),
        }

    @property
    def _index_dtype(self) -> str:
        return "uint8" if self.clusters < 256 else "uint16"

    def update(self, weight, state, step: int) -> dict[str, Any]:
        if step < self.begins():
            return state
        rows = by_channel(ops.convert_to_numpy(ops.cast(weight, "float32")), self.channels)
        old = {name: ops.convert_to_numpy(value) for name, value in state.items()}
        active = bool(old["active"] > 0)
        before = by_channel(old["indices"], self.channels)
        zeros = self._zeros(rows, before, active)
        table = old["centroids"].copy()
        if not active or np.count_nonzero(zeros) != np.count_nonzero(before == 0):
            table = self._start(rows, zeros)
        indices = self._assign(rows, table, zeros)
        counts = [np.bincount(column, minlength=self.clusters + 1)[1:] for column in indices.T]
        last = tuple(range(-len(self.channels), 0))
        moved = np.moveaxis(old["indices"], self.channels, last)
        indices = np.moveaxis(indices.reshape(moved.shape), last, self.channels)
        return {
            "centroids": ops.convert_to_tensor(table),
            "indices": ops.convert_to_tensor(indices.astype(self._index_dtype)),
            "counts": ops.convert_to_tensor(np.maximum(np.stack(counts, 1), 1).astype("float32")),
            "active": ops.ones(()),
        }

    def _zeros(self, rows: np.ndarray, before: np.ndarray, active: bool) -> np.ndarray:
        if not self.keep_zeros:
            return np.zeros(rows.shape, bool)
        # Without Prune the weights behind do not stay zero; then the first choice counts.
        return before == 0 if active and not self.follows else rows == 0

    def _start(self, rows: np.ndarray, zeros: np.ndarray) -> np.ndarray:
        """The first centroids, (clusters, channels); a spare one is zero where zeros take one."""
        random = np.random.default_rng(self.seed)
        columns = []
        for values, zero in zip(rows.T, zeros.T, strict=True):
            if zero.any():
                found = initial_without_zero(values, self.clusters - 1, self.init, random)
                columns.append(np.append(found, np.float32(0)))
            else:
                columns.append(initial(values, self.clusters, self.init, random))
        return np.stack(columns, 1)

    def _assign(self, rows: np.ndarray, table: np.ndarray, zeros: np.ndarray) -> np.ndarray:
        """The index of the nearest centroid of each weight, from 1 on; 0 is zero."""
        order = np.argsort(table, axis=0)
        ordered = np.take_along_axis(table, order, 0)
        if zeros.any():
            # The one nearest to zero gives way to it, so that there are not more than `clusters`.
            spare = np.argmin(np.abs(ordered), axis=0)
            with_zeros = zeros.any(axis=0)
            ordered, order = _without(ordered, order, spare, with_zeros)
        found = np.take_along_axis(order, nearest(rows, ordered), 0) + 1
        return np.where(zeros, 0, found)

    def apply(self, weight, state):
        index = ops.cast(state["indices"], "int32")
        channels = state["centroids"].shape[1]
        if self.channels:
            shape = [1] * len(weight.shape)
            for axis in self.channels:
                shape[axis] = weight.shape[axis]
            index = index * channels + ops.reshape(ops.arange(channels, dtype="int32"), shape)
        centroids = state["centroids"]
        active = ops.cast(state["active"] > 0, centroids.dtype)
        full = ops.cast(weight, centroids.dtype)
        found = _clustered(full, centroids, index, self._share(state), active)
        return ops.cast(found, weight.dtype)

    def _share(self, state):
        """What a centroid takes of the sum of its weights' gradients."""
        counts = state["counts"]
        return ops.ones_like(counts) if self.gradient == "sum" else 1.0 / counts


def by_channel(weight: np.ndarray, channels: tuple[int, ...]) -> np.ndarray:
    """A weight as a matrix (n, channels)."""
    count = math.prod(weight.shape[axis] for axis in channels)
    last = tuple(range(-len(channels), 0))
    return np.moveaxis(weight, channels, last).reshape(-1, count)


def _without(ordered, order, spare, with_zeros):
    """Sorted centroids whose spare one is replaced by its neighbour in the channels with zeros."""
    last = len(ordered) - 1
    neighbour = np.where(spare < last, spare + 1, spare - 1)
    ordered, order = ordered.copy(), order.copy()
    columns = np.flatnonzero(with_zeros)
    for array in (ordered, order):
        array[spare[columns], columns] = array[neighbour[columns], columns]
    return ordered, order


def _clustered(weight, centroids, index, share, active):
    """The centroid of each weight, or the weight itself while `active` is 0.

    The gradient passes straight to the weight; a centroid gets the sum of its weights' gradients,
    times its share.
    """
    zero = ops.zeros_like(centroids[:1])
    if keras.backend.backend() != "tensorflow":
        trained = share * centroids  # the brackets are exactly 0 and carry the gradients
        table = ops.stop_gradient(centroids) + (trained - ops.stop_gradient(trained))
        found = ops.take(ops.reshape(ops.concatenate([zero, table]), (-1,)), index)
        found = ops.where(active > 0, found, ops.stop_gradient(weight))
        return found + (weight - ops.stop_gradient(weight))
    import tensorflow as tf

    @tf.custom_gradient
    def cluster(weight, centroids):
        table = tf.concat([zero, centroids], 0)
        found = tf.gather(tf.reshape(table, [-1]), index)

        def gradient(upstream):
            # Ten times as fast on a CPU as unsorted_segment_sum. XLA takes no tensors of rank 4.
            numbers, values = tf.reshape(index, [-1]), tf.reshape(upstream, [-1])
            sums = tf.raw_ops.Bincount(arr=numbers, size=tf.size(table), weights=values)
            return upstream, tf.reshape(sums, tf.shape(table))[1:] * share * active

        return tf.where(active > 0, found, weight), gradient

    return cluster(weight, centroids)


INITS = ("kmeans++", "linear", "density", "random")

# k-means needs no more weights than this to find where they are dense.
_SAMPLE = 2**17
_ROUNDS = 25
_FEW = 2**12
_STARTS = 3
_PIECE = 2**15


def initial(
    values: np.ndarray, clusters: int, init: str, random: np.random.Generator
) -> np.ndarray:
    """Centroids of some values."""
    if values.size == 0 or clusters == 0:
        return np.zeros(clusters, np.float32)
    low, high = float(values.min()), float(values.max())
    if init == "linear":
        found = np.linspace(low, high, clusters)
    elif init == "random":
        found = random.uniform(low, high, clusters)
    elif init == "density":
        found = _density(values, clusters, 0.01)
    else:
        found = _kmeans(values, clusters, random)
    return np.sort(found).astype(np.float32)


def initial_without_zero(
    values: np.ndarray, clusters: int, init: str, random: np.random.Generator
) -> np.ndarray:
    """Centroids of the values that are not zero: negative and positive ones by their numbers."""
    sides = values[values < 0], values[values > 0]
    total = sides[0].size + sides[1].size
    negative = round(clusters * sides[0].size / total) if total else 0
    if clusters > 1 and all(side.size for side in sides):
        negative = min(max(negative, 1), clusters - 1)
    if init == "kmeans++":  # needs no split: it finds both sides by itself
        return initial(values[values != 0], clusters, init, random)
    counts = negative, clusters - negative
    parts = []
    for side, count in zip(sides, counts, strict=True):
        if init == "density" and side.size and count:
            gap = min(0.01, abs(side.min()) / 2, abs(side.max()) / 2)
            parts.append(np.sort(_density(side, count, gap)).astype(np.float32))
        else:
            parts.append(initial(side, count, init, random))
    return np.concatenate(parts)


def nearest(values: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The index of the nearest centroid of each value; halfway between two the greater.

    Args:
        values: float array (n, channels).
        centroids: float array (k, channels), sorted along its first axis.
    """
    middles = (centroids[:-1] + centroids[1:]) / 2
    if centroids.shape[1] == 1 and len(middles) > 64:
        found = np.searchsorted(middles[:, 0], values.ravel(), side="right")
        return found.reshape(values.shape)
    found = np.zeros(values.shape, np.uint8 if len(middles) < 256 else np.uint16)
    # By pieces that stay in the cache, comparing with every limit is quicker than searching.
    rows = max(1, _PIECE // max(1, values.shape[1]))
    for start in range(0, len(values), rows):
        piece = values[start : start + rows]
        for middle in middles.astype(values.dtype):
            found[start : start + rows] += piece >= middle
    return found


def _density(values: np.ndarray, clusters: int, gap: float) -> np.ndarray:
    """Evenly spaced in the cumulative distribution, which is looked up at 30 points as in TFMOT."""
    grid = np.linspace(values.min() - gap, values.max() + gap, 30)
    cumulative = np.searchsorted(np.sort(values), grid, side="right") / values.size
    wanted = np.linspace(0.01, 1, clusters)
    return grid[np.minimum(np.searchsorted(cumulative, wanted, side="right"), len(grid) - 1)]


def _kmeans(values: np.ndarray, clusters: int, random: np.random.Generator) -> np.ndarray:
    if values.size > _SAMPLE:
        values = random.choice(values, _SAMPLE, replace=False)
    values = np.sort(values.astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    # Seeds need fewer values still; of several starts the best counts, as each may go astray.
    few = values[:: max(1, values.size // max(_FEW, 4 * clusters))]
    tries = [_lloyd(values, sums, _seeds(few, clusters, random)) for _ in range(_STARTS)]
    return max(tries, key=lambda found: found[1])[0]


def _lloyd(values: np.ndarray, sums: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, float]:
    """Centroids after Lloyd's rounds, and how much of the sum of squares they explain."""
    centroids = np.sort(seeds)
    for _ in range(_ROUNDS):
        # Values are sorted, so that each cluster is one stretch of them.
        edges = np.searchsorted(values, (centroids[:-1] + centroids[1:]) / 2)
        edges = np.concatenate([[0], edges, [values.size]])
        counts = np.diff(edges)
        means = np.diff(sums[edges]) / np.maximum(counts, 1)
        new = np.sort(np.where(counts > 0, means, centroids))
        if np.array_equal(new, centroids):
            break
        centroids = new
    return centroids, float((counts * np.square(means)).sum())


def _seeds(values: np.ndarray, clusters: int, random: np.random.Generator) -> np.ndarray:
    """k-means++: each seed is drawn with a chance that grows with the distance to the others."""
    seeds = [random.choice(values)]
    distance = np.square(values - seeds[0])
    for _ in range(clusters - 1):
        total = distance.sum()
        drawn = np.searchsorted(np.cumsum(distance), random.random() * total, side="right")
        seeds.append(values[min(drawn, values.size - 1)] if total > 0 else values[0])
        distance = np.minimum(distance, np.square(values - seeds[-1]))
    return np.array(seeds)
