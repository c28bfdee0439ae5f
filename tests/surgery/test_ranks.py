"""Ranks by energy, by noise, and by a budget."""

import itertools

import numpy as np
import pytest

from tfcompress.surgery.factors import ranks
from tfcompress.surgery.factors.maths import energies


def test_lost_energy_by_rank():
    lost = ranks.lost_by_rank(np.array([6.0, 3.0, 1.0]))
    assert np.allclose(lost, [0.4, 0.1, 0.0])
    assert not ranks.lost_by_rank(np.zeros(2)).any()


@pytest.mark.parametrize(("energy", "place"), [(0.5, 0), (0.6, 0), (0.61, 1), (0.9, 1), (1.0, 2)])
def test_the_first_rank_that_keeps_enough(energy, place):
    assert ranks.first_within(np.array([0.4, 0.1, 0.0]), energy) == place


def low_rank(rows, columns, rank, noise, seed=0):
    random = np.random.default_rng(seed)
    signal = random.normal(size=(rows, rank)) @ random.normal(size=(rank, columns))
    return signal + noise * random.normal(size=(rows, columns))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("rows", "columns", "rank", "noise"),
    [(100, 60, 7, 0.5), (60, 100, 7, 0.5), (200, 200, 20, 1.0), (64, 576, 10, 0.3), (80, 80, 1, 1)],
)
def test_evbmf_finds_the_true_rank(rows, columns, rank, noise, seed):
    matrix = low_rank(rows, columns, rank, noise, seed)
    assert ranks.evbmf(energies(matrix), matrix.shape) == rank
    assert ranks.evbmf(energies(matrix * 1e-3), matrix.shape) == rank  # of any scale


def test_evbmf_of_noise_and_of_nothing_is_0():
    noise = np.random.default_rng(0).normal(size=(120, 80))
    assert ranks.evbmf(energies(noise), noise.shape) == 0
    assert ranks.evbmf(np.zeros(5), (5, 9)) == 0


def test_evbmf_without_noise_is_the_rank():
    matrix = low_rank(50, 40, 6, 0.0)
    assert ranks.evbmf(energies(matrix), matrix.shape) == 6


def options(random, count):
    cost = np.cumsum(random.integers(1, 9, count)).astype(float)
    lost = np.sort(random.uniform(0, 0.95, count))[::-1]
    lost[-1] = 0.0
    return cost, lost


@pytest.mark.parametrize("seed", range(20))
def test_sharing_stays_in_the_budget_and_near_the_best(seed):
    random = np.random.default_rng(seed)
    found = [options(random, 6) for _ in range(4)]
    costs, lost = [x[0] for x in found], [x[1] for x in found]
    least, most = sum(c[0] for c in costs), sum(c[-1] for c in costs)
    budget = random.uniform(least, most)

    def kept(chosen):
        return np.prod([1 - part[i] for part, i in zip(lost, chosen, strict=True)])

    def cost(chosen):
        return sum(part[i] for part, i in zip(costs, chosen, strict=True))

    chosen = ranks.share(costs, lost, budget)
    assert cost(chosen) <= budget
    every = itertools.product(range(6), repeat=4)
    best = max(kept(x) for x in every if cost(x) <= budget)
    assert kept(chosen) >= 0.6 * best
    for layer in range(4):  # nothing more fits
        if chosen[layer] < 5:
            more = chosen.copy()
            more[layer] += 1
            assert cost(more) > budget


def test_sharing_takes_from_the_layer_that_loses_the_least():
    flat, steep = np.array([0.9, 0.5, 0.0]), np.array([0.02, 0.01, 0.0])
    cost = np.array([1.0, 2.0, 3.0])
    assert ranks.share([cost, cost], [flat, steep], 4) == [2, 0]
    assert ranks.share([cost, cost], [flat, steep], 6) == [2, 2]
    assert ranks.share([cost, cost], [flat, steep], 2) == [0, 0]


def test_layers_of_one_option_stay():
    assert ranks.share([np.array([5.0])], [np.array([0.0])], 5) == [0]
