"""sensitivity: against losses worked out by hand; its table, file and plot."""

import io
import json
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops
from rich.console import Console
from sensitivity_models import RANDOM, X, Y, compiled, linear, made

import tfcompress as tfc
from tfcompress.recipe.findings import Sensitivity
from tfcompress.techniques.quantize import quantize_weight


def pruned(weight, sparsity):
    """The weight without its smallest numbers."""
    limit = np.sort(np.abs(weight).ravel())[round(weight.size * sparsity) - 1]
    return np.where(np.abs(weight) <= limit, 0, weight)


def test_losses_equal_those_worked_out_by_hand():
    model = linear()
    a, b = (np.array(w) for w in model.weights)
    found = tfc.sensitivity(model, (X, Y), sparsities=[0.8, 0.4], bits=[3])

    def loss(a, b):
        return np.mean((X @ a @ b - Y) ** 2)

    wanted = {
        ("a", "sparsity", 0.4): loss(pruned(a, 0.4), b),
        ("a", "sparsity", 0.8): loss(pruned(a, 0.8), b),
        ("a", "bits", 3): loss(quantize_weight(a, 3), b),
        (model.layers[1].name, "sparsity", 0.4): loss(a, pruned(b, 0.4)),
        (model.layers[1].name, "sparsity", 0.8): loss(a, pruned(b, 0.8)),
        (model.layers[1].name, "bits", 3): loss(a, quantize_weight(b, 3)),
    }
    assert [(r.layer, r.kind, r.value) for r in found.rows] == list(wanted)
    assert found.baseline["loss"] == pytest.approx(loss(a, b), rel=1e-5)
    for row, value in zip(found.rows, wanted.values(), strict=True):
        assert row.measured["loss"] == pytest.approx(value, rel=1e-5)
        assert row.drop == pytest.approx(value - loss(a, b), abs=1e-5)
        assert row.weights == ("kernel",)
    assert [row.size for row in found.rows] == [30] * 3 + [15] * 3
    mae = np.mean(np.abs(X @ pruned(a, 0.8) @ b - Y))
    assert found.rows[1].measured["mae"] == pytest.approx(mae, rel=1e-5)


def test_model_is_left_untouched_and_regularizers_do_not_count():
    plain, model = linear(), linear(kernel_regularizer=keras.regularizers.L2(10.0))
    before = [np.array(w) for w in model.weights]
    loss = model.evaluate(X, Y, verbose=0)[0]
    found = tfc.sensitivity(model, (X, Y), sparsities=[0.9], bits=[])
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert model.evaluate(X, Y, verbose=0)[0] == pytest.approx(loss)
    wanted = tfc.sensitivity(plain, (X, Y), sparsities=[0.9], bits=[])
    assert [row.drop for row in found.rows] == pytest.approx([row.drop for row in wanted.rows])
    assert loss > found.baseline["loss"] + 1


def test_pattern_channels_and_layers_with_several_weights():
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 2))
    x = layers.SeparableConv2D(4, 3, name="split", use_bias=False)(x)
    model = keras.Model(inputs, layers.Conv2D(6, 3, name="conv", use_bias=False)(x))
    images = RANDOM.normal(size=(4, 8, 8, 2)).astype("float32")
    kept = {}

    def evaluate(flat):
        weights = [np.array(w) for layer in flat.layers for w in layer.weights]
        kept[len(kept)] = weights
        return float(np.mean(flat(images)))

    prune = tfc.Prune(0.1, pattern="filters")
    found = tfc.sensitivity(model, evaluate=evaluate, prune=prune, sparsities=[0.5], bits=[4])
    assert [(r.layer, r.weights, r.size, r.kind) for r in found.rows] == [
        ("split", ("pointwise_kernel",), 8, "sparsity"),  # depthwise ones are left out by Prune
        ("split", ("depthwise_kernel", "pointwise_kernel"), 18 + 8, "bits"),
        ("conv", ("kernel",), 216, "sparsity"),
        ("conv", ("kernel",), 216, "bits"),
    ]
    baseline, _, _, filters, quantized = kept.values()
    whole = np.all(filters[2] == 0, axis=(0, 1, 2))
    norms = np.abs(baseline[2]).sum((0, 1, 2))
    np.testing.assert_array_equal(whole, norms <= np.sort(norms)[2])
    np.testing.assert_array_equal(quantized[2], quantize_weight(baseline[2], 4, (3,)))
    for weights in kept.values():  # one layer at a time
        assert sum(not np.array_equal(a, b) for a, b in zip(weights, baseline, strict=True)) <= 2
    assert found.measure == "evaluate"
    value = found.rows[2].measured["evaluate"]
    assert found.rows[2].drop == pytest.approx(found.baseline["evaluate"] - value)


