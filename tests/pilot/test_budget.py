"""Budgets in the words of users, and how good a file is for them."""

import math

import pytest

from tfcompress.pilot.budget import MISSES, Budget, Goal

BASE = {"quality": 0.9, "flash": 100_000.0, "ram": 50_000.0, "latency": 1.0, "macs": 4e6}


def bounds(text, base=BASE, up=True):
    return Budget.parse(text).bounds(base, up)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flash=48k", {"flash": 49152}),
        ("flash=0.25x", {"flash": 25_000}),
        ("ram=64k, macs=1.5M", {"ram": 65536, "macs": 1_500_000}),
        ("latency=0.5x", {"latency": 0.5}),
        ("latency=0.5", {"latency": 0.5}),
        ("quality=-0.5", {"quality": 0.895}),
        ("quality=+1", {"quality": 0.91}),
        ("quality=0", {"quality": 0.9}),
        ("quality=0.85", {"quality": 0.85}),
        ("quality=-1%", {"quality": 0.891}),
        ("quality=99%", {"quality": 0.891}),
    ],
)
def test_budgets_are_numbers_beside_the_float_file(text, expected):
    assert bounds(text) == pytest.approx(expected)


def test_a_mapping_says_the_same():
    assert Budget.parse({"flash": 49152, "quality": "-0.5"}).text == "flash=49152,quality=-0.5"
    assert bounds({"flash": "48k", "quality": -0.5}) == bounds("flash=48k,quality=-0.5")


def test_a_quality_that_is_better_the_lower_it_is():
    loss = {**BASE, "quality": 0.2}
    assert bounds("quality=-5%", loss, up=False) == pytest.approx({"quality": 0.21})
    assert bounds("quality=0.3", loss, up=False) == {"quality": 0.3}
    with pytest.raises(
        ValueError, match=r"quality=-0\.5 are points of a measure from 0 to 1.*-0\.5%"
    ):
        bounds("quality=-0.5", loss, up=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a search needs a budget; received none"),
        ("size=48k", r"unknown budget 'size'; expected one of flash, ram"),
        ("flas=48k", r"unknown budget 'flas'.*Did you mean 'flash'\?"),
        ("flash", r"budget must be NAME=AMOUNT .* received 'flash'"),
        ("flash=48parsecs", r"budget flash must be bytes such as 48k, or 0\.25x"),
        ("flash=-3", "budget flash must be bytes"),
        ("flash=0x", "budget flash must be bytes"),
        ("flash=1k,flash=2k", "received flash twice"),
        ("latency=12ms", r"budget latency must be parts of the float file's time such as 0\.5x"),
        ("cycles=many", "budget cycles must be cycles by Vela such as 1.5M"),
        ("quality=good", r"budget quality must be -0\.5 \(points below"),
    ],
)
def test_budgets_that_cannot_be_read(text, message):
    with pytest.raises(ValueError, match=message):
        Budget.parse(text)


def goal(text, up=True):
    return Goal(bounds(text, up=up), BASE, up)


def test_what_misses_a_budget_is_behind_what_keeps_all():
    found = goal("flash=50000,quality=-0.5")
    kept = {**BASE, "flash": 50_000, "quality": 0.895}
    assert found.missed(kept) == {}
    assert found(kept) < MISSES
    missed = {**kept, "flash": 60_000}
    assert found.missed(missed) == pytest.approx({"flash": 0.2})
    assert MISSES < found(missed) < found({**kept, "flash": 80_000})
    assert "quality" in found.missed({**kept, "quality": 0.894})
    assert found.missed({**kept, "quality": 0.894}, gain=0.002) == {}
    assert found.missed({**kept, "quality": math.nan})["quality"] == math.inf


def test_with_a_quality_the_smallest_is_best_without_it_the_best():
    small, good = {**BASE, "flash": 20_000, "quality": 0.896}, {**BASE, "flash": 40_000}
    assert goal("flash=50000,quality=-0.5")(small) < goal("flash=50000,quality=-0.5")(good)
    assert goal("flash=50000")(good) < goal("flash=50000")(small)
    # Without a cost, flash is what is made small.
    assert goal("quality=-0.5")(small) < goal("quality=-0.5")(good)


def test_of_two_costs_the_mean_of_their_logarithms_counts():
    found = goal("flash=50000,ram=50000,quality=-0.5")
    halves = {**BASE, "flash": 25_000, "ram": 25_000}
    quarter = {**BASE, "flash": 12_500, "ram": 50_000}
    assert found(halves) == pytest.approx(found(quarter))
    assert found(halves) == pytest.approx(math.log(0.5) / 10)
    assert found({**halves, "quality": 0.91}) < found(halves)
