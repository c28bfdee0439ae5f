"""What is found wrong with a model and its data before training begins."""

import math
from typing import Any

import keras
import numpy as np

from tfcompress.files import reason_of
from tfcompress.fine_tuning.data import Data
from tfcompress.fine_tuning.settings import Settings, is_kind
from tfcompress.model_inputs import output_names

_CROSSENTROPIES = ("SparseCategoricalCrossentropy", "CategoricalCrossentropy", "BinaryCrossentropy")


def check_labels(model: keras.Model, losses: Any, data: Data) -> None:
    """Raises if labels number classes that a model does not have.

    Args:
        model: a Functional model.
        losses: the argument `loss` of compile.
        data: samples of it.
    """
    for name, output, labels in zip(
        output_names(model), keras.tree.flatten(model._outputs_struct), data.labels, strict=True
    ):
        loss = _loss_of(losses, name, model)
        classes = output.shape[-1] if len(output.shape) > 1 else None
        if loss is None or not is_kind(loss, _CROSSENTROPIES[0]) or not classes:
            continue
        if getattr(loss, "ignore_class", None) is not None:
            continue
        low, high = labels.min(), labels.max()
        if low < 0 or high >= classes or (labels != np.floor(labels)).any():
            raise ValueError(
                f"labels of output '{name}' must be whole numbers from 0 to {classes - 1}, one for "
                f"each of its {classes} classes; received values from {low} to {high}. Number the "
                "classes from 0, or give the model more outputs."
            )


def check_probabilities(model: keras.Model, settings: Settings, data: Data) -> None:
    """Raises if a crossentropy that was given by name gets logits.

    Args:
        model: a Functional model.
        settings: with the loss.
        data: samples, of which some are tried.
    """
    loss = settings.loss
    if loss is None or settings.from_logits:
        return
    if not any(is_kind(keras.losses.get(loss), kind) for kind in _CROSSENTROPIES):
        return
    inputs, _ = data.take(slice(0, 32))
    for values in keras.tree.flatten(model.predict_on_batch(inputs)):
        low, high = float(np.min(values)), float(np.max(values))
        if low < 0 or high > 1.001:
            raise ValueError(
                f"the loss {loss} takes probabilities; the model's outputs go from {low:.3g} to "
                f"{high:.3g}. If they are logits, pass --from-logits."
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


def _loss_of(losses: Any, name: str, model: keras.Model) -> Any:
    if isinstance(losses, dict):
        return losses.get(name)
    if isinstance(losses, list | tuple):
        return losses[output_names(model).index(name)]
    return losses
