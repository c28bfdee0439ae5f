"""Losses between layers inside of a teacher and a student, with one value for each sample.

Widths that differ are brought together by layers that are learned along with the student and
thrown away with the `Distiller`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import layers, ops

from tfcompress.distillation.losses import DistillationLoss, per_sample, register, unreduced
from tfcompress.errors import check, named_in_keras


@register
class Features(DistillationLoss):
    """A layer of the student is to give what a layer of the teacher gives (hints).

    Romero et al. 2015, arXiv:1412.6550. Where the student's layer has another width, a learned
    linear projection leads to the teacher's; where the maps differ in size, the larger one is
    averaged down to the smaller.

    Args:
        teacher_layer, student_layer: names of layers with outputs of the same rank, channels last.
        loss: name of a Keras loss, a `keras.losses.Loss` or a function of (teacher, student).
        projection: True projects in any case, False never; "auto" where the widths differ.
        **kwargs: arguments of `DistillationLoss`.

    Raises:
        ValueError: if Keras has no such loss; in a `Distiller`, if the layers cannot be compared.

    Example:
        >>> Features("block4", "block2", weight=0.1)  # doctest: +SKIP
    """

    settings = ("loss", "projection")

    def __init__(
        self,
        teacher_layer: str | None = None,
        student_layer: str | None = None,
        loss: Any = "mse",
        projection: bool | str = "auto",
        **kwargs,
    ):
        super().__init__(teacher_layer=teacher_layer, student_layer=student_layer, **kwargs)
        known = projection in (True, False, "auto")
        check(known, "projection", "True, False or 'auto'", projection)
        self.loss = loss if callable(loss) else named_in_keras("loss", loss)
        self.projection = projection

    def check(self, teacher_shape, student_shape):
        _require_rank(teacher_shape, student_shape)
        if self.projection is False and teacher_shape[-1] != student_shape[-1]:
            raise ValueError(
                f"the teacher's layer has {teacher_shape[-1]} channels, the student's "
                f"{student_shape[-1]}; expected the same number with projection=False. Leave "
                "projection out to learn one."
            )

    def adapters(self, teacher_shape, student_shape):
        needed = teacher_shape[-1] != student_shape[-1]
        if needed if self.projection == "auto" else self.projection:
            return None, layers.Dense(teacher_shape[-1], name=f"{self.name}_projection")
        return None, None

    def call(self, y_true, y_pred):
        teacher, student = same_size(y_true, y_pred)
        return per_sample(unreduced(self.loss, teacher, student))


@register
class AttentionTransfer(DistillationLoss):
    """The student is to look where the teacher looks.

    The attention map of a layer is the sum over its channels of |feature|^power, divided by its L2
    norm; the loss is the squared distance of the two maps (Zagoruyko and Komodakis 2017,
    arXiv:1612.03928). Widths may differ; the larger map is averaged down to the smaller.

    Args:
        teacher_layer, student_layer: names of layers with outputs of shape (batch, positions...,
            channels) of the same rank.
        power: 1 or more; larger ones look at the strongest places alone.
        **kwargs: arguments of `DistillationLoss`.

    Raises:
        ValueError: if the power is less than 1.

    Example:
        >>> AttentionTransfer("block4", "block2", weight=100.0)  # doctest: +SKIP
    """

    settings = ("power",)

    def __init__(
        self,
        teacher_layer: str | None = None,
        student_layer: str | None = None,
        power: float = 2.0,
        **kwargs,
    ):
        super().__init__(teacher_layer=teacher_layer, student_layer=student_layer, **kwargs)
        check(power >= 1, "power", "1 or more", power, "2 is usual.")
        self.power = power

    def check(self, teacher_shape, student_shape):
        _require_rank(teacher_shape, student_shape)
        if len(teacher_shape) < 3:
            raise ValueError(
                f"attention needs layers with positions, (batch, positions..., channels); received "
                f"the shape {tuple(teacher_shape)}. Name layers before the pooling."
            )

    def call(self, y_true, y_pred):
        maps = [
            ops.mean(ops.abs(x) ** self.power, axis=-1, keepdims=True) for x in (y_true, y_pred)
        ]
        teacher, student = (normalized(flat(x)) for x in same_size(*maps))
        return ops.sum(ops.square(teacher - student), axis=-1)


def same_size(teacher: Any, student: Any) -> tuple[Any, Any]:
    """Two maps of the same size: along each axis, the larger one averaged down to the smaller.

    Args:
        teacher, student: tensors of shape (batch, positions..., channels).
    """
    for axis in range(1, len(student.shape) - 1):
        sizes = teacher.shape[axis], student.shape[axis]
        if None not in sizes:
            teacher = _averaged(teacher, axis, min(sizes))
            student = _averaged(student, axis, min(sizes))
    return teacher, student


def _averaged(x: Any, axis: int, size: int) -> Any:
    """Brings an axis to a smaller size; each new element is the mean of what it covers.

    As a product with a matrix, which XLA can compile, other than the resizing of images.
    """
    old = x.shape[axis]
    if old == size:
        return x
    edges = np.arange(size + 1) * old / size
    places = np.arange(old)
    covered = np.minimum(edges[1:, None], places + 1) - np.maximum(edges[:-1, None], places)
    shares = ops.cast(np.maximum(covered, 0) * size / old, x.dtype)
    return ops.moveaxis(ops.tensordot(shares, x, axes=[[1], [axis]]), 0, axis)


def _require_rank(teacher_shape, student_shape) -> None:
    if len(teacher_shape) != len(student_shape):
        raise ValueError(
            f"the teacher's layer gives {tuple(teacher_shape)}, the student's "
            f"{tuple(student_shape)}; expected the same number of axes, whose sizes may differ. "
            "Name layers of the same kind."
        )
    if teacher_shape[-1] is None or student_shape[-1] is None:
        raise ValueError(
            f"the teacher's layer gives {tuple(teacher_shape)}, the student's "
            f"{tuple(student_shape)}; expected a known number of channels, the last axis."
        )


def flat(x):
    """All of a sample in one axis."""
    return ops.reshape(x, (ops.shape(x)[0], -1))


def normalized(x):
    """Vectors along the last axis, of length 1; one of zeros stays so, and has no gradient."""
    squares = ops.sum(ops.square(x), axis=-1, keepdims=True)
    apart = squares > 1e-12
    return ops.where(apart, x * ops.rsqrt(ops.where(apart, squares, 1.0)), 0.0)


@register
class Relational(DistillationLoss):
    """Samples of a batch are to lie to each other in the student as they lie in the teacher.

    Distances of pairs, as multiples of their mean, and the angles of triplets are compared by the
    Huber loss (Park et al. 2019, arXiv:1904.05068). Shapes may differ: only samples are compared.
    It takes memory for the square of the batch size times the width of the layer, and angles for
    its third power: name a layer behind the pooling.

    Args:
        teacher_layer, student_layer: names of layers; None compares the outputs.
        distance, angle: factors of the two parts.
        **kwargs: arguments of `DistillationLoss`.

    Raises:
        ValueError: if a factor is negative, or both are 0.

    Example:
        >>> loss = Relational(angle=0.0)
        >>> float(loss([[0.0], [1.0]], [[0.0], [5.0]]))  # one pair: its distance is the mean
        0.0
    """

    settings = ("distance", "angle")

    def __init__(
        self,
        teacher_layer: str | None = None,
        student_layer: str | None = None,
        distance: float = 1.0,
        angle: float = 2.0,
        **kwargs,
    ):
        super().__init__(teacher_layer=teacher_layer, student_layer=student_layer, **kwargs)
        if min(distance, angle) < 0 or not (distance or angle):
            raise ValueError(
                "distance and angle must be 0 or more, and one of them greater; received "
                f"{distance!r} and {angle!r}. 1 and 2 are usual."
            )
        self.distance, self.angle = distance, angle

    def check(self, teacher_shape, student_shape):
        pass

    def call(self, y_true, y_pred):
        teacher, student = flat(y_true), flat(y_pred)
        values = ops.zeros_like(teacher[:, 0])
        if self.distance:
            gaps = _huber(_distances(teacher), _distances(student))
            values += self.distance * ops.mean(gaps, axis=-1)
        if self.angle:
            gaps = _huber(_angles(teacher), _angles(student))
            values += self.angle * ops.mean(gaps, axis=(-2, -1))
        return values


@register
class Contrastive(DistillationLoss):
    """The student's picture of a sample is to be nearer to the teacher's than that of any other.

    Both are projected to one space by learned layers; among the samples of a batch the teacher's
    picture is to be told from the student's, and the other way round (contrastive representation
    distillation, Tian et al. 2020, arXiv:1910.10699, with the other samples of the batch for
    negatives: InfoNCE, van den Oord et al. 2018, arXiv:1807.03748). It needs no labels.

    Args:
        teacher_layer, student_layer: names of layers, best those before the last; maps are
            averaged over their positions. None compares the outputs.
        size: of the common space.
        temperature: of the similarities, greater than 0.
        **kwargs: arguments of `DistillationLoss`.

    Raises:
        ValueError: if the size or the temperature is not greater than 0.

    Example:
        >>> Contrastive("pooling", "pool", weight=0.8)  # doctest: +SKIP
    """

    settings = ("size", "temperature")

    def __init__(
        self,
        teacher_layer: str | None = None,
        student_layer: str | None = None,
        size: int = 128,
        temperature: float = 0.1,
        **kwargs,
    ):
        super().__init__(teacher_layer=teacher_layer, student_layer=student_layer, **kwargs)
        if size < 1 or temperature <= 0:
            raise ValueError(
                f"size and temperature must be greater than 0; received {size!r} and "
                f"{temperature!r}. 128 and 0.1 are usual."
            )
        self.size, self.temperature = size, temperature

    def check(self, teacher_shape, student_shape):
        for whose, shape in (("teacher", teacher_shape), ("student", student_shape)):
            if shape[-1] is None:
                raise ValueError(
                    f"a projection needs the width of the {whose}'s layer; its shape is "
                    f"{tuple(shape)}. Name a layer whose last axis is known."
                )

    def adapters(self, teacher_shape, student_shape):
        return tuple(
            layers.Dense(self.size, name=f"{self.name}_{whose}") for whose in ("teacher", "student")
        )

    def call(self, y_true, y_pred):
        teacher, student = (
            normalized(
                ops.mean(x, axis=tuple(range(1, len(x.shape) - 1))) if len(x.shape) > 2 else x
            )
            for x in (y_true, y_pred)
        )
        similar = ops.matmul(student, ops.transpose(teacher)) / self.temperature
        own = ops.diagonal(similar)
        ahead = ops.logsumexp(similar, axis=1) - own
        back = ops.logsumexp(similar, axis=0) - own
        return (ahead + back) / 2


def _huber(a, b):
    gap = ops.abs(a - b)
    return ops.where(gap < 1, 0.5 * gap * gap, gap - 0.5)


def _distances(x):
    """Distances of all pairs, as multiples of the mean of those that are not 0."""
    gaps = x[:, None] - x[None]
    squares = ops.sum(ops.square(gaps), axis=-1)
    apart = squares > 1e-12
    distances = ops.where(apart, ops.sqrt(ops.where(apart, squares, 1.0)), 0.0)
    count = ops.maximum(ops.sum(ops.cast(apart, x.dtype)), 1.0)
    return distances / ops.maximum(ops.sum(distances) / count, 1e-6)


def _angles(x):
    """Cosines of the angles at each sample between all pairs of others, (batch, batch, batch)."""
    directions = normalized(x[None] - x[:, None])
    return ops.matmul(directions, ops.transpose(directions, (0, 2, 1)))
