"""What fine_tune writes beside the output, and how."""

import fine_tuning_files
import keras
import numpy as np
import pytest
from fine_tuning_files import make_data

import tfcompress as tfc
from tfcompress.tools import runtimes
from tfcompress.tools.environments import Unavailable

# Fixtures of all modules about fine_tune.
made, run = fine_tuning_files.made, fine_tuning_files.run
MIXED = """
rules: [{layers: "*", techniques: [prune: {sparsity: 0.5}]}]
precision: {"*": int8, Dense: int16x8}
"""
FEW = """
rules:
  - layers: "*"
    techniques: [codebook: {values: binary}, quantize: {dense: per_tensor}]
"""


def drawn(count=70):
    """The calibration samples that are drawn of fewer than 300: all."""
    return make_data(count)[0]


def test_the_model_that_is_kept_gives_the_bytes_of_the_file(run, tmp_path):
    found = run("best.tflite", keep=tmp_path / "best.keras", epochs=1, io_dtype="int8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.keras", "best.tflite"]
    tfc.convert(tmp_path / "best.keras", tmp_path / "again.tflite", io_dtype="int8")
    assert (tmp_path / "again.tflite").read_bytes() == (tmp_path / "best.tflite").read_bytes()
    kept = keras.saving.load_model(tmp_path / "best.keras")
    after = kept.evaluate(*make_data(), verbose=0, return_dict=True)
    assert found.after == pytest.approx(after, abs=1e-5)
    run("alone.keras", epochs=1)
    other = keras.saving.load_model(tmp_path / "alone.keras")
    for a, b in zip(kept.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("epochs", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_with_precisions_by_layer(run, tmp_path, epochs):
    recipe = tmp_path / "mixed.yaml"
    recipe.write_text(MIXED if epochs else MIXED.split("]}]\n")[1])
    run("best.tflite", keep=tmp_path / "best.keras", epochs=epochs, recipe=recipe)
    by = {"*": "int8", "Dense": "int16x8"}
    again = tmp_path / "again.tflite"
    tfc.convert(tmp_path / "best.keras", again, precision=by, calibration=drawn())
    assert again.read_bytes() == (tmp_path / "best.tflite").read_bytes()


@pytest.mark.slow
def test_weights_in_codes(run, tmp_path):
    (tmp_path / "few.yaml").write_text(FEW)
    given = {"recipe": tmp_path / "few.yaml", "epochs": 1, "target": "microcontroller"}
    plain = run("plain.tflite", **given)
    coded = run("x.tflite", **given, compressed_weights=True, keep=tmp_path / "x.keras")
    assert coded.bytes == (tmp_path / "x.tflite").stat().st_size < plain.bytes
    again = tmp_path / "again.tflite"
    tfc.convert(tmp_path / "x.keras", again, target="microcontroller", compressed_weights=True)
    assert again.read_bytes() == (tmp_path / "x.tflite").read_bytes()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"output": "o.keras", "keep": "k.keras"}, "^keep, .* are for .tflite files; .*o.keras"),
        ({"output": "o.keras", "compressed_weights": True}, "compressed_weights, .* are for .tfl"),
        ({"keep": "k.h5"}, "keep must end in .keras, .*; received 'k.h5'. Rename it."),
        ({"keep": "missing/k.keras"}, "there is no folder 'missing'"),
        ({"keep": "model.keras"}, "keep is one of the files that are read, .*model.keras'. Name"),
        ({"compressed_weights": True}, "received no target; expected one that runs TFLite Micro"),
        ({"compressed_weights": True, "target": "edge_tpu"}, "received target 'edge_tpu'"),
    ],
)
def test_errors_before_any_work(run, made, tmp_path, monkeypatch, changed, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.keras").write_bytes((made / "model.keras").read_bytes())
    monkeypatch.setattr(keras.Model, "fit", lambda *args, **kwargs: pytest.fail("it trains"))
    with pytest.raises((ValueError, OSError), match=message):
        run(**{"output": "o.tflite", "model": "model.keras", **changed})
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


def test_without_tflite_micro_nothing_is_trained(run, monkeypatch):
    def unavailable():
        raise Unavailable("cannot install tflite-micro")

    monkeypatch.setattr(keras.Model, "fit", lambda *args, **kwargs: pytest.fail("it trains"))
    monkeypatch.setattr(runtimes, "require_tflm", unavailable)
    with pytest.raises(Unavailable, match="cannot install tflite-micro"):
        run("o.tflite", target="microcontroller", compressed_weights=True)
