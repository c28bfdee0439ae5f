"""sensitivity by precision: against outputs worked out by hand; findings of earlier versions."""

import json

import keras
import numpy as np
import pytest
from keras import layers
from sensitivity_models import X, Y, linear

import tfcompress as tfc
from tfcompress.recipe.findings import Sensitivity
from tfcompress.search.outputs import lost


def on_grid(weight, bits, axes=(0,)):
    scale = np.abs(weight).max(axes, keepdims=True) / (2 ** (bits - 1) - 1)
    return np.rint(weight / scale) * scale


def quantized(x, bits):
    if bits == 16:
        step = np.abs(x).max() / 32767
        return np.rint(x / step) * step
    low, high = min(x.min(), 0), max(x.max(), 0)
    step = (high - low) / 255
    point = np.rint(low / step)
    return np.clip(np.rint(x / step), point, point + 255) * step


def noise(wanted, found):
    return np.square(found - wanted).sum() / np.square(wanted - wanted.mean(0)).sum()


def test_outputs_equal_those_worked_out_by_hand():
    model = linear()
    a, b = (np.array(w, np.float64) for w in model.weights)
    names = ["int8", "int4", "int2", "int16x8", "float16", "float32"]
    before = [np.array(w) for w in model.weights]
    found = tfc.sensitivity(model, calibration=X, precisions=names, batch_size=32)
    bits = {"int8": (8, 8), "int4": (4, 8), "int2": (2, 8), "int16x8": (8, 16)}
    wanted = {"float16": noise(X @ a @ b, X @ a.astype(np.float16) @ b), "float32": 0.0}
    for name, (weights, activations) in bits.items():
        outputs = quantized(X, activations) @ on_grid(a, weights) @ b
        wanted[name] = noise(X @ a @ b, outputs)
    drops = found.drops("precision")["a"]
    assert drops == pytest.approx(wanted, rel=2e-2, abs=1e-12)
    assert [(r.kind, r.value, r.size) for r in found.rows[:6]] == [
        ("precision", name, 30) for name in names
    ]
    row = found.rows[1]
    y = X @ a @ b
    power = np.square(y - y.mean(0)).sum() / np.square(y).sum()
    assert row.measured["sqnr"] == pytest.approx(-10 * np.log10(row.drop * power))
    hidden = X @ a
    head = found.drops("precision")[model.layers[1].name]
    assert head["int4"] == pytest.approx(
        noise(hidden @ b, quantized(hidden, 8) @ on_grid(b, 4)), rel=1e-3
    )
    assert (found.measure, found.baseline) == ("outputs", {})
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_probabilities_lose_their_divergence():
    p = np.array([[0.5, 0.5], [0.25, 0.75]])
    q = np.array([[0.25, 0.75], [0.25, 0.75]])
    wanted = 0.5 * (0.5 * np.log(2) + 0.5 * np.log(2 / 3))
    assert lost([p], [q])["outputs"] == pytest.approx(wanted)
    sure = lost([np.array([[1.0, 0.0]])], [np.array([[1.0, 1 / 256]])])
    assert sure["outputs"] == pytest.approx(0.0)
    both = lost([p, p - 1], [q, q - 1])["outputs"]
    assert both == pytest.approx((wanted + noise(p - 1, q - 1)) / 2)


def test_curvature_of_a_linear_model_and_of_probabilities():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3, use_bias=False, name="d")])
    x, a = X[:5], np.array(model.weights[0], np.float64)
    how = {"calibration": x, "method": "hessian", "precisions": ["int4"], "batch_size": 1}
    change = np.square(on_grid(a, 4) - a)
    wanted = np.sum(change * np.square(x).sum(0)[:, None])
    wanted /= np.square(x @ a - (x @ a).mean(0)).sum()
    found = tfc.sensitivity(model, **how)
    assert found.drops("precision")["d"]["int4"] == pytest.approx(wanted, rel=1e-4)
    assert list(found.rows[0].measured) == ["hessian"]
    # Of probabilities the second derivative of the divergence: half of it, p (1 - p) by x squared.
    soft = keras.Sequential([model, layers.Softmax()])
    p = np.exp(x @ a) / np.exp(x @ a).sum(1, keepdims=True)
    curve = 0.5 * np.einsum("si,sk->ik", np.square(x), p * (1 - p)) / len(x)
    many = tfc.sensitivity(soft, **{**how, "calibration": np.repeat(x, 40, 0)})
    assert many.drops("precision")["d"]["int4"] == pytest.approx(np.sum(change * curve), rel=0.1)


