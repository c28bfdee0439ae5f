"""Anomaly detection: sounds of a machine, well or not; the fully connected autoencoder."""

from __future__ import annotations

from typing import Any

from tfcompress.bench.tasks import cache, toy_admos
from tfcompress.bench.tasks.machines import machine_sounds
from tfcompress.bench.tasks.task import Data, Task, Training

# Raised when other data come of the same settings.
_GENERATOR = 1
_SEED = 0

# Clips to train with, and of each kind to test with.
_CLIPS = {"train": 300, "test": 300}


def generate() -> Data:
    """8,100 vectors to train with, 600 clips of 27 vectors to test with."""
    toy_admos.require_score()
    settings = {**_CLIPS, "generator": _GENERATOR, "seed": _SEED}
    arrays = cache.cached("machines", settings, _make)
    return toy_admos.sound_data(arrays, "generated")


def _make() -> cache.Arrays:
    sounds = machine_sounds(_SEED, **_CLIPS)
    x_train = sounds.train.reshape(-1, sounds.train.shape[-1])
    return {"x_train": x_train, "x_test": sounds.test, "y_test": sounds.broken}


def build(kit: Any, classes: int) -> Any:
    """The model of `tfcompress.bench.models`."""
    # Here, as it imports Keras, for which those who ask for names do not wait.
    from tfcompress.bench.models import autoencoder

    return autoencoder(kit)


TASK = Task(
    name="anomaly",
    title="Anomaly detection",
    build=build,
    published=(0, 269_992, 264_192),
    generate=generate,
    training=Training(steps=1280, batch=64, rate=4e-3),
    tuning=Training(steps=512, batch=64, rate=1e-3),
    short=(Training(480, 64, 4e-3), Training(96, 64, 1e-3)),
    read=toy_admos.read,
    real=toy_admos.EXPECTED,
    loss="mse",
)
