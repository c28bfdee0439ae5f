"""Losses in all the forms in which a user may give them."""

import copy
from collections.abc import Mapping
from typing import Any

import keras

from tfcompress.distillation.feature_losses import Features
from tfcompress.distillation.losses import DistillationLoss, Regression, SoftLabels
from tfcompress.distillation.sample_losses import Contrastive, Relational

# Losses that need no arguments, by the names that recipes have for them.
_NAMES = {"soft_labels": SoftLabels, "relational": Relational, "contrastive": Contrastive}
_EXPECTED = (
    "expected losses of tfcompress.distillation such as SoftLabels(), names of Keras losses such "
    "as 'mse', or a dict of them by output"
)


def as_losses(given: Any) -> list[DistillationLoss]:
    """A list of losses.

    Args:
        given: None for soft labels of every output; one loss, a list of them, or a dict from
            names or numbers of outputs to one or several.

    Raises:
        TypeError, ValueError: if there is something else among them, or nothing.
    """
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