def test_labels_and_precisions_in_one_scan(tmp_path):
    seen = []
    found = tfc.sensitivity(
        linear(), (X, Y), sparsities=[0.5], bits=[4], precisions=["int4", "int8"], calibration=X,
        progress=lambda *a: seen.append(a),
    )  # fmt: skip
    assert [r.kind for r in found.rows] == ["sparsity", "bits"] * 2 + ["precision"] * 4
    assert seen == [(done, 9) for done in range(1, 10)]
    found.save(tmp_path / "found.json")
    assert Sensitivity.load(tmp_path / "found.json") == found
    assert "loss of the outputs by precision" in " ".join(str(found).split())
    panels = found.plot().axes
    assert [axes.get_xlabel() for axes in panels] == [
        "sparsity",
        "bits of the weights",
        "precision",
    ]
    assert [t.get_text() for t in panels[2].get_xticklabels()] == ["int8", "int4"]


def test_layers_get_only_what_their_kernels_have():
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(3, 3, name="c")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="d")(layers.Flatten()(x)))
    found = tfc.sensitivity(model, calibration=np.ones((3, 6, 6, 2)))
    assert {k: list(v) for k, v in found.drops("precision").items()} == {
        "c": ["int8", "int4"],
        "d": ["int8", "int4", "int2"],
    }
    with pytest.raises(ValueError, match=r"precisions must be settings that some layer takes"):
        tfc.sensitivity(model, calibration=np.ones((3, 6, 6, 2)), layers="c", precisions=["int2"])
    with pytest.raises(ValueError, match=r"unknown precision 'int3'; expected one of int8"):
        tfc.sensitivity(model, calibration=np.ones((3, 6, 6, 2)), precisions=["int3"])
    with pytest.raises(TypeError, match=r"precisions must be a list of names; received 'int4'"):
        tfc.sensitivity(model, calibration=np.ones((3, 6, 6, 2)), precisions="int4")
    with pytest.raises(ValueError, match=r"method must be one of outputs, hessian"):
        tfc.sensitivity(model, calibration=np.ones((3, 6, 6, 2)), method="trace")
    with pytest.raises(ValueError, match=r"NaN or infinite"):
        tfc.sensitivity(model, calibration=np.full((3, 6, 6, 2), np.nan))


def test_findings_of_earlier_versions_load(tmp_path):
    prune = {
        "module": "tfcompress.techniques.prune", "class_name": "Prune",
        "config": keras.saving.serialize_keras_object(tfc.Prune(0.5))["config"],
        "registered_name": "tfcompress>Prune",
    }  # fmt: skip
    row = {"layer": "a", "weights": ["kernel"], "size": 30, "measured": {"loss": 2.0}}
    rows = [
        {**row, "kind": "sparsity", "value": 0.5, "drop": 1.0},
        {**row, "kind": "bits", "value": 4, "drop": None},
    ]
    old = {"model": "m", "measure": "loss", "baseline": {"loss": 1.0}, "prune": prune, "rows": rows}
    (tmp_path / "old.json").write_text(json.dumps(old))
    found = Sensitivity.load(tmp_path / "old.json")
    assert found.drops() == {"a": {0.5: 1.0}}
    assert found.drops("bits") == {"a": {4: float("inf")}}
    assert len(found.plot().axes) == 2
    assert "growth of the loss by sparsity of each layer (baseline: loss 1)" in " ".join(
        str(found).split()
    )
