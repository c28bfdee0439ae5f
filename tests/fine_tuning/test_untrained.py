"""Recipes with nothing to train, carried out in 0 epochs: surgery, precisions by layer."""

import json

import fine_tuning_files
import keras
import numpy as np
import pytest
from fine_tuning_files import RECIPE, make_data

import tfcompress as tfc
from tfcompress.cli.app import main
from tfcompress.surgery.pruning.prune_channels import prune_channels

# Fixtures of all modules about fine_tune; the model has one convolution of 8 filters.
made, run = fine_tuning_files.made, fine_tuning_files.run
PRECISION = "precision: {'*': int8, Dense: int16x8}\n"
SHRINK = "shrink:\n  channels: {macs: 0.5, round_to: 1, score: l1}\n"


@pytest.fixture
def untrained(run, tmp_path, monkeypatch):
    """A run of 0 epochs under a recipe of this text."""
    monkeypatch.setattr(keras.Model, "fit", lambda *args, **kwargs: pytest.fail("it trains"))

    def untrained(text, output="out.tflite", **changed):
        (tmp_path / "r.yaml").write_text(text)
        return run(output, recipe=tmp_path / "r.yaml", epochs=0, **changed)

    return untrained


def precisions(path):
    return [x.precision for x in tfc.inspect(path).layer_bytes if x.weights]


def test_precisions_by_layer_alone(untrained, made, tmp_path):
    found = untrained(PRECISION)
    assert (found.precision, found.report) == ("mixed", None)
    assert precisions(tmp_path / "out.tflite") == ["int8", "int8 x int16"]
    images, by = make_data()[0], {"*": "int8", "Dense": "int16x8"}
    model = keras.saving.load_model(made / "model.keras")
    tfc.convert(model, tmp_path / "other.tflite", precision=by, calibration=images)
    assert (tmp_path / "out.tflite").read_bytes() == (tmp_path / "other.tflite").read_bytes()
    assert found.bytes == (tmp_path / "out.tflite").stat().st_size
    assert "model.keras: Not trained; " in str(found)


@pytest.mark.slow
def test_no_labels_are_needed(untrained, tmp_path):
    untrained(PRECISION, "labelled.tflite")
    np.savez(tmp_path / "x.npz", x=make_data()[0])
    untrained(PRECISION, data=tmp_path / "x.npz")
    assert (tmp_path / "out.tflite").read_bytes() == (tmp_path / "labelled.tflite").read_bytes()


@pytest.mark.slow
def test_surgery_and_precisions_by_layer(untrained, tmp_path):
    found = untrained(SHRINK + PRECISION)
    assert found.report.macs == (2688, 1344)
    assert precisions(tmp_path / "out.tflite") == ["int8", "int8 x int16"]
    counted = [x.weights for x in tfc.inspect(tmp_path / "out.tflite").layer_bytes if x.weights]
    assert counted == [72, 192]


def test_surgery_alone_is_what_shrink_does(untrained, made, tmp_path):
    found = untrained(SHRINK)
    assert (found.precision, found.report.macs) == ("float32", (2688, 1344))
    assert precisions(tmp_path / "out.tflite") == ["float32"] * 2
    untrained(SHRINK, "out.keras")
    model, x = keras.saving.load_model(made / "model.keras"), make_data()
    small = prune_channels(model, macs=0.5, round_to=1, score="l1", data=x)
    written = keras.saving.load_model(tmp_path / "out.keras")
    for a, b in zip(written.get_weights(), small.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("text", "changed", "what"),
    [
        (RECIPE, {}, "rules"),
        ("distill: {}", {}, "distill"),
        ("distill: {}\n" + RECIPE, {}, "rules and distill"),
        (SHRINK + "  epochs: 2", {}, "shrink: epochs"),
        (SHRINK, {"teacher": "t.keras"}, "teacher"),
        (SHRINK, {"resume": True}, "resume"),
    ],
)
def test_what_trains_needs_epochs(untrained, text, changed, what):
    message = f"of at least 1; received 0 with {what}, for which .* Pass --epochs 1 or more"
    with pytest.raises(ValueError, match=message):
        untrained(text, "out.keras", **changed)


def test_a_recipe_without_training_on_the_command_line(made, tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(PRECISION)
    words = [made / "model.keras", "--recipe", tmp_path / "r.yaml", "--data", made / "data.npz"]
    words += ["--epochs", 0, "-o", tmp_path / "out.tflite", "--json"]
    assert main(["compress", *map(str, words)]) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == "mixed"
