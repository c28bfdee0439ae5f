"""Distiller: a Keras model that trains a student from teachers."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras

from tfcompress.distillation.base import (
    DistillingModel,
    check_alpha,
    check_dropout,
    check_model,
    evaluate_terms,
)
from tfcompress.distillation.cached import CachedTeachers
from tfcompress.distillation.initialization import init_from_teacher
from tfcompress.distillation.losses import check_temperature, is_number, register
from tfcompress.distillation.plan import Plan, as_losses
from tfcompress.distillation.reading import Reader, Tensors, symbolic_inputs
from tfcompress.errors import check

# What a teacher and labels have to say together, and how softly.
ALPHA, TEMPERATURE = 0.5, 2.0


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
            None takes 0.5.
        temperature: of `SoftLabels` that have none of their own, greater than 0; None takes 2.
        dropout: whether the student's dropout is on while it learns: soft labels regularize, too,
            and a student that starts from its teacher is only kept from it. None turns it off.
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

    objects = ("student", "teacher", "losses")

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model | Sequence[keras.Model],
        losses: Any = None,
        *,
        alpha: float | None = None,
        temperature: float | None = None,
        dropout: bool | None = None,
        teacher_weights: Sequence[float] | None = None,
        cache: Any = None,
        **kwargs,
    ):
        chosen = settled(alpha, temperature, dropout)
        teachers = list(teacher) if isinstance(teacher, list | tuple) else [teacher]
        for each in teachers:
            check_model(each, "teacher")
        super().__init__([student], losses, *chosen, **kwargs)
        _require_apart(student, teachers)
        self.student = student
        self.teachers: list[keras.Model] = teachers
        self._shares = _shares(teacher_weights, len(teachers))
        inputs = symbolic_inputs(student)
        plan = Plan(student, teachers, losses, self.temperature, inputs, self._shares)
        self.terms = plan.terms
        self.adapters = plan.adapters
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

    @classmethod
    def from_config(cls, config, custom_objects=None):
        # Files of before there was the argument are of students with their dropout.
        return super().from_config({"dropout": True, **config}, custom_objects)

    def __repr__(self) -> str:
        teachers = ", ".join(repr(teacher.name) for teacher in self.teachers)
        settings = f"alpha={self.alpha:g}, temperature={self.temperature:g}, dropout={self.dropout}"
        return f"<Distiller of '{self.student.name}' by {teachers}, {settings}>"

    @property
    def frozen_models(self) -> list[keras.Model]:
        return self.teachers

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        outputs, ours = self.student_tensors(x, y_pred, training)
        task = self.task_loss(y, outputs, sample_weight)
        theirs = self.teacher_tensors(x, training)
        values = evaluate_terms(self.terms, theirs, ours, self.listed_weights(sample_weight))
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

    @property
    def settings(self):
        return {
            "student": self.student,
            "teacher": self.teachers,
            "dropout": self.dropout,
            "teacher_weights": self._shares,
            "cache": self._cached and os.fspath(self._cached.where),
        }


def settled(
    alpha: float | None, temperature: float | None, dropout: bool | None
) -> tuple[float, float, bool]:
    """The arguments of a `Distiller` with its defaults; docs/distillation.md says why these."""
    check_dropout(dropout)
    return (
        ALPHA if alpha is None else alpha,
        TEMPERATURE if temperature is None else temperature,
        bool(dropout),
    )


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """Shares of teachers that sum up to 1."""
    weights = [1.0] * count if weights is None else list(weights)
    if not count:
        raise ValueError("teacher must be a model or a list of one or more; received none.")
    holds = len(weights) == count and all(is_number(w) and w > 0 for w in weights)
    expected = f"{count} numbers greater than 0, one for each teacher"
    check(holds, "teacher_weights", expected, weights)
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


def born_again(
    build: Callable[[], keras.Model],
    train: Callable[[keras.Model], Any],
    generations: int = 2,
    **settings: Any,
) -> list[keras.Model]:
    """Trains a model, then others like it, each from the one before (born-again networks).

    Furlanello et al. 2018, arXiv:1805.04770.

    Args:
        build: makes a new, built `keras.Model` with weights of its own at each call.
        train: compiles and fits what it is given: first a model, then a `Distiller` of each next
            one, whose optimizer must be a new one.
        generations: how many are taught by another, 1 or more.
        **settings: arguments of `Distiller` such as alpha, temperature and losses.

    Returns:
        All models, the one without teacher first; their mean is often better than each.

    Raises:
        ValueError: if `generations` is less than 1, or `build` gives the same model again.

    Example:
        >>> def train(model):  # doctest: +SKIP
        ...     model.compile("adam", "sparse_categorical_crossentropy")
        ...     model.fit(x, y, epochs=10)
        >>> born_again(make_model, train, generations=3)[-1]  # doctest: +SKIP
    """
    whole = isinstance(generations, int) and not isinstance(generations, bool)
    check(whole and generations >= 1, "generations", "a whole number of 1 or more", generations)
    models = [build()]
    train(models[0])
    for _ in range(generations):
        student = build()
        if any(student is model for model in models):
            raise ValueError(
                f"build gave the model '{student.name}' twice; expected a new one at each call."
            )
        train(Distiller(student, models[-1], **settings))
        models.append(student)
    return models


@dataclasses.dataclass(frozen=True, eq=False)
class Distillation:
    """How a student learns from a teacher: the arguments of a `Distiller` but for the models.

    Args:
        losses: losses of `tfcompress.distillation`, names of Keras losses, dicts of these by the
            name of an output, or a list; None for soft labels of every output.
        alpha, temperature, dropout: see `Distiller`; None for its defaults.
        cache: path of a file in which the teacher's outputs are kept, or "memory".
        start_from_teacher: the student starts from the teacher's weights, as far as they fit; see
            `tfcompress.init_from_teacher`.

    Raises:
        TypeError, ValueError: if one of them is of another type or out of its range.

    Example:
        >>> Distillation(losses=["mse"], alpha=0.5).losses[0].name
        'mean_squared_error'
    """

    losses: Any = None
    alpha: float | None = None
    temperature: float | None = None
    cache: str | os.PathLike[str] | None = None
    start_from_teacher: bool = False
    dropout: bool | None = None

    def __post_init__(self):
        if self.alpha is not None:
            check_alpha(self.alpha)
        if self.temperature is not None:
            check_temperature(self.temperature)
        if self.losses is not None:
            object.__setattr__(self, "losses", tuple(as_losses(self.losses)))
        if self.cache is not None:
            if not isinstance(self.cache, str | os.PathLike) or not os.fspath(self.cache):
                raise TypeError(
                    "cache must be the path of a file, or 'memory'; received "
                    f"{self.cache!r}. None keeps nothing."
                )
            object.__setattr__(self, "cache", os.fspath(self.cache))
        if not isinstance(self.start_from_teacher, bool):
            raise TypeError(
                f"start_from_teacher must be True or False; received {self.start_from_teacher!r}."
            )
        check_dropout(self.dropout)

    @property
    def settled(self) -> Distillation:
        """The same with the defaults of `Distiller` where it says nothing."""
        alpha, temperature, dropout = settled(self.alpha, self.temperature, self.dropout)
        return dataclasses.replace(self, alpha=alpha, temperature=temperature, dropout=dropout)

    def distiller(
        self, student: keras.Model, teacher: keras.Model | Sequence[keras.Model]
    ) -> Distiller:
        """A model whose `fit` trains a student so.

        Args:
            student: built `keras.Model`, plain or from `compress`. With `start_from_teacher` its
                weights are set.
            teacher: built `keras.Model`, or a list of them, of which the student starts from the
                first.

        Returns:
            A `Distiller`, not compiled.

        Raises:
            TypeError, ValueError: if the models do not fit together.

        Example:
            >>> small = compress(model, recipe)  # doctest: +SKIP
            >>> distiller = recipe.distill.distiller(small, teacher=model)  # doctest: +SKIP
        """

        if self.start_from_teacher:
            self.start(student, teacher)
        return Distiller(
            student,
            teacher,
            self.losses,
            alpha=self.alpha,
            temperature=self.temperature,
            dropout=self.dropout,
            cache=self.cache,
        )

    def start(self, student: keras.Model, teacher: Any) -> Any:
        """Sets the weights of a student to those of a teacher; see `init_from_teacher`."""
        return init_from_teacher(
            student, teacher[0] if isinstance(teacher, list | tuple) else teacher
        )

    def get_config(self) -> dict[str, Any]:
        """The settings as plain data."""
        serialize = keras.saving.serialize_keras_object
        losses = self.losses and [serialize(loss) for loss in self.losses]
        return {
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)},
            "losses": losses,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Distillation:
        """The settings that `get_config` told."""
        load = keras.saving.deserialize_keras_object
        losses = config["losses"] and [load(loss) for loss in config["losses"]]
        # Of before there was the argument.
        return cls(**{"dropout": True, **config, "losses": losses})

    def __repr__(self) -> str:
        told = [
            f"{field.name}={value!r}"
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        ]
        return f"Distillation({', '.join(told)})"

    def __eq__(self, other: object) -> bool:
        # Losses of Keras are equal to themselves alone.
        return isinstance(other, Distillation) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        given = self.alpha, self.temperature, self.dropout
        return hash((*given, self.cache, self.start_from_teacher))
