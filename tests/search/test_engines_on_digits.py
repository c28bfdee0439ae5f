"""Engines on the table of digits: at equal numbers of trainings, learning beats chance."""

import pytest
from measurements.architecture_search import BUDGET, compare, curve_of
from measurements.digits_table import OPTIONS, every_pick, read

ENGINES = ("random", "evolution", "reinforcement")


@pytest.mark.parametrize("budget", [None, BUDGET])
def test_evolution_and_reinforce_find_better_ones_than_chance(budget):
    found = compare(ENGINES, seeds=10, trials=60, budget=budget)
    ends = {name: curves[:, -1].mean() for name, curves in found.items()}
    assert ends["evolution"] > ends["random"] + 0.003
    assert ends["reinforcement"] > ends["random"] + 0.003


def test_the_table_is_whole_and_curves_are_of_what_it_holds():
    table = read()
    assert {tuple(picks.values()) for picks in every_pick()} == table.keys()
    assert len(table) == 648 == len(list(every_pick()))
    assert set(OPTIONS) == {"width", "widen", "kernel1", "kernel2", "block", "depth", "pool"}
    curve = curve_of(table, "random", 0, 20, BUDGET)
    assert list(curve) == sorted(curve)
    fitting = [row["accuracy"] for row in table.values() if row["macs"] <= BUDGET]
    assert set(curve) <= set(fitting)
