"""equalize: the ranges of channels made alike, without a change of what the model computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.graph.flatten import flatten
from tfcompress.graph.folding import (
    Values,
    after_outputs,
    before_inputs,
    fold,
    values_of,
    with_values,
)
from tfcompress.graph.inputs import require_model
from tfcompress.graph.nodes import Graph, Node
from tfcompress.kinds import channel_axes, channel_place
from tfcompress.layers.compressed import require_plain
from tfcompress.post_training.corrections import Statistics, reported
from tfcompress.post_training.kernels import is_table
from tfcompress.post_training.scaling import Scaling, Site, widest
from tfcompress.post_training.walk import Call, batched, before_activation, moments, run, walk

_SWEEPS = 100
_SETTLED = 1e-3  # of the logarithm of a scale, in one sweep
# Standard deviations below its mean at which the rest of a channel is not missed.
_DEVIATIONS = 3.0
_MARGIN = 1.0 + 1e-6
# How much further than any channel did before one may reach: measured on the benchmark's nets,
# where 1 lost up to 1.4 dB, and none lost 7 to 13 dB where channels hardly varied.
_REACH = 2.0


def equalize(
    model: keras.Model,
    data: Any = None,
    *,
    absorb: bool = True,
    batch_size: int = 32,
    samples: int | None = 500,
) -> keras.Model:
    """A copy of a model whose kernels use one range well, so that one scale a tensor loses less.

    BatchNormalization is folded first. Then each channel that linear layers hand on to others
    through what commutes with a positive scale (ReLU, LeakyReLU, PReLU, pooling, padding,
    flattening, sums of channels scaled alike) is scaled so that the weights that make it and those
    that read it have the same largest value; that is repeated until it settles. The outputs stay
    the same up to rounding (cross-layer equalization, Nagel et al. 2019, arXiv:1906.04721). A
    channel that goes through ReLU6, or another ReLU with a `max_value`, is scaled only if `data`
    never reach the clip, and only so far that they still do not.

    Zeros of pruned kernels stay. A kernel of at most 256 values that occur twice on average, as
    those that were clustered or rounded, keeps its values, and the channels at its ends their
    scales. No channel is scaled up beyond twice the range that all channels together had, where
    BatchNormalization or `data` tell it. Kernels with a scale for each channel gain nothing
    themselves, but activations do.

    Args:
        model: any built Keras 3 model, not one of `compress`; it is left untouched.
        data: samples of the training inputs in any form that `tfcompress.convert` takes as
            calibration; None for none.
        absorb: also take from a bias what keeps a channel above 0 (3 standard deviations below its
            mean), and give it to the biases of the layers that read the channel, so that
            activations need a smaller range. Means are those of BatchNormalization; of layers
            without, those of `data`. Values further below are cut, so that outputs change a
            little; a channel beside which zeros are padded keeps its bias.
        batch_size: samples of `data` that are computed at once.
        samples: how many of `data` to use; None for all.

    Returns:
        A flat Functional `keras.Model`, not compiled. Its `correction_report` names every layer
        whose channels were scaled, and every one whose were not and why.

    Raises:
        TypeError: the model is not a Keras 3 model.
        ValueError: it is not built, cannot be flattened, or comes from `compress`; or the data do
            not fit it.

    Example:
        >>> import keras, numpy as np
        >>> hidden, head = keras.layers.Dense(2, "relu"), keras.layers.Dense(1)
        >>> model = keras.Sequential([keras.Input((1,)), hidden, head])
        >>> hidden.set_weights([np.array([[8.0, 2.0]]), np.zeros(2)])
        >>> head.set_weights([np.array([[0.5], [2.0]]), np.zeros(1)])
        >>> new = equalize(model)
        >>> [np.asarray(layer.kernel).round(3).tolist() for layer in new.layers[1:]]
        [[[4.0, 4.0]], [[1.0], [1.0]]]
    """
    require_model(model)
    require_plain(model)
    folding = fold(flatten(model))
    graph = Graph.of(folding.model)
    scaling = Scaling(graph)
    for site in scaling.sites.values():
        if is_table(values_of(site.layer)["kernel"], channel_axes(site.layer)):
            ends = np.concatenate([site.inputs, site.outputs])
            scaling.pin(ends, f"the kernel of '{site.name}' has few values, which stay")
    statistics = dict(folding.statistics)
    batches = None if data is None else batched(graph, data, batch_size, samples)
    missing: set[str] = set()
    if absorb:
        able = scaling.shiftable()
        found = {s.name for s in scaling.sites.values() if able[scaling.roots[s.outputs]].any()}
        missing = found - statistics.keys()
    if batches is not None and (scaling.clips or missing):
        look = _Look(scaling, missing)
        walk(graph, batches, look.visit)
        statistics |= look.statistics
        least = look.least()
    else:
        least = np.zeros(len(scaling.roots))
        for name, numbers, limit in scaling.clips.values():
            scaling.pin(numbers, f"'{name}' clips at {limit:g}, which no data were given for")
    solver = _Solver(scaling, least, _floors(scaling, statistics))
    solver.settle()
    taken = solver.absorbed(statistics) if absorb else np.zeros(len(solver.scales))
    values, changes = {}, {}
    for key, site in scaling.sites.items():
        values[key] = solver.values(site, taken)
        if site.name in statistics:
            mean, std = statistics[site.name]
            outer = scaling.roots[site.outputs]
            scale = solver.scales[outer]
            statistics[site.name] = mean / scale - taken[outer], std / scale
        if (detail := solver.told(site, taken)) is not None:
            changes[site.name] = detail
    kept = {s.name: solver.reason(s) for s in scaling.sites.values() if s.name not in changes}
    return reported(with_values(graph, values), "equalize", changes, kept, statistics)


def _floors(scaling: Scaling, statistics: Statistics) -> np.ndarray:
    """The least scales with which no channel reaches much further than the furthest did before.

    One that hardly varies has tiny weights and a bias: it would be scaled up beyond all others.
    """
    found = np.zeros(len(scaling.roots))
    for site in scaling.sites.values():
        if site.name in statistics:
            mean, std = statistics[site.name]
            reach = np.abs(mean) + _DEVIATIONS * std
            farthest = max(_REACH * reach.max(initial=0.0), np.finfo(float).tiny)
            np.maximum.at(found, scaling.roots[site.outputs], reach / farthest)
    return found


class _Look:
    """What data show: the greatest values before clips, and statistics of linear layers.

    Args:
        missing: names of the layers whose statistics are wanted.
    """

    def __init__(self, scaling: Scaling, missing: set[str]):
        self.scaling, self.missing = scaling, missing
        self.statistics: Statistics = {}
        self.peaks = {key: np.zeros(len(scaling.roots)) for key in scaling.clips}

    def visit(self, node: Node, calls: list[Call]) -> list[Any]:
        if id(node.operation) in self.scaling.sites and node.name in self.missing:
            given = before_activation(node, calls)
            mean, variance, _ = moments(given, channel_place(node.operation))
            self.statistics[node.name] = mean, np.sqrt(variance)
        made = run(node, calls)
        if id(node) in self.scaling.clips:
            roots = self.scaling.roots[self.scaling.clips[id(node)][1]]
            for x in made:
                greatest = ops.convert_to_numpy(x).max(0)
                each = np.broadcast_to(roots, greatest.shape)
                np.maximum.at(self.peaks[id(node)], each, greatest)
        return made

    def least(self) -> np.ndarray:
        """The least scale of each number with which no clip is reached; pins those that are."""
        found = np.zeros(len(self.scaling.roots))
        for key, (name, numbers, limit) in self.scaling.clips.items():
            peaks = self.peaks[key]
            reached = numbers[peaks[self.scaling.roots[numbers]] >= limit]
            self.scaling.pin(reached, f"'{name}' clips it at {limit:g}")
            found = np.maximum(found, peaks / limit * _MARGIN)
        return found


class _Solver:
    """The scales that even ranges: what the values of a channel are divided by.

    Args:
        least: of each root, the least scale with which its values reach no clip.
        floor: that with which they do not reach far beyond all other channels.
    """

    def __init__(self, scaling: Scaling, least: np.ndarray, floor: np.ndarray):
        self.scaling, self.least, self.floor = scaling, least, floor
        self.sites, self.roots = list(scaling.sites.values()), scaling.roots
        self.scales = np.ones(len(self.roots))
        self.free = scaling.free()
        self.kernels = {id(s): _by_ends(s) for s in self.sites}
        self.before = {id(s): widest(s, self.kernels[id(s)]) for s in self.sites}
        self.ranges = dict(self.before)
        self.meetings = [m for m in map(self._meeting, self.sites) if len(m[0])]

    def settle(self) -> None:
        """Evens the channels between layers, again and again."""
        for _ in range(_SWEEPS):
            if max([self._even(*each) for each in self.meetings], default=0.0) < _SETTLED:
                break

    def _meeting(self, site: Site) -> tuple[np.ndarray, list[Site], list[Site], bool]:
        """The channels of a layer that can be scaled, all that give them, all that read them.

        And whether these have no others.
        """
        wanted = np.unique(self.roots[site.outputs])
        wanted = wanted[self.free[wanted]]
        givers = [s for s in self.sites if np.isin(self.roots[s.outputs], wanted).any()]
        readers = [s for s in self.sites if np.isin(self.roots[s.inputs], wanted).any()]
        every = [*(s.outputs for s in givers), *(s.inputs for s in readers)]
        whole = all(np.isin(self.roots[numbers], wanted).all() for numbers in every)
        return wanted, givers, readers, whole

    def _even(
        self, wanted: np.ndarray, givers: list[Site], readers: list[Site], whole: bool
    ) -> float:
        """Evens channels between those that give and read them; by how much, as a logarithm."""
        given = self._mean([(s.outputs, self.ranges[id(s)][1]) for s in givers])
        read = self._mean([(s.inputs, self.ranges[id(s)][0]) for s in readers])
        step = np.ones(len(self.roots))
        found = np.exp((given - read)[wanted] / 2)  # NaN where a side has nothing but zeros
        found = np.where(np.isfinite(found), found, 1.0)
        least, floor = ((x / self.scales)[wanted] for x in (self.least, self.floor))
        # A scale that all channels share changes no precision, and would wander along the layers.
        moving = (found > 1.0) | (np.maximum(least, floor) < 1.0)
        found /= np.exp(np.median(np.log(found[moving]))) if moving.any() else 1.0
        found = np.maximum(found, floor)
        if whole:  # all of them together reach no clip if they are small enough
            found *= max(1.0, np.max(least / found))
        step[wanted] = np.maximum(found, least)
        self.scales *= step
        for each in {id(s): s for s in (*givers, *readers)}.values():
            values = {"kernel": self.kernels[id(each)], "bias": np.zeros(1)}
            values = _scaled(
                each, values, step[self.roots[each.outputs]], step[self.roots[each.inputs]]
            )
            self.kernels[id(each)] = values["kernel"]
            self.ranges[id(each)] = widest(each, values["kernel"])
        return float(np.abs(np.log(step)).max())

    def _mean(self, ranges: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """The mean logarithm of the ranges of each number; NaN where there are none."""
        total, count = np.zeros(len(self.roots)), np.zeros(len(self.roots))
        for numbers, found in ranges:
            largest = np.zeros(len(self.roots))
            np.maximum.at(largest, self.roots[numbers], found)
            total += np.log(largest, out=np.zeros_like(largest), where=largest > 0)
            count += largest > 0
        return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)

    def absorbed(self, statistics: Statistics) -> np.ndarray:
        """What is taken from each number, once it is scaled, for the layers that read it."""
        able = self.scaling.shiftable()
        taken = np.zeros(len(able))
        for site in self.sites:
            if site.name in statistics:
                mean, std = statistics[site.name]
                outer = self.roots[site.outputs]
                low = np.maximum(mean - _DEVIATIONS * std, 0.0) / self.scales[outer]
                taken[outer] = np.where(able[outer], low, 0.0)
        return taken

    def values(self, site: Site, taken: np.ndarray) -> Values:
        """The new weights of a layer."""
        outer, inner = self.roots[site.outputs], self.roots[site.inputs]
        ends = self.scales[outer], self.scales[inner]
        values = _scaled(site, values_of(site.layer), *ends, taken[outer], taken[inner])
        if not site.layer.use_bias and not values["bias"].any():
            del values["bias"]
        return values

    def told(self, site: Site, taken: np.ndarray) -> str | None:
        """What was done to the channels that a layer gives; None if nothing was."""
        outer = self.roots[site.outputs]
        scaled = np.count_nonzero(np.abs(np.log(self.scales[outer])) > _SETTLED)
        shifted = np.count_nonzero(taken[outer])
        old, new = (_spread(x[id(site)][1]) for x in (self.before, self.ranges))
        said = []
        if scaled:
            said.append(f"{scaled} channels scaled, widest to narrowest {old:.3g} -> {new:.3g}")
        if shifted:
            said.append(f"bias absorbed of {shifted} channels")
        return "; ".join(said) or None

    def reason(self, site: Site) -> str:
        """Why the channels that a layer gives stay as they are."""
        outer = self.roots[site.outputs]
        found = (why for n, why in self.scaling.pins if np.isin(self.roots[n], outer).any())
        return next(found, "its channels and what reads them are even")


def _by_ends(site: Site) -> np.ndarray:
    """The largest absolute values of a kernel among its positions: its last two axes."""
    kernel = np.abs(values_of(site.layer)["kernel"])
    return kernel.max(tuple(range(kernel.ndim - 2)))


def _scaled(
    site: Site,
    values: Values,
    outer: np.ndarray,
    inner: np.ndarray,
    taken: np.ndarray | float = 0.0,
    given: np.ndarray | float = 0.0,
) -> Values:
    """Weights where outputs are divided by `outer` and less by `taken`, and inputs were before."""
    values = after_outputs(site.layer, values, 1.0 / outer, -np.broadcast_to(taken, outer.shape))
    offset = inner * np.broadcast_to(given, inner.shape)
    return before_inputs(site.layer, values, inner, offset)


def _spread(ranges: np.ndarray) -> float:
    found = ranges[ranges > 0]
    return float(found.max() / found.min()) if len(found) else 1.0
