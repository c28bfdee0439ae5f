"""Losses between what a teacher gives and what a student gives, as Keras losses.

Each is called as `loss(teacher, student, sample_weight)`, and has one value for each sample (and
each position, where the outputs have several), so that weights of samples and masks apply.
"""

import math
import numbers
import re
from typing import Any

import keras
from keras import ops

from tfcompress.distillation.reading import alike, mask_of, to_logits, unpadded
from tfcompress.errors import check, named_in_keras

register = keras.saving.register_keras_serializable("tfcompress")


class DistillationLoss(keras.losses.Loss):
    """What a student is to have in common with its teacher; base of the losses below.

    Args:
        weight: factor of this loss among the others.
        output: name or index of the output it is about; None for each.
        teacher_layer, student_layer: names of layers whose outputs to compare instead.
        teacher: index of the one teacher it is about; None for each.
        name: under which it is reported.

    Raises:
        ValueError: if the weight is negative, or a layer is named for one model alone.
    """

    per_position = False  # whether there is a value for each position, not only for each sample
    settings: tuple[str, ...] = ()  # names of the arguments that this loss alone has

    def __init__(
        self,
        *,
        weight: float = 1.0,
        output: str | int | None = None,
        teacher_layer: str | None = None,
        student_layer: str | None = None,
        teacher: int | None = None,
        name: str | None = None,
        dtype: Any = None,
    ):
        # Of a lambda or the like: names of losses become names of scopes in graphs.
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", name or _snake(type(self).__name__)).strip("_")
        super().__init__(
            name=name or "loss_of_outputs", reduction="sum_over_batch_size", dtype=dtype
        )
        check(is_number(weight) and weight >= 0, "weight", "a number of 0 or more", weight)
        if (teacher_layer is None) != (student_layer is None):
            raise ValueError(
                f"{type(self).__name__} compares a layer of the teacher with one of the student; "
                f"received teacher_layer={teacher_layer!r}, student_layer={student_layer!r}. "
                "Name both, or neither to compare the outputs."
            )
        if output is not None and teacher_layer is not None:
            raise ValueError(
                f"{type(self).__name__} is about an output or about layers; received output="
                f"{output!r} and teacher_layer={teacher_layer!r}. Leave one of them out."
            )
        self.weight, self.output, self.teacher = float(weight), output, teacher
        self.teacher_layer, self.student_layer = teacher_layer, student_layer

    def __copy__(self):
        # Keras would save and load it, which loses functions and some settings of its losses.
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        return twin

    def __call__(self, y_true, y_pred, sample_weight=None):
        if not self.per_position:  # a mask of positions cannot weigh what has none
            masks = [m for m in (mask_of(y_true), mask_of(y_pred)) if m is not None]
            y_true, y_pred = unpadded(y_true, masks), unpadded(y_pred, masks)
        return super().__call__(y_true, y_pred, sample_weight)

    def check(self, teacher_shape: tuple, student_shape: tuple) -> None:
        """Raises a ValueError unless tensors of these shapes, batch first, can be compared."""
        require_same(teacher_shape, student_shape)

    def adapters(self, teacher_shape: tuple, student_shape: tuple) -> tuple[Any, Any]:
        """Layers to learn that stand between the models and this loss; None where none is needed.

        Returns:
            (layer for the teacher's tensor, layer for the student's), not built.
        """
        return None, None

    def __repr__(self):
        told = {key: value for key, value in self.get_config().items() if value is not None}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in told.items())})"

    def get_config(self) -> dict[str, Any]:
        shared = ("weight", "output", "teacher_layer", "student_layer", "teacher", "name")
        config = {name: getattr(self, name) for name in (*shared, *self.settings)}
        if "loss" in self.settings:  # an object of Keras or a function
            config["loss"] = keras.saving.serialize_keras_object(self.loss)
        return config

    @classmethod
    def from_config(cls, config):
        if "loss" in cls.settings:
            config = {**config, "loss": keras.saving.deserialize_keras_object(config["loss"])}
        return cls(**config)


