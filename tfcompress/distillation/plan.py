"""What losses, as the user gave them, come to for one student and its teachers."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

from tfcompress.distillation.layer_losses import Contrastive, Features, Relational
from tfcompress.distillation.losses import DistillationLoss, Regression, SoftLabels
from tfcompress.distillation.reading import (
    Reader,
    Source,
    activation_of,
    find_operation,
    looks_like_probabilities,
    try_out,
)
from tfcompress.errors import expected_one_of
from tfcompress.graph.inputs import output_names

# What a model that distills reports in any case.
_TAKEN = ("loss", "task_loss", "distillation_loss")


@dataclasses.dataclass(frozen=True)
class Term:
    """One loss between one teacher and the student.

    Attributes:
        loss: with all that was left open filled in.
        teacher: index of the teacher.
        theirs, ours: where in the teacher and in the student the tensors are.
        output: index of the output it is about; None inside of the models.
        factor: what its value is multiplied by.
        adapters: learned layers for the teacher's and the student's tensor, or None.
    """

    loss: DistillationLoss
    teacher: int
    theirs: Source
    ours: Source
    output: int | None
    factor: float = 1.0
    adapters: tuple[Any, Any] = (None, None)


class Plan:
    """Terms, and what must be read of student and teachers for them.

    Args:
        student: a built model.
        teachers: built models; the student itself for self-distillation.
        losses: see `Distiller`.
        temperature: of `SoftLabels` that have none of their own.
        inputs: structure of the student's symbolic inputs.
        shares: of the teachers in what the student learns; they sum up to 1.
    """

    def __init__(
        self,
        student: keras.Model,
        teachers: Sequence[keras.Model],
        losses: Any,
        temperature: float,
        inputs: Any,
        shares: Sequence[float],
    ):
        self.student, self.teachers, self.inputs = student, list(teachers), inputs
        self.temperature, self.shares = temperature, shares
        self.input_names = [tensor.name for tensor in tree.flatten(inputs)]
        self._tried: dict[int, list[np.ndarray]] = {}
        self._outputs = {
            id(model): tree.flatten(Reader(model, [], self.input_names).specs(inputs, whose)[0])
            for model, whose in [(student, "student"), *((t, "teacher") for t in teachers)]
        }
        self._names = output_names(student)
        wanted = as_losses(losses)
        drafts = [draft for loss in wanted for draft in self._drafts(loss)]
        self.terms = self._finish(drafts)

    def _drafts(self, loss: DistillationLoss) -> list[Term]:
        """A term for all that a loss is about; what follows from shapes is filled in later."""
        teachers = range(len(self.teachers)) if loss.teacher is None else [self._teacher(loss)]
        if loss.teacher_layer is not None and loss.student_layer is not None:
            at = Source(operation=find_operation(self.student, loss.student_layer, "student"))
            filled = _filled(loss, self.temperature)
            return [
                Term(filled, k, self._inside(k, loss.teacher_layer), at, None) for k in teachers
            ]
        return [self._of_output(loss, k, index) for index in self._indices(loss) for k in teachers]

    def _inside(self, teacher: int, name: str) -> Source:
        return Source(operation=find_operation(self.teachers[teacher], name, "teacher"))

    def _teacher(self, loss: DistillationLoss) -> int:
        if not isinstance(loss.teacher, int) or not 0 <= loss.teacher < len(self.teachers):
            raise ValueError(
                f"teacher of {loss.name} must be an index from 0 to {len(self.teachers) - 1}; "
                f"received {loss.teacher!r}."
            )
        return loss.teacher

    def _indices(self, loss: DistillationLoss) -> list[int]:
        count, names = len(self.outputs), self._names
        if loss.output is None:
            return list(range(count))
        if isinstance(loss.output, int) and 0 <= loss.output < count:
            return [loss.output]
        if loss.output in names:
            return [names.index(loss.output)]
        raise ValueError(
            f"the student has no output {loss.output!r}; "
            f"{expected_one_of(str(loss.output), names or map(str, range(count)))}"
        )

    def _of_output(self, loss: DistillationLoss, teacher: int, index: int) -> Term:
        theirs = self._position_in_teacher(teacher, index)
        sources = Source(output=theirs), Source(output=index)
        if isinstance(loss, SoftLabels):
            models = (self.teachers[teacher], theirs), (self.student, index)
            loss, sources = self._logits(loss, models)
        return Term(loss, teacher, *sources, index)

    def _position_in_teacher(self, teacher: int, index: int) -> int:
        """Where the teacher has an output of the student: by name, else in the same place."""
        model = self.teachers[teacher]
        theirs, ours = output_names(model), self._names
        both = len(ours) > 1 and set(ours) <= set(theirs)
        position = theirs.index(ours[index]) if both else index
        counts = len(self._outputs[id(model)]), len(self.outputs)
        if not both and counts[0] != counts[1]:
            raise ValueError(
                f"the teacher '{model.name}' has {counts[0]} outputs ({', '.join(theirs)}), the "
                f"student {counts[1]} ({', '.join(ours)}); expected as many, or the same names. "
                "Make a teacher of some of its outputs with keras.Model(inputs, outputs)."
            )
        return position

    def _logits(self, loss: SoftLabels, models) -> tuple[SoftLabels, tuple[Source, Source]]:
        """Soft labels that are handed logits, and where these are found."""
        kinds = [self.kind(*model) for model in models]
        names = [name for name, _ in kinds]
        if set(names) == {"softmax", "sigmoid"}:
            (teacher, _), (student, _) = models
            raise ValueError(
                f"the teacher '{teacher.name}' ends with {names[0]}, the student '{student.name}' "
                f"with {names[1]}; soft labels need the same activation of both. Mend one of them, "
                "or compare the probabilities as numbers: losses=['mse']."
            )
        activation = loss.activation
        if activation is None:
            activation = "sigmoid" if "sigmoid" in names else "softmax"
        theirs, ours = (
            self._logits_source(model, index, given, kind, activation, whose)
            for (model, index), given, kind, whose in zip(
                models, loss.from_logits, kinds, ("teacher", "student"), strict=True
            )
        )
        filled = _filled(loss, self.temperature)
        filled.activation, filled.from_logits = activation, (True, True)
        return filled, (theirs, ours)

    def kind(self, model: keras.Model, index: int) -> tuple[str | None, Any]:
        """The activation behind an output, by structure or by values; see `activation_of`."""
        kind, operation = activation_of(model, index)
        if kind is None:
            values = self._values(model, index)
            if values is not None and looks_like_probabilities(values):
                return "softmax", None
        return kind, operation

    def _values(self, model: keras.Model, index: int) -> np.ndarray | None:
        """What an output gives for noise; None if the model cannot take any."""
        if id(model) not in self._tried:
            run = Reader(model, [], self.input_names)
            try:
                outputs = try_out(lambda x: run(x, training=False)[0], self.inputs)
            except Exception:  # of inputs that must be more than noise
                outputs = []
            self._tried[id(model)] = outputs
        found = self._tried[id(model)]
        return found[index] if found else None

    def _logits_source(self, model, index, given, kind, activation, whose) -> Source:
        name, operation = kind
        if name in ("softmax", "sigmoid") and name != activation:
            raise ValueError(
                f"the {whose} '{model.name}' ends with {name}, but soft labels are taken with "
                f"activation={activation!r}; expected the same. Leave activation out, or pass "
                f"SoftLabels(activation={name!r})."
            )
        if given is True and name == activation:
            raise ValueError(
                f"the {whose} '{model.name}' gives probabilities (its outputs come from {name}), "
                "but from_logits=True says logits. Leave from_logits out, or pass False."
            )
        if given is False and name == "linear":
            raise ValueError(
                f"the {whose} '{model.name}' gives logits (its last layer has no activation), but "
                "from_logits=False says probabilities. Leave from_logits out, or pass True."
            )
        if name == activation and operation is not None:
            return Source(operation=operation, given=True)
        if name is None and given is None:
            self._require_logits(model, index, whose)
        probabilities = given is False or name == activation
        return Source(output=index, logits_of=activation if probabilities else None)

    def _require_logits(self, model: keras.Model, index: int, whose: str) -> None:
        """Raises if outputs may be probabilities that exclude nothing, which look like others."""
        values = self._values(model, index)
        if values is not None and values.min() >= 0 and values.max() <= 1:
            raise ValueError(
                f"the {whose} '{model.name}' gives numbers from 0 to 1, which may be probabilities "
                "of yes or no, or logits. Say which: losses=[SoftLabels(from_logits=False, "
                "activation='sigmoid')], or SoftLabels(from_logits=True)."
            )

    @property
    def outputs(self) -> range:
        """Indices of the student's outputs."""
        return range(len(self._outputs[id(self.student)]))

    @property
    def adapters(self) -> list[keras.Layer]:
        """The layers to learn that stand between the models and the losses."""
        return [layer for term in self.terms for layer in term.adapters if layer is not None]

    @property
    def student_sources(self) -> list[Source]:
        """What is read of the student."""
        return [term.ours for term in self.terms]

    def teacher_sources(self, teacher: int) -> list[Source]:
        """What is read of one of the teachers."""
        return [term.theirs for term in self.terms if term.teacher == teacher]

    def _finish(self, drafts: list[Term]) -> list[Term]:
        ours = Reader(self.student, [draft.ours for draft in drafts])
        _, self.student_specs = ours.specs(self.inputs, "student")
        self.teacher_specs = []
        for index, teacher in enumerate(self.teachers):
            wanted = [draft.theirs for draft in drafts if draft.teacher == index]
            reader = Reader(teacher, wanted, self.input_names)
            self.teacher_specs.append(reader.specs(self.inputs, "teacher")[1])
        names: dict[str, int] = {}
        return [self._term(draft, names) for draft in drafts]

    def _term(self, draft: Term, names: dict[str, int]) -> Term:
        loss, output = draft.loss, draft.output
        theirs, ours = (
            self.teacher_specs[draft.teacher][draft.theirs],
            self.student_specs[draft.ours],
        )
        shapes = theirs.shape, ours.shape
        try:
            loss.check(*shapes)
        except ValueError as error:
            teacher = f"the teacher '{self.teachers[draft.teacher].name}'"
            place = f"{draft.theirs.name} of {teacher} and {draft.ours.name}"
            raise ValueError(
                f"{type(loss).__name__} between {place} of the student '{self.student.name}': "
                f"{error}"
            ) from error
        name = loss.name
        if output is not None and len(self.outputs) > 1:
            name = f"{self._names[output] if self._names else output}_{name}"
        if name in _TAKEN:
            raise ValueError(
                f"the name of {type(loss).__name__} must be another one: {name!r} is reported for "
                "the sum of losses. Leave it out, or give one of its own."
            )
        names[name] = names.get(name, 0) + 1
        loss = copy.copy(loss)
        loss.name = name if names[name] == 1 else f"{name}_{names[name]}"
        adapters = loss.adapters(*shapes)
        for layer, shape in zip(adapters, shapes, strict=True):
            if layer is not None and not layer.built:
                layer.build(shape)
        share = 1.0 if loss.teacher is not None else self.shares[draft.teacher]
        return dataclasses.replace(draft, loss=loss, factor=loss.weight * share, adapters=adapters)


