"""The training itself: an epoch follows from the seed and its number alone."""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfcompress.compression.callbacks import UpdateCompression, layers_of, models_of
from tfcompress.conversion.convert import convert
from tfcompress.conversion.settings import quantize_techniques, settle
from tfcompress.fine_tuning.checkpoint import Checkpoint, SaveCheckpoint
from tfcompress.fine_tuning.data import Data
from tfcompress.fine_tuning.options import Options
from tfcompress.targets.check import check
from tfcompress.targets.result import Check

Progress = Callable[[str, int, int | None], Any]


def train(
    model: keras.Model,
    training: Data,
    held_out: Data | None,
    options: Options,
    checkpoint: Checkpoint,
    epochs: range,
    done: int,
    progress: Progress,
    known: str,
) -> None:
    """Fits a compiled model for some epochs, and keeps its state after each.

    Args:
        progress: called as `progress(stage, done, total)`.
    """
    if done > epochs.start:
        checkpoint.restore(model)
    begin = max(done, epochs.start)
    if begin == epochs.stop:  # only what follows was not done
        return
    batches = math.ceil(len(training) / options.batch_size)
    scheduled = any(hasattr(layer, "advance") for layer in layers_of(model))
    try:
        model.fit(
            training.shuffled(options.batch_size, options.seed, range(begin, epochs.stop)),
            steps_per_epoch=batches,
            epochs=epochs.stop,
            initial_epoch=begin,
            validation_data=held_out and held_out.take(slice(None)),
            validation_batch_size=options.batch_size,
            shuffle=False,  # done already
            verbose=0,
            callbacks=[
                _SeedEpochs(options.seed),
                *([UpdateCompression()] if scheduled else []),
                _ShowProgress(progress, options.all_epochs, batches, known, _parts_of(model)),
                SaveCheckpoint(checkpoint),
            ],
        )
    except ValueError as error:
        # It would diverge again; and where nothing was trained, nothing is to be kept.
        if isinstance(error, _Diverged) or not checkpoint.epoch():
            checkpoint.remove()
        raise


def _parts_of(model: keras.Model) -> list[str]:
    """The parts of the loss that a model which distills reports beside their sum."""
    return [tracker.name for tracker in getattr(model, "trackers", [])]


class _Diverged(ValueError):
    """The loss is no longer finite."""


class _SeedEpochs(keras.callbacks.Callback):
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


def precision_of(small: keras.Model, options: Options) -> str | None:
    """What a .tflite file computes in: what its weights were trained for; None of a .keras file."""
    if Path(options.output).suffix == ".keras":
        return None
    precision = options.precision or natural_precision(small)
    settle(precision, options.io_dtype, target=options.target)
    trained = any(t.activation_bits is not None for t in quantize_techniques(small))
    if precision in ("int8", "int16x8") and not trained:
        raise ValueError(
            f"precision '{precision}' needs the ranges of activations, which a recipe with "
            "quantize trains; received none. Pass --recipe, such as int8, or another --precision."
        )
    return precision


def conversion(options: Options, precision: str | None) -> dict[str, Any]:
    """What `content_of` makes a .tflite file with; nothing for a .keras file."""
    if precision is None:
        return {}
    return {"precision": precision, "io_dtype": options.io_dtype, "target": options.target}


def check_of(content: bytes, options: Options) -> Check | None:
    """What the target says of the output; None without a target."""
    if options.target is None:
        return None
    found = check(content, options.target)
    return dataclasses.replace(found, path=os.fspath(options.output))


def natural_precision(small: keras.Model) -> str:
    """The precision that a model was trained for."""
    found = quantize_techniques(small)
    if not found or max(t.bits for t in found) > 8:
        return "float32"
    if min(t.bits for t in found) <= 4:
        return "int4"
    activations = [t.activation_bits for t in found]
    if 16 in activations:
        return "int16x8"
    return "int8" if 8 in activations else "dynamic_int8"


def content_of(
    model: keras.Model,
    suffix: str,
    compilation: dict[str, Any] | None = None,
    precision: str = "float32",
    io_dtype: str | None = None,
    target: Any = None,
) -> bytes:
    """A model as the bytes of a file.

    Args:
        precision, io_dtype, target: of a .tflite file.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"model{suffix}")
        if suffix == ".tflite":
            convert(model, path, precision=precision, io_dtype=io_dtype, target=target)
        else:
            if compilation is not None:
                model.compile(**compilation)
            model.save(path)
        return path.read_bytes()
