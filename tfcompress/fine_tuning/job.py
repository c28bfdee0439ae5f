"""fine_tune: a model, a recipe and data in, a trained and compressed file out."""

import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfcompress import files, recipe_file
from tfcompress.baking import finalize
from tfcompress.callbacks import UpdateCompression
from tfcompress.compression import compress
from tfcompress.fine_tuning import data as datasets
from tfcompress.fine_tuning.checkpoint import Checkpoint, SaveCheckpoint
from tfcompress.fine_tuning.checks import check_labels, check_probabilities, evaluate
from tfcompress.fine_tuning.data import Data
from tfcompress.fine_tuning.options import Options, PathLike
from tfcompress.fine_tuning.result import FineTuned
from tfcompress.fine_tuning.settings import Settings, saved_settings
from tfcompress.graph import flatten
from tfcompress.tflite.convert import check_arguments, convert
from tfcompress.tflite.flatbuffer import zipped_size
from tfcompress.tflite.trained import quantize_techniques
from tfcompress.weights import weights_of

Progress = Callable[[str, int, int | None], Any]


def fine_tune(
    model: PathLike,
    recipe: PathLike,
    data: PathLike,
    output: PathLike,
    *,
    epochs: int,
    progress: Progress | None = None,
    **options: Any,
) -> FineTuned:
    """Fine-tunes a saved model under a recipe, and writes what comes out.

    After each epoch the state is kept in the folder `<output>.checkpoint`, which is removed at the
    end; a training that is resumed gives what an uninterrupted one gives.

    Args:
        model: a .keras or .h5 file. Loss, optimizer and metrics are those it was compiled with.
        recipe: a YAML file, or the name of a ready recipe; see `Recipe.load`.
        data: a .npz file of the arrays x and y (or x_train and y_train), or of arrays that have the
            names of the model's inputs and outputs.
        output: the file to write: `.keras` (of `finalize`) or `.tflite` (of `convert`).
        epochs: how often the data are gone through.
        progress: called as `progress(stage, done, total)`.
        **options: batch_size=32;
            loss, optimizer: names of Keras losses and optimizers, instead of the saved ones;
            from_logits: the model gives logits, for a crossentropy that `loss` names;
            learning_rate: instead of the optimizer's; it falls to 0 along a cosine unless the
            saved optimizer has a schedule of its own, or constant_rate is true;
            validation_data: a .npz file to judge with, also of x_val and y_val or x_test and
            y_test; or validation_split: a fraction of `data`, drawn at random;
            seed=0: of the order of samples and all that is random;
            precision, io_dtype: of a .tflite file, see `convert`; by default as the recipe has it;
            resume: go on with an interrupted training of the same settings;
            overwrite: begin anew although there is one.

    Returns:
        A `FineTuned`: loss and metrics before and after, sparsity, sizes.

    Raises:
        ValueError, OSError: if a file or an argument will not do, before training begins; or if the
            loss becomes infinite.

    Example:
        >>> fine_tune("model.keras", "int8", "digits.npz", "a.tflite", epochs=5)  # doctest: +SKIP
    """
    given = Options(model, recipe, data, output, epochs, **options)
    return _Job(given, progress or (lambda stage, done, total: None)).run()


