"""Handwritten digits of scikit-learn, 8 x 8 pixels: the task that is there on every machine."""

from __future__ import annotations

from typing import Any

from tfcompress.bench.tasks import cache
from tfcompress.bench.tasks.task import Data, Task, Training


def generate() -> Data:
    """1,348 digits to train with, 449 to test with."""
    # Here, as it imports TensorFlow, for which those who ask for names do not wait.
    from tfcompress.bench.demo import load_digits

    (x_train, y_train), (x_test, y_test) = load_digits()
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    digest = cache.digest(arrays)
    return Data(**arrays, classes=10, source="generated", digest=digest, scale=1.0)


def build(kit: Any, classes: int) -> Any:
    """The small CNN of `tfcompress.bench.demo`."""
    from tfcompress.bench.demo import make_model

    return make_model(kit)


TASK = Task(
    name="digits",
    title="Handwritten digits",
    build=build,
    published=(10, 12_346, 230_880),
    generate=generate,
    training=Training(steps=840, batch=32, rate=5e-3),
    tuning=Training(steps=420, batch=32, rate=3e-3),
    # Moving averages of BatchNormalization need more than half of the steps.
    short=(Training(840, 32, 5e-3), Training(84, 32, 3e-3)),
)
