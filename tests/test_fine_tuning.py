"""fine_tune: from files to a file, the same whether it was interrupted or not."""

import json
import os
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.fine_tuning import fine_tune
from tfcompress.fine_tuning.checkpoint import Checkpoint
from tfcompress.fine_tuning.data import match
from tfcompress.fine_tuning.job import _natural_precision
from tfcompress.fine_tuning.settings import Settings, is_kind, saved_settings

RECIPE = """
rules:
  - layers: "*"
    techniques:
      - prune: {sparsity: {polynomial: {initial: 0.0, final: 0.75, end: 60%, frequency: 1}}}
      - cluster: {clusters: 8, frequency: 2}
      - quantize: {bits: 8}
"""
NAMES = ("model", "recipe", "data"), ("keras", "yaml", "npz")
LOSS = "sparse_categorical_crossentropy"


def make_model(activation="softmax"):
    keras.utils.set_random_seed(0)
    body = [
        layers.Conv2D(8, 3),
        layers.BatchNormalization(momentum=0.8),
        layers.ReLU(),
        layers.Dropout(0.2),
    ]
    head = [layers.Flatten(), layers.Dense(3, activation=activation)]
    return keras.Sequential([keras.Input((6, 6, 2), name="image"), *body, *head])


def make_data(count=70):
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, count)
    return random.normal(labels[:, None, None, None], 1, (count, 6, 6, 2)), labels


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    model = make_model()
    model.compile(keras.optimizers.SGD(0.01), LOSS, metrics=["accuracy"], jit_compile=False)
    model.save(folder / "model.keras")
    images, labels = make_data()
    np.savez(folder / "data.npz", x=images, y=labels)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def run(made, tmp_path):
    """fine_tune with the files of `made`, but for what is given."""

    def run(output="out.keras", **changed):
        given = {"epochs": 3, "batch_size": 16, "output": tmp_path / output}
        given |= {name: made / f"{name}.{e}" for name, e in zip(*NAMES, strict=True)}
        return fine_tune(**{**given, **changed})

    return run


@pytest.fixture(scope="module")
def whole(made):
    """An uninterrupted run, and its file."""
    (made / "whole").mkdir()
    files = {name: made / f"{name}.{e}" for name, e in zip(*NAMES, strict=True)}
    output = made / "whole" / "out.keras"
    return fine_tune(**files, output=output, epochs=3, batch_size=16), output


def weights(path):
    return keras.saving.load_model(path).get_weights()


def test_the_file_is_what_the_result_says(whole, made):
    found, path = whole
    loaded = keras.saving.load_model(path)
    images, labels = make_data()
    expected = loaded.evaluate(images, labels, verbose=0, return_dict=True)
    assert found.after == pytest.approx(expected, abs=1e-5)
    original = keras.saving.load_model(made / "model.keras")
    before = original.evaluate(images, labels, verbose=0, return_dict=True)
    assert found.before == pytest.approx(before, abs=1e-5)
    kernels = [w for w in loaded.weights if w.name == "kernel"]
    for kernel, weight in zip(kernels, found.weights, strict=True):
        values = np.array(kernel)
        assert np.count_nonzero(values) == round(values.size / 4)
        assert weight.sparsity == 0.75
        assert weight.unique == len(np.unique(values)) <= 8
    assert (found.sparsity, found.steps, found.resumed) == (0.75, 15, 0)
    assert found.bytes == path.stat().st_size
    assert [p.name for p in path.parent.iterdir()] == ["out.keras"]
    assert "75.0% of 528 weights in 2 pruned kernels" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["weights"][0]["count"] == 144


@pytest.mark.slow
def test_a_tflite_file_computes_what_the_keras_file_does(run, whole, tmp_path):
    found = run("out.tflite")
    assert found.precision == "int8"
    assert found.bytes == (tmp_path / "out.tflite").stat().st_size < found.before_bytes
    checked = tfc.verify(whole[1], tmp_path / "out.tflite", make_data()[0].astype("float32"))
    assert checked.passed
    assert checked.outputs[0].keras.max_lsb <= 1


def test_training_lowers_the_loss(run):
    found = run(epochs=8, recipe="int8", learning_rate=0.05)
    assert found.after["loss"] < 0.5 * found.before["loss"]
    assert found.judged_on == "the training data (70 samples)"


def interrupted(run, at, **changed):
    """A run that ends with an error when so many batches of all are done."""
    seen = []

    def progress(stage, done, total):
        if stage.startswith("epoch") and done:
            seen.append(done)
            if len(seen) == at:
                raise InterruptedError

    with pytest.raises(InterruptedError):
        run(progress=progress, **changed)


