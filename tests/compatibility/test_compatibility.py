"""What users have goes on working: files saved earlier load and give equal outputs, public names
and options stay. `saved/` was made by `make.py` with version 0.1.0."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from make import help_texts, names, output_of

import tfcompress  # noqa: F401, tells Keras our layers
from tfcompress.cli.app import app
from tfcompress.layers.fake_quant import FakeQuant

SAVED = Path(__file__).parent / "saved"
MODELS = sorted(path.stem for path in SAVED.glob("*.keras"))


def test_there_are_models_of_all_kinds():
    assert len(MODELS) == 17


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_loads_and_gives_equal_outputs(name):
    model = keras.saving.load_model(SAVED / f"{name}.keras")
    # Since they were saved, inference rounds what LiteRT's kernels round inside: a step or two.
    rounds = any(isinstance(layer, FakeQuant) for layer in model._flatten_layers())
    with np.load(SAVED / f"{name}.npz") as kept:
        atol = 2.01 / 256 if rounds else 1e-6
        np.testing.assert_allclose(output_of(model, kept["x"]), kept["y"], rtol=1e-5, atol=atol)


def test_public_names_and_arguments_are_there():
    kept, found = json.loads((SAVED / "names.json").read_text()), names()
    assert kept.keys() <= found.keys()
    for name, arguments in kept.items():
        new = [argument for argument in found[name] if argument not in arguments]
        assert [a for a in found[name] if a in arguments] == arguments, name
        assert all("=" in argument for argument in new), name  # New ones have defaults.


def test_help_tells_every_option():
    kept, found = json.loads((SAVED / "help.json").read_text()), help_texts(app)
    for command, text in kept.items():
        assert options_of(text) <= options_of(found[command]), command


def options_of(text):
    return {word.strip(",") for word in text.split() if word.startswith("-") and len(word) > 1}
