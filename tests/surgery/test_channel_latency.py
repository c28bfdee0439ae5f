"""prune_channels under a budget of latency: how it is lowered, and which multiples are tried."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.surgery.pruning import measuring
from tfcompress.surgery.pruning.prune_channels import prune_channels, prune_channels_iteratively
from tfcompress.surgery.shrink import Shrink

X = np.random.default_rng(0).normal(size=(16, 6, 6, 2)).astype("float32")


def model(width=64):
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 6, 2))
    y = layers.Conv2D(width, 3, activation="relu", name="a")(x)
    y = layers.Conv2D(width, 3, activation="relu", name="b")(y)
    return keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling2D()(y)))


@pytest.fixture
def clock(monkeypatch):
    """Latency that falls half as fast as the MACs, and what it was asked of."""
    seen = []

    def latencies(structure, choices, calibration, tell=None):
        whole = structure.cost({})[0]
        left = [structure.cost(structure.sizes(choice))[0] / whole for choice in choices]
        seen.append(left)
        return [0.5 + share / 2 for share in left]

    monkeypatch.setattr(measuring, "latencies", latencies)
    return seen


def left_of(small):
    before, after = small.surgery_report.macs
    return after / before


def test_macs_fall_until_the_latency_holds(clock):
    small = prune_channels(model(), macs=0.8, latency=0.7, round_to=1, data=X)
    asked = [left for (left,) in clock]
    assert asked[0] == pytest.approx(0.8, abs=0.02)
    assert asked == sorted(asked, reverse=True)
    assert left_of(small) == asked[-1] <= 0.4 < asked[-2]
    # One that holds already takes no more than the MACs.
    small = prune_channels(model(), macs=0.3, latency=0.7, round_to=1, data=X)
    assert left_of(small) == pytest.approx(0.3, abs=0.02)


def test_latency_alone(clock):
    small = prune_channels(model(), latency=0.75, round_to=1, data=X)
    assert 0.3 < left_of(small) <= 0.5


def test_the_multiple_that_is_fastest(monkeypatch):
    def latencies(structure, choices, calibration, tell=None):
        sizes = [sorted(structure.sizes(c).values()) for c in choices]
        return [1.0 if any(n % 16 for n in each) else 0.5 for each in sizes]

    monkeypatch.setattr(measuring, "latencies", latencies)
    small = prune_channels(model(), macs=0.45, round_to="latency", data=X)
    assert all(small.get_layer(name).filters % 16 == 0 for name in "ab")


@pytest.mark.slow
def test_latency_is_measured():
    small = prune_channels(model(128), macs=0.95, latency=0.6, data=X)
    assert left_of(small) < 0.9
    assert small(X).shape == (16, 3)


def test_what_cannot_be(clock):
    with pytest.raises(ValueError, match=r"latency=0.4 is out of reach: .* at least, as measured"):
        prune_channels(model(), latency=0.4, data=X)
    with pytest.raises(ValueError, match=r"need data; received none. Pass data=x"):
        prune_channels(model(), latency=0.4)
    with pytest.raises(ValueError, match=r"need data; received none. Pass data=x"):
        prune_channels(model(), macs=0.4, round_to="latency")
    with pytest.raises(ValueError, match="macs, params or sparsity"):
        prune_channels(model(), per_layer={"a": 0.5}, latency=0.4, data=X)
    with pytest.raises(ValueError, match="latency must be"):
        prune_channels(model(), macs=0.5, latency=40, data=X)
    with pytest.raises(ValueError, match="does not measure latency"):
        prune_channels_iteratively(model(), 2, print, macs=0.5, latency=0.4, data=X)


def test_recipes_ask_for_it():
    told = Shrink({"channels": {"latency": 0.6, "round_to": "latency"}}).steps
    assert told == (("channels", {"latency": 0.6, "round_to": "latency"}),)
    with pytest.raises(ValueError, match="exactly one of macs"):
        Shrink({"channels": {"round_to": "latency"}})
