"""One training: a model and data in, a shrunk, trained and compressed file out."""

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
from tfcompress.fine_tuning.operating import Operated, operate
from tfcompress.fine_tuning.options import Options
from tfcompress.fine_tuning.reading import read
from tfcompress.fine_tuning.result import FineTuned, Taught
from tfcompress.fine_tuning.shrunk import Shrunk
from tfcompress.fine_tuning.teaching import told_of
from tfcompress.fine_tuning.training import train
from tfcompress.fine_tuning.writing import check_of, content_of, conversion, precision_of
from tfcompress.graph import flatten
from tfcompress.tflite.flatbuffer import zipped_size
from tfcompress.weights import weights_of

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
        content, name = None, ""
        if options.recipe is not None:
            content, name = recipe_file.content_of(options.recipe)
        told = None if content is None else recipe_file.distillation_of(content, name)
        if content is not None and (shrink := recipe_file.shrink_of(content, name)) is not None:
            options = self.options = dataclasses.replace(options, shrink=shrink)
        distillation = options.distillation(told)
        self.read = read(options, distillation, self.progress)
        settings = options.fingerprint(content, distillation)
        done = self.checkpoint.check(settings, resume=options.resume, overwrite=options.overwrite)
        self.batches = self.read.batches(options.batch_size)
        steps = options.epochs * self.batches
        self.recipe = None if content is None else recipe_file.parse(content, name, steps)
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
        files.atomic_write(options.output, new)
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
