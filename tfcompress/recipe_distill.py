"""The section `distill` of recipe files, read and written.

    distill:
      alpha: 0.1
      temperature: 4
      losses:
        - soft_labels
        - features: {teacher_layer: block4, student_layer: block2, weight: 0.1}
        - mse
      cache: memory
      start_from_teacher: true

Keys are the arguments of `Distillation` and of the losses of `tfcompress.distillation`; a loss of
Keras may be named alone.
"""

import contextlib
import inspect
import typing
from typing import Any

import keras

from tfcompress.distillation import (
    AttentionTransfer,
    Contrastive,
    DistillationLoss,
    Features,
    Regression,
    Relational,
    SoftLabels,
)
from tfcompress.distillation.settings import Distillation
from tfcompress.suggestions import did_you_mean, named_in_keras
from tfcompress.yaml_arguments import ArgumentReader, single
from tfcompress.yaml_nodes import Node

LOSSES: dict[str, type[DistillationLoss]] = {
    "soft_labels": SoftLabels,
    "features": Features,
    "attention_transfer": AttentionTransfer,
    "relational": Relational,
    "contrastive": Contrastive,
    "regression": Regression,
}
_HINTS = {
    "alpha": float,
    "temperature": float,
    "losses": list,
    "cache": str | None,
    "start_from_teacher": bool,
}


def read(key: Node, node: Node) -> Distillation:
    """Makes a `Distillation` of the section.

    Args:
        key, node: the word `distill` and what belongs to it; nothing leaves all as by default.

    Raises:
        ValueError: something in it is wrong; says the line and the key.
    """
    entries = {}
    with contextlib.suppress(ValueError):  # of which `make` tells
        entries = node.items("distill", (*_HINTS, "teacher"))
    if "teacher" in entries:
        raise entries["teacher"][0].error(
            "a recipe serves any teacher; received one in distill. Take the key out: the teacher "
            "is named on the command line, --teacher FILE of tfcompress compress."
        )
    return _Reader().make(Distillation, key, node, dict.fromkeys(_HINTS, False), _HINTS, "distill")


def written(distill: Distillation) -> dict[str, Any]:
    """A `Distillation` as plain data of YAML, without what is as by default.

    Raises:
        ValueError: YAML cannot tell a loss that is a function or class of one's own.
    """
    default = Distillation()
    names = [name for name in _HINTS if name != "losses"]
    told = {name: getattr(distill, name) for name in names}
    told = {name: value for name, value in told.items() if value != getattr(default, name)}
    if distill.losses is not None:
        told["losses"] = [_loss(loss) for loss in distill.losses]
    return told


class _Reader(ArgumentReader):
    """Makes losses of nodes."""

    def argument(self, node: Node, name: str, hint: Any) -> Any:
        if name == "losses":
            return None if node.is_null else self.losses(node)
        if name == "loss":
            return _of_keras(node)
        if name == "cache" and node.is_null:
            return None
        if name == "from_logits" and node.is_list:
            return tuple(self.scalar(x, name, bool | None) for x in node.elements(name))
        if name != "cache" and node.is_null and type(None) in typing.get_args(hint):
            return None
        return self.scalar(node, name, hint)

    def losses(self, node: Node) -> list[DistillationLoss]:
        elements = node.elements("losses")
        if not elements:
            raise node.error(
                "losses must hold at least one loss; received none. Add one, such as soft_labels, "
                "or leave the key out."
            )
        return [self.loss(element) for element in elements]

    def loss(self, node: Node) -> DistillationLoss:
        if not node.is_mapping:  # `- soft_labels` alone, or a loss of Keras
            if node.is_list or node.text not in LOSSES:
                return Regression(_of_keras(node))
            name, key, value = node.text, node, None
        else:
            name, key, value = single(node, "a loss", LOSSES)
        cls = LOSSES[name]
        hints = {
            **typing.get_type_hints(DistillationLoss.__init__),
            **typing.get_type_hints(cls.__init__),
        }
        return self.make(cls, key, value, dict.fromkeys(_parameters(cls), False), hints, name)


def _parameters(cls: type[DistillationLoss]) -> list[str]:
    """The arguments of a loss that a file may give."""
    own = inspect.signature(cls).parameters
    names = [*own, *inspect.signature(DistillationLoss).parameters]
    return list(dict.fromkeys(name for name in names if name not in ("kwargs", "dtype")))


def _of_keras(node: Node) -> Any:
    """A loss of Keras by its name."""
    try:
        return named_in_keras("loss", node.value)
    except ValueError as error:
        mend = did_you_mean(str(node.value), LOSSES) or str(error).split(". ", 1)[1]
        raise node.error(
            f"unknown loss {node.value!r}; expected one of {', '.join(LOSSES)}, or the name of a "
            f"Keras loss such as mse. {mend}"
        ) from None


def _loss(loss: DistillationLoss) -> Any:
    names = {cls: name for name, cls in LOSSES.items()}
    if type(loss) not in names:
        raise ValueError(
            "a recipe in a file must have losses of tfcompress.distillation; received "
            f"{type(loss).__name__}. Keep the recipe in Python."
        )
    settings = {name: getattr(loss, name) for name in _parameters(type(loss))}
    if "loss" in settings:
        settings["loss"] = _name_in_keras(loss.loss)
    if "from_logits" in settings:
        theirs, ours = settings["from_logits"]
        settings["from_logits"] = theirs if theirs == ours else [theirs, ours]
    plain = type(loss)(settings["loss"]) if type(loss) is Regression else type(loss)()
    default = {name: getattr(plain, name) for name in settings}
    default |= {"from_logits": None, "loss": "mean_squared_error"}
    kept = {name: value for name, value in settings.items() if value != default[name]}
    if type(loss) is Regression and not set(kept) - {"loss"}:
        return settings["loss"]
    return {names[type(loss)]: kept} if kept else names[type(loss)]


def _name_in_keras(loss: Any) -> str:
    """The name by which a file can refer to a loss of Keras."""
    name = getattr(loss, "__name__", type(loss).__name__)
    try:
        found = keras.losses.get(name)
    except ValueError:
        found = None
    if found is not loss and _told(found) != _told(loss):
        raise ValueError(
            f"a recipe in a file must name the loss of {name} as Keras does, without arguments; "
            f"received {loss!r}. Keep the recipe in Python."
        )
    return name


def _told(loss: Any) -> Any:
    """All that makes a loss of Keras; its config leaves some out, such as the delta of Huber."""
    if not isinstance(loss, keras.losses.Loss):
        return loss
    return type(loss), loss.get_config(), getattr(loss, "_fn_kwargs", None)