class _Job:
    """One fine-tuning: its options, and what is made on the way."""

    def __init__(self, options: Options, progress: Progress):
        self.options, self.progress = options, progress
        self.start = time.perf_counter()
        self.checkpoint = Checkpoint(options.folder)

    def run(self) -> FineTuned:
        options = self.options
        self.recipe, self.recipe_name = recipe_file.content_of(options.recipe)
        self._read()
        settings = options.fingerprint(self.recipe)
        done = self.checkpoint.check(settings, resume=options.resume, overwrite=options.overwrite)
        small = self._prepare()
        if not options.resume:
            self.checkpoint.begin(settings)
        self._train(small, done)
        return self._finish(small, done)

    def _prepare(self) -> keras.Model:
        """The model to train, once nothing is found wrong."""
        options = self.options
        self.steps = options.epochs * self.batches
        recipe = recipe_file.parse(self.recipe, self.recipe_name, self.steps)
        keras.utils.set_random_seed(options.seed)
        small = compress(self.original, recipe)
        self.precision = self._precision(small)
        losses = self.settings.arguments()["loss"]
        for part in (self.training, self.judged):
            check_labels(self.original, losses, part)
        check_probabilities(self.original, self.settings, self.training)
        self.progress("measure the model", 0, None)
        self.before = self._evaluate(self.original)
        return small

    def _finish(self, small: keras.Model, done: int) -> FineTuned:
        options = self.options
        self.progress("write the file", 0, None)
        final = finalize(small)
        after = self._evaluate(final)
        old, new = self._content(self.original), self._content(final)
        files.atomic_write(options.output, new)
        self.checkpoint.remove()
        return FineTuned(
            model=os.fspath(options.model),
            recipe=os.fspath(options.recipe),
            output=os.fspath(options.output),
            precision=self.precision,
            epochs=options.epochs,
            steps=self.steps,
            resumed=done,
            judged_on=self.judged_on,
            before=self.before,
            after=after,
            weights=weights_of(small),
            before_bytes=len(old),
            before_zipped=zipped_size(old),
            bytes=len(new),
            zipped=zipped_size(new),
            seconds=round(time.perf_counter() - self.start, 1),
        )

    def _evaluate(self, model: keras.Model) -> dict[str, float]:
        return evaluate(model, self.settings, self.judged, self.options.batch_size)

    def _read(self) -> None:
        """Reads model and data; first what is quick to be found wrong."""
        options = self.options
        self.progress("read the data", 0, None)
        arrays = datasets.read(options.data)
        judging = options.validation_data and datasets.read(options.validation_data)
        self.progress("load the model", 0, None)
        loaded = files.load_model(options.model)
        if isinstance(loaded, files.SavedModel):
            raise ValueError(
                f"'{options.model}' is a SavedModel, which holds no Keras layers to train; "
                "expected a .keras or .h5 file. Save the model with model.save('model.keras')."
            )
        self.original = flatten(loaded)
        self.settings = Settings(
            saved_settings(options.model),
            options.loss,
            options.from_logits,
            options.optimizer,
            options.learning_rate,
        )
        self.training = datasets.match(arrays, self.original, options.data)
        self.judged, kind = self.training, "training"
        if judging:
            names, path = datasets.VALIDATION, options.validation_data
            self.judged, kind = datasets.match(judging, self.original, path, names), "validation"
        elif options.validation_split:
            self.training, self.judged = self.training.split(options.validation_split, options.seed)
            kind = "validation"
        self.judged_on = f"the {kind} data ({len(self.judged):,} samples)"
        self.batches = math.ceil(len(self.training) / options.batch_size)

    def _precision(self, small: keras.Model) -> str | None:
        """What a .tflite file computes in: what its weights were trained for."""
        if Path(self.options.output).suffix == ".keras":
            return None
        precision = self.options.precision or _natural_precision(small)
        check_arguments(precision, self.options.io_dtype)
        return precision

    def _train(self, small: keras.Model, done: int) -> None:
        options = self.options
        small.compile(**self.settings.arguments(None if options.constant_rate else self.steps))
        if done:
            self.checkpoint.restore(small)
        if done == options.epochs:  # only the file was not written
            return
        shown = _ShowProgress(self.progress, options.epochs, self.batches, self.before["loss"])
        held_out: Data | None = None if self.judged is self.training else self.judged
        try:
            small.fit(
                self.training.shuffled(
                    options.batch_size, options.seed, range(done, options.epochs)
                ),
                steps_per_epoch=self.batches,
                epochs=options.epochs,
                initial_epoch=done,
                validation_data=held_out and held_out.take(slice(None)),
                validation_batch_size=options.batch_size,
                shuffle=False,  # done already
                verbose=0,
                callbacks=[
                    _SeedEpochs(options.seed),
                    UpdateCompression(),
                    shown,
                    SaveCheckpoint(self.checkpoint),
                ],
            )
        except _Diverged:  # as it would again
            self.checkpoint.remove()
            raise

    def _content(self, model: keras.Model) -> bytes:
        """A model as the bytes of a file of the output's kind, the original one in float32."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"model{Path(self.options.output).suffix}")
            if self.precision is None:
                model.compile(**self.settings.arguments())
                model.save(path)
            elif model is self.original:
                convert(model, path, precision="float32")
            else:
                convert(model, path, precision=self.precision, io_dtype=self.options.io_dtype)
            return path.read_bytes()


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
        for variable in self.model.variables:
            if variable.name == "seed_generator_state":
                state = random.integers(0, 2**31, variable.shape)
                variable.assign(state.astype(variable.dtype))


class _ShowProgress(keras.callbacks.Callback):
    """Reports batches, with the loss and metrics after the epoch before."""

    def __init__(self, progress: Progress, epochs: int, batches: int, loss: float):
        super().__init__()
        self.progress, self.epochs, self.batches = progress, epochs, batches
        self.known = f"loss {loss:.4f}"
        self.stage = ""

    def on_epoch_begin(self, epoch, logs=None):
        self.stage = f"epoch {epoch + 1} of {self.epochs} (so far: {self.known})"
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
        names = sorted(logs, key=lambda name: name.removeprefix("val_") != "loss")
        self.known = ", ".join(f"{name} {logs[name]:.4f}" for name in names[:4])


def _natural_precision(small: keras.Model) -> str:
    found = quantize_techniques(small)
    if not found or max(t.bits for t in found) > 8:
        return "float32"
    if min(t.bits for t in found) <= 4:
        return "int4"
    activations = [t.activation_bits for t in found]
    if 16 in activations:
        return "int16x8"
    return "int8" if 8 in activations else "dynamic_int8"