def _filled(loss: DistillationLoss, temperature: float) -> Any:
    """A copy of a loss, with the temperature if it has none."""
    loss = copy.copy(loss)
    if isinstance(loss, SoftLabels) and loss.temperature is None:
        loss.temperature = temperature
    return loss


# Losses that need no arguments, by the names that recipes have for them.
_NAMES = {"soft_labels": SoftLabels, "relational": Relational, "contrastive": Contrastive}
_EXPECTED = (
    "expected losses of tfcompress.distillation such as SoftLabels(), names of Keras losses such "
    "as 'mse', or a dict of them by output"
)


def as_losses(given: Any) -> list[DistillationLoss]:
    """A list of losses."""
    if given is None:
        return [SoftLabels()]
    elements = list(given) if isinstance(given, list | tuple) else [given]
    losses = []
    for element in elements:
        if isinstance(element, Mapping):
            for output, inner in element.items():
                inners = inner if isinstance(inner, list | tuple) else [inner]
                losses += [_about(output, _translated(each)) for each in inners]
        else:
            losses.append(_translated(element))
    if not losses:
        raise ValueError(f"losses are empty; {_EXPECTED}. None stands for soft labels.")
    return losses


def _about(output: str | int, loss: DistillationLoss) -> DistillationLoss:
    if loss.teacher_layer is not None:
        raise ValueError(
            f"{type(loss).__name__} compares layers, not the output {output!r}. Put it beside the "
            "dict: losses=[{...}, " + f"{type(loss).__name__}(...)]."
        )
    loss = copy.copy(loss)
    loss.output = output
    return loss


