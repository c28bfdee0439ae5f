"""What is found wrong with a model and its data before training begins."""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from tfcompress.distillation.outputs import activation_of
from tfcompress.files import reason_of
from tfcompress.fine_tuning.data import Data
from tfcompress.fine_tuning.settings import Settings, is_kind
from tfcompress.model_inputs import output_names

# Classes of losses, and the names that commands take.
_CROSSENTROPIES = {
    "SparseCategoricalCrossentropy": "sparse_categorical_crossentropy",
    "CategoricalCrossentropy": "categorical_crossentropy",
    "BinaryCrossentropy": "binary_crossentropy",
}
_SPARSE, _CATEGORICAL, _ = _CROSSENTROPIES


def check_labels(model: keras.Model, losses: Any, data: Data) -> None:
    """Raises if labels are not of the kind that their loss takes, or number classes there are not.

    Args:
        model: a Functional model.
        losses: the argument `loss` of compile.
        data: samples of it.
    """
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
    """Raises if a crossentropy of probabilities gets logits, from which it learns nothing right.

    Args:
        model: a Functional model.
        settings: with the loss. One that was saved is taken at its word unless the structure of
            the model, too, says that its outputs are logits.
        data: samples with labels, of which some are tried.
    """
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
    """Warns of a teacher from which a student can hardly learn.

    Args:
        teacher: its file.
        sizes: numbers of parameters of teacher and student.
        theirs, ours: loss and metrics of both, by name; without labels the teacher has none.
        judged_on: which samples, in words.
    """
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
    """Loss and metrics of a model on data.

    Args:
        model: a Functional model; it is compiled anew.
        settings: with loss and metrics.
        data: samples.
        batch_size: how many at a time.

    Returns:
        Name -> value; "loss" first.

    Raises:
        ValueError: if model, data and loss do not fit together.
    """
    model.compile(**settings.without_optimizer())
    try:
        found = model.evaluate(
            data.batches(batch_size),
            steps=math.ceil(len(data) / batch_size),
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
