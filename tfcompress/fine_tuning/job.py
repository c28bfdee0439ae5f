"""fine_tune and distill: a model and data in, a trained and compressed file out."""

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from tfcompress import files, recipe_file
from tfcompress.baking import finalize
from tfcompress.compression import compress
from tfcompress.fine_tuning.checkpoint import Checkpoint
from tfcompress.fine_tuning.checks import (
    check_labels,
    check_probabilities,
    evaluate,
    warn_of_teacher,
)
from tfcompress.fine_tuning.options import Options, PathLike
from tfcompress.fine_tuning.reading import read
from tfcompress.fine_tuning.result import FineTuned, Taught
from tfcompress.fine_tuning.teaching import told_of
from tfcompress.fine_tuning.training import train
from tfcompress.fine_tuning.writing import content_of, precision_of
from tfcompress.graph import flatten
from tfcompress.recipe import Recipe
from tfcompress.tflite.check import Check, check
from tfcompress.tflite.flatbuffer import zipped_size
from tfcompress.weights import weights_of

Progress = Callable[[str, int, int | None], Any]


def fine_tune(
    model: PathLike,
    recipe: PathLike,
    data: PathLike,
    output: PathLike,
    *,
    epochs: int,
    teacher: PathLike | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> FineTuned:
    """Fine-tunes a saved model under a recipe, and writes what comes out.

    After each epoch the state is kept in the folder `<output>.checkpoint`, which is removed at the
    end; a training that is resumed gives what an uninterrupted one gives.

    Args:
        model: a .keras or .h5 file. Loss, optimizer and metrics are those it was compiled with.
        recipe: a YAML file, or the name of a ready recipe; see `Recipe.load`. With a section
            `distill` the model also learns from a teacher.
        data: a .npz file of the arrays x and y (or x_train and y_train), or of arrays that have the
            names of the model's inputs and outputs.
        output: the file to write: `.keras` (of `finalize`) or `.tflite` (of `convert`).
        epochs: how often the data are gone through.
        teacher: a .keras or .h5 file, for a recipe with a section `distill`; by default the model
            itself as it was before.
        progress: called as `progress(stage, done, total)`.
        **options: batch_size=32;
            loss, optimizer: names of Keras losses and optimizers, instead of the saved ones;
            from_logits: the model gives logits, for a crossentropy that `loss` names;
            learning_rate: instead of the optimizer's; it falls to 0 along a cosine unless the
            saved optimizer has a schedule of its own, or constant_rate is true;
            validation_data: a .npz file to judge with, also of x_val and y_val or x_test and
            y_test; or validation_split: a fraction of `data`, drawn at random;
            seed=0: of the order of samples and all that is random;
            precision, io_dtype, target: of a .tflite file, see `convert`; by default the precision
            that the recipe trains for;
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
    given = Options(model, recipe, data, output, epochs, teacher=teacher, **options)
    return _Job(given, progress or (lambda stage, done, total: None)).run()


def distill(
    teacher: PathLike,
    student: PathLike,
    data: PathLike,
    output: PathLike,
    *,
    epochs: int,
    recipe: PathLike | None = None,
    alpha: float | None = None,
    temperature: float | None = None,
    cache: PathLike | None = None,
    start_from_teacher: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> FineTuned:
    """Trains a saved student from a saved teacher, and writes what comes out.

    It is checkpointed and resumed as `fine_tune` is.

    Args:
        teacher: a .keras or .h5 file, which is only read.
        student: a .keras or .h5 file. Loss, optimizer and metrics are those it was compiled with.
        data: see `fine_tune`; without labels, as the array x alone, if alpha is 0. The student is
            then judged by how near it is to the teacher.
        output: the file to write, `.keras` or `.tflite`.
        epochs: how often the data are gone through.
        recipe: a YAML file, or the name of a ready recipe: its rules compress the student, its
            section `distill` says what is learned. Without it, the soft labels of all outputs.
        alpha, temperature, cache, start_from_teacher: see `Distillation`; they go before those of
            the recipe.
        progress: called as `progress(stage, done, total)`.
        **options: see `fine_tune`.

    Returns:
        A `FineTuned`, with loss and metrics of the teacher as well.

    Raises:
        ValueError, OSError: see `fine_tune`; also if teacher and student do not fit together.

    Example:
        >>> distill("big.keras", "small.keras", "a.npz", "b.tflite", epochs=5)  # doctest: +SKIP
    """
    told = {"alpha": alpha, "temperature": temperature, "cache": cache}
    told = {name: value for name, value in told.items() if value is not None}
    told |= {"start_from_teacher": True} if start_from_teacher else {}
    given = Options(student, recipe, data, output, epochs, teacher=teacher, told=told, **options)
    return _Job(given, progress or (lambda stage, done, total: None)).run()


class _Job:
    """One training: its options, and what is made on the way."""

    def __init__(self, options: Options, progress: Progress):
        self.options, self.progress = options, progress
        self.start = time.perf_counter()
        self.checkpoint = Checkpoint(options.folder)

    def run(self) -> FineTuned:
        options = self.options
        content, name = None, ""
        if options.recipe is not None:
            content, name = recipe_file.content_of(options.recipe)
        told = None if content is None else recipe_file.distillation_of(content, name)
        distillation = options.distillation(told)
        self.read = read(options, distillation, self.progress)
        settings = options.fingerprint(content, distillation)
        done = self.checkpoint.check(settings, resume=options.resume, overwrite=options.overwrite)
        self.steps = options.epochs * self.read.batches(options.batch_size)
        recipe = None if content is None else recipe_file.parse(content, name, self.steps)
        trained = self._prepare(recipe)
        if not options.resume:
            self.checkpoint.begin(settings)
        self._train(trained, done)
        return self._finish(trained, done)

    def _prepare(self, recipe: Recipe | None) -> keras.Model:
        """What `fit` is called on, once nothing is found wrong."""
        keras.utils.set_random_seed(self.options.seed)
        begin, self.started = self.read.original, None
        if self.read.teaching is not None:
            begin = flatten(self.read.original)
            self.started = self.read.teaching.start(begin)
        plain = self.options.told is not None and (recipe is None or not recipe.rules)
        self.small = begin if recipe is None or plain else compress(begin, recipe)
        self.precision = precision_of(self.small, self.options)
        trained = self.small
        if self.read.teaching is not None:
            trained = self.read.teaching.distiller(self.small)
        for part in (self.read.training, self.read.judged):
            if part.labels:
                check_labels(self.read.original, self.read.settings.arguments()["loss"], part)
                check_probabilities(self.read.original, self.read.settings, part)
        self.progress("measure the model", 0, None)
        self.before = self._evaluate(self.read.original)
        self.taught = self._measure_teacher(trained)
        return trained

    def _evaluate(self, model: keras.Model, trained: Any = None) -> dict[str, float]:
        size = self.options.batch_size
        if not self.read.judged.labels and self.read.teaching is not None:
            return self.read.teaching.judge(model, self.read.judged, size, trained)
        return evaluate(model, self.read.settings, self.read.judged, size)

    def _measure_teacher(self, trained: Any) -> Taught | None:
        """What the result says of the teacher, which is compared with its student."""
        if self.read.teaching is None:
            return None
        path, scores = self.options.teacher, {}
        alike = None if path is None else self.read.teaching.as_student(self.read.original)
        if alike is not None and self.read.judged.labels:
            self.progress("measure the teacher", 0, None)
            scores = evaluate(alike, self.read.settings, self.read.judged, self.options.batch_size)
        if path is not None:
            sizes = self.read.teaching.teacher.count_params(), self.read.original.count_params()
            warn_of_teacher(os.fspath(path), sizes, scores, self.before, self.read.judged_on)
        losses, temperature = told_of(trained)
        return Taught(
            teacher=None if path is None else os.fspath(path),
            alpha=trained.alpha,
            losses=losses,
            temperature=temperature,
            started=self.started,
            scores=scores,
        )

    def _train(self, trained: keras.Model, done: int) -> None:
        options = self.options
        steps = None if options.constant_rate else self.steps
        training, judged = self.read.training, self.read.judged
        if training.labels and judged.labels:
            trained.compile(**self.read.settings.arguments(steps))
        else:
            trained.compile(**self.read.settings.without_labels(steps))
            training, judged = training.without_labels(), judged.without_labels()
        held_out = None if self.read.judged is self.read.training else judged
        # With a teacher the loss is another one than that of the model before.
        known = "" if self.read.teaching else f"loss {self.before['loss']:.4f}"
        train(trained, training, held_out, options, self.checkpoint, done, self.progress, known)

    def _finish(self, trained: keras.Model, done: int) -> FineTuned:
        options = self.options
        self.progress("write the file", 0, None)
        final = finalize(self.small)
        after = self._evaluate(final, trained)
        suffix, compilation = Path(options.output).suffix, self.read.settings.arguments
        old = content_of(self.read.original, suffix, compilation())
        new = content_of(final, suffix, compilation(), **self._kind())
        files.atomic_write(options.output, new)
        self.checkpoint.remove()
        return FineTuned(
            model=os.fspath(options.model),
            recipe=None if options.recipe is None else os.fspath(options.recipe),
            output=os.fspath(options.output),
            precision=self.precision,
            epochs=options.epochs,
            steps=self.steps,
            resumed=done,
            judged_on=self.read.judged_on,
            before=self.before,
            after=after,
            weights=weights_of(self.small),
            before_bytes=len(old),
            before_zipped=zipped_size(old),
            bytes=len(new),
            zipped=zipped_size(new),
            seconds=round(time.perf_counter() - self.start, 1),
            taught=self._with_sizes(suffix),
            check=self._check(new),
        )

    def _kind(self) -> dict[str, Any]:
        """What a .tflite file is converted with."""
        if self.precision is None:
            return {}
        options = self.options
        return {
            "precision": self.precision,
            "io_dtype": options.io_dtype,
            "target": options.target,
        }

    def _check(self, content: bytes) -> Check | None:
        if self.options.target is None:
            return None
        found = check(content, self.options.target)
        return dataclasses.replace(found, path=os.fspath(self.options.output))

    def _with_sizes(self, suffix: str) -> Taught | None:
        """What the result says of the teacher, with its size as a file."""
        if self.taught is None or self.taught.teacher is None or self.read.teaching is None:
            return self.taught
        try:
            content = content_of(self.read.teaching.teacher, suffix)
        except Exception:  # It need not be one that converts.
            return self.taught
        return dataclasses.replace(self.taught, bytes=len(content), zipped=zipped_size(content))
