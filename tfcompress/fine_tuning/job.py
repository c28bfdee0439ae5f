"""From a model and data in files to a shrunk, trained and compressed file.

The stages are read, operate (surgery), wrap (techniques), train and write. With surgery there are
two trainings, whose epochs are counted as one: of the smaller model in float, then under the
techniques. What the first begins with is kept beside its checkpoint.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Any

import keras

from tfcompress.compression.compress import compress
from tfcompress.compression.finalize import finalize
from tfcompress.compression.logger import weights_of
from tfcompress.conversion.precisions import Precisions
from tfcompress.fine_tuning import alone
from tfcompress.fine_tuning import data as datasets
from tfcompress.fine_tuning.checkpoint import Checkpoint
from tfcompress.fine_tuning.options import Options, PathLike, Settings, saved_settings
from tfcompress.fine_tuning.output import content_of, precision_of, write
from tfcompress.fine_tuning.reading import Progress, Read, asked_by, calibration_of, load, read
from tfcompress.fine_tuning.result import FineTuned, Shrunk, ShrunkFile, Taught
from tfcompress.fine_tuning.surgery import Operated, operate
from tfcompress.fine_tuning.teaching import told_of
from tfcompress.fine_tuning.training import train
from tfcompress.graph.flatten import flatten
from tfcompress.post_training.batch_norm import settled
from tfcompress.recipe.flash import expected_flash
from tfcompress.recipe.recipe import Recipe
from tfcompress.results import say
from tfcompress.surgery.shrink import Shrink
from tfcompress.techniques import Cluster, Codebook, Prune
from tfcompress.tflite.flatbuffer import zipped_size


def _silent(stage: str, done: int, total: int | None) -> None:
    """Progress that nobody looks at."""


def _run(options: Options, progress: Progress | None) -> FineTuned | ShrunkFile:
    """What options ask for, from files to a file."""
    work = _training if options.turns else _untrained
    return work(options, progress or _silent)


def _training(options: Options, progress: Progress) -> FineTuned:
    """One training, from files to a file."""
    start = time.perf_counter()
    given = read(options, progress)
    options = given.options
    checkpoint = Checkpoint(options.folder)
    resume, overwrite = options.resume, options.overwrite
    done = checkpoint.check(given.fingerprint, resume=resume, overwrite=overwrite)
    _tell_flash(given)
    keras.utils.set_random_seed(options.seed)
    begin, started, operated = _operated(given, checkpoint)
    small, trained = _wrapped(begin, given)
    layers = None if given.recipe is None else given.recipe.precision
    if layers is not None:
        Precisions.of(layers).check_layers(begin)
    precision = precision_of(small, options) if layers is None else layers
    given.check_labels()
    progress("measure the model", 0, None)
    before, shrunk = given.evaluate(given.original), None
    if operated is not None:
        shrunk = Shrunk(operated.report, options.epochs_before, given.evaluate(begin))
    taught = _measured_teacher(given, trained, started, before)
    (checkpoint.go_on if resume else checkpoint.begin)(given.fingerprint)
    if operated is not None:
        operated.keep(checkpoint)
    # With a teacher the loss is another one than that of the model before.
    scores = before if shrunk is None else shrunk.scores
    known = "" if given.teaching else f"loss {scores['loss']:.4f}"
    small, trained = _trained(begin, (small, trained), given, checkpoint, done, known)
    progress("write the file", 0, None)
    final = _settled(finalize(small), given)
    after = given.evaluate(final, trained)
    calibration = None if layers is None else given.calibration()
    compilation = given.settings.arguments
    written = write(options, given.original, final, compilation, precision, calibration)
    if not options.keep_checkpoint:
        checkpoint.remove()
    return FineTuned(
        **written,
        recipe=None if options.recipe is None else os.fspath(options.recipe),
        epochs=options.all_epochs,
        steps=options.all_epochs * given.batches,
        resumed=done,
        judged_on=given.judged_on,
        before=before,
        after=after,
        weights=weights_of(small),
        taught=_with_sizes(given, taught),
        shrunk=shrunk,
        seconds=round(time.perf_counter() - start, 1),
    )


def _tell_flash(given: Read) -> None:
    """Tells what a recipe of few values, or of zeros, is worth in flash."""
    recipe, options = given.recipe, given.options
    if (
        recipe is None
        or options.shrink is not None
        or os.path.splitext(options.output)[1] != ".tflite"
    ):
        return
    if any(isinstance(t, Prune | Cluster | Codebook) for r in recipe.rules for t in r.techniques):
        given.progress("measure the weights", 0, None)
        say(expected_flash(given.original, Recipe(recipe.rules)).line)


def _operated(
    given: Read, checkpoint: Checkpoint
) -> tuple[keras.Model, float | None, Operated | None]:
    """What training begins with, after surgery if some is asked for.

    Returns (the model, the fraction of weights that it has from its teacher, what surgery did).
    """
    options, model, started = given.options, given.original, None
    if given.teaching is not None:
        model = flatten(given.original)
        started = given.teaching.start(model)
    if options.shrink is None:
        return model, started, None
    found = Operated.kept(checkpoint) if options.resume else None
    if found is None:
        given.progress("shrink", 0, None)
        settings = given.settings.arguments()
        found = operate(model, options.shrink, given.training, settings, options.seed)
    return found.model(), started, found


# A model under the techniques, and what `fit` is called on: a distiller or the model itself.
Wrapped = tuple[keras.Model, Any]


def _wrapped(model: keras.Model, given: Read) -> Wrapped:
    """A model under the techniques of the recipe, and what trains it."""
    model = _under_techniques(model, given)
    return model, given.with_teacher(model)


def _under_techniques(model: keras.Model, given: Read) -> keras.Model:
    """A model under the techniques of the recipe; the model itself if there are none."""
    options, recipe = given.options, given.recipe
    by_itself = options.told is not None or options.shrink is not None
    if recipe is not None and (recipe.rules or not by_itself):
        return compress(model, dataclasses.replace(recipe, shrink=None))
    return model


def _trained(
    begin: keras.Model,
    wrapped: Wrapped,
    given: Read,
    checkpoint: Checkpoint,
    done: int,
    known: str,
) -> Wrapped:
    """What was trained under the techniques, after all epochs."""
    options = given.options
    first = options.epochs_before
    if first and done <= first:
        train(given.with_teacher(begin), given, checkpoint, [first], 0, done, known)
        keras.utils.set_random_seed(options.seed)  # the same if it was resumed
        wrapped, known = _wrapped(begin, given), ""
    callbacks = []
    if done <= first and alone.is_worth_it(given):
        twin = _under_techniques(flatten(begin), given)
        callbacks = [alone.Compare(alone.after_an_epoch(twin, given), given)]
        keras.utils.set_random_seed(options.seed)  # the same if it was resumed
    train(wrapped[1], given, checkpoint, options.turns, first, done, known, callbacks)
    return wrapped


# Training samples that tell what BatchNormalization is given.
_SETTLED = 1000


def _settled(model: keras.Model, given: Read) -> keras.Model:
    """The trained model, with better statistics of BatchNormalization if the last weights have."""
    drawn = given.training.drawn(_SETTLED, given.options.seed)
    if not drawn.labels:
        return model
    names = [tensor.name for tensor in keras.tree.flatten(model._inputs_struct)]
    judged = dataclasses.replace(given, judged=drawn)
    x = dict(zip(names, drawn.inputs, strict=True))
    found = settled(model, x, lambda each: judged.evaluate(each)["loss"])
    if found is None:
        return model
    new, before, after = found
    say(
        f"BatchNormalization got its statistics anew: loss {before:.4f} -> {after:.4f} on "
        f"{len(drawn):,} training samples."
    )
    return new


def _measured_teacher(
    given: Read, trained: Any, started: float | None, before: dict[str, float]
) -> Taught | None:
    """What the result says of the teacher, which is compared with its student."""
    if given.teaching is None:
        return None
    path, scores = given.options.teacher, {}
    if path is not None:
        alike = given.teaching.as_student(given.original)
        if alike is not None and given.judged.labels:
            given.progress("measure the teacher", 0, None)
            scores = given.evaluate(alike)
        sizes = given.teaching.teacher.count_params(), given.original.count_params()
        datasets.warn_of_teacher(os.fspath(path), sizes, scores, before, given.judged_on)
    losses, temperature = told_of(trained)
    return Taught(
        teacher=None if path is None else os.fspath(path),
        alpha=trained.alpha,
        dropout=trained.dropout,
        losses=losses,
        temperature=temperature,
        started=started,
        scores=scores,
    )


def _with_sizes(given: Read, taught: Taught | None) -> Taught | None:
    """What the result says of the teacher, with its size as a file."""
    if taught is None or taught.teacher is None or given.teaching is None:
        return taught
    try:
        suffix = os.path.splitext(given.options.output)[1]
        content, _ = content_of(given.teaching.teacher, suffix)
    except Exception:  # It need not be one that converts.
        return taught
    return dataclasses.replace(taught, bytes=len(content), zipped=zipped_size(content))


def _untrained(options: Options, progress: Progress) -> ShrunkFile:
    """Surgery and precisions by layer without training, from files to a file."""
    start = time.perf_counter()
    options, parsed = asked_by(options)
    arrays = None if options.data is None else datasets.read(options.data)
    progress("load the model", 0, None)
    original = flatten(load(options.model))
    layers = None if parsed is None else parsed.precision
    precision = precision_of(original, options) if layers is None else layers
    compilation, data = _compilation(options), None
    if arrays is not None:
        found = datasets.Arrays(arrays, original, options.data)
        data = found.match(labelled=found.has_labels)
    operated, final = None, original
    if options.shrink is not None:
        judging = compilation
        if options.loss is not None:  # The optimizer is none that trains here.
            judging = Settings(None, options.loss, options.from_logits, "sgd").arguments()
        progress("shrink", 0, None)
        operated = operate(original, options.shrink, data, judging, options.seed)
        final = operated.model()
    calibration = None
    if layers is not None:
        Precisions.of(layers).check_layers(final)
        calibration = None if data is None else calibration_of(data, original, options.seed)
    progress("write the file", 0, None)
    written = write(options, original, final, lambda: compilation, precision, calibration)
    report = None if operated is None else operated.report
    return ShrunkFile(**written, report=report, seconds=round(time.perf_counter() - start, 1))


def _compilation(options: Options) -> dict[str, Any] | None:
    """The arguments of compile that the model was saved with; None if they cannot be read."""
    saved = saved_settings(options.model)
    try:
        return saved and Settings(saved).arguments()
    except ValueError:  # A loss of one's own, say, which surgery need not know.
        return None


def fine_tune(
    model: PathLike,
    recipe: PathLike,
    data: PathLike,
    output: PathLike,
    *,
    epochs: int | Sequence[int],
    distill: bool = False,
    teacher: PathLike | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> FineTuned | ShrunkFile:
    """Fine-tunes a saved model under a recipe, and writes what comes out.

    After each epoch the state is kept in the folder `<output>.checkpoint`, which is removed at the
    end; a training that is resumed gives what an uninterrupted one gives.

    Args:
        epochs: of training; or those of several turns of it, such as (3, 9), in each of which the
            learning rate falls anew (Loshchilov & Hutter 2016, arXiv:1608.03983). Shares of the
            training in the recipe are of the first turn. 0 for a recipe of surgery and precisions
            by layer alone, which needs no labels; a `ShrunkFile` tells of it.
        distill: the model learns from the teacher, too, also without such a section in the recipe.
        teacher: a file; by default the model itself as it was before.
        progress: called as `progress(stage, done, total)`.
        **options: batch_size=32;
            loss, optimizer: names of Keras losses and optimizers, instead of the saved ones;
            from_logits: the model gives logits, for a crossentropy that `loss` names;
            learning_rate: instead of the optimizer's; it falls to 0 along a cosine, unless
            constant_rate is true. A saved CosineDecay or PolynomialDecay begins anew, as long as
            this training; other schedules stay;
            validation_data: a .npz file to judge with, also of x_val and y_val or x_test and
            y_test; or validation_split: a fraction of `data`, drawn at random;
            seed=0: of the order of samples and all that is random;
            precision, io_dtype, target, compressed_weights, ram: of a .tflite file, see `convert`;
            by default the precision that the recipe trains for;
            keep: a .keras file for the model that a .tflite file is made from; `convert` makes the
            same of it;
            resume: go on with an interrupted training of the same settings, or with one that was
            kept: `epochs` may have more turns then;
            overwrite: begin anew although there is one;
            keep_checkpoint: leave the folder in place at the end.
    """
    told: dict[str, Any] | None = {} if distill else None
    given = Options(model, recipe, data, output, epochs, teacher=teacher, told=told, **options)
    return _run(given, progress)


def distill(
    teacher: PathLike,
    student: PathLike,
    data: PathLike,
    output: PathLike,
    *,
    epochs: int | Sequence[int],
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
    return _training(given, progress or _silent)


def shrink(
    model: PathLike,
    output: PathLike,
    steps: Shrink,
    *,
    data: PathLike | None = None,
    epochs: int | Sequence[int] = 0,
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
    return _run(given, progress)