@pytest.mark.parametrize("at", [pytest.param(8, marks=pytest.mark.slow), 13])
def test_a_resumed_training_gives_what_an_uninterrupted_one_gives(run, whole, tmp_path, at):
    interrupted(run, at)
    assert not (tmp_path / "out.keras").exists()
    found = run(resume=True)
    assert found.resumed == at // 5  # epochs of 5 batches
    assert found.after == whole[0].after
    for a, b in zip(weights(whole[1]), weights(tmp_path / "out.keras"), strict=True):
        np.testing.assert_array_equal(a, b)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.keras"]


@pytest.mark.slow
def test_seeds_differ(run, whole):
    assert run(seed=1).after["loss"] != whole[0].after["loss"]
    assert run(seed=0).after["loss"] == whole[0].after["loss"]


@pytest.mark.slow
def test_an_interrupted_training_is_not_lost_by_accident(run, tmp_path):
    interrupted(run, 8)
    with pytest.raises(ValueError, match=r"\(1 epochs are done\).*--resume.*--overwrite"):
        run()
    with pytest.raises(ValueError, match=r"epochs was 3, now 4; seed was 0, now 7. Give the same"):
        run(resume=True, epochs=4, seed=7)
    with pytest.raises(ValueError, match="another content of recipe"):
        run(resume=True, recipe="int8")
    with pytest.raises(ValueError, match="received both"):
        run(resume=True, overwrite=True)
    assert Checkpoint(tmp_path / "out.keras.checkpoint").epoch() == 1
    assert run(overwrite=True).resumed == 0


@pytest.mark.slow
def test_nothing_to_resume(run, tmp_path):
    with pytest.raises(ValueError, match=r"no interrupted training to resume: no '.*run.json'"):
        run(resume=True)
    interrupted(run, 2)  # in the first epoch: it begins anew, asked or not
    assert run(resume=True).resumed == 0


def test_a_damaged_checkpoint_and_a_folder_of_someone_else(run, tmp_path):
    interrupted(run, 8)
    folder = tmp_path / "out.keras.checkpoint"
    (folder / "1.weights.h5").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"1.weights.h5' cannot be read.*--overwrite"):
        run(resume=True)
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"must be a folder of checkpoints; .*thesis.txt"):
        run(overwrite=True)
    assert (folder / "thesis.txt").read_text() == "mine"


