"""choose_precision: assignments against brute force, files that keep within budgets to the byte."""

import itertools
import json

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.recipe.findings import Row, Sensitivity
from tfcompress.search import choose_precision as module
from tfcompress.search import layer_latency
from tfcompress.search.assignment import assign, total
from tfcompress.search.choice import FileCosts

PRECISIONS = ("int8", "int4", "int2")
SIZES = {"a": 1000, "b": 400, "c": 200}
LOSSES = {"a": (0.001, 0.02, 0.5), "b": (0.001, 0.01, 0.9), "c": (0.002, 0.003, 0.004)}


def rows_of():
    return [
        Row(name, ("kernel",), SIZES[name], "precision", p, {"outputs": loss}, loss)
        for name, losses in LOSSES.items()
        for p, loss in zip(PRECISIONS, losses, strict=True)
    ]


class Files:
    """Files of 500 bytes more than the kernels, and 12 for each that is not int8."""

    model, clock = None, None

    def __init__(self, factor=1.0):
        self.factor, self.made = factor, []

    def content(self, precisions):
        self.made.append(dict(precisions))
        return dict(precisions)

    def costs(self, content, base=None):
        bits = {"int8": 8, "int4": 4, "int2": 2}
        size = 500 + sum(SIZES[k] * bits[p] // 8 + 12 * (p != "int8") for k, p in content.items())
        lost = sum(LOSSES[k][PRECISIONS.index(p)] for k, p in content.items())
        return FileCosts(size, 0.01 + self.factor * (lost - 0.004))


def best_of(budgets, factor=1.0):
    files = Files(factor)
    found = Sensitivity("m", "outputs", {}, tfc.Prune(0.5), tuple(rows_of()))
    return module._Search(files, rows_of(), budgets).best("m", found), files


def every():
    files = Files()
    names = [dict(zip(SIZES, p, strict=True)) for p in itertools.product(PRECISIONS, repeat=3)]
    return [(each, files.costs(each)) for each in names]


@pytest.mark.parametrize("seed", range(4))
def test_assignments_are_the_best_of_all(seed):
    random = np.random.default_rng(seed)
    costs = {name: random.integers(1, 999, (5, 3)).astype(float).tolist() for name in "xyz"}
    limits = {"y": 1.3 * sum(map(min, costs["y"])), "z": 2.0 * sum(map(min, costs["z"]))}
    picks, holds = assign(costs, "x", limits)
    fitting = [p for p in itertools.product(range(3), repeat=5)
               if all(total(costs[n], p) <= most for n, most in limits.items())]  # fmt: skip
    assert holds == bool(fitting)
    if holds:
        best = min(total(costs["x"], p) for p in fitting)
        assert total(costs["x"], picks) == pytest.approx(best)
        assert all(total(costs[n], picks) <= most + 1e-6 for n, most in limits.items())
    picks, holds = assign(costs, "x", {"y": 1.0})
    assert (holds, total(costs["y"], picks)) == (False, sum(map(min, costs["y"])))
    costs["x"][0][picks[0]] = float("inf")
    assert assign(costs, "x", {})[0][0] != picks[0]


@pytest.mark.parametrize("flash", [2100, 1700, 1500, 1480, 1286, 1200])
def test_budget_of_flash_is_met_to_the_byte_by_the_best_file(flash):
    found, _ = best_of({"flash": flash})
    fitting = [(costs.loss, names) for names, costs in every() if costs.bytes <= flash]
    assert found.file.bytes <= flash
    assert found.precisions == min(fitting, key=lambda x: x[0])[1]
    assert found.int8 == FileCosts(2100, pytest.approx(0.01))


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.5])
def test_budget_of_quality_holds_for_the_file_whatever_was_predicted(factor):
    found, _ = best_of({"quality": 0.035}, factor)
    allowed = 0.025 / factor + 0.004
    fitting = [(c.bytes, names) for names, c in every() if c.loss - 0.01 + 0.004 <= allowed]
    assert found.file.loss <= 0.035
    assert found.file.bytes == min(fitting, key=lambda x: x[0])[0]


