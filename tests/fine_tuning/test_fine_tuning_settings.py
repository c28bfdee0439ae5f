"""fine_tune: settings and data, and what is said of wrong ones before training."""

from types import SimpleNamespace

import fine_tuning_files
import keras
import numpy as np
import pytest
from fine_tuning_files import LOSS, RECIPE, make_data, make_model

import tfcompress as tfc
from tfcompress.conversion.settings import natural_precision
from tfcompress.fine_tuning.data import Arrays
from tfcompress.fine_tuning.options import Settings, is_kind, saved_settings
from tfcompress.fine_tuning.output import precision_of

# Fixtures of all modules about fine_tune.
made, run = fine_tuning_files.made, fine_tuning_files.run


@pytest.mark.slow
def test_settings_that_were_not_saved(run, tmp_path, made):
    model = make_model(activation=None)
    model.save(tmp_path / "plain.keras")
    given = {"model": tmp_path / "plain.keras", "recipe": "int8", "epochs": 1}
    with pytest.raises(ValueError, match=r"no loss and no optimizer. Pass --loss, such as"):
        run(**given)
    with pytest.raises(ValueError, match="received no optimizer"):
        run(**given, loss="mse")
    with pytest.raises(ValueError, match=r"outputs go from -.* pass --from-logits"):
        run(**given, loss=LOSS, optimizer="sgd")
    found = run(**given, loss=LOSS, optimizer="sgd", from_logits=True)
    images, labels = make_data()
    expected = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, model(images))
    assert found.before["loss"] == pytest.approx(float(expected), rel=1e-4)
    assert list(found.after) == ["loss", "accuracy"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"loss": "categorical_crossentrpy"}, "unknown loss .* Did you mean '.*ategorical"),
        ({"optimizer": "sdg"}, r"unknown optimizer 'sdg'; .*Did you mean 'sgd'\?"),
        ({"loss": "mse", "from_logits": True}, "from_logits is for crossentropies; .*'mse'"),
        ({"from_logits": True}, "from_logits belongs to a loss that is given by name"),
        ({"learning_rate": 0.0}, "learning_rate must be a number greater than 0; received 0.0"),
        ({"learning_rate": np.nan}, "learning_rate must be .* greater than 0; received nan"),
        ({"learning_rate": np.inf}, "learning_rate must be .* greater than 0; received inf"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1; received 0"),
        ({"validation_split": 1.5}, r"validation_split must be in \[0, 1\); received 1.5"),
        ({"validation_split": 0.001}, "leaves 0 of 70 samples"),
        ({"validation_split": 0.1, "validation_data": "a.npz"}, "not both"),
        ({"output": "out.h5"}, "must end in .keras or .tflite; received '.*out.h5'"),
        ({"precision": "int8"}, "are for .tflite files; received one with .*out.keras"),
        ({"output": "missing/out.tflite"}, "there is no folder '.*missing'"),
        ({"data": "missing.npz"}, "no file at 'missing.npz'"),
        ({"model": "missing.keras"}, "no file at 'missing.keras'"),
        ({"recipe": "int9"}, "unknown recipe 'int9'"),
        ({"loss": "mse", "model": None}, "expected the path of a model"),
    ],
)
def test_errors_before_training(run, changed, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keras.Model, "fit", lambda *args, **kwargs: pytest.fail("it trains"))
    with pytest.raises((ValueError, OSError, TypeError), match=message):
        run(**changed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": make_data()[0]}, "must hold the labels 'y' or '.*'; received 'x'. Save"),
        ({"x": make_data()[0], "z": make_data()[1]}, "the labels 'y' or '.*'; received 'x', 'z'"),
        ({"a": make_data()[0], "y": make_data()[1]}, "inputs 'x' or 'x_train' or 'image'"),
        ({"x": make_data()[0], "labels": make_data()[1]}, r"Call it y \(here: labels\)\.$"),
        ({"images": make_data()[0], "y": make_data()[1]}, r"Call it x \(here: images\)\.$"),
        (
            {"images": make_data()[0], "labels": make_data()[1]},
            r"received 'images', 'labels'. Call them x and y \(here: images, labels\)\.$",
        ),
        ({"x": make_data()[0], "y": make_data()[1][:9]}, "same number .*'x' 70, 'y' 9"),
        ({"x": make_data()[0], "y": make_data()[1] + 1}, "from 0 to 2, .* values from 1 to 3"),
        ({"x": make_data()[0], "y": make_data()[1] + 0.5}, "must be whole numbers"),
        ({"x": make_data()[0][..., 0], "y": make_data()[1]}, "received shape .70, 6, 6.; expected"),
        ({"x": make_data()[0] * np.nan, "y": make_data()[1]}, "finite numbers; received NaN"),
        ({"x": make_data()[0], "y": make_data()[1].astype(str)}, "must hold numbers"),
        ({"x": make_data()[0][:0], "y": make_data()[1][:0]}, "1 or more; received 'x' 0"),
        (
            {"x": make_data()[0], "y": np.eye(3)[make_data()[1]]},
            r"must be class numbers, .* received one-hot labels of shape \(70, 3\)\. Pass --loss "
            r"categorical_crossentropy, or number the classes: y\.argmax\(-1\)\.$",
        ),
        ({"x": make_data()[0], "y": np.zeros((70, 2), int)}, "loss and metrics cannot be computed"),
    ],
)
def test_data_that_does_not_fit(run, arrays, message, monkeypatch, tmp_path):
    monkeypatch.setattr(keras.Model, "fit", lambda *args, **kwargs: pytest.fail("it trains"))
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        run(data=tmp_path / "bad.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.npz"]


