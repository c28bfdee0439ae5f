"""How two runs of an output differ, in figures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

# What the outputs of one kind do from sample to sample counts as a signal from so many steps on;
# what moves less is judged as it is, as an int8 file cannot tell it from its rounding.
_MOVING_LSB = 16

Part = tuple[slice, ...]
WHOLE: Part = (Ellipsis,)  # type: ignore[assignment]


@dataclasses.dataclass(frozen=True)
class Difference:
    """How two runs of an output differ.

    Attributes:
        max_lsb, mean_lsb: absolute differences in LSB.
        max_abs: the largest absolute difference in real units.
        agreement: share of decisions that are equal, or within 1 LSB of each other: argmaxes over
            the last axis; which side of 0.5 sigmoids are on; of whole numbers, the values. None if
            there is but one value.
        sqnr_db: signal to quantization noise ratio; infinite if both are equal.
        moving_db: the same of what moves: the deviations from the mean of each place of the last
            axis, and of the worst of the parts that were put together to the output. A constant
            has 0 dB, however near it is to the mean.
    """

    max_lsb: float
    mean_lsb: float
    max_abs: float
    agreement: float | None
    sqnr_db: float
    moving_db: float


class Tally:
    """Adds up differences batch by batch, so that outputs need not be kept.

    Args:
        parts: where, behind the axis of the samples, lie the parts that were put together.
        halves: decisions are which side of 0.5 a value is on, not argmaxes.
    """

    def __init__(self, parts: Sequence[Part] = (WHOLE,), *, halves: bool = False) -> None:
        self.low, self.high = math.inf, -math.inf
        self._largest = self._sum = self._signal = self._noise = 0.0
        self._count = self._equal = self._compared = 0
        self._parts = [(part, _Moving()) for part in parts]
        self._halves = halves
        self._gaps: list[np.ndarray] = []

    def add(self, expected: np.ndarray, received: np.ndarray) -> None:
        """Takes in a batch.

        Args:
            expected, received: arrays of the same shape, samples first.
        """
        if not np.size(expected):
            return
        wanted, got = expected.astype(np.float64), received.astype(np.float64)
        error = np.abs(wanted - got)
        # NumPy's maximum keeps NaN, so that a file that gives it cannot pass.
        self._largest = float(np.maximum(self._largest, error.max()))
        self._sum += float(error.sum())
        self._count += error.size
        self._signal += float(np.square(wanted).sum())
        self._noise += float(np.square(error).sum())
        self.low = min(self.low, float(wanted.min()))
        self.high = max(self.high, float(wanted.max()))
        for part, moving in self._parts:
            place = (slice(None), *part)
            moving.add(wanted[place], error[place])
        self._decide(wanted, got, expected.dtype.kind in "iub")

    def _decide(self, wanted: np.ndarray, got: np.ndarray, whole: bool) -> None:
        """Counts equal decisions, and keeps by how much the others were missed."""
        if whole:
            equal = wanted == got
            gaps = np.full(wanted.shape, math.inf)
        elif self._halves:
            equal = (wanted > 0.5) == (got > 0.5)
            gaps = np.abs(wanted - 0.5)
        elif wanted.ndim > 1 and wanted.shape[-1] > 1:
            picked = got.argmax(-1)
            equal = wanted.argmax(-1) == picked
            gaps = wanted.max(-1) - np.take_along_axis(wanted, picked[..., None], -1)[..., 0]
        else:
            return
        self._equal += int(equal.sum())
        self._compared += equal.size
        self._gaps.append(gaps[~equal & np.isfinite(gaps)])

    def result(self, lsb: float) -> Difference:
        """What was found, in units of `lsb`."""
        # Rounding alone decides between values that are not a step apart.
        ties = sum(int((gaps <= 1.01 * lsb).sum()) for gaps in self._gaps)
        alone = len(self._parts) == 1
        moving = [m.sqnr_db(lsb if alone else m.own_lsb) for _, m in self._parts]
        worst = math.nan if any(map(math.isnan, moving)) else min(moving)
        return Difference(
            max_lsb=self._largest / lsb,
            mean_lsb=self._sum / max(self._count, 1) / lsb,
            max_abs=self._largest,
            agreement=(self._equal + ties) / self._compared if self._compared else None,
            sqnr_db=sqnr_db(self._signal, self._noise),
            moving_db=worst,
        )


class _Moving:
    """Signal and noise of each place of the last axis, over all others."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: np.ndarray | None = None
        self._low: np.ndarray = np.array(math.inf)
        self._high: np.ndarray = np.array(-math.inf)

    def add(self, wanted: np.ndarray, error: np.ndarray) -> None:
        width = wanted.shape[-1] if wanted.ndim > 1 else 1
        wanted, error = wanted.reshape(-1, width), error.reshape(-1, width)
        sums = np.array([wanted.sum(0), np.square(wanted).sum(0), np.square(error).sum(0)])
        self._sums = sums if self._sums is None else self._sums + sums
        self._low = np.minimum(self._low, wanted.min(0))
        self._high = np.maximum(self._high, wanted.max(0))
        self._count += len(wanted)

    @property
    def own_lsb(self) -> float:
        """A step of the range of these alone."""
        return float(self._high.max() - self._low.min()) / 255

    def sqnr_db(self, lsb: float) -> float:
        """Of the places that move, or of all as they are if none does."""
        if self._sums is None:
            return math.inf
        total, squares, noise = self._sums
        moves = self._high - self._low >= _MOVING_LSB * lsb
        if not moves.any() or lsb == 0:
            return sqnr_db(float(squares.sum()), float(noise.sum()))
        signal = np.maximum(squares - np.square(total) / self._count, 0.0)
        return sqnr_db(float(signal[moves].sum()), float(noise[moves].sum()))


def sqnr_db(signal: float, noise: float) -> float:
    """The ratio of two energies in decibels."""
    if not math.isfinite(noise):
        return math.nan
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