@register
class SoftLabels(DistillationLoss):
    """The student's classes are to be as likely as the teacher's, softened by a temperature.

    temperature^2 * KL(softmax(teacher / temperature) || softmax(student / temperature)), whose
    gradients stay as large as those of labels at every temperature (Hinton et al. 2015,
    arXiv:1503.02531). Classes are along the last axis; other axes are positions.

    Args:
        temperature: softens both distributions; greater than 0. None takes the `Distiller`'s.
        from_logits: whether the models give logits (True) or probabilities (False); a pair if
            teacher and student differ. None lets the `Distiller` find it out; without one, logits.
        activation: "softmax" for one class of several, "sigmoid" for classes that exclude nothing.
            None lets the `Distiller` find it out; without one, softmax.
        **kwargs: arguments of `DistillationLoss`.

    Raises:
        ValueError: if the temperature is not greater than 0, or the activation is another one.

    Example:
        >>> loss = SoftLabels(temperature=2.0)
        >>> round(float(loss([[2.0, 0.0]], [[0.0, 2.0]])), 4)  # 4 * (p - q) * log(p / q)
        1.8485
    """

    per_position = True
    settings = ("temperature", "activation", "from_logits")

    def __init__(
        self,
        temperature: float | None = None,
        from_logits: bool | tuple[bool, bool] | None = None,
        activation: str | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if temperature is not None:
            check_temperature(temperature)
        known = activation in ("softmax", "sigmoid", None)
        check(known, "activation", "softmax or sigmoid", activation)
        self.temperature, self.activation = temperature, activation
        given = list(from_logits) if isinstance(from_logits, list | tuple) else [from_logits] * 2
        holds = len(given) == 2 and all(x in (True, False, None) for x in given)
        expected = "True, False, None or a pair of them, for teacher and student"
        check(holds, "from_logits", expected, from_logits)
        self.from_logits = tuple(given)

    def check(self, teacher_shape, student_shape):
        require_same(teacher_shape, student_shape)
        if self.activation != "sigmoid" and student_shape[-1] == 1:
            raise ValueError(
                "soft labels need two classes or more; the output has one number. Pass "
                "losses=[SoftLabels(activation='sigmoid')] for the logit of yes or no, or "
                "losses=['mse'] for a quantity."
            )

    def call(self, y_true, y_pred):
        temperature = 1.0 if self.temperature is None else self.temperature
        teacher, student = (
            self.logits(x, given) / temperature
            for x, given in zip((y_true, y_pred), self.from_logits, strict=True)
        )
        if self.activation != "sigmoid":
            expected = ops.log_softmax(teacher, axis=-1)
            likely = ops.exp(expected)
            gaps = likely * (expected - ops.log_softmax(student, axis=-1))
            # A class that the teacher masks, by a logit of -inf, costs nothing.
            gaps = ops.where(likely > 0, gaps, ops.zeros_like(gaps))
            return temperature**2 * ops.sum(gaps, axis=-1)
        yes, no = ops.sigmoid(teacher), ops.sigmoid(-teacher)
        gaps = yes * (ops.log_sigmoid(teacher) - ops.log_sigmoid(student))
        gaps += no * (ops.log_sigmoid(-teacher) - ops.log_sigmoid(-student))
        return temperature**2 * ops.mean(gaps, axis=-1)

    def logits(self, values, from_logits):
        """Logits of what a model gives."""
        return to_logits(values, self.activation or "softmax") if from_logits is False else values


@register
class Regression(DistillationLoss):
    """The student's numbers are to be the teacher's: for outputs that are not classes.

    Also for outputs with positions, such as maps of depth: the loss is taken at each of them.

    Args:
        loss: name of a Keras loss, a `keras.losses.Loss` or a function of (teacher, student) that
            gives a value for each sample.
        **kwargs: arguments of `DistillationLoss`.

    Raises:
        ValueError: if Keras has no loss of that name.

    Example:
        >>> float(Regression("mae")([[1.0, 3.0]], [[1.0, 2.0]]))
        0.5
    """

    per_position = True
    settings = ("loss",)

    def __init__(self, loss: Any = "mse", **kwargs):
        self.loss = loss if callable(loss) else named_in_keras("loss", loss)
        if kwargs.get("name") is None:
            kwargs["name"] = _snake(getattr(self.loss, "__name__", type(self.loss).__name__))
        super().__init__(**kwargs)

    def check(self, teacher_shape, student_shape):
        super().check(teacher_shape, student_shape)
        tensors = (keras.KerasTensor(shape) for shape in (teacher_shape, student_shape))
        if not _Unreduced(self.loss).compute_output_spec(*tensors).shape:
            raise ValueError(
                f"the loss {self.name!r} gives one number for a whole batch; expected a value for "
                "each sample, so that weights of samples apply. Take the mean over all axes but "
                "the first."
            )

    def call(self, y_true, y_pred):
        values = unreduced(self.loss, y_true, y_pred)
        # As many axes as the weights of samples have for outputs of this shape.
        missing = len(y_pred.shape) - 1 - len(values.shape)
        return ops.reshape(values, (*ops.shape(values), *[1] * missing)) if missing > 0 else values


class _Unreduced(keras.Operation):
    """The values of a loss, to be described without being computed."""

    def __init__(self, loss: Any):
        super().__init__()
        self.loss = loss

    def call(self, teacher, student):
        return unreduced(self.loss, teacher, student)


def unreduced(loss: Any, teacher: Any, student: Any) -> Any:
    """The values of a Keras loss, or of a function like one, before they are averaged."""
    return (
        loss.call(teacher, student)
        if isinstance(loss, keras.losses.Loss)
        else loss(teacher, student)
    )


def per_sample(values: Any) -> Any:
    """Means over all axes but the first."""
    axes = tuple(range(1, len(values.shape)))
    return ops.mean(values, axis=axes) if axes else values


def is_number(value: Any) -> bool:
    """Whether something is a finite number."""
    plain = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return plain and math.isfinite(value)


def check_temperature(temperature: Any) -> None:
    """Raises unless a temperature is a number greater than 0."""
    mend = "2 to 8 is usual; 1 leaves the probabilities as they are."
    holds = is_number(temperature) and temperature > 0
    check(holds, "temperature", "a number greater than 0", temperature, mend)


def require_same(teacher_shape: tuple, student_shape: tuple) -> None:
    """Raises unless two shapes are the same, as far as they are known."""
    if not alike(teacher_shape, student_shape):
        raise ValueError(
            f"the teacher gives {tuple(teacher_shape)}, the student {tuple(student_shape)}; "
            "expected the same shape."
        )


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
