"""Distiller: a Keras model that trains a student from teachers."""

import os
from collections.abc import Sequence
from typing import Any

import keras

from tfcompress.distillation.cached import CachedTeachers
from tfcompress.distillation.losses import is_number
from tfcompress.distillation.outputs import symbolic_inputs
from tfcompress.distillation.planning import Plan
from tfcompress.distillation.reader import Reader, Tensors
from tfcompress.distillation.training import DistillingModel, check_model, evaluate_term
from tfcompress.distillation.translation import as_losses

register = keras.saving.register_keras_serializable("tfcompress")


@register
class Distiller(DistillingModel):
    """A `keras.Model` whose `fit` trains a student from labels and from a teacher.

    loss = alpha * (loss of `compile`) + (1 - alpha) * (sum of `losses`) + regularization; by
    default with the soft labels of Hinton et al. 2015, arXiv:1503.02531. `evaluate` and `predict`
    are the student's, `student` stays your own model: plain, from `compress` or `quantize_aware`
    (add `UpdateCompression` to `fit`), or pruned by `PruneCallback`. Teachers run in inference and
    are left untouched.

    Beside the loss, `fit` and `evaluate` report `task_loss`, that of `compile`, and
    `distillation_loss` with its parts, each with its own weight, before alpha is applied.

    Args:
        student: built `keras.Model` to train.
        teacher: built `keras.Model` with the same inputs and outputs of the same shapes, or a list
            of them.
        losses: what the student is to have in common with the teacher: losses of
            `tfcompress.distillation`, names of Keras losses of the outputs such as "mse", dicts of
            these by the name of an output, or a list; None for `SoftLabels` of every output.
        alpha: share of the labels in the loss, in [0, 1]; 0 trains on unlabelled data.
        temperature: of `SoftLabels` that have none of their own, greater than 0.
        teacher_weights: shares of several teachers, greater than 0; equal ones by default.
        cache: path of a file in which the teacher's outputs are kept, or "memory": later epochs
            then cost no teacher. For data without random augmentation.
        **kwargs: name and dtype of the model.

    Raises:
        TypeError, ValueError: if the models are not built, do not fit together or share weights
            that train, a layer or output is unknown, or a number is out of its range.

    Example:
        >>> distiller = Distiller(student, teacher, alpha=0.1, temperature=4.0)  # doctest: +SKIP
        >>> distiller.compile("adam", "sparse_categorical_crossentropy")  # doctest: +SKIP
        >>> distiller.fit(x, y, epochs=10)  # doctest: +SKIP
        >>> tfc.convert(distiller.student, "student.tflite")  # doctest: +SKIP
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model | Sequence[keras.Model],
        losses: Any = None,
        *,
        alpha: float = 0.1,
        temperature: float = 4.0,
        teacher_weights: Sequence[float] | None = None,
        cache: Any = None,
        **kwargs,
    ):
        teachers = list(teacher) if isinstance(teacher, list | tuple) else [teacher]
        for each in teachers:
            check_model(each, "teacher")
        super().__init__([student], alpha, temperature, **kwargs)
        _require_apart(student, teachers)
        self.student, self.teachers = student, teachers
        self._shares = _shares(teacher_weights, len(teachers))
        self._given = losses and as_losses(losses)
        inputs = symbolic_inputs(student)
        plan = Plan(student, teachers, losses, temperature, inputs, self._shares)
        self.terms = plan.terms
        self.adapters = [x for term in plan.terms for x in term.adapters if x is not None]
        self._teacher_readers = [
            Reader(each, plan.teacher_sources(k), plan.input_names)
            for k, each in enumerate(teachers)
        ]
        self._cached = None
        if cache is not None:
            # On TensorFlow, XLA cannot call the host.
            self.supports_jit = keras.backend.backend() != "tensorflow"
            self._cached = CachedTeachers(self._teacher_readers, inputs, cache)
        parts = [term.loss.name for term in plan.terms]
        self.finish(
            Reader(student, plan.student_sources),
            ["task_loss", "distillation_loss", *(parts if len(parts) > 1 else [])],
        )

    @property
    def students(self) -> list[keras.Model]:
        return [self.student]

    @property
    def frozen_models(self) -> list[keras.Model]:
        return self.teachers

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        outputs, ours = self.student_tensors(x, y_pred, training)
        task = self.task_loss(y, outputs, sample_weight)
        theirs = self.teacher_tensors(x, training)
        weights = self.listed_weights(sample_weight)
        values = [
            evaluate_term(term, theirs[term.teacher][term.theirs], ours[term.ours], weights)
            for term in self.terms
        ]
        distillation = sum(values)
        self.report(x, [task, distillation, *(values if len(values) > 1 else [])])
        return self.alpha * task + (1 - self.alpha) * distillation + self.penalties()

    def teacher_tensors(self, x, training: bool) -> list[Tensors]:
        """What the losses want of each teacher."""
        if self._cached is not None and training:
            return self._cached(x)
        return [reader(x, training=False)[1] for reader in self._teacher_readers]

    def run_fit(self, fit, args, kwargs):
        if self._cached is None:
            return super().run_fit(fit, args, kwargs)
        return self._cached.fit(fit, args, kwargs)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "student": serialize(self.student),
            "teacher": [serialize(teacher) for teacher in self.teachers],
            "losses": serialize(self._given),
            "alpha": self.alpha,
            "temperature": self.temperature,
            "teacher_weights": self._shares,
            "cache": self._cached and os.fspath(self._cached.where),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config, load = dict(config), keras.saving.deserialize_keras_object
        config["student"] = load(config["student"], custom_objects=custom_objects)
        config["teacher"] = [load(t, custom_objects=custom_objects) for t in config["teacher"]]
        config["losses"] = load(config["losses"], custom_objects=custom_objects)
        return cls(**config)


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """Shares of teachers that sum up to 1."""
    weights = [1.0] * count if weights is None else list(weights)
    if not count:
        raise ValueError("teacher must be a model or a list of one or more; received none.")
    if len(weights) != count or not all(is_number(w) and w > 0 for w in weights):
        raise ValueError(
            f"teacher_weights must be {count} numbers greater than 0, one for each teacher; "
            f"received {weights}."
        )
    return [float(weight) / sum(weights) for weight in weights]


def _require_apart(student: keras.Model, teachers: list[keras.Model]) -> None:
    # BatchNormalization changes in training although its statistics do not count as trainable.
    changing = [layer for layer in student._flatten_layers() if layer.trainable]
    trained = {
        id(v) for x in changing for v in (*x._trainable_variables, *x._non_trainable_variables)
    }
    for teacher in teachers:
        shared = [v for v in teacher.variables if id(v) in trained]
        if shared:
            raise ValueError(
                f"student '{student.name}' and teacher '{teacher.name}' share weights that train "
                f"({shared[0].path}, {len(shared)} in all); expected a teacher that stays as it "
                "is. Copy it with tfcompress.flatten(teacher), or freeze the shared layers; a "
                "model that teaches itself is tfcompress.SelfDistiller."
            )
