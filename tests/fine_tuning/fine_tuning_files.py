"""Files for fine_tune: a model, a recipe and data; and runs with them."""

import os
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.fine_tuning import fine_tune
from tfcompress.fine_tuning.checkpoint import Checkpoint

RECIPE = """
rules:
  - layers: "*"
    techniques:
      - prune:
          sparsity: {polynomial: {initial: 0.0, final: 0.75, end: 60%, frequency: 1}}
          scope: layer
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


def check_killed_and_resumed(folder, kind, *words):
    """Kills a command of 12 epochs at its third one, and compares what it writes when resumed."""

    def command(output, *more):
        code = "import sys; from tfcompress.cli.app import main; sys.exit(main())"
        given = [*words, "--epochs", 12, "--batch-size", 2, "-o", folder / output, *more]
        return [sys.executable, "-c", code, *map(str, given)]

    subprocess.run(command("whole.tflite"), check=True, timeout=200)
    process = subprocess.Popen(command("out.tflite"), stderr=subprocess.PIPE, text=True)
    checkpoint = Checkpoint(folder / "out.tflite.checkpoint")
    while checkpoint.epoch() < 3 and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, kind)
    _, said = process.communicate(timeout=60)
    done = checkpoint.epoch()
    assert 3 <= done < 12
    if kind is signal.SIGINT:
        assert process.returncode == 130
        assert f"{done} of 12 epochs are kept: go on with --resume added." in said
    assert not (folder / "out.tflite").exists()
    subprocess.run(command("out.tflite", "--resume"), check=True, timeout=200)
    assert (folder / "out.tflite").read_bytes() == (folder / "whole.tflite").read_bytes()
