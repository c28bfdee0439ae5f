"""MutualDistiller: students that learn together, each from the others."""

from collections.abc import Sequence
from typing import Any

import keras

from tfcompress.distillation.base import DistillingModel, evaluate_terms
from tfcompress.distillation.losses import register
from tfcompress.distillation.plan import Plan
from tfcompress.distillation.reading import Reader, symbolic_inputs
from tfcompress.errors import check


@register
class MutualDistiller(DistillingModel):
    """A `keras.Model` whose `fit` trains two or more students, each the teacher of the others.

    The loss is the sum over students of alpha * (loss of `compile`) + (1 - alpha) * (mean over the
    other students of `losses`), where what the others give counts as given (deep mutual learning,
    Zhang et al. 2018, arXiv:1706.00384). No trained teacher is needed. `evaluate` and `predict`
    are those of the first student, the one to ship; `students` stay your own models.

    Args:
        students: built `keras.Model`s, two or more, with the same inputs and outputs of the same
            shapes; each plain, compressed or pruned.
        losses, alpha, temperature: see `Distiller`. The teacher of a loss is any other student.
        **kwargs: name and dtype of the model.

    Raises:
        TypeError, ValueError: as `Distiller`; or if there are fewer than two students.

    Example:
        >>> mutual = MutualDistiller([small, large])  # doctest: +SKIP
        >>> mutual.compile("adam", "sparse_categorical_crossentropy")  # doctest: +SKIP
        >>> mutual.fit(x, y, epochs=10)  # doctest: +SKIP
    """

    objects = ("students", "losses")

    def __init__(
        self,
        students: Sequence[keras.Model],
        losses: Any = None,
        *,
        alpha: float = 0.5,
        temperature: float = 1.0,
        **kwargs,
    ):
        several = isinstance(students, list | tuple) and len(students) > 1
        expected = "a list of two models or more that learn from each other"
        mend = "A single student with a teacher is a Distiller."
        check(several, "students", expected, students, mend)
        super().__init__(students, losses, alpha, temperature, **kwargs)
        _require_different(students)
        self._students = list(students)
        inputs = symbolic_inputs(students[0])
        count = len(students)
        self._plans = [
            Plan(
                student,
                [other for other in students if other is not student],
                losses,
                temperature,
                inputs,
                [1 / (count - 1)] * (count - 1),
            )
            for student in students
        ]
        if alpha:
            self._require_one_kind()
        self.adapters = [layer for plan in self._plans for layer in plan.adapters]
        self._readers = [
            Reader(student, self._sources(index), self._plans[0].input_names)
            for index, student in enumerate(students)
        ]
        names = [f"task_loss_{index + 1}" for index in range(count)]
        self.finish(self._readers[0], [*names, "distillation_loss"])

    @property
    def students(self) -> list[keras.Model]:
        return self._students

    def _require_one_kind(self) -> None:
        """Raises where one loss for labels cannot be right for all students."""
        for index in self._plans[0].outputs:
            kinds = [
                plan.kind(plan.student, index)[0] in ("softmax", "sigmoid") for plan in self._plans
            ]
            if len(set(kinds)) > 1:
                soft = self.students[kinds.index(True)].name
                plain = self.students[kinds.index(False)].name
                raise ValueError(
                    f"student '{soft}' gives probabilities, '{plain}' does not; expected outputs "
                    "of one kind, since compile takes one loss for the labels of all. End both "
                    "with the same activation, or learn without labels, alpha=0."
                )

    def _sources(self, index: int) -> list[Any]:
        """What is read of a student, for itself and for those that learn from it."""
        found = list(self._plans[index].student_sources)
        for other, plan in enumerate(self._plans):
            if other != index:
                found += plan.teacher_sources(index - (index > other))
        return found

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        read = [self.student_tensors(x, y_pred, training)]
        read += [reader(x, training=training) for reader in self._readers[1:]]
        tasks = [self.task_loss(y, outputs, sample_weight) for outputs, _ in read]
        weights = self.listed_weights(sample_weight)
        values = []
        for index, plan in enumerate(self._plans):
            others = [tensors for other, (_, tensors) in enumerate(read) if other != index]
            values += evaluate_terms(plan.terms, others, read[index][1], weights)
        self.report(x, [*tasks, sum(values)])
        return self.alpha * sum(tasks) + (1 - self.alpha) * sum(values) + self.penalties()

    @property
    def settings(self):
        return {"students": self._students}


def _require_different(students: Sequence[keras.Model]) -> None:
    owners: dict[int, int] = {}
    for index, student in enumerate(students):
        for variable in student.trainable_variables:
            if owners.setdefault(id(variable), index) != index:
                raise ValueError(
                    f"students {owners[id(variable)]} and {index} share the weight "
                    f"{variable.path}; expected models of their own. Copy one with "
                    "tfcompress.flatten(model)."
                )
