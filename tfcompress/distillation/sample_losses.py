"""Losses that compare samples of a batch with one another, with one value for each sample."""

from keras import layers, ops

from tfcompress.distillation.feature_losses import flat, normalized
from tfcompress.distillation.losses import DistillationLoss, register


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

    def get_config(self):
        return {**super().get_config(), "distance": self.distance, "angle": self.angle}


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

    def get_config(self):
        return {**super().get_config(), "size": self.size, "temperature": self.temperature}


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
