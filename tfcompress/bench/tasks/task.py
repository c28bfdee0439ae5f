"""What a task of the benchmark is: a model, data, and how well outputs do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

# Samples that are scored at a time.
BATCH = 256


@dataclasses.dataclass(frozen=True)
class Data:
    """What a model is trained with and what it is tested with.

    Attributes:
        x_train: (count, *input shape), float32, or uint8 to be scaled.
        y_train: int (count,), or None if the inputs are to be reconstructed.
        x_test: as `x_train`; for anomalies (clips, frames, *input shape).
        y_test: int (count,); for anomalies bool (clips,): whether there is one.
        classes: how many; 0 for anomalies.
        source: "generated", or the name of the data set.
        digest: SHA-256 over all arrays, hexadecimal.
        scale: what stored values are multiplied by.
    """

    x_train: np.ndarray
    y_train: np.ndarray | None
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int
    source: str
    digest: str
    scale: float = 1.0

    def batches(self, batch: int, seed: int) -> tf.data.Dataset:
        """Endless batches to train with: float32 inputs and their labels, or the inputs twice."""
        import tensorflow as tf

        x, y, scale = tf.constant(self.x_train), self.y_train, self.scale
        labels = None if y is None else tf.constant(y)

        def read(rows):
            # A whole batch at once: a pipeline of single samples would slow training down.
            inputs = tf.cast(tf.gather(x, rows), tf.float32) * scale
            return inputs, inputs if labels is None else tf.gather(labels, rows)

        rows = tf.data.Dataset.range(len(self.x_train))
        shuffled = rows.shuffle(len(self.x_train), seed=seed).repeat()
        return shuffled.batch(batch, drop_remainder=True).map(read).prefetch(2)

    def calibration(self, count: int = 200) -> np.ndarray:
        """The first training inputs, float32."""
        return self.x_train[:count].astype("float32") * np.float32(self.scale)

    def test_inputs(self, first: int = 0, end: int | None = None) -> np.ndarray:
        """Test inputs as a model takes them, float32 (count, *input shape)."""
        rows = self.x_test[first:end].reshape(-1, *self.x_train.shape[1:])
        return rows.astype("float32") * np.float32(self.scale)


@dataclasses.dataclass(frozen=True)
class Training:
    """Adam whose learning rate falls from `rate` to 0 along a cosine over `steps`."""

    steps: int
    batch: int
    rate: float


@dataclasses.dataclass(frozen=True)
class Task:
    """A model, its data and its trainings.

    Attributes:
        name: for the command line.
        title: for people.
        build: (`keras` or `tf_keras`, classes) -> an untrained model.
        published: classes, parameters and MACs of the published architecture.
        generated: the same with the classes of the generated data, if these are others.
        generate: makes the data, or takes them from the cache.
        read: reads the real data set from its folder.
        real: its name, and what its folder holds.
        loss: of the training.
        training, tuning: of the float model; after compression.
        short: both again, for the short form.
    """

    name: str
    title: str
    build: Callable[[Any, int], Any]
    published: tuple[int, int, int]
    generate: Callable[[], Data]
    training: Training
    tuning: Training
    short: tuple[Training, Training]
    read: Callable[[Path], Data] | None = None
    real: str = ""
    loss: str = "sparse_categorical_crossentropy"
    generated: tuple[int, int, int] | None = None

    @property
    def measure(self) -> str:
        """What quality is: "accuracy" or "AUC"."""
        return "AUC" if self.loss == "mse" else "accuracy"

    def score(self, predict: Callable[[np.ndarray], np.ndarray], data: Data) -> float:
        """The quality on the whole test set.

        Args:
            predict: float32 inputs (count, *input shape) -> float outputs (count, *output shape).
        """
        if self.measure == "accuracy":
            found = [
                np.argmax(predict(data.test_inputs(first, first + BATCH)), -1)
                for first in range(0, len(data.x_test), BATCH)
            ]
            return float(np.mean(np.concatenate(found) == data.y_test))
        from sklearn.metrics import roc_auc_score

        clips = max(1, BATCH // data.x_test.shape[1])
        errors = []
        for first in range(0, len(data.x_test), clips):
            x = data.test_inputs(first, first + clips)
            squares = np.square(predict(x) - x).mean(tuple(range(1, x.ndim)))
            errors.append(squares.reshape(-1, data.x_test.shape[1]).mean(1))
        return float(roc_auc_score(data.y_test, np.concatenate(errors)))