def test_budgets_that_no_file_meets_tell_the_closest():
    with pytest.raises(ValueError, match=r"meets flash=935; the closest one has 936 bytes"):
        best_of({"flash": 935})
    with pytest.raises(ValueError, match=r"no file .* in int8, int4, int2 meets quality=0\.005; .*"
                       r"a loss of 0\.01\. Raise"):  # fmt: skip
        best_of({"quality": 0.005})
    assert best_of({"flash": 936})[0].precisions == dict.fromkeys("abc", "int2")


def test_result_is_told_drawn_and_plain(tmp_path):
    found, _ = best_of({"flash": 1700})
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.recipe.precision == found.precisions
    assert found.to_dict()["precisions"] == found.precisions
    text = " ".join(str(found).split())
    assert "m: precisions for flash 1,700" in text
    assert f"chosen: {found.file.bytes:,} bytes" in text
    sizes, losses = zip(*found.curve, strict=True)
    assert list(sizes) == sorted(sizes)
    assert list(losses) == sorted(losses, reverse=True)
    left, right = found.plot(tmp_path / "plot.png").axes
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    assert list(left.lines[0].get_xdata()) == list(sizes)
    assert sorted(bar.get_width() for bar in right.patches) == sorted(r.bytes for r in found.layers)


def small():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(16, 3, activation="relu", name="conv")(inputs)
    x = layers.Flatten()(x)
    x = layers.Dense(32, activation="relu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax", name="kind")(x), name="small")


def test_errors_come_before_work(monkeypatch):
    model, x = small(), np.zeros((4, 8, 8, 4), np.float32)
    monkeypatch.setattr(module, "Simulation", None)
    for how, said in (
        ({}, r"needs a budget; received none"),
        ({"flash": 0}, r"flash must be a number above 0 \(bytes\); received 0"),
        ({"latency": float("nan")}, r"latency must be a number above 0"),
        ({"flash": 9, "precisions": ["int4"]}, r"precisions must be a list with 'int8'"),
        ({"flash": 9, "precisions": ["int8", "int5"]}, r"unknown precision 'int5'"),
        ({"flash": 9, "layers": "kin"}, r"layers must be some that can have other precisions"),
        ({"flash": 9, "precision": "int8"}, r"takes no precision; .* It is given by precisions"),
        ({"flash": 9, "accelerator": "tpu", "latency": 1.0}, r"unknown accelerator 'tpu'"),
    ):
        with pytest.raises(ValueError, match=said):
            tfc.choose_precision(model, x, **how)
    with pytest.raises(ValueError, match="NaN or infinite"):
        tfc.choose_precision(model, x * np.nan, flash=9)
    with pytest.raises(ValueError, match="comes from compress"):
        tfc.choose_precision(tfc.quantize_aware(model), x, flash=9)


@pytest.mark.slow
def test_files_of_a_model_keep_within_their_budgets(tmp_path, monkeypatch):
    monkeypatch.setenv("TFCOMPRESS_CACHE", str(tmp_path / "cache"))
    model, path = small(), tmp_path / "model.tflite"
    x = np.random.default_rng(0).normal(size=(40, 8, 8, 4)).astype("float32")
    found = tfc.choose_precision(model, x, flash=14_000, latency=1.0)
    assert found.precisions["conv"] == "int8"  # which is slower in int4
    assert found.precisions["hidden"] != "int8"
    tfc.convert(model, path, precision=found.precisions, calibration=x, samples=None)
    assert path.stat().st_size == found.file.bytes == tfc.inspect(path).file_bytes <= 14_000
    assert found.int8.bytes > 14_000
    assert found.file.ms <= 1.02 * found.int8.ms
    kept = json.loads(next((tmp_path / "cache" / "latency").iterdir()).read_text())
    monkeypatch.setattr(layer_latency, "times_apart", None)  # all is in the cache
    clock = layer_latency.Clock()
    assert len(kept) >= 5
    assert clock._known == kept
    with pytest.raises(ValueError, match=r"meets flash=3,000; the closest one has \d,\d+ bytes"):
        tfc.choose_precision(model, x, flash=3_000)
