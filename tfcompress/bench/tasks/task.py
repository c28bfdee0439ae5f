"""What a task of the benchmark is: a model, data, and how well outputs do."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfcompress.bench.tasks.cache import Arrays, digest
from tfcompress.tools.environments import Unavailable

if TYPE_CHECKING:
    import tensorflow as tf

# Of the benchmark: with as much fine-tuning as is usual, as little as CI has time for, and half as
# much as the training of the float model.
FORMS = ("full", "short", "long")

# Samples that are scored at a time.
BATCH = 256


@dataclasses.dataclass(frozen=True)
class Data:
    """What a model is trained with and what it is tested with.

    Attributes:
        x_train: (count, *input shape), float32, or uint8 to be scaled.
        y_train: int (count,), or None if the inputs are to be reconstructed.
        x_test: as `x_train`; for anomalies (clips, frames, *input shape), for streams (streams,
            windows, *input shape).
        y_test: int (count,); for anomalies and streams bool: whether there is one, or the word.
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

    @classmethod
    def of(
        cls, arrays: Arrays, classes: int, source: str = "generated", scale: float = 1.0
    ) -> Data:
        """Of arrays by the names of the attributes; what is to be rebuilt has no `y_train`."""
        named: dict[str, Any] = {"y_train": None, **arrays}
        return cls(**named, classes=classes, source=source, digest=digest(arrays), scale=scale)

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
        streams: whether streams are tested with: how sure the model gets in one of its first class.
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
    streams: bool = False

    def trainings(self, form: str) -> tuple[Training, Training]:
        """Of the float model, and of what every method gets, in a form of the benchmark."""
        if form == "short":
            return self.short
        if form == "long":
            # At the rate of the training, which suits so many steps (learning-rate rewinding, Renda
            # et al. 2020, arXiv:2003.02389).
            long = dataclasses.replace(self.training, steps=self.training.steps // 2)
            return self.training, long
        return self.training, self.tuning

    @property
    def measure(self) -> str:
        """What quality is: "accuracy" or "AUC"."""
        return "AUC" if self.loss == "mse" or self.streams else "accuracy"

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

        each = data.x_test.shape[1]
        clips, signs = max(1, BATCH // each), []
        for first in range(0, len(data.x_test), clips):
            x = data.test_inputs(first, first + clips)
            y = predict(x)
            if self.streams:
                signs.append(y[:, 0].reshape(-1, each).max(1))
            else:
                errors = np.square(y - x).mean(tuple(range(1, x.ndim)))
                signs.append(errors.reshape(-1, each).mean(1))
        return float(roc_auc_score(data.y_test, np.concatenate(signs)))


def architecture(name: str) -> Callable[[Any, int], Any]:
    """What builds a model of `tfcompress.bench.models`."""

    def build(kit: Any, classes: int) -> Any:
        # Here, as it imports Keras, for which those who ask for names do not wait.
        from tfcompress.bench import models

        return getattr(models, name)(kit, classes)

    return build


class NotThere(ValueError):
    """A folder has nothing of a data set: another one may be in it."""


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A real data set.

    Attributes:
        name: of it.
        expected: what its folder holds.
        source: where to get it, a sentence.
    """

    name: str
    expected: str
    source: str

    def find(self, folder: Path, holds: Callable[[Path], bool]) -> Path:
        """Its own folder: the one given, or one in it, or one in such a one."""
        folder = Path(folder)
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "is not there"
            raise NotThere(
                f"'{folder}' {what}; expected a folder that holds {self.expected}. {self.source}"
            )
        entries = sorted(folder.iterdir())
        near = _folders(entries)
        for each in (folder, *near, *_folders(_entries(near))):
            # One that may be listed need not be one that may be looked into.
            with contextlib.suppress(OSError):
                if holds(each):
                    return each
        names = [path.name + "/" * os.path.isdir(path) for path in entries]
        found = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise NotThere(self.told(f"'{folder}' holds {found or 'nothing'}"))

    def require(self, root: Path, missing: Iterable[str]) -> None:
        """Raises a ValueError if its folder lacks something."""
        if lacks := ", ".join(missing):
            raise ValueError(self.told(f"'{root}' lacks {lacks}"))

    def told(self, what: str) -> str:
        """What is wrong, what was expected, and where to get that."""
        return f"{what}; expected {self.expected}. {self.source}"


def fingerprint(root: Path, files: Iterable[Path]) -> str:
    """SHA-256 over the names, sizes and dates of files, hexadecimal; nothing is read."""
    found = hashlib.sha256()
    for path in files:
        stat = path.stat()
        line = f"{path.relative_to(root).as_posix()} {stat.st_size} {stat.st_mtime_ns}\n"
        found.update(line.encode(errors="surrogateescape"))
    return found.hexdigest()


def _entries(folders: Iterable[Path]) -> list[Path]:
    """What is in folders, without those that cannot be read: lost+found of a disk, say."""
    found: list[Path] = []
    for folder in folders:
        with contextlib.suppress(OSError):
            found += sorted(folder.iterdir())
    return found


def _folders(paths: Iterable[Path]) -> list[Path]:
    # Unlike `Path.is_dir`, which raises an error for what may not be looked at.
    return [path for path in paths if os.path.isdir(path)]


def require(module: str, use: str) -> None:
    """Refuses to go on without a package of the extra `bench`."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise Unavailable(
            f"{use}, which cannot be imported ({error}): pip install 'tfcompress[bench]'"
        ) from error
