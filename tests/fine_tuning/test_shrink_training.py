"""Recipes with a section `shrink`, carried out: surgery, training in float, then techniques."""

import json

import fine_tuning_files
import h5py
import keras
import numpy as np
import pytest
from fine_tuning_files import LOSS, RECIPE, interrupted, make_data
from keras import layers

from tfcompress.fine_tuning import distill, shrink
from tfcompress.fine_tuning.checkpoint import Checkpoint
from tfcompress.surgery import macs
from tfcompress.surgery.shrink import Shrink

# Fixtures of all modules about fine_tune; the model has one convolution of 8 filters.
made, run = fine_tuning_files.made, fine_tuning_files.run
STEPS = {"channels": {"macs": 0.5, "round_to": 1, "score": "taylor"}}
SHRINK = """
shrink:
  channels: {macs: 0.5, round_to: 1, score: taylor}
  epochs: 2
"""
RULES = """
rules:
  - layers: "*"
    techniques:
      - prune: {sparsity: {polynomial: {initial: 0.0, final: 0.75, end: 60%, frequency: 1}}}
"""


@pytest.fixture(scope="module")
def recipe(made):
    (made / "shrink.yaml").write_text(SHRINK + RULES)
    return made / "shrink.yaml"


@pytest.fixture(scope="module")
def whole(made, recipe):
    """An uninterrupted run of 2 and 3 epochs, and its file."""
    (made / "whole").mkdir()
    output, calls = made / "whole" / "out.keras", []

    def progress(stage, done, total):
        calls.append(stage)

    given = {"epochs": 3, "batch_size": 16, "progress": progress}
    found = fine_tuning_files.fine_tune(
        made / "model.keras", recipe, made / "data.npz", output, **given
    )
    return found, output, list(dict.fromkeys(calls))


def judged(path):
    images, labels = make_data()
    model = keras.saving.load_model(path)
    return pytest.approx(model.evaluate(images, labels, verbose=0, return_dict=True), abs=1e-5)


@pytest.mark.slow
def test_the_file_is_what_the_result_says(whole, made):
    found, path, stages = whole
    assert [stage.split(" (")[0] for stage in stages if "epoch" in stage] == [
        f"epoch {i} of 5" for i in range(1, 6)
    ]
    assert (found.epochs, found.steps, found.shrunk.epochs) == (5, 25, 2)
    assert found.before == judged(made / "model.keras")
    assert found.after == judged(path)
    written = keras.saving.load_model(path)
    report = found.shrunk.report
    assert (report.macs[0], report.params[0]) == macs.count(
        keras.saving.load_model(made / "model.keras")
    )
    # 4 of 8 filters: 4 x 4 places x 3 x 3 x 2 x 4, and 4 x 4 x 4 x 3 of the Dense.
    assert (report.macs[1], report.params[1]) == macs.count(written)
    assert macs.count(written)[0] == 16 * 18 * 4 + 64 * 3
    assert found.sparsity == 0.75  # of the rules, in the kernels that are left
    assert [w.count for w in found.weights] == [72, 192]
    assert "prune_channels left 50.0% of the MACs" in str(found)
    assert "Trained 5 epochs, the first 2 in float before the techniques (25 steps)" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["shrunk"]["report"]["macs"] == [2688, 1344]
    assert [p.name for p in path.parent.iterdir()] == ["out.keras"]


@pytest.mark.slow
def test_the_first_phase_is_what_shrink_does(run, whole, made, recipe, tmp_path):
    # Surgery with scores of the training data, and 2 epochs in float with a rate that falls to 0.
    given = {"data": made / "data.npz", "epochs": 2, "batch_size": 16}
    alone = shrink(made / "model.keras", tmp_path / "alone.keras", Shrink(STEPS), **given)
    assert alone.shrunk.scores == whole[0].shrunk.scores
    assert alone.after["loss"] < alone.shrunk.scores["loss"]
    interrupted(run, 11, recipe=recipe)  # in the first batch of the third epoch
    checkpoint = Checkpoint(tmp_path / "out.keras.checkpoint")
    assert checkpoint.epoch() == 2
    with h5py.File(checkpoint.folder / "2.weights.h5") as file:
        kernel = np.array(file["layers/conv2d/vars/0"])
    conv = keras.saving.load_model(tmp_path / "alone.keras").layers[1]
    np.testing.assert_array_equal(kernel, conv.kernel)


