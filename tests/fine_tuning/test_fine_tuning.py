"""fine_tune: from files to a file, the same whether it was interrupted or not."""

import json
import signal

import fine_tuning_files
import keras
import numpy as np
import pytest
from fine_tuning_files import (
    LOSS,
    NAMES,
    check_killed_and_resumed,
    interrupted,
    make_data,
    make_model,
)
from keras import layers

import tfcompress as tfc
from tfcompress.fine_tuning import fine_tune
from tfcompress.fine_tuning.checkpoint import Checkpoint

# Fixtures of all modules about fine_tune.
made, run = fine_tuning_files.made, fine_tuning_files.run


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


@pytest.mark.slow
def test_training_lowers_the_loss(run):
    found = run(epochs=8, recipe="int8", learning_rate=0.05)
    assert found.after["loss"] < 0.5 * found.before["loss"]
    assert found.judged_on == "the training data (70 samples)"


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
    with pytest.raises(ValueError, match=r"\(1 epoch is done\).*--resume.*--overwrite"):
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


@pytest.mark.slow
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
        run(recipe="int8", learning_rate=1e38)
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.slow
@pytest.mark.parametrize("structure", [dict, list])
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_command_is_resumed(made, tmp_path, kind):
    files = [made / "model.keras", "--recipe", made / "recipe.yaml", "--data", made / "data.npz"]
    check_killed_and_resumed(tmp_path, kind, "compress", *files)


def test_batch_normalization_has_the_statistics_of_the_last_weights(run, made, tmp_path, capsys):
    lagging = make_model()
    lagging.layers[1].momentum = 0.999
    lagging.compile(keras.optimizers.Adam(0.05), LOSS, jit_compile=False)
    lagging.save(tmp_path / "lagging.keras")
    recipe = "rules: [{layers: '*', techniques: [{prune: {sparsity: 0.5}}]}]"
    (tmp_path / "prune.yaml").write_text(recipe)
    run(model=tmp_path / "lagging.keras", recipe=tmp_path / "prune.yaml")
    assert "BatchNormalization got its statistics anew: loss " in capsys.readouterr().err
    loaded = keras.saving.load_model(tmp_path / "out.keras")
    (norm,) = (x for x in loaded.layers if isinstance(x, layers.BatchNormalization))
    given = keras.Model(loaded.inputs, norm.input).predict(make_data()[0], verbose=0)
    np.testing.assert_allclose(norm.moving_mean, given.mean((0, 1, 2)), rtol=1e-3)
    np.testing.assert_allclose(norm.moving_variance, given.var((0, 1, 2)), rtol=1e-3)