def test_n_of_m_has_but_its_own_sparsity():
    prune = tfc.Prune(pattern="2:4")
    found = tfc.sensitivity(linear(), (X, Y), prune=prune, bits=[])
    assert [row.value for row in found.rows] == [0.5, 0.5]
    with pytest.raises(ValueError, match=r"with a free sparsity; received '2:4'"):
        tfc.Recipe.from_sensitivity(found, 0.5)


@pytest.mark.slow
@pytest.mark.filterwarnings("error:Your input ran out of data")
def test_data_in_every_form():
    import tensorflow as tf

    model, weights = linear(), RANDOM.uniform(size=64).astype("float32")
    how = {"sparsities": [0.5], "bits": [], "layers": "a"}
    every = tfc.sensitivity(model, (X, Y), **how)
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(10)
    assert tfc.sensitivity(model, dataset, **how).rows[0].drop == pytest.approx(every.rows[0].drop)
    some = tfc.sensitivity(model, dataset, samples=24, **how).baseline["loss"]
    assert some == pytest.approx(model.evaluate(X[:24], Y[:24], verbose=0)[0])
    spread = tfc.sensitivity(model, (X, Y), samples=22, **how).baseline["loss"]
    assert spread == pytest.approx(model.evaluate(X[::3], Y[::3], verbose=0)[0])
    weighted = tfc.sensitivity(model, (X, Y, weights), **how).baseline["loss"]
    assert weighted == pytest.approx(model.evaluate(X, Y, sample_weight=weights, verbose=0)[0])


def test_progress_and_one_compiled_function():
    seen, model = [], linear()
    traces = []

    def loss(y, prediction):
        traces.append(1)
        return ops.mean(ops.square(y - prediction))

    compiled(model, loss)
    tfc.sensitivity(
        model, (X, Y), sparsities=[0.2, 0.5], bits=[8], progress=lambda *a: seen.append(a)
    )
    assert seen == [(done, 7) for done in range(1, 8)]
    # The model is built, and then one function compiled; not one for each of seven evaluations.
    assert len(traces) <= 3


def test_table_file_and_plot(tmp_path, monkeypatch):
    found = tfc.sensitivity(linear(), (X, Y), sparsities=[0.25, 0.5], bits=[2])
    lost = found.rows[0].__class__("b", ("kernel",), 5, "bits", 2, {"loss": np.nan}, float("inf"))
    console = Console(file=io.StringIO(), width=100)
    found.render(console)
    text = console.file.getvalue()
    for row in found.rows:
        assert f"{row.drop:.3f}" in text
    assert "0.25" in text
    assert "2 bits" in text
    whole = Sensitivity(**{**vars(found), "rows": (*found.rows, lost)})
    whole.save(tmp_path / "found.json")
    json.loads((tmp_path / "found.json").read_text(), parse_constant=pytest.fail)
    again = Sensitivity.load(tmp_path / "found.json")
    assert again.rows[:-1] == found.rows
    assert again.rows[-1].drop == float("inf")
    assert (again.prune, again.baseline) == (found.prune, found.baseline)
    (tmp_path / "other.json").write_text('{"rows": [3]}')
    with pytest.raises(ValueError, match=r"other\.json must be a file that Sensitivity\.save"):
        Sensitivity.load(tmp_path / "other.json")
    figure = whole.plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    left, right = figure.axes
    wanted = [list(values.values()) for values in found.drops().values()]
    assert sorted(list(line.get_ydata()) for line in left.lines) == sorted(wanted)
    assert len(right.lines) == 3
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        found.plot()


