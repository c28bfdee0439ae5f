"""What a training reads: the model, its teacher and the data, matched to one another."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfcompress.distillation.base import DistillingModel
from tfcompress.distillation.distiller import Distillation
from tfcompress.files import models
from tfcompress.fine_tuning import data as datasets
from tfcompress.fine_tuning.data import Data
from tfcompress.fine_tuning.options import Options, PathLike, Settings, saved_settings
from tfcompress.fine_tuning.teaching import Teaching
from tfcompress.graph.flatten import flatten


@dataclasses.dataclass(frozen=True)
class Read:
    """Models and data.

    Attributes:
        original: the flat model as it was saved.
        settings: how it is compiled.
        teaching: the teacher and what it teaches; None without one.
        training: what to learn.
        judged: what to measure with, which may be the same.
        judged_on: `judged` in words.
    """

    original: keras.Model
    settings: Settings
    teaching: Teaching | None
    training: Data
    judged: Data
    judged_on: str

    def batches(self, size: int) -> int:
        """How many batches an epoch has."""
        return math.ceil(len(self.training) / size)


def read(options: Options, distillation: Distillation | None, progress: Callable) -> Read:
    """Reads models and data; first what is quick to be found wrong.

    Args:
        progress: called as `progress(stage, done, total)`.
    """
    if options.data is None:
        raise ValueError(
            f"{options.epochs} epochs of training need data; received none. Pass --data FILE."
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
        needs_loss=distillation is None or distillation.alpha > 0,
    )
    matcher = _Matcher(original, settings, distillation)
    training = judged = matcher(arrays, options.data, datasets.TRAINING)
    kind = "training"
    if judging:
        judged = matcher(judging, options.validation_data, datasets.VALIDATION)
        kind = "validation"
    elif options.validation_split:
        training, judged = training.split(options.validation_split, options.seed)
        kind = "validation"
    judged_on = f"the {kind} data ({len(judged):,} samples)"
    return Read(original, settings, teaching, training, judged, judged_on)


@dataclasses.dataclass(frozen=True)
class _Matcher:
    """Finds the data of a model among arrays; without labels, if none are there or needed."""

    model: keras.Model
    settings: Settings
    distillation: Distillation | None

    def __call__(self, arrays: dict[str, np.ndarray], path: Any, names: Any) -> Data:
        there = datasets.has_labels(arrays, self.model, names)
        inputs = datasets.has_inputs(arrays, self.model, names)
        if self.distillation is not None and self.settings.needs_loss and inputs and not there:
            mend = datasets.mend_names(arrays, self.model, names) or "Add the array y."
            raise ValueError(
                f"'{path}' holds no labels, which alpha={self.distillation.alpha:g} gives a share "
                f"in the loss; received {', '.join(map(repr, arrays))}. "
                f"{mend.rstrip('.')}, or learn from the teacher alone: --alpha 0."
            )
        labelled = self.settings.needs_loss or (there and self.settings.loss_is_known)
        return datasets.match(arrays, self.model, path, names, labelled)


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
