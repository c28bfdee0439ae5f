"""Training data from a .npz file, matched to a model and put into batches."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import tree

from tfcompress.distillation.reading import activation_of
from tfcompress.files import arrays
from tfcompress.files.models import reason_of
from tfcompress.files.samples import as_rows
from tfcompress.fine_tuning.options import Settings, is_kind
from tfcompress.graph.inputs import output_names

# Names of inputs and labels in a file: to train with, and to judge with.
TRAINING = (("x", "y"), ("x_train", "y_train"))
VALIDATION = (("x_val", "y_val"), ("x_test", "y_test"), ("x", "y"))


@dataclasses.dataclass(frozen=True)
class Data:
    """Samples of a model.

    Attributes:
        inputs: arrays in the order of the model's inputs, flattened.
        labels: arrays in the order of its outputs, flattened; none if the samples have no labels.
        packed: the structures that the model takes and gives, and the dtypes of the inputs.
    """

    inputs: list[np.ndarray]
    labels: list[np.ndarray]
    packed: tuple[Any, Any, list[str]]

    def __len__(self) -> int:
        return len(self.inputs[0])

    def count(self, size: int) -> int:
        """How many batches of a size all samples make."""
        return math.ceil(len(self) / size)

    def take(self, rows) -> tuple[Any, ...]:
        """Inputs and labels of some samples, as `Model.fit` takes them."""
        inputs, outputs, dtypes = self.packed
        x = [a[rows].astype(dtype) for a, dtype in zip(self.inputs, dtypes, strict=True)]
        y = [a[rows] for a in self.labels]
        # tf.data takes lists for tensors.
        inputs, outputs = tree.lists_to_tuples((inputs, outputs))
        packed = tree.pack_sequence_as(inputs, x)
        return (packed, tree.pack_sequence_as(outputs, y)) if y else (packed,)

    def without_labels(self) -> Data:
        """The same samples, to learn from a teacher alone."""
        return dataclasses.replace(self, labels=[])

    def batches(self, size: int, rows=None) -> Iterator[tuple[Any, ...]]:
        """All samples, or those of some rows, in their order."""
        rows = np.arange(len(self)) if rows is None else rows
        for start in range(0, len(rows), size):
            yield self.take(rows[start : start + size])

    def shuffled(self, size: int, seed: int, epochs: range) -> Iterator[tuple[Any, ...]]:
        """Batches of some epochs; the order of each follows from the seed and its number."""
        for epoch in epochs:
            order = np.random.default_rng([seed, epoch]).permutation(len(self))
            yield from self.batches(size, order)

    def split(self, fraction: float, seed: int) -> tuple[Data, Data]:
        """Two parts, of which the second has a fraction of the samples, drawn at random."""
        order = np.random.default_rng(seed).permutation(len(self))
        count = round(len(self) * fraction)
        if not 0 < count < len(self):
            raise ValueError(
                f"a validation split of {fraction:g} leaves {count} of {len(self)} samples to "
                "judge with; expected some in both parts. Choose another, such as 0.2."
            )
        return self._of(order[count:]), self._of(order[:count])

    def drawn(self, count: int, seed: int) -> Data:
        """At most so many samples, drawn at random."""
        return self._of(np.random.default_rng(seed).permutation(len(self))[:count])

    def _of(self, rows: np.ndarray) -> Data:
        """Some samples, in their order."""
        rows = np.sort(rows)
        return Data([a[rows] for a in self.inputs], [a[rows] for a in self.labels], self.packed)


def read(path) -> dict[str, np.ndarray]:
    """Reads the arrays of a .npz file; a single one, which has no labels, may be a .npy."""
    found = arrays.load_arrays(path) if not os.path.isdir(path) else None
    if isinstance(found, np.ndarray):
        return {_name_of_one(path): found}
    if not isinstance(found, dict):
        raise ValueError(
            f"'{path}' must be a .npz file with the arrays x and y; received "
            f"{'a folder' if found is None else 'arrays without these names'}. Save it with "
            "np.savez('data.npz', x=images, y=labels)."
        )
    return found


def _name_of_one(path) -> str:
    with open(path, "rb") as stream:
        if stream.read(2) != b"PK":
            return "x"
    with np.load(path, allow_pickle=False) as file:
        return file.files[0]


class Arrays:
    """Arrays of a file, by name, among which the inputs and labels of a model are found.

    Args:
        found: the arrays.
        model: a flat one.
        path: the file, for messages.
        names: pairs of names that a single input and its labels may have beside their own.
    """

    def __init__(self, found: dict[str, np.ndarray], model: keras.Model, path, names=TRAINING):
        self.found, self.model, self.path, self.names = found, model, path, names
        self.inputs = [tensor.name for tensor in tree.flatten(model._inputs_struct)]
        self.outputs = output_names(model)

    @property
    def has_inputs(self) -> bool:
        """Whether inputs of the model are there."""
        return self._are_there(self.inputs, [name for name, _ in self.names])

    @property
    def has_labels(self) -> bool:
        """Whether labels of the model are there."""
        return self._are_there(self.outputs, [name for _, name in self.names])

    def _are_there(self, own: list[str], usual: list[str]) -> bool:
        usual = usual if len(own) == 1 else []
        return all(n in self.found for n in own) or any(n in self.found for n in usual)

    def mend_names(self, labelled: bool = True) -> str:
        """What to call the arrays that have unknown names; nothing if no such are needed."""
        outputs = self.outputs if labelled else []
        known = {*self.inputs, *outputs, *(name for pair in self.names for name in pair)}
        others = [name for name in self.found if name not in known]
        wanted: list[str] = []
        if not self.has_inputs:
            wanted += self.inputs if len(self.inputs) > 1 else ["x"]
        if labelled and not self.has_labels:
            wanted += outputs if len(outputs) > 1 else ["y"]
        if not others or not wanted:
            return ""
        listed = " and ".join([", ".join(wanted[:-1]), wanted[-1]] if wanted[1:] else wanted)
        return f"Call {'them' if wanted[1:] else 'it'} {listed} (here: {', '.join(others)})."

    def match(self, labelled: bool = True) -> Data:
        """The samples of the model."""
        calls = self.mend_names(labelled)
        inputs = self._pick(self.inputs, [x for x, _ in self.names], "inputs", calls)
        labels = []
        if labelled:  # of the same pair as the inputs
            pairs = [y for x, y in self.names if x in inputs] or [y for _, y in self.names]
            labels = self._pick(self.outputs, pairs, "labels", calls)
        wanted = tree.flatten(self.model._inputs_struct)
        rows = [as_rows(want, self.found[n]) for want, n in zip(wanted, inputs, strict=True)]
        for name, array in zip(inputs, rows, strict=True):
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(
                    f"'{name}' in '{self.path}' must hold finite numbers; received NaN or "
                    "infinity. Remove such samples."
                )
        answers = [self.found[name] for name in labels]
        _check_lengths(dict(zip([*inputs, *labels], [*rows, *answers], strict=True)))
        for name, array in zip(labels, answers, strict=True):
            if array.dtype.kind not in "fiub":
                raise ValueError(
                    f"'{name}' in '{self.path}' must hold numbers; received dtype {array.dtype}. "
                    "Number the classes from 0."
                )
        dtypes = [tensor.dtype for tensor in wanted]
        return Data(rows, answers, (self.model._inputs_struct, self.model._outputs_struct, dtypes))

    def _pick(self, own: list[str], usual: list[str], what: str, calls: str) -> list[str]:
        if all(name in self.found for name in own):
            return own
        usual = list(dict.fromkeys(usual)) if len(own) == 1 else []
        for name in usual:
            if name in self.found:
                return [name]
        expected = ", ".join(repr(name) for name in own)
        expected = " or ".join([*(repr(name) for name in usual), expected])
        raise ValueError(
            f"'{self.path}' must hold the {what} {expected}; received "
            f"{', '.join(map(repr, self.found))}. "
            + (calls or f"Save it with np.savez('data.npz', {usual[0] if usual else own[0]}=...).")
        )


def _check_lengths(found: dict[str, np.ndarray]) -> None:
    lengths = {name: len(a) if a.ndim else 0 for name, a in found.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        listed = ", ".join(f"'{name}' {length}" for name, length in lengths.items())
        raise ValueError(
            f"inputs and labels must have the same number of samples, 1 or more; received {listed}."
            " Cut them to the same length."
        )


# Classes of losses, and the names that commands take.
_CROSSENTROPIES = {
    "SparseCategoricalCrossentropy": "sparse_categorical_crossentropy",
    "CategoricalCrossentropy": "categorical_crossentropy",
    "BinaryCrossentropy": "binary_crossentropy",
}

_SPARSE, _CATEGORICAL, _ = _CROSSENTROPIES


def check_labels(model: keras.Model, losses: Any, data: Data) -> None:
    """Raises if labels are not what their loss takes, or number classes there are not."""
    shapes = [tuple(tensor.shape) for tensor in keras.tree.flatten(model._outputs_struct)]
    for index, name, loss in _losses(model, losses):
        shape, labels = shapes[index], data.labels[index]
        classes = shape[-1] if len(shape) > 1 else None
        if not classes:
            continue
        if is_kind(loss, _SPARSE):
            _require_numbers(name, labels, shape, len(shapes))
            if getattr(loss, "ignore_class", None) is None:
                _require_known(name, labels, classes)
        elif is_kind(loss, _CATEGORICAL) and classes > 1:
            _require_one_hot(name, labels, shape, len(shapes))


def _require_numbers(name: str, labels: np.ndarray, shape: tuple, outputs: int) -> None:
    if shape[-1] > 1 and labels.ndim == len(shape) and labels.shape[-1] == shape[-1]:
        other = "Pass --loss categorical_crossentropy, or number" if outputs == 1 else "Number"
        raise ValueError(
            f"labels of output '{name}' must be class numbers, one for each sample, for the loss "
            f"sparse_categorical_crossentropy; received one-hot labels of shape {labels.shape}. "
            f"{other} the classes: y.argmax(-1)."
        )


def _require_one_hot(name: str, labels: np.ndarray, shape: tuple, outputs: int) -> None:
    if labels.ndim == len(shape) - 1 or (labels.ndim == len(shape) and labels.shape[-1] == 1):
        other = "Pass --loss sparse_categorical_crossentropy, or " if outputs == 1 else ""
        raise ValueError(
            f"labels of output '{name}' must be one-hot, {shape[-1]} numbers for each sample, for "
            f"the loss categorical_crossentropy; received class numbers of shape {labels.shape}. "
            f"{other}{'take' if other else 'Take'} keras.utils.to_categorical(y, {shape[-1]})."
        )


def _require_known(name: str, labels: np.ndarray, classes: int) -> None:
    low, high = labels.min(), labels.max()
    if low < 0 or high >= classes or (labels != np.floor(labels)).any():
        raise ValueError(
            f"labels of output '{name}' must be whole numbers from 0 to {classes - 1}, one for "
            f"each of its {classes} classes; received values from {low} to {high}. Number the "
            "classes from 0, or give the model more outputs."
        )


def check_probabilities(model: keras.Model, settings: Settings, data: Data) -> None:
    """Raises if a crossentropy of probabilities gets logits, from which it learns nothing right."""
    suspects = [
        (index, name, loss)
        for index, name, loss in _losses(model, settings.arguments()["loss"])
        if any(is_kind(loss, kind) for kind in _CROSSENTROPIES)
        and not getattr(loss, "from_logits", False)
        and (settings.loss is not None or activation_of(model, index)[0] == "linear")
    ]
    if not suspects:
        return
    tried = keras.tree.flatten(model.predict_on_batch(data.take(slice(0, 32))[0]))
    for index, name, loss in suspects:
        low, high = float(np.min(tried[index])), float(np.max(tried[index]))
        if low < 0 or high > 1.001:
            known = next(kind for kind in _CROSSENTROPIES if is_kind(loss, kind))
            where = "outputs" if len(tried) == 1 else f"outputs {name!r}"
            shown = _CROSSENTROPIES[known]
            mend = f"pass --loss {shown} --from-logits"
            if len(tried) > 1:
                mend = f"save it compiled with keras.losses.{known}(from_logits=True)"
            elif settings.loss is not None:
                mend = "pass --from-logits"
            raise ValueError(
                f"the loss {shown} takes probabilities; the model's {where} go from {low:.3g} to "
                f"{high:.3g}. If they are logits, {mend}."
            )


def warn_of_teacher(
    teacher: str,
    sizes: tuple[int, int],
    theirs: dict[str, float],
    ours: dict[str, float],
    judged_on: str,
) -> None:
    """Warns of a teacher from which a student can hardly learn."""
    name = next((name for name in theirs if "acc" in name.lower()), "loss")
    found = []
    if name in theirs and name in ours:
        behind = (theirs[name] - ours[name]) * (1 if name == "loss" else -1)
        worse = behind > 1e-3 * abs(ours[name])  # more than rounding
        scores = f"{name} {theirs[name]:.4f} on {judged_on}, the student {ours[name]:.4f}"
        found += [f"has {scores} before training"] if worse else []
    if sizes[0] < sizes[1]:
        found.append(f"has {sizes[0]:,} parameters, the student {sizes[1]:,}")
    if found:
        warnings.warn(
            f"the teacher '{teacher}' {' and '.join(found)}: are the two exchanged, or are its "
            "inputs scaled otherwise?",
            stacklevel=2,
        )


def evaluate(
    model: keras.Model, settings: Settings, data: Data, batch_size: int
) -> dict[str, float]:
    """Loss and metrics of a model on data."""
    model.compile(**settings.without_optimizer())
    try:
        found = model.evaluate(
            data.batches(batch_size),
            steps=data.count(batch_size),
            verbose=0,
            return_dict=True,
        )
    except MemoryError:
        raise
    except Exception as error:  # Keras and TensorFlow raise many kinds.
        received = ", ".join(str(labels.shape) for labels in data.labels)
        expected = ", ".join(str(tuple(t.shape)) for t in model.outputs)
        raise ValueError(
            f"loss and metrics cannot be computed: {reason_of(error)}. Received labels of shape "
            f"{received}; the model gives {expected}. Check that the loss is meant for them."
        ) from error
    values = {"loss": float(found["loss"])}
    for name, value in found.items():  # A metric may be several, by class.
        values |= {name: float(value)} if np.ndim(value) == 0 else {}
    if not math.isfinite(values["loss"]):
        raise ValueError(
            f"the loss of model '{model.name}' on the data is {values['loss']}; expected a finite "
            "number. Check the data and the loss."
        )
    return values


def _losses(model: keras.Model, losses: Any) -> Iterator[tuple[int, str, Any]]:
    """Index, name and loss of the outputs that have one."""
    for index, name in enumerate(output_names(model)):
        loss = losses
        if isinstance(losses, dict):
            loss = losses.get(name)
        elif isinstance(losses, list | tuple):
            loss = losses[index]
        if loss is not None:
            yield index, name, loss