# In the first phase, in the second, before the first epoch is done, and between the two phases.
@pytest.mark.parametrize("at", [pytest.param(at, marks=pytest.mark.slow) for at in (3, 8, 11, 18)])
def test_a_resumed_training_gives_what_an_uninterrupted_one_gives(
    run, whole, recipe, tmp_path, monkeypatch, at
):
    interrupted(run, at, recipe=recipe)
    assert not (tmp_path / "out.keras").exists()
    monkeypatch.setattr(Shrink, "apply", lambda *args: pytest.fail("surgery is done again"))
    found = run(recipe=recipe, resume=True)
    assert found.resumed == at // 5  # epochs of 5 batches
    assert found.after == whole[0].after
    assert found.shrunk == whole[0].shrunk
    expected, received = map(keras.saving.load_model, (whole[1], tmp_path / "out.keras"))
    for a, b in zip(expected.get_weights(), received.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.keras"]


@pytest.mark.slow
def test_a_training_is_resumed_with_the_same_surgery(run, recipe, tmp_path):
    interrupted(run, 8, recipe=recipe)
    (tmp_path / "other.yaml").write_text(SHRINK.replace("0.5", "0.6") + RULES)
    with pytest.raises(ValueError, match="another content of recipe"):
        run(recipe=tmp_path / "other.yaml", resume=True)
    with pytest.raises(ValueError, match="1 epoch is done"):
        run(recipe=recipe)
    folder = tmp_path / "out.keras.checkpoint"
    (folder / "model.json").write_text("{")
    with pytest.raises(ValueError, match=r"model.json' is damaged. Begin anew with --overwrite"):
        run(recipe=recipe, resume=True)


def test_epochs_are_given_once(made, tmp_path):
    with pytest.raises(ValueError, match=r"without epochs of its own; .*epochs=2.*beside it"):
        shrink(made / "model.keras", tmp_path / "a.keras", Shrink(STEPS, epochs=2))
    with pytest.raises(ValueError, match=r"2 epochs of training need data; .*Pass --data FILE"):
        shrink(made / "model.keras", tmp_path / "a.keras", Shrink(STEPS), epochs=2)


@pytest.mark.slow
def test_surgery_by_options_is_resumed_with_the_same(made, tmp_path):
    def alone(steps, **changed):
        given = {"data": made / "data.npz", "epochs": 3, "batch_size": 16}
        shrink(made / "model.keras", tmp_path / "a.keras", Shrink(steps), **given, **changed)

    interrupted(lambda **changed: alone(STEPS, **changed), 8)
    with pytest.raises(ValueError, match=r"shrink was .*'macs': 0.5.*, now .*'macs': 0.6"):
        alone({"channels": {**STEPS["channels"], "macs": 0.6}}, resume=True)
    alone(STEPS, overwrite=True)
    assert not (tmp_path / "a.keras.checkpoint").exists()


@pytest.mark.slow
def test_distilled_from_the_original_in_both_phases(run, tmp_path):
    text = "distill: {alpha: 0.25, losses: [soft_labels, mse]}\n" + SHRINK + RECIPE
    (tmp_path / "r.yaml").write_text(text)
    given = {"recipe": tmp_path / "r.yaml", "epochs": 2}
    found = run("whole.tflite", **given)
    assert found.taught.alpha == 0.25
    assert found.precision == "int8"
    for at in (8, 13, 18):
        interrupted(run, at, output=tmp_path / "out.tflite", **given)
        assert run("out.tflite", **given, resume=True).after == found.after
        written = [(tmp_path / f"{name}.tflite").read_bytes() for name in ("whole", "out")]
        assert written[0] == written[1]


@pytest.mark.slow
def test_a_student_is_shrunk_before_it_is_taught(made, recipe, tmp_path):
    given = {"epochs": 2, "batch_size": 16, "alpha": 0.5}
    files = [made / "model.keras", made / "model.keras", made / "data.npz", tmp_path / "a.keras"]
    found = distill(*files, recipe=recipe, **given)
    assert found.taught.alpha == 0.5
    assert found.shrunk.report.macs == (2688, 1344)


@pytest.mark.slow
def test_surgery_without_rules_and_epochs_of_its_own(run, tmp_path):
    (tmp_path / "r.yaml").write_text("shrink:\n  factorize: {rank: 2, layers: Dense}")
    found = run(recipe=tmp_path / "r.yaml", epochs=1)
    written = keras.saving.load_model(tmp_path / "out.keras")
    assert found.shrunk.report.macs == (2688, 2304 + 128 * 2 + 2 * 3)
    assert macs.count(written)[0] == 2304 + 128 * 2 + 2 * 3
    assert (found.epochs, found.steps, found.sparsity) == (1, 5, 0)
    assert found.after == judged(tmp_path / "out.keras")


def test_rules_are_checked_before_any_training(run, tmp_path, monkeypatch):
    monkeypatch.setattr(keras.Model, "fit", lambda *args, **kwargs: pytest.fail("it trains"))
    (tmp_path / "r.yaml").write_text(SHRINK + RULES.replace('"*"', "no_such_layer"))
    with pytest.raises(ValueError, match="the rule 'no_such_layer' must match a layer"):
        run(recipe=tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text(SHRINK.replace("macs: 0.5", "macs: 0.001") + RULES)
    with pytest.raises(ValueError, match=r"macs=0.001 is out of reach"):
        run(recipe=tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text(SHRINK.replace("macs: 0.5", "macs: 50") + RULES)
    with pytest.raises(ValueError, match=r"r.yaml, line 3: channels: macs .* Did you mean 0.5"):
        run(recipe=tmp_path / "r.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.slow
def test_several_inputs_and_outputs(run, tmp_path):
    keras.utils.set_random_seed(0)
    a, b = keras.Input((4,), name="left"), keras.Input((3,), name="right")
    x = layers.Concatenate()([layers.Dense(8, name="one")(a), layers.Dense(8, name="two")(b)])
    outputs = [layers.Dense(1, name="size")(x), layers.Dense(2, "softmax", name="kind")(x)]
    model = keras.Model([b, a], outputs)
    losses = {"kind": LOSS, "size": "mse"}
    model.compile("adam", losses, loss_weights={"kind": 1.0, "size": 0.5}, jit_compile=False)
    model.save(tmp_path / "pair.keras")
    random = np.random.default_rng(0)
    arrays = {"left": random.normal(size=(50, 4)), "right": random.normal(size=(50, 3))}
    arrays |= {"kind": random.integers(0, 2, 50), "size": random.normal(size=(50, 1))}
    np.savez(tmp_path / "pair.npz", **arrays)
    steps = "  channels: {sparsity: 0.25, round_to: 1, score: fisher}\n  factorize: {rank: 1}\n"
    (tmp_path / "r.yaml").write_text(f"shrink:\n{steps}rules:\n" + RECIPE.split("rules:")[1])
    files = {"model": tmp_path / "pair.keras", "data": tmp_path / "pair.npz"}
    found = run(**files, recipe=tmp_path / "r.yaml", epochs=2)
    written = keras.saving.load_model(tmp_path / "out.keras")
    assert found.shrunk.report.macs[1] == macs.count(written)[0] < 28 + 24 + 16 + 32
    assert found.shrunk.report.operation == "prune_channels + factorize"