def _translated(given: Any) -> DistillationLoss:
    if isinstance(given, DistillationLoss):
        return given
    if isinstance(given, keras.distillation.DistillationLoss):
        return _from_keras(given)
    if isinstance(given, type):
        raise TypeError(
            f"losses must be objects; received the class {given.__name__}. Write "
            f"{given.__name__}()."
        )
    if isinstance(given, str) and given in _NAMES:
        return _NAMES[given]()
    if isinstance(given, str) or callable(given):
        return Regression(given)
    raise TypeError(f"received {given!r} among the losses; {_EXPECTED}.")


def _from_keras(given: Any) -> DistillationLoss:
    """One of Keras's own, which gives a mean of the batch, as one with a value for each sample."""
    if isinstance(given, keras.distillation.FeatureDistillation) and callable(given.loss):
        names = given.teacher_layer_name, given.student_layer_name
        if None not in names:
            return Features(*names, loss=given.loss, projection=False)
        if names == (None, None):
            return Regression(given.loss)
    if isinstance(given, keras.distillation.LogitsDistillation):
        divergence = keras.losses.KLDivergence, type(keras.losses.kl_divergence)
        name = getattr(given.loss, "__name__", type(given.loss).__name__)
        if isinstance(given.loss, divergence) and name in ("KLDivergence", "kl_divergence"):
            return SoftLabels(given.temperature, from_logits=True)
    raise TypeError(
        f"{type(given).__name__} of Keras with these arguments gives one number for a batch, so "
        f"that weights of samples cannot apply; {_EXPECTED}."
    )
