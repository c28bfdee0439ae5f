"""Distillation: what a recipe says about learning from a teacher."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras

from tfcompress.distillation.losses import check_temperature
from tfcompress.distillation.training import check_alpha
from tfcompress.distillation.translation import as_losses

if TYPE_CHECKING:
    from tfcompress.distillation.distiller import Distiller


@dataclasses.dataclass(frozen=True, eq=False)
class Distillation:
    """How a student learns from a teacher: the arguments of a `Distiller` but for the models.

    Args:
        losses: losses of `tfcompress.distillation`, names of Keras losses, dicts of these by the
            name of an output, or a list; None for soft labels of every output.
        alpha: share of the labels in the loss, in [0, 1]; 0 needs no labels.
        temperature: of soft labels that have none of their own, greater than 0.
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
    alpha: float = 0.1
    temperature: float = 4.0
    cache: str | os.PathLike[str] | None = None
    start_from_teacher: bool = False

    def __post_init__(self):
        check_alpha(self.alpha)
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
        from tfcompress.distillation.distiller import Distiller

        if self.start_from_teacher:
            self.start(student, teacher)
        return Distiller(
            student,
            teacher,
            self.losses,
            alpha=self.alpha,
            temperature=self.temperature,
            cache=self.cache,
        )

    def start(self, student: keras.Model, teacher: Any) -> Any:
        """Sets the weights of a student to those of a teacher; see `init_from_teacher`."""
        from tfcompress.distillation.initialization import init_from_teacher

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
        return cls(**{**config, "losses": losses})

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
        return hash((self.alpha, self.temperature, self.cache, self.start_from_teacher))
