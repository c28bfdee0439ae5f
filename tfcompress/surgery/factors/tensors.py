"""Convolutions taken apart as tensors: Tucker-2, CP, and a column and a row."""

from __future__ import annotations

import functools

import numpy as np
from keras import layers

from tfcompress.surgery.factors import maths, ranks
from tfcompress.surgery.factors.layers import (
    CONVOLUTIONS,
    Part,
    array_of,
    convolution,
    depthwise,
    last_convolution,
)
from tfcompress.surgery.factors.maths import cp, cp_error, cp_full_rank, slice_energies
from tfcompress.surgery.factors.sites import Cost, MatrixSite, Site
from tfcompress.surgery.shapes import positions, size

# Multiplications for CP factors while their rank is sought, a tenth of those for the last ones.
_TRIAL = 1e10


class TuckerSite(Site[tuple[int, int]]):
    """A convolution as a 1x1 one into fewer channels, a small one, and a 1x1 one out of them."""

    kinds = CONVOLUTIONS
    spatial = True

    @property
    def full(self) -> tuple[int, int]:
        *_, inputs, outputs = self.layer.kernel.shape
        return int(outputs), int(inputs)

    @property
    def least(self) -> tuple[int, int]:
        return 1, 1

    def cost(self, rank: tuple[int, int]) -> Cost:
        out, into = rank
        *area, inputs, outputs = self.layer.kernel.shape
        first, core, last = inputs * into, size(area) * into * out, out * outputs
        read = sum(positions(x, self.layer.data_format) for x, _ in self.calls)
        macs = read * first + self.places * (core + last)
        return Cost(macs, first + core + last + self.biases)

    @functools.cached_property
    def ladder(self) -> tuple[list[tuple[int, int]], np.ndarray]:
        """From ranks (1, 1) on the one grows that brings more energy; what is lost, about."""
        options, out, into = self._losses
        return options, out + into - out * into

    @functools.cached_property
    def _losses(self) -> tuple[list[tuple[int, int]], np.ndarray, np.ndarray]:
        out, into = maths.tucker_energies(array_of(self.layer))
        return tucker_ladder(out, into)

    def rank_for(self, energy: float) -> tuple[int, int]:
        """Cutting both sides loses at most the sum of what cutting each of them loses."""
        options, out, into = self._losses
        return options[ranks.first_within(out + into, energy)]

    def noiseless(self) -> tuple[int, int]:
        out, into = maths.tucker_energies(array_of(self.layer))
        found = [
            ranks.evbmf(values, (len(values), self.weights // len(values)))
            for values in (out, into)
        ]
        return max(1, found[0]), max(1, found[1])

    def text(self, rank: tuple[int, int]) -> str:
        (out, into), (outputs, inputs) = rank, self.full
        return f"ranks {out} of {outputs} (out) and {into} of {inputs} (in)"

    def parts(self, rank: tuple[int, int]) -> tuple[list[Part], float]:
        out, into = rank
        layer, kernel = self.layer, array_of(self.layer)
        first, core, last = maths.tucker2(kernel, (out, into))
        kept = float(np.sum(core**2)) / max(float(np.sum(kernel**2)), 1e-300)
        names = [self.name(f"{layer.name}_{end}") for end in ("in", "core")]
        along = range(layer.rank)
        made = [
            Part(convolution(layer, into, names[0], 1, use_bias=False), {"kernel": first}),
            Part(
                convolution(layer, out, names[1], layer.kernel_size, along, use_bias=False),
                {"kernel": core},
            ),
            last_convolution(layer, last),
        ]
        return made, min(kept, 1.0)


def tucker_ladder(
    out: np.ndarray, into: np.ndarray
) -> tuple[list[tuple[int, int]], np.ndarray, np.ndarray]:
    """Pairs of ranks, and the share of energy that each loses out and in."""
    steps = sorted(
        [(float(value), 1, -place) for place, value in enumerate(into) if place > 0]
        + [(float(value), 0, -place) for place, value in enumerate(out) if place > 0]
    )
    rank = [len(out), len(into)]
    options = [(rank[0], rank[1])]
    for _, side, _ in steps:
        rank[side] -= 1
        options.append((rank[0], rank[1]))
    options.reverse()
    by_rank = [ranks.lost_by_rank(values) for values in (out, into)]
    lost = np.array([[by_rank[side][pair[side] - 1] for pair in options] for side in (0, 1)])
    return options, lost[0], lost[1]


class CpSite(Site[int]):
    """A convolution as a 1x1 one, a depthwise one, and a 1x1 one."""

    kinds = (layers.Conv1D, layers.Conv2D)
    spatial = True

    @classmethod
    def refuses(cls, layer) -> str | None:
        if layer.padding == "causal":
            return "Keras has no causal depthwise convolution"
        if len(set(layer.strides)) > 1:
            return "depthwise convolutions need the same stride along both axes"
        return None

    def tensor(self) -> np.ndarray:
        """The kernel as (places, in, out)."""
        kernel = array_of(self.layer)
        return kernel.reshape(-1, *kernel.shape[-2:])

    @property
    def full(self) -> int:
        *area, inputs, outputs = self.layer.kernel.shape
        return cp_full_rank((size(area), inputs, outputs))

    def cost(self, rank: int) -> Cost:
        *area, inputs, outputs = self.layer.kernel.shape
        read = sum(positions(x, self.layer.data_format) for x, _ in self.calls)
        macs = read * inputs + self.places * (size(area) + outputs)
        return Cost(macs * rank, (inputs + size(area) + outputs) * rank + self.biases)

    @functools.cached_property
    def ladder(self) -> tuple[list[int], np.ndarray]:
        """All ranks, with the energy that the start of the search for factors loses.

        What a CP of a rank loses is not known before it is computed; it is less.
        """
        lost = ranks.lost_by_rank(slice_energies(self.tensor()))
        return list(range(1, self.full + 1)), lost

    def rank_for(self, energy: float) -> int:
        """A rank that keeps enough, at most a tenth above the least that is found to do so."""
        options, lost = self.ladder
        enough = options[ranks.first_within(lost, energy)]
        below = self._least_for(energy) - 1
        rank = min(enough, self._largest_smaller)
        found = rank == enough
        while rank - below > max(1, rank // 10) and energy < 1:
            middle = (below + rank) // 2
            if self._keeps(energy, middle):
                rank, found = middle, True
            else:
                below = middle
        return rank if found or (rank > below and self._keeps(energy, rank)) else enough

    def _least_for(self, energy: float) -> int:
        """A rank of which the unfoldings say that no lower one keeps enough."""
        unfolded = maths.tucker_energies(array_of(self.layer))
        return 1 + max(ranks.first_within(ranks.lost_by_rank(x), energy) for x in unfolded)

    @property
    def _largest_smaller(self) -> int:
        """The largest rank with which the layer costs no more than as it is; 0 if none does."""
        own, one = self.own_cost, self.cost(1)
        return min(own.macs // one.macs, self.weights // (one.params - self.biases), self.full)

    def _keeps(self, energy: float, rank: int) -> bool:
        factors = cp(self.tensor(), rank, _TRIAL)
        return 1.0 - cp_error(self.tensor(), factors) >= energy

    def parts(self, rank: int) -> tuple[list[Part], float]:
        layer = self.layer
        place, into, out = factors = cp(self.tensor(), rank)
        names = [self.name(f"{layer.name}_{end}") for end in ("in", "depthwise")]
        made = [
            Part(convolution(layer, rank, names[0], 1, use_bias=False), {"kernel": into}),
            Part(depthwise(layer, names[1]), {"kernel": place}),
            last_convolution(layer, out.T),
        ]
        return made, max(0.0, 1.0 - cp_error(self.tensor(), factors))


class SpatialSite(MatrixSite):
    """A Conv2D as a column of weights, then a row."""

    kinds = (layers.Conv2D,)
    spatial = True

    @classmethod
    def refuses(cls, layer) -> str | None:
        return "its kernel is a single row or column" if 1 in layer.kernel_size else None

    @property
    def shape(self) -> tuple[int, int]:
        height, width, inputs, outputs = self.layer.kernel.shape
        return height * inputs, width * outputs

    def matrix(self) -> np.ndarray:
        return maths.spatial_matrix(array_of(self.layer))

    def cost(self, rank: int) -> Cost:
        rows, columns = self.shape
        macs = sum(self._between(*call) for call in self.calls) * rows + self.places * columns
        return Cost(macs * rank, (rows + columns) * rank + self.biases)

    def _between(self, x, y) -> int:
        """How many places the tensor between both has: the height of the output, and the width
        of the input.
        """
        height, width = (2, 3) if self.layer.data_format == "channels_first" else (1, 2)
        return size((y[0], y[height], x[width]))

    def parts(self, rank: int) -> tuple[list[Part], float]:
        layer = self.layer
        column, row = maths.spatial_svd(array_of(layer), rank)
        height, width = layer.kernel_size
        first = self.name(f"{layer.name}_in")
        made = [
            Part(
                convolution(layer, rank, first, (height, 1), [0], use_bias=False),
                {"kernel": column},
            ),
            last_convolution(layer, row, (1, width), [1]),
        ]
        return made, self.kept(rank)
