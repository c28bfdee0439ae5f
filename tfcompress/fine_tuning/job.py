"""One training: a model and data in, a shrunk, trained and compressed file out."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from tfcompress.compression.compress import compress
from tfcompress.compression.finalize import finalize
from tfcompress.compression.logger import weights_of
from tfcompress.files import writing
from tfcompress.fine_tuning.checkpoint import Checkpoint
from tfcompress.fine_tuning.data import check_labels, check_probabilities, evaluate, warn_of_teacher
from tfcompress.fine_tuning.options import Options, PathLike
from tfcompress.fine_tuning.reading import read
from tfcompress.fine_tuning.result import FineTuned, Shrunk, ShrunkFile, Taught
from tfcompress.fine_tuning.surgery import Operated, operate, operate_alone
from tfcompress.fine_tuning.teaching import told_of
from tfcompress.fine_tuning.training import check_of, content_of, conversion, precision_of, train
from tfcompress.graph.flatten import flatten
from tfcompress.recipe import file
from tfcompress.recipe.recipe import Recipe
from tfcompress.surgery.shrink import Shrink
from tfcompress.tflite.flatbuffer import zipped_size

Progress = Callable[[str, int, int | None], Any]


class Job:
    """One training: its options, and what is made on the way.

    With surgery it has two phases, whose epochs are counted as one training: the smaller model in
    float, then under the techniques. What the first begins with is kept beside its checkpoint.
    """

    def __init__(self, options: Options, progress: Progress):
        self.options, self.progress = options, progress
        self.start = time.perf_counter()
        self.checkpoint = Checkpoint(options.folder)

    def run(self) -> FineTuned:
        options = self.options
        parsed = None if options.recipe is None else file.load(options.recipe)
        if parsed is not None and parsed.shrink is not None:
            options = self.options = dataclasses.replace(options, shrink=parsed.shrink)
        distillation = options.distillation(None if parsed is None else parsed.distill)
        self.read = read(options, distillation, self.progress)
        content = None if parsed is None else parsed.content
        settings = options.fingerprint(content, distillation)
        done = self.checkpoint.check(settings, resume=options.resume, overwrite=options.overwrite)
        self.batches = self.read.batches(options.batch_size)
        steps = options.epochs * self.batches
        self.recipe = None if parsed is None else Recipe(*parsed.parts(steps))
        trained = self._prepare()
        if not options.resume:
            self.checkpoint.begin(settings)
        if self.operated is not None:
            self.operated.keep(self.checkpoint)
        trained = self._train(trained, done)
        return self._finish(trained, done)

    def _prepare(self) -> keras.Model:
        """What `fit` is called on under the techniques, once nothing is found wrong."""
        keras.utils.set_random_seed(self.options.seed)
        self.begin, self.started = self.read.original, None
        if self.read.teaching is not None:
            self.begin = flatten(self.read.original)
            self.started = self.read.teaching.start(self.begin)
        self.operated = self._operate()
        if self.operated is not None:
            self.begin = self.operated.model()
        trained = self._wrapped()
        self.precision = precision_of(self.small, self.options)
        for part in (self.read.training, self.read.judged):
            if part.labels:
                check_labels(self.read.original, self.read.settings.arguments()["loss"], part)
                check_probabilities(self.read.original, self.read.settings, part)
        self.progress("measure the model", 0, None)
        self.before = self._evaluate(self.read.original)
        self.shrunk = None
        if self.operated is not None:
            scores = self._evaluate(self.begin)
            self.shrunk = Shrunk(self.operated.report, self.options.epochs_before, scores)
        self.taught = self._measure_teacher(trained)
        return trained

    def _operate(self) -> Operated | None:
        """The model after surgery, if some is asked for; what was kept, if it was done before."""
        steps, seed = self.options.shrink, self.options.seed
        if steps is None:
            return None
        found = Operated.kept(self.checkpoint) if self.options.resume else None
        if found is None:
            self.progress("shrink", 0, None)
            settings = self.read.settings.arguments()
            found = operate(self.begin, steps, self.read.training, settings, seed)
        return found

    def _wrapped(self) -> keras.Model:
        """What `fit` is called on under the techniques, from what there is to begin with."""
        rules = self.recipe is not None and self.recipe.rules
        alone = self.options.told is not None or self.options.shrink is not None
        if self.recipe is None or (alone and not rules):
            self.small = self.begin
        else:
            self.small = compress(self.begin, dataclasses.replace(self.recipe, shrink=None))
        return self._with_teacher(self.small)

    def _with_teacher(self, model: keras.Model) -> keras.Model:
        return model if self.read.teaching is None else self.read.teaching.distiller(model)

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

    def _train(self, trained: keras.Model, done: int) -> keras.Model:
        """What was trained under the techniques, after all epochs."""
        first = self.options.epochs_before
        # With a teacher the loss is another one than that of the model before.
        scores = self.shrunk.scores if self.shrunk is not None else self.before
        known = "" if self.read.teaching else f"loss {scores['loss']:.4f}"
        if first and done <= first:
            self._fit(self._with_teacher(self.begin), range(first), done, known)
            keras.utils.set_random_seed(self.options.seed)  # the same if it was resumed
            trained, known = self._wrapped(), ""
        self._fit(trained, range(first, self.options.all_epochs), done, known)
        return trained

    def _fit(self, trained: keras.Model, epochs: range, done: int, known: str) -> None:
        options = self.options
        steps = None if options.constant_rate else len(epochs) * self.batches
        training, judged = self.read.training, self.read.judged
        if training.labels and judged.labels:
            trained.compile(**self.read.settings.arguments(steps))
        else:
            trained.compile(**self.read.settings.without_labels(steps))
            training, judged = training.without_labels(), judged.without_labels()
        held_out = None if self.read.judged is self.read.training else judged
        data = training, held_out
        train(trained, *data, options, self.checkpoint, epochs, done, self.progress, known)

    def _finish(self, trained: keras.Model, done: int) -> FineTuned:
        options = self.options
        self.progress("write the file", 0, None)
        final = finalize(self.small)
        after = self._evaluate(final, trained)
        suffix, compilation = Path(options.output).suffix, self.read.settings.arguments
        old = content_of(self.read.original, suffix, compilation())
        new = content_of(final, suffix, compilation(), **conversion(options, self.precision))
        writing.atomic_write(options.output, new)
        self.checkpoint.remove()
        return FineTuned(
            model=os.fspath(options.model),
            recipe=None if options.recipe is None else os.fspath(options.recipe),
            output=os.fspath(options.output),
            precision=self.precision,
            epochs=options.all_epochs,
            steps=options.all_epochs * self.batches,
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
            shrunk=self.shrunk,
            check=check_of(new, options),
        )

    def _with_sizes(self, suffix: str) -> Taught | None:
        """What the result says of the teacher, with its size as a file."""
        if self.taught is None or self.taught.teacher is None or self.read.teaching is None:
            return self.taught
        try:
            content = content_of(self.read.teaching.teacher, suffix)
        except Exception:  # It need not be one that converts.
            return self.taught
        return dataclasses.replace(self.taught, bytes=len(content), zipped=zipped_size(content))


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
    """
    given = Options(model, recipe, data, output, epochs, teacher=teacher, **options)
    return Job(given, progress or (lambda stage, done, total: None)).run()


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
        progress: called as `progress(stage, done, total)`.
    """
    told = {"alpha": alpha, "temperature": temperature, "cache": cache}
    told = {name: value for name, value in told.items() if value is not None}
    told |= {"start_from_teacher": True} if start_from_teacher else {}
    given = Options(student, recipe, data, output, epochs, teacher=teacher, told=told, **options)
    return Job(given, progress or (lambda stage, done, total: None)).run()


def shrink(
    model: PathLike,
    output: PathLike,
    steps: Shrink,
    *,
    data: PathLike | None = None,
    epochs: int = 0,
    distill: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> FineTuned | ShrunkFile:
    """Makes a saved model smaller by surgery, and trains what is left of it if asked to.

    A training is checkpointed and resumed as that of `fine_tune` is.

    Args:
        progress: called as `progress(stage, done, total)`.
    """
    if not isinstance(steps, Shrink) or steps.epochs:
        raise ValueError(
            f"steps must be a Shrink without epochs of its own; received {steps!r}. Pass epochs "
            "beside it."
        )
    told: dict[str, Any] | None = {} if distill else None
    given = Options(model, None, data, output, epochs, told=told, shrink=steps, **options)
    progress = progress or (lambda stage, done, total: None)
    return Job(given, progress).run() if epochs else operate_alone(given, steps, progress)