def test_plot_of_many_layers_names_the_most_sensitive():
    drops = {f"layer_{i}": {0.5: i / 10, 0.9: float(i)} for i in range(50)}
    (axes,) = made(drops).plot().axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == [f"layer_{i}" for i in range(49, 41, -1)] + ["42 less sensitive"]
    assert len(axes.lines) == 50


class OwnStep(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.dense = layers.Dense(units, name="dense")

    def call(self, x):
        return self.dense(x)

    def test_step(self, data):
        return {"loss": 0.0}


@pytest.mark.filterwarnings("ignore:.*which its flat copy has not")
def test_errors():
    model = linear()
    with pytest.raises(ValueError, match=r"layers must match .* are: a, dense.*; received 'b\*'"):
        tfc.sensitivity(model, (X, Y), layers="b*")
    with pytest.raises(ValueError, match="f\\(model\\) -> float; received neither"):
        tfc.sensitivity(model)
    with pytest.raises(ValueError, match="received both"):
        tfc.sensitivity(model, (X, Y), evaluate=lambda m: 0.0)
    with pytest.raises(TypeError, match=r"evaluate must return a number .* received 'good'"):
        tfc.sensitivity(model, evaluate=lambda m: "good")
    with pytest.raises(ValueError, match="the model's own evaluate must be finite; received nan"):
        tfc.sensitivity(model, evaluate=lambda m: float("nan"))
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\); received 50"):
        tfc.sensitivity(model, (X, Y), sparsities=[50])
    with pytest.raises(ValueError, match="bits must be 2 to 16; received 1"):
        tfc.sensitivity(model, (X, Y), bits=[1])
    with pytest.raises(ValueError, match="settings that some layer takes"):
        tfc.sensitivity(model, (X, Y), sparsities=[], bits=[])
    for prune in (tfc.Prune(0.5, scope="global"), tfc.Prune(0.5, score="taylor")):
        with pytest.raises(ValueError, match="prune must be one that prunes each layer by itself"):
            tfc.sensitivity(model, (X, Y), prune=prune)
    with pytest.raises(TypeError, match="can be read again and again; received ndarray"):
        tfc.sensitivity(model, X)
    with pytest.raises(ValueError, match="samples must be 1 or more; received 0"):
        tfc.sensitivity(model, (X, Y), samples=0)
    bare = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    with pytest.raises(ValueError, match="must be compiled with a loss"):
        tfc.sensitivity(bare, (X, Y))
    with pytest.raises(ValueError, match="comes from compress; expected the plain one"):
        tfc.sensitivity(tfc.quantize_aware(model), (X, Y))
    own = compiled(OwnStep(3))
    own(X)
    with pytest.raises(ValueError, match="has its own test_step, which its flat copy lacks"):
        tfc.sensitivity(own, (X, Y))
    how = {"sparsities": [0.5], "bits": []}
    found = tfc.sensitivity(own, evaluate=lambda m: -float(ops.mean(m(X) ** 2)), **how)
    assert found.rows[0].layer == "dense"


def test_public_name_is_the_function():
    from tfcompress.search import sensitivity as module

    assert tfc.sensitivity is module.sensitivity
    assert tfc.Sensitivity is Sensitivity


def test_metrics_of_several_numbers_are_left_out():
    model = linear()
    compiled(model, metrics=["mae", keras.metrics.F1Score(average=None)])
    found = tfc.sensitivity(model, (X, np.eye(3)[np.arange(64) % 3]), sparsities=[0.5], bits=[])
    assert set(found.baseline) == {"loss", "mae"}