@pytest.mark.slow
def test_a_loss_that_becomes_infinite(run, tmp_path):
    with pytest.raises(ValueError, match=r"the loss became nan in epoch \d.*learning-rate"):
        run(recipe="int8", learning_rate=1e30)
    assert list(tmp_path.iterdir()) == []


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
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1; received 0"),
        ({"validation_split": 1.5}, r"validation_split must be in \[0, 1\); received 1.5"),
        ({"validation_split": 0.001}, "leaves 0 of 70 samples"),
        ({"validation_split": 0.1, "validation_data": "a.npz"}, "not both"),
        ({"output": "out.h5"}, "must end in .keras or .tflite; received '.*out.h5'"),
        ({"precision": "int8"}, "are for .tflite files; received them with .*out.keras"),
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
        ({"x": make_data()[0]}, "with the arrays x and y; received arrays without these names"),
        ({"x": make_data()[0], "z": make_data()[1]}, "the labels 'y' or '.*'; received 'x', 'z'"),
        ({"a": make_data()[0], "y": make_data()[1]}, "inputs 'x' or 'x_train' or 'image'"),
        ({"x": make_data()[0], "y": make_data()[1][:9]}, "same number .*'x' 70, 'y' 9"),
        ({"x": make_data()[0], "y": make_data()[1] + 1}, "from 0 to 2, .* values from 1 to 3"),
        ({"x": make_data()[0], "y": make_data()[1] + 0.5}, "must be whole numbers"),
        ({"x": make_data()[0][..., 0], "y": make_data()[1]}, "received shape .70, 6, 6.; expected"),
        ({"x": make_data()[0] * np.nan, "y": make_data()[1]}, "finite numbers; received NaN"),
        ({"x": make_data()[0], "y": make_data()[1].astype(str)}, "must hold numbers"),
        ({"x": make_data()[0][:0], "y": make_data()[1][:0]}, "1 or more; received 'x' 0"),
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
    with pytest.raises(ValueError, match=r"r\.yaml, line 5: unknown key 'sparcity' in prune"):
        run(recipe=tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text(RECIPE.replace('"*"', "convolution"))
    with pytest.raises(ValueError, match="the rule 'convolution' must match a layer"):
        run(recipe=tmp_path / "r.yaml")
    assert [p.name for p in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.slow
def test_validation_data(run, tmp_path, made):
    images, labels = make_data(33)
    np.savez(tmp_path / "two.npz", x=make_data()[0], y=make_data()[1], x_test=images, y_test=labels)
    found = run(validation_data=tmp_path / "two.npz", recipe="int8", epochs=1)
    assert found.judged_on == "the validation data (33 samples)"
    model = keras.saving.load_model(made / "model.keras")
    expected = model.evaluate(images, labels, verbose=0)
    assert list(found.before.values()) == pytest.approx(expected, abs=1e-5)
    found = run(validation_split=0.2, recipe="int8", epochs=1)
    assert found.judged_on == "the validation data (14 samples)"
    assert found.steps == 4  # of 56 samples


def make_pair(structure):
    """A model of two inputs and two outputs."""
    keras.utils.set_random_seed(0)
    a, b = keras.Input((4,), name="left"), keras.Input((3,), name="right")
    x = layers.Concatenate()([layers.Dense(8, name="one")(a), layers.Dense(8, name="two")(b)])
    kind, size = layers.Dense(2, "softmax", name="kind")(x), layers.Dense(1, name="size")(x)
    if structure is dict:
        return keras.Model({"left": a, "right": b}, {"size": size, "kind": kind})
    return keras.Model([b, a], [size, kind])


@pytest.mark.parametrize("structure", [dict, pytest.param(list, marks=pytest.mark.slow)])
def test_several_inputs_and_outputs_by_name(run, tmp_path, structure):
    model = make_pair(structure)
    losses = {"kind": LOSS, "size": "mse"}
    model.compile("adam", losses, metrics={"kind": ["accuracy"]}, jit_compile=False)
    model.save(tmp_path / "pair.keras")
    random = np.random.default_rng(0)
    arrays = {"left": random.normal(size=(50, 4)), "right": random.normal(size=(50, 3))}
    arrays |= {"kind": random.integers(0, 2, 50), "size": random.normal(size=(50, 1))}
    np.savez(tmp_path / "pair.npz", **arrays)
    found = run(model=tmp_path / "pair.keras", data=tmp_path / "pair.npz", recipe="int8", epochs=6)
    sizes, kinds = (np.array(y) for y in predict(model, structure, arrays))
    expected = np.mean((sizes - arrays["size"]) ** 2) - np.mean(
        np.log(kinds[np.arange(50), arrays["kind"]])
    )
    assert found.before["loss"] == pytest.approx(expected, rel=1e-4)
    assert found.after["loss"] < found.before["loss"]
    arrays["kind"][7] = 2
    np.savez(tmp_path / "pair.npz", **arrays)
    with pytest.raises(ValueError, match=r"labels of output 'kind' must be .* values from 0 to 2"):
        run(model=tmp_path / "pair.keras", data=tmp_path / "pair.npz", recipe="int8", epochs=1)


def predict(model, structure, arrays):
    inputs = {name: arrays[name] for name in ("left", "right")}
    if structure is dict:
        found = model(inputs)
        return found["size"], found["kind"]
    return model([inputs["right"], inputs["left"]])


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


def test_every_epoch_has_all_samples_in_an_order_of_its_own():
    images, labels = make_data(10)
    images[:, 0, 0, 0] = np.arange(10)
    data = match({"x": images, "y": labels}, tfc.flatten(make_model()), "data.npz")

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
    assert _natural_precision(small) == precision


def command(made, output, *more):
    files = [made / "model.keras", "--recipe", made / "recipe.yaml", "--data", made / "data.npz"]
    words = ["compress", *files, "--epochs", 12, "--batch-size", 2, "-o", output, *more]
    code = "import sys; from tfcompress.cli import main; sys.exit(main())"
    return [sys.executable, "-c", code, *map(str, words)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_command_is_resumed(made, tmp_path, kind):
    subprocess.run(command(made, tmp_path / "whole.tflite"), check=True, timeout=200)
    process = subprocess.Popen(
        command(made, tmp_path / "out.tflite"), stderr=subprocess.PIPE, text=True
    )
    checkpoint = Checkpoint(tmp_path / "out.tflite.checkpoint")
    while checkpoint.epoch() < 3 and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, kind)
    _, said = process.communicate(timeout=60)
    done = checkpoint.epoch()
    assert 3 <= done < 12
    if kind is signal.SIGINT:
        assert process.returncode == 130
        assert f"{done} of 12 epochs are kept: go on with --resume added." in said
    assert not (tmp_path / "out.tflite").exists()
    subprocess.run(command(made, tmp_path / "out.tflite", "--resume"), check=True, timeout=200)
    assert (tmp_path / "out.tflite").read_bytes() == (tmp_path / "whole.tflite").read_bytes()
