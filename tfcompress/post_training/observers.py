"""Which range of values of an activation a quantizer keeps."""

from __future__ import annotations

import dataclasses

import numpy as np

OBSERVERS = ("min_max", "moving_average", "percentile", "mse", "kl", "octav")

_ITERATIONS = 20

# On each side of zero; a step of 8 bits is 16 of them or more.
_BINS = 4096
# The share of values that "percentile" keeps below its upper limit, and above its lower one.
_KEPT = 0.9999
# Bins on each side for "kl", and its candidates, as in TensorRT.
_ENTROPY_BINS, _ENTROPY_STEP = 2048, 16


@dataclasses.dataclass(frozen=True)
class Histogram:
    """How often a tensor had which values.

    Attributes:
        low, high: least and greatest value, with 0 between.
        counts: float64, of bins of one width, as many below zero as above. Zeros are in none: each
            range represents them.
        zeros: how many there were.
    """

    low: float
    high: float
    counts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(2 * _BINS))

    @property
    def width(self) -> float:
        """Of a bin."""
        return max(-self.low, self.high) / _BINS or 1.0

    @property
    def centers(self) -> np.ndarray:
        return (np.arange(-_BINS, _BINS) + 0.5) * self.width

    def add(self, values: np.ndarray) -> Histogram:
        """With more values, which are between `low` and `high`."""
        flat = values.ravel()
        flat = flat[flat != 0]
        bins = np.floor(flat * np.float32(1 / self.width)).astype(np.int32)
        np.clip(bins, -_BINS, _BINS - 1, out=bins)
        counts = self.counts + np.bincount(bins + _BINS, minlength=2 * _BINS)
        return dataclasses.replace(self, counts=counts)

    def merge(self, other: Histogram) -> Histogram:
        """With the values of another histogram of the same limits."""
        return dataclasses.replace(self, counts=self.counts + other.counts)


def activation_range(seen: Histogram, method: str, bits: int = 8) -> tuple[float, float]:
    """The range that a tensor's codes are spread over.

    Args:
        seen: its values.
        method: "percentile" leaves out one value of 10,000 at each end, zeros not counted; "mse"
            searches the least squared error; "kl" the least divergence from the distribution of
            absolute values (Migacz, 8-bit inference with TensorRT, 2017); "octav" is where the
            expected error is the least (Sakr et al. 2022, arXiv:2206.06501); all others keep all.
        bits: of the codes.

    Returns:
        (least, greatest) value, within those seen, with 0 between.
    """
    if method not in _METHODS or not seen.counts.any():
        return seen.low, seen.high
    low, high = _METHODS[method](seen, bits)
    return max(min(low, 0.0), seen.low), min(max(high, 0.0), seen.high)


def _percentile(seen: Histogram, bits: int) -> tuple[float, float]:
    edges = np.arange(-_BINS, _BINS + 1) * seen.width
    reached = np.append(0.0, np.cumsum(seen.counts))
    low, high = np.interp([(1 - _KEPT) * reached[-1], _KEPT * reached[-1]], reached, edges)
    return float(low), float(high)


def _search_range(seen: Histogram, bits: int) -> tuple[float, float]:
    """One end of the range after the other is moved to where the squared error is the least."""
    held = seen.counts > 0
    values, counts = seen.centers[held], seen.counts[held]
    ends = [seen.low, seen.high]
    for parts in (np.linspace(0.1, 1.0, 31), np.linspace(0.97, 1.03, 13)):
        for side in (1, 0) * 2:
            tried = np.repeat([ends], len(parts), axis=0)
            tried[:, side] *= parts
            ends = list(tried[np.argmin(_range_errors(values, counts, tried, bits))])
    return float(ends[0]), float(ends[1])


def _range_errors(values, counts, ends: np.ndarray, bits: int) -> np.ndarray:
    """The squared errors of values for ranges, rounded as in a file."""
    low, high = ends.T[..., None]
    step = (high - low) / (2**bits - 1)
    zero = np.rint(-low / step)
    codes = np.clip(np.rint(values / step), -zero, 2**bits - 1 - zero)
    return np.square(codes * step - values) @ counts


def _range_octav(seen: Histogram, bits: int) -> tuple[float, float]:
    """Newton's method for both ends in turn, of which one waits where its side has no values.

    The error is noise * (high - low)**2 for each value inside, and for each outside the square of
    how far. For a range from 0, or about 0, that is the formula of the paper.
    """
    noise, every = 4.0**-bits / 12, seen.counts.sum()
    sides = []  # of each, outwards: numbers of values that are beyond a bin, and their sums
    for counts in (seen.counts[:_BINS][::-1], seen.counts[_BINS:]):
        sizes = counts * (np.arange(_BINS) + 0.5) * seen.width
        beyond = [np.append(np.cumsum(x[::-1])[::-1], 0.0) for x in (counts, sizes)]
        sides.append((*beyond, beyond[1][0] / max(beyond[0][0], 1.0)))
    ends = [sides[0][2], sides[1][2]]  # both as sizes; they begin as means
    for _ in range(2 * _ITERATIONS):
        before = list(ends)
        outside = [sides[i][0][_bin_beyond(ends[i], seen.width)] for i in (0, 1)]
        for side in (0, 1):
            number, total = (x[_bin_beyond(ends[side], seen.width)] for x in sides[side][:2])
            inside = noise * (every - sum(outside))
            if number > 0:
                ends[side] = max(total - inside * ends[1 - side], 0.0) / (number + inside)
        if np.allclose(ends, before, rtol=1e-6, atol=0):
            break
    return -ends[0], ends[1]


def _bin_beyond(size: float, width: float) -> int:
    return min(int(np.ceil(size / width)), _BINS)


def _entropy(seen: Histogram, bits: int) -> tuple[float, float]:
    """The greatest absolute value kept, where its distribution in codes is nearest to the true."""
    counts = seen.counts[_BINS:] + seen.counts[:_BINS][::-1]
    counts = counts.reshape(_ENTROPY_BINS, -1).sum(axis=1)
    codes = 2 ** (bits - 1 if seen.low < 0 < seen.high else bits)
    tried = range(codes, _ENTROPY_BINS + 1, _ENTROPY_STEP)
    best = min(tried, key=lambda kept: (_divergence(counts, kept, codes), -kept))
    limit = best * seen.width * _BINS / _ENTROPY_BINS
    return -limit, limit


def _divergence(counts: np.ndarray, kept: int, codes: int) -> float:
    """Kullback-Leibler's of the first bins in some codes from all bins, clipped."""
    inside = counts[:kept]
    clipped = inside.copy()
    clipped[-1] += counts[kept:].sum()
    code = np.arange(kept) * codes // kept
    held = inside > 0
    mean = np.bincount(code, inside, codes) / np.maximum(np.bincount(code, held, codes), 1)
    given = np.where(held, mean[code], 0.0)
    if clipped[-1] > 0 and not held[-1]:
        return np.inf
    p, q = clipped[held] / clipped.sum(), given[held] / given.sum()
    return float(np.sum(p * np.log(p / q)))


_METHODS = {
    "percentile": _percentile,
    "mse": _search_range,
    "kl": _entropy,
    "octav": _range_octav,
}