def test_an_unknown_key_in_a_recipe_ends_it_before_training(run, monkeypatch, tmp_path):
    monkeypatch.setattr(keras.Model, "fit", lambda *args, **kwargs: pytest.fail("it trains"))
    (tmp_path / "r.yaml").write_text(RECIPE.replace("sparsity", "sparcity"))
    with pytest.raises(ValueError, match=r"r\.yaml, line 6: unknown key 'sparcity' in prune"):
        run(recipe=tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text(RECIPE.replace('"*"', "convolution"))
    with pytest.raises(ValueError, match="the rule 'convolution' must match a layer"):
        run(recipe=tmp_path / "r.yaml")
    assert [p.name for p in tmp_path.iterdir()] == ["r.yaml"]


def test_settings_in_an_h5_file(tmp_path):
    model = make_model()
    model.save(tmp_path / "plain.h5")
    assert saved_settings(tmp_path / "plain.h5") is None
    model.compile(keras.optimizers.Adam(0.25), LOSS)
    model.save(tmp_path / "compiled.h5")
    found = saved_settings(tmp_path / "compiled.h5")
    assert is_kind(Settings(found).arguments()["loss"], "SparseCategoricalCrossentropy")
    assert found["optimizer"]["config"]["learning_rate"] == 0.25


def test_a_constant_learning_rate_falls_to_0_and_a_schedule_is_kept():
    model = make_model()
    model.compile(keras.optimizers.Adam(0.5, clipnorm=3.0), LOSS)
    settings = Settings(model.get_compile_config())
    assert float(settings.arguments()["optimizer"].learning_rate) == 0.5
    optimizer = settings.arguments(steps=8)["optimizer"]
    assert optimizer.clipnorm == 3.0
    rates = [float(optimizer._learning_rate(step)) for step in (0, 4, 8)]
    assert rates == pytest.approx([0.5, 0.25, 0.0])
    decay = keras.optimizers.schedules.ExponentialDecay(0.5, 2, 0.5)
    model.compile(keras.optimizers.Adam(decay), LOSS)
    optimizer = Settings(model.get_compile_config()).arguments(steps=8)["optimizer"]
    assert float(optimizer._learning_rate(2)) == pytest.approx(0.25)
    optimizer = Settings(None, LOSS, False, "sgd", 0.125).arguments()["optimizer"]
    assert float(optimizer.learning_rate) == 0.125


def test_a_schedule_that_ends_begins_anew():
    plan = keras.optimizers.schedules

    def rates(schedule, steps, at):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.Adam(schedule), "mse")
        optimizer = Settings(model.get_compile_config()).arguments(steps)["optimizer"]
        return [float(optimizer._learning_rate(step)) for step in at]

    found = rates(plan.CosineDecay(0.5, 1000), 10, (0, 5, 10))
    np.testing.assert_allclose(found, [0.5, 0.25, 0.0], atol=1e-7)
    warm = plan.CosineDecay(0.0, 80, warmup_target=0.5, warmup_steps=20)
    np.testing.assert_allclose(
        rates(warm, 10, (0, 1, 2, 6, 10)), [0, 0.25, 0.5, 0.25, 0], atol=1e-7
    )
    line = plan.PolynomialDecay(0.5, 1000, 0.1)
    np.testing.assert_allclose(rates(line, 10, (0, 5, 10)), [0.5, 0.3, 0.1], rtol=1e-6)
    cycle = plan.PolynomialDecay(0.5, 1000, 0.1, cycle=True)
    np.testing.assert_allclose(rates(cycle, 10, (0, 500)), [0.5, 0.3], rtol=1e-6)


