"""The training itself: an epoch follows from the seed and its number alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import keras
import numpy as np

from tfcompress.compression.callbacks import UpdateCompression, layers_of, models_of
from tfcompress.fine_tuning.checkpoint import Checkpoint, SaveCheckpoint
from tfcompress.fine_tuning.reading import Progress, Read


def train(
    model: keras.Model,
    read: Read,
    checkpoint: Checkpoint,
    turns: Sequence[int],
    first: int,
    done: int,
    known: str,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Compiles a model, fits it for some epochs, and keeps its state after each.

    Args:
        turns: epochs of each, in which the learning rate falls anew.
        first: epoch of the whole training, of which `done` are done.
        known: loss and metrics before, in words.
        callbacks: more of them.
    """
    options, training, judged = read.options, read.training, read.judged
    steps = None if options.constant_rate else [turn * read.batches for turn in turns]
    epochs = range(first, first + sum(turns))
    if training.labels and judged.labels:
        model.compile(**read.settings.arguments(steps))
    else:
        model.compile(**read.settings.without_labels(steps))
        training, judged = training.without_labels(), judged.without_labels()
    if done > epochs.start:
        checkpoint.restore(model)
    begin = max(done, epochs.start)
    if begin == epochs.stop:  # only what follows was not done
        return
    scheduled = any(hasattr(layer, "advance") for layer in layers_of(model))
    parts = [tracker.name for tracker in getattr(model, "trackers", [])]  # of a distiller
    try:
        model.fit(
            training.shuffled(options.batch_size, options.seed, range(begin, epochs.stop)),
            steps_per_epoch=read.batches,
            epochs=epochs.stop,
            initial_epoch=begin,
            validation_data=None if read.judged is read.training else judged.take(slice(None)),
            validation_batch_size=options.batch_size,
            shuffle=False,  # done already
            verbose=0,
            callbacks=[
                SeedEpochs(options.seed),
                *([UpdateCompression()] if scheduled else []),
                _ShowProgress(read.progress, options.all_epochs, read.batches, known, parts),
                SaveCheckpoint(checkpoint),
                *([TellOfFewEpochs(epochs.stop, len(training))] if parts else []),
                *callbacks,
            ],
        )
    except ValueError as error:
        # It would diverge again; and where nothing was trained, nothing is to be kept.
        if isinstance(error, _Diverged) or not checkpoint.epoch():
            checkpoint.remove()
        raise


class _Diverged(ValueError):
    """The loss is no longer finite."""


class SeedEpochs(keras.callbacks.Callback):
    """Makes the random numbers of each epoch follow from the seed and its number.

    The state of random generators is not saved with the weights.
    """

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed

    def on_epoch_begin(self, epoch, logs=None):
        random = np.random.default_rng([self.seed, epoch, 1])
        for variable in (v for model in models_of(self.model) for v in model.variables):
            if variable.name == "seed_generator_state":
                state = random.integers(0, 2**31, variable.shape)
                variable.assign(state.astype(variable.dtype))


class TellOfFewEpochs(keras.callbacks.Callback):
    """Warns if the loss of a student still falls by more than a tenth in the last epoch.

    Args:
        epochs: of the training.
        samples: of an epoch.
    """

    def __init__(self, epochs: int, samples: int):
        super().__init__()
        self.epochs, self.samples = epochs, samples
        self.before: float | None = None

    def on_epoch_end(self, epoch, logs=None):
        loss = (logs or {}).get("loss", 0.0)
        if epoch + 1 == self.epochs and self.before and loss < 0.9 * self.before:
            warnings.warn(
                f"the loss still fell by {1 - loss / self.before:.0%} in the last of {self.epochs} "
                f"epochs of {self.samples:,} samples: they are too few for this student, which may "
                f"be worse than alone after so few. Pass --epochs {2 * self.epochs}.",
                stacklevel=2,
            )
        self.before = loss


class _ShowProgress(keras.callbacks.Callback):
    """Reports batches, with the loss and metrics after the epoch before.

    Args:
        progress: called as `progress(stage, done, total)`.
        epochs, batches: of the training, and of an epoch.
        known: loss and metrics before, in words.
        parts: names of parts of the loss, which are not shown.
    """

    def __init__(self, progress: Progress, epochs: int, batches: int, known: str, parts: list[str]):
        super().__init__()
        self.progress, self.epochs, self.batches = progress, epochs, batches
        self.known, self.parts = known, parts
        self.stage = ""

    def on_epoch_begin(self, epoch, logs=None):
        self.stage = f"epoch {epoch + 1} of {self.epochs}"
        self.stage += f" (so far: {self.known})" if self.known else ""
        self.progress(self.stage, 0, self.batches)

    def on_train_batch_end(self, batch, logs=None):
        self.progress(self.stage, batch + 1, self.batches)

    def on_epoch_end(self, epoch, logs=None):
        logs = logs or {}
        if not math.isfinite(logs.get("loss", 0.0)):
            raise _Diverged(
                f"the loss became {logs['loss']} in epoch {epoch + 1}; expected a finite number. "
                "Lower --learning-rate."
            )
        names = [name for name in logs if name.removeprefix("val_") not in self.parts]
        names.sort(key=lambda name: name.removeprefix("val_") != "loss")
        self.known = ", ".join(f"{self._words(name)} {logs[name]:.4f}" for name in names[:4])

    def _words(self, name: str) -> str:
        # The loss of labels alone is what the result tells.
        total = self.parts and name.removeprefix("val_") == "loss"
        return f"total {name}" if total else name
