"""What a student reaches in an epoch without its teacher, which tells what the teacher costs."""

from __future__ import annotations

import math
import warnings
from typing import Any

import keras

from tfcompress.compression.callbacks import UpdateCompression, layers_of
from tfcompress.fine_tuning.reading import Read
from tfcompress.fine_tuning.training import SeedEpochs

# Of trainings this long one epoch more is not much.
_LEAST = 5


def is_worth_it(read: Read) -> bool:
    """Whether samples of their own judge a student by labels, in a training that is not short."""
    judged = read.judged
    apart = judged is not read.training and bool(judged.labels) and bool(read.training.labels)
    return read.teaching is not None and apart and sum(read.options.turns) >= _LEAST


def after_an_epoch(student: keras.Model, read: Read) -> dict[str, float]:
    """Loss and metrics after the first epoch of a training as it is with a teacher.

    Args:
        student: a copy of its own, under the techniques.
    """
    options, first = read.options, read.options.epochs_before
    steps = None if options.constant_rate else options.turns[0] * read.batches
    student.compile(**read.settings.arguments(steps))
    read.progress("train the student alone for an epoch, to compare", 0, None)
    scheduled = any(hasattr(layer, "advance") for layer in layers_of(student))
    history = student.fit(
        read.training.shuffled(options.batch_size, options.seed, range(first, first + 1)),
        steps_per_epoch=read.batches,
        epochs=first + 1,
        initial_epoch=first,
        validation_data=read.judged.take(slice(None)),
        validation_batch_size=options.batch_size,
        verbose=0,
        callbacks=[SeedEpochs(options.seed), *([UpdateCompression()] if scheduled else [])],
    )
    return {name: values[0] for name, values in history.history.items()}


class Compare(keras.callbacks.Callback):
    """Warns after the first epoch if a student does worse with its teacher than it did alone.

    Args:
        alone: what `after_an_epoch` gave.
    """

    def __init__(self, alone: dict[str, float], read: Read):
        super().__init__()
        self._alone, self._read = alone, read

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if epoch != self._read.options.epochs_before:
            return
        name = next((n for n in self._alone if n.startswith("val_") and "acc" in n), "val_loss")
        alone, logs = self._alone[name], logs or {}
        taught = logs.get("val_task_loss" if name == "val_loss" else name, alone)
        if name == "val_loss":
            worse = taught > 1.05 * alone
        else:  # by more than the standard error of a difference of two fractions
            error = math.sqrt(2 * alone * max(0.0, 1 - alone) / len(self._read.judged))
            worse = taught < alone - error
        if worse:
            warnings.warn(
                f"after the first of {sum(self._read.options.turns)} epochs the student does worse "
                f"with its teacher ({name} {taught:.4f}) than alone ({alone:.4f}), on "
                f"{self._read.judged_on}. If it stays so, give the labels a larger share, such as "
                "--alpha 0.9, train for more epochs, or leave the teacher out.",
                stacklevel=2,
            )
