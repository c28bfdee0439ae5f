"""Which rank a layer gets: by energy, by what is noise, or by a budget that layers share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy.optimize

from tfcompress.surgery.hull import lower_hull

# Energy that is left to rounding where all of it is to be kept.
_ROUNDING = 1e-13

# How many noise levels are tried before the best one is refined.
_LEVELS = 256


def lost_by_rank(energies: np.ndarray) -> np.ndarray:
    """The share of energy lost at ranks 1, 2, ..., given squared singular values, largest first."""
    total = float(np.sum(energies))
    if total <= 0:
        return np.zeros(len(energies))
    # Summed from the smallest on, so that the last ones are exact.
    tails = np.cumsum(energies[::-1])[::-1]
    return np.append(tails[1:], 0.0) / total


def first_within(lost: np.ndarray, energy: float) -> int:
    """The first place at which at least a share `energy` is kept; `lost` falls."""
    return int(np.argmax(lost <= 1.0 - energy + _ROUNDING))


def evbmf(energies: np.ndarray, shape: tuple[int, int]) -> int:
    """The rank of a matrix below noise, by empirical variational Bayesian matrix factorization.

    The global analytic solution with unknown noise (Nakajima et al. 2013, "Global analytic
    solution of fully-observed variational Bayesian matrix factorization", JMLR 14).
    """
    small, large = sorted(shape)
    alpha = small / large
    tau = 2.5129 * math.sqrt(alpha)
    threshold = (1 + tau) * (1 + alpha / tau)
    values = np.asarray(energies, "float64")[:small]
    total = float(values.sum())
    if total <= 0:
        return 0
    most = min(math.ceil(small / (1 + alpha)) - 1, small - 1)
    rest = float(values[most:].mean()) / large
    highest = total / (small * large)
    lowest = max(float(values[most]) / (large * threshold), rest, highest * _ROUNDING)
    if lowest >= highest:
        noise = highest
    else:
        noise = _noise(values, alpha, threshold, large, (lowest, highest))
    return int(np.sum(values > large * noise * threshold))


def _noise(values, alpha: float, threshold: float, large: int, bounds) -> float:
    """The variance of the noise for which the free energy is least."""

    def energy(log_noise: float) -> float:
        x = np.maximum(values / (large * math.exp(log_noise)), 1e-300)
        signal = x[x > threshold]
        centre = signal - (1 + alpha)
        root = np.sqrt(np.maximum(centre**2 - 4 * alpha, 0.0))
        tau = (centre + root) / 2
        gain = np.log(tau + 1) + alpha * np.log(tau / alpha + 1) - tau
        return float(np.sum(x - np.log(x)) + np.sum(gain))

    levels = np.linspace(math.log(bounds[0]), math.log(bounds[1]), _LEVELS)
    best = int(np.argmin([energy(level) for level in levels]))
    around = levels[max(best - 1, 0)], levels[min(best + 1, _LEVELS - 1)]
    found = scipy.optimize.minimize_scalar(energy, bounds=around, method="bounded")
    return math.exp(found.x if found.fun < energy(levels[best]) else levels[best])


def share(costs: Sequence[np.ndarray], lost: Sequence[np.ndarray], budget: float) -> list[int]:
    """One option for each layer, such that all together cost at most a budget.

    The product of the energies that the layers keep is made large, one step after the other that
    loses the least of it for what it saves (Zhang et al. 2016, arXiv:1505.06798). What is left of
    the budget then goes to the steps back that gain the most and still fit.
    """
    costs = [np.asarray(cost, "float64") for cost in costs]
    losses = [-np.log(np.maximum(1.0 - np.asarray(part), 1e-12)) for part in lost]
    chosen = [len(cost) - 1 for cost in costs]
    spent = sum(float(cost[-1]) for cost in costs)
    for layer, option in _steps(costs, losses):
        if spent <= budget:
            break
        spent -= costs[layer][chosen[layer]] - costs[layer][option]
        chosen[layer] = option
    _spend(costs, losses, chosen, budget - spent)
    return chosen


def _steps(costs, losses) -> list[tuple[int, int]]:
    """(layer, option) in the order of what a step down to it loses for what it saves."""
    found = []
    for layer, (cost, loss) in enumerate(zip(costs, losses, strict=True)):
        # Of options that cost the same, the first one counts.
        place = {float(spent): i for i, spent in reversed(list(enumerate(cost)))}
        points = sorted((spent, float(loss[i])) for spent, i in place.items())
        hull = [place[spent] for spent, _ in lower_hull(points)]
        for number in range(len(hull) - 1, 0, -1):
            low, high = hull[number - 1], hull[number]
            price = (loss[low] - loss[high]) / (cost[high] - cost[low])
            found.append((price, layer, -number, low))
    return [(layer, option) for _, layer, _, option in sorted(found)]


def _spend(costs, losses, chosen: list[int], left: float) -> None:
    """Takes larger options as long as one fits into what is left, the best bargain first."""
    while True:
        best: tuple[float, int, int] | None = None
        for layer, now in enumerate(chosen):
            more = costs[layer][now + 1 :] - costs[layer][now]
            gain = losses[layer][now] - losses[layer][now + 1 :]
            fits = (more <= left) & (gain >= 0) & (more > 0)
            if not fits.any():
                continue
            bargain = np.where(fits, gain / np.where(more > 0, more, 1.0), -1.0)
            option = int(np.argmax(bargain))
            if best is None or bargain[option] > best[0]:
                best = (float(bargain[option]), layer, now + 1 + option)
        if best is None:
            return
        _, layer, option = best
        left -= costs[layer][option] - costs[layer][chosen[layer]]
        chosen[layer] = option
