"""How far two signals are apart: largest and mean difference, SQNR, agreement of argmax."""

from __future__ import annotations

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Difference:
    """How two runs of an output differ.

    Attributes:
        max_lsb, mean_lsb: absolute differences in LSB.
        max_abs: the largest absolute difference in real units.
        agreement: share of argmaxes over the last axis that are equal, of values that are equal
            for whole numbers; None if there is but one value.
        sqnr_db: signal to quantization noise ratio; infinite if both are equal.
    """

    max_lsb: float
    mean_lsb: float
    max_abs: float
    agreement: float | None
    sqnr_db: float


class Tally:
    """Adds up differences batch by batch, so that outputs need not be kept."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self._largest = self._sum = self._signal = self._noise = 0.0
        self._count = self._equal = self._compared = 0

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
        if expected.dtype.kind in "iub":
            self._equal += int((wanted == got).sum())
            self._compared += wanted.size
        elif wanted.ndim > 1 and wanted.shape[-1] > 1:
            equal = wanted.argmax(-1) == got.argmax(-1)
            self._equal += int(equal.sum())
            self._compared += equal.size

    def result(self, lsb: float) -> Difference:
        """What was found, in units of `lsb`."""
        return Difference(
            max_lsb=self._largest / lsb,
            mean_lsb=self._sum / max(self._count, 1) / lsb,
            max_abs=self._largest,
            agreement=self._equal / self._compared if self._compared else None,
            sqnr_db=sqnr_db(self._signal, self._noise),
        )


def sqnr_db(signal: float, noise: float) -> float:
    """The ratio of two energies in decibels.

    Args:
        signal, noise: sums of squares.

    Returns:
        10 log10(signal / noise): infinite without noise, else minus infinite without signal; NaN
        if the noise is not finite.

    Example:
        >>> sqnr_db(100.0, 1.0)
        20.0
    """
    if not math.isfinite(noise):
        return math.nan
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
