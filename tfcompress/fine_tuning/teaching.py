"""A teacher in a fine-tuning: how well it does itself, and how near its student comes to it."""

import dataclasses
import math
from typing import Any

import keras
import numpy as np
from keras import tree

from tfcompress.distillation import Distiller, SoftLabels
from tfcompress.distillation.distiller import Distillation
from tfcompress.distillation.reading import Reader, activation_of, to_logits
from tfcompress.fine_tuning.data import Data
from tfcompress.graph.inputs import output_names


class Teaching:
    """What a student is taught, and by whom.

    Args:
        distillation: how.
        teacher: a built model.
    """

    def __init__(self, distillation: Distillation, teacher: keras.Model):
        self.how, self.teacher = distillation, teacher
        self._decided: list[np.ndarray] | None = None

    def start(self, student: keras.Model) -> float | None:
        """Sets the weights of a student to the teacher's, if it starts from them.

        Returns the fraction of its weights that were set; None if it starts from its own.
        """
        if not self.how.start_from_teacher:
            return None
        return self.how.start(student, self.teacher).fraction

    def distiller(self, student: keras.Model) -> Distiller:
        """What trains a student that is ready to begin."""
        started = dataclasses.replace(self.how, start_from_teacher=False)
        distiller = started.distiller(student, self.teacher)
        distiller.whole_epochs = True  # `fit` is given steps that go through all data
        return distiller

    def as_student(self, student: keras.Model) -> keras.Model | None:
        """The teacher with the inputs and outputs of its student, so that both are judged alike.

        Returns a model, with probabilities where the student gives some, and logits where it gives
        these; None if the shapes of the outputs differ.
        """
        inputs = tree.map_structure(
            lambda t: keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.name),
            student._inputs_struct,
        )
        given = tree.flatten(Reader(self.teacher, [])(inputs, training=False)[0])
        wanted = tree.flatten(student._outputs_struct)
        places = self._places(student)
        if max(places) >= len(given):
            return None
        outputs = [
            self._alike(given[place], place, student, index) for index, place in enumerate(places)
        ]
        if [tuple(t.shape) for t in outputs] != [tuple(t.shape) for t in wanted]:
            return None
        named = [
            keras.layers.Identity(name=name)(tensor)
            for name, tensor in zip(output_names(student), outputs, strict=True)
        ]
        struct = tree.pack_sequence_as(student._outputs_struct, named)
        return keras.Model(inputs, struct, name=self.teacher.name)

    def _places(self, student: keras.Model) -> list[int]:
        """Where the teacher has the student's outputs: by name, else in the same places."""
        theirs, ours = output_names(self.teacher), output_names(student)
        if len(ours) > 1 and set(ours) <= set(theirs):
            return [theirs.index(name) for name in ours]
        return list(range(len(ours)))

    def _alike(self, tensor: Any, place: int, student: keras.Model, index: int) -> Any:
        theirs, _ = activation_of(self.teacher, place)
        ours, _ = activation_of(student, index)
        if theirs == "linear" and ours in ("softmax", "sigmoid"):
            return keras.layers.Activation(ours)(tensor)
        if theirs in ("softmax", "sigmoid") and ours == "linear":
            return to_logits(tensor, theirs)
        return tensor

    def judge(
        self, student: keras.Model, data: Data, batch_size: int, trained: Distiller | None = None
    ) -> dict[str, float]:
        """How near a student is to its teacher, for data without labels."""
        plain = dataclasses.replace(self.how, alpha=0.0, cache=None, start_from_teacher=False)
        distiller = plain.distiller(student, self.teacher)
        if trained is not None:
            for new, old in zip(distiller.adapters, trained.adapters, strict=True):
                new.set_weights(old.get_weights())
        distiller.compile(jit_compile=False)
        data = data.without_labels()
        steps = data.count(batch_size)
        found = distiller.evaluate(
            data.batches(batch_size), steps=steps, verbose=0, return_dict=True
        )
        value = float(found["distillation_loss"])
        if not math.isfinite(value):
            raise ValueError(
                f"the distillation loss of model '{student.name}' on the data is {value}; expected "
                "a finite number. Check the data and the teacher."
            )
        return {"distillation_loss": value, **self._agreement(distiller, data, batch_size)}

    def _agreement(self, distiller: Distiller, data: Data, batch_size: int) -> dict[str, float]:
        student = distiller.student
        soft = {
            term.output
            for term in distiller.terms
            if isinstance(term.loss, SoftLabels) and term.loss.activation == "softmax"
        }
        count = len(output_names(student))
        classes = [i for i in range(count) if i in soft or _is_softmax(student, i)]
        like = self.as_student(student) if classes else None
        if like is None:
            return {}
        if self._decided is None:
            self._decided = _decisions(like, data, batch_size, classes)
        ours = _decisions(student, data, batch_size, classes)
        names = [output_names(student)[i] for i in classes]
        keys = ["agreement"] if len(names) == 1 else [f"{name}_agreement" for name in names]
        return {
            key: float(np.mean(a == b)) for key, a, b in zip(keys, self._decided, ours, strict=True)
        }


def told_of(distiller: Distiller) -> tuple[dict[str, float], float | None]:
    """What a student learns, for people.

    Returns (name -> weight of each loss; the temperature of its soft labels, if there is one).
    """
    losses = {term.loss.name: term.factor for term in distiller.terms}
    soft = [term.loss for term in distiller.terms if isinstance(term.loss, SoftLabels)]
    found = {loss.temperature for loss in soft}
    return losses, found.pop() if len(found) == 1 else None


def _decisions(
    model: keras.Model, data: Data, batch_size: int, outputs: list[int]
) -> list[np.ndarray]:
    """The class in the first place, of some outputs for all samples."""
    model.compile(jit_compile=False)
    found: list[list[np.ndarray]] = [[] for _ in outputs]
    for batch in data.batches(batch_size):
        values = tree.flatten(model.predict_on_batch(batch[0]))
        for kept, index in zip(found, outputs, strict=True):
            kept.append(np.argmax(values[index], axis=-1))
    return [np.concatenate(each) for each in found]


def _is_softmax(model: keras.Model, index: int) -> bool:
    return activation_of(model, index)[0] == "softmax"
