"""What a training reads: the model, its teacher and the data, matched to one another."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from tfcompress.distillation.base import DistillingModel
from tfcompress.distillation.distiller import Distillation
from tfcompress.files import models
from tfcompress.fine_tuning import data as datasets
from tfcompress.fine_tuning.data import VALIDATION, Arrays, Data
from tfcompress.fine_tuning.options import Options, PathLike, Settings, saved_settings
from tfcompress.fine_tuning.teaching import Teaching
from tfcompress.graph.flatten import flatten
from tfcompress.recipe import file
from tfcompress.recipe.recipe import Recipe
from tfcompress.tools import runtimes

# Called as `progress(stage, done, total)`.
Progress = Callable[[str, int, int | None], Any]

# Samples that show the ranges of activations.
_CALIBRATED = 300


@dataclasses.dataclass(frozen=True)
class Read:
    """What a training is asked for, its models and its data.

    Attributes:
        recipe: of a training of this length; None without one.
        fingerprint: what a training must share with this one to resume it.
        original: the flat model as it was saved.
        settings: how it is compiled.
        teaching: the teacher and what it teaches; None without one.
        training: what to learn.
        judged: what to measure with, which may be the same.
        judged_on: `judged` in words.
    """

    options: Options
    progress: Progress
    recipe: Recipe | None
    fingerprint: dict[str, Any]
    original: keras.Model
    settings: Settings
    teaching: Teaching | None
    training: Data
    judged: Data
    judged_on: str

    @property
    def batches(self) -> int:
        """How many batches an epoch has."""
        return self.training.count(self.options.batch_size)

    def with_teacher(self, model: keras.Model) -> Any:
        """What `fit` is called on: what teaches the model, or the model itself."""
        return model if self.teaching is None else self.teaching.distiller(model)

    def evaluate(self, model: keras.Model, trained: Any = None) -> dict[str, float]:
        """Loss and metrics of a model, or how near it is to its teacher without labels."""
        size = self.options.batch_size
        if not self.judged.labels and self.teaching is not None:
            return self.teaching.judge(model, self.judged, size, trained)
        return datasets.evaluate(model, self.settings, self.judged, size)

    def calibration(self) -> dict[str, Any]:
        """Some inputs of the training by their names."""
        return calibration_of(self.training, self.original, self.options.seed)

    def check_labels(self) -> None:
        """Raises if labels, or outputs, are not what the loss takes."""
        for part in (self.training, self.judged):
            if part.labels:
                datasets.check_labels(self.original, self.settings.arguments()["loss"], part)
                datasets.check_probabilities(self.original, self.settings, part)


def asked_by(options: Options) -> tuple[Options, file.Parsed | None]:
    """The options with the surgery of their recipe, and the recipe."""
    if options.in_codes:
        runtimes.require_tflm()
    parsed = None if options.recipe is None else file.load(options.recipe)
    if parsed is None:
        return options, None
    if parsed.shrink is not None:
        options = dataclasses.replace(options, shrink=parsed.shrink)
    if parsed.precision is not None:
        options.check_layers(parsed.precision)
    if not options.turns:
        _require_no_training(options, parsed)
    return options, parsed


def _require_no_training(options: Options, parsed: file.Parsed) -> None:
    """Raises if a recipe, or an option, is for a training."""
    trains = {"rules": any(rule.techniques for rule, _ in parsed.rules)}
    trains |= {"distill": parsed.distill is not None, "shrink: epochs": options.epochs_before > 0}
    trains |= {name: bool(getattr(options, name)) for name in ("teacher", "resume")}
    found = [name for name, there in trains.items() if there]
    if found:
        raise ValueError(
            f"epochs must be a whole number of at least 1; received 0 with {' and '.join(found)}, "
            "for which there must be a training. Pass --epochs 1 or more, or take that out: "
            "surgery and precisions by layer alone need none."
        )


def read(options: Options, progress: Progress) -> Read:
    """Reads recipe, models and data; first what is quick to be found wrong."""
    options, parsed = asked_by(options)
    distillation = options.distillation(None if parsed is None else parsed.distill)
    if options.data is None:
        raise ValueError(
            f"{sum(options.turns)} epochs of training need data; received none. Pass --data FILE."
        )
    progress("read the data", 0, None)
    arrays = datasets.read(options.data)
    judging = options.validation_data and datasets.read(options.validation_data)
    progress("load the model", 0, None)
    loaded = load(options.model)
    original = flatten(loaded)
    teaching = None
    if distillation is not None:
        teacher = loaded if options.teacher is None else load(options.teacher)
        teaching = Teaching(distillation, teacher)
    settings = Settings(
        saved_settings(options.model),
        options.loss,
        options.from_logits,
        options.optimizer,
        options.learning_rate,
        needs_loss=distillation is None or bool(distillation.alpha),
    )
    found = Arrays(arrays, original, options.data)
    training = judged = _matched(found, settings, distillation)
    kind = "training"
    if judging:
        found = Arrays(judging, original, options.validation_data, VALIDATION)
        judged = _matched(found, settings, distillation)
        kind = "validation"
    elif options.validation_split:
        training, judged = training.split(options.validation_split, options.seed)
        kind = "validation"
    recipe = None
    if parsed is not None:
        # Shares are of the first turn, after which the model is a finished one.
        recipe = Recipe(*parsed.parts(options.turns[0] * training.count(options.batch_size)))
    return Read(
        options=options,
        progress=progress,
        recipe=recipe,
        fingerprint=options.fingerprint(None if parsed is None else parsed.content, distillation),
        original=original,
        settings=settings,
        teaching=teaching,
        training=training,
        judged=judged,
        judged_on=f"the {kind} data ({len(judged):,} samples)",
    )


def calibration_of(data: Data, model: keras.Model, seed: int) -> dict[str, Any]:
    """Some inputs of a model by their names."""
    names = [tensor.name for tensor in keras.tree.flatten(model._inputs_struct)]
    return dict(zip(names, data.drawn(_CALIBRATED, seed).inputs, strict=True))


def _matched(arrays: Arrays, settings: Settings, distillation: Distillation | None) -> Data:
    """The data of a model; without labels, if none are there or needed."""
    there = arrays.has_labels
    if distillation is not None and settings.needs_loss and arrays.has_inputs and not there:
        mend = arrays.mend_names() or "Add the array y."
        raise ValueError(
            f"'{arrays.path}' holds no labels, which alpha={distillation.alpha:g} gives a share "
            f"in the loss; received {', '.join(map(repr, arrays.found))}. {mend.rstrip('.')}, or "
            "learn from the teacher alone: --alpha 0."
        )
    return arrays.match(settings.needs_loss or (there and settings.loss_is_known))


def load(path: PathLike) -> keras.Model:
    """The model in a file."""
    loaded = models.load_model(path)
    if isinstance(loaded, models.SavedModel):
        raise ValueError(
            f"'{path}' is a SavedModel, which holds no Keras layers to train or to learn from; "
            "expected a .keras or .h5 file. Save the model with model.save('model.keras')."
        )
    if isinstance(loaded, DistillingModel):
        inner = "student" if hasattr(loaded, "student") else "students[0]"
        raise ValueError(
            f"'{path}' is a {type(loaded).__name__}, which trains a student; expected a model of "
            'its own. Take the student out of it: python -c "import keras, tfcompress; '
            f"keras.saving.load_model('{path}').{inner}.save('student.keras')\""
        )
    return loaded