def test_every_epoch_has_all_samples_in_an_order_of_its_own():
    images, labels = make_data(10)
    images[:, 0, 0, 0] = np.arange(10)
    data = Arrays({"x": images, "y": labels}, tfc.flatten(make_model()), "data.npz").match()

    def order(epochs, seed=3):
        return [int(i) for x, _ in data.shuffled(4, seed, epochs) for i in x[:, 0, 0, 0]]

    whole = order(range(3))
    epochs = [whole[:10], whole[10:20], whole[20:]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert order(range(1, 3)) == whole[10:]
    assert order(range(3), seed=4) != whole


@pytest.mark.parametrize(
    ("techniques", "precision"),
    [
        ([tfc.Prune(0.5)], "float32"),
        ([tfc.Quantize()], "int8"),
        ([tfc.Quantize(6)], "int8"),
        ([tfc.Quantize(4)], "int4"),
        ([tfc.Quantize(12)], "float32"),
        ([tfc.Quantize(8, 16)], "int16x8"),
        ([tfc.Quantize(8, None)], "dynamic_int8"),
    ],
)
def test_the_precision_that_a_recipe_trains_for(techniques, precision):
    small = tfc.compress(make_model(), tfc.Recipe([tfc.Rule("*", techniques)]))
    assert natural_precision(small) == precision


def test_a_target_may_take_wider_weights_than_were_trained():
    small = tfc.quantize_aware(make_model(), bits=4)
    given = {"output": "x.tflite", "precision": None, "io_dtype": None}
    for target, precision in ((None, "int4"), ("edge_tpu", "int8"), ("microcontroller", "int4")):
        assert precision_of(small, SimpleNamespace(**given, target=target)) == precision


MIXED = """
rules: [{layers: "*", techniques: [prune: {sparsity: 0.5}]}]
precision: {"*": int4, Dense: int16x8}
"""


def test_precisions_by_layer_are_for_a_tflite_file(run, tmp_path):
    recipe = tmp_path / "mixed.yaml"
    recipe.write_text(MIXED)
    with pytest.raises(ValueError, match=r"layers of a \.tflite file; received '.*keras'"):
        run("out.keras", recipe=recipe)
    with pytest.raises(ValueError, match=r"received 'int8' beside it"):
        run("out.tflite", recipe=recipe, precision="int8")
    recipe.write_text(MIXED.replace("Dense", "nowhere"))
    with pytest.raises(ValueError, match="'nowhere' must match a layer"):
        run("out.tflite", recipe=recipe)


@pytest.mark.slow
def test_layers_are_written_in_their_precisions(run, tmp_path):
    recipe = tmp_path / "mixed.yaml"
    recipe.write_text(MIXED)
    made = run("out.tflite", recipe=recipe, epochs=1)
    # The zeros are shared out over all layers.
    assert (made.precision, made.sparsity) == ("mixed", 0.5)
    found = [x for x in tfc.inspect(tmp_path / "out.tflite").layer_bytes if x.weights]
    assert [layer.precision for layer in found] == ["int4 x int8", "int8 x int16"]
    zeros = [layer.sparsity * layer.weights for layer in found]
    assert sum(zeros) >= 0.5 * sum(layer.weights for layer in found)
