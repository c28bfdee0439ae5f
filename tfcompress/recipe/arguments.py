"""Arguments in a recipe file, by the types of what takes them: values, schedules, losses."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union

import keras

from tfcompress import schedules
from tfcompress.distillation import (
    AttentionTransfer,
    Contrastive,
    DistillationLoss,
    Features,
    Regression,
    Relational,
    SoftLabels,
)
from tfcompress.errors import did_you_mean, named_in_keras
from tfcompress.recipe.yaml import Entries, Node, build
from tfcompress.schedules import Schedule
from tfcompress.techniques.technique import STEPS

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": schedules.constant,
    "polynomial": schedules.polynomial,
    "linear": schedules.linear,
    "cosine": schedules.cosine,
    "one_shot": schedules.one_shot,
    "points": schedules.points,
    "alternating": schedules.alternating,
}

LOSSES: dict[str, type[DistillationLoss]] = {
    "soft_labels": SoftLabels,
    "features": Features,
    "attention_transfer": AttentionTransfer,
    "relational": Relational,
    "contrastive": Contrastive,
    "regression": Regression,
}

# Arguments that a file does not give: what `compress` fills in for each weight, and those of Keras.
BOUND = {"axes", "inputs", "outputs", "channels", "follows", "held"}
_NOT_GIVEN = {*BOUND, "dtype", "kwargs"}

# Arguments that count optimizer steps, and may be shares of the whole training instead.
_STEPS = {*STEPS, "end", "step"}


class _KerasLoss:
    """The type of an argument that a file gives by the name of a loss of Keras."""


# Of arguments whose annotations do not say what a file may give.
_TYPES = {
    "loss": _KerasLoss,
    "losses": list[DistillationLoss] | None,
    "from_logits": bool | tuple[bool | None, bool | None] | None,
}

# What values of a type are called in messages.
_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
    str: "text",
}


def arguments_of(function: Callable[..., Any]) -> dict[str, tuple[Any, bool]]:
    """What a file may give a class or function: name -> (its type, whether it must be given)."""
    # The losses hand other arguments on to their base.
    is_loss = isinstance(function, type) and issubclass(function, DistillationLoss)
    parts: list[Any] = [function, DistillationLoss] if is_loss else [function]
    found: dict[str, tuple[Any, bool]] = {}
    for part in parts:
        hints = typing.get_type_hints(part.__init__ if inspect.isclass(part) else part)
        for name, parameter in inspect.signature(part).parameters.items():
            if name not in found and name not in _NOT_GIVEN:
                needed = parameter.default is inspect.Parameter.empty
                found[name] = (_TYPES.get(name, hints[name]), needed)
    return found


def read_call(
    function: Callable[..., Any],
    key: Node,
    node: Node | None,
    what: str,
    arguments: Mapping[str, tuple[Any, bool]] | None = None,
) -> Any:
    """Calls a function with the entries of a mapping as its arguments."""
    arguments = arguments_of(function) if arguments is None else arguments
    entries: Entries = {}
    if node is not None and not node.is_null:
        entries = node.items(what, arguments)
    key.require(entries, [name for name, (_, needed) in arguments.items() if needed], what)
    given = {name: read_value(x, name, arguments[name][0]) for name, (_, x) in entries.items()}
    return build(function, {**entries, "": (key, key)}, given, what)


def _kinds(hint: Any) -> dict[Any, tuple[Any, ...]]:
    """The types of which a value may be one, each with what it is made of."""
    union = typing.get_origin(hint) in (Union, types.UnionType)
    members = typing.get_args(hint) if union else [hint]
    return {typing.get_origin(each) or each: typing.get_args(each) for each in members}


def read_value(node: Node, name: str, hint: Any) -> Any:
    """The value of an argument, by the type that it is annotated with."""
    kinds = _kinds(hint)
    if node.is_null and type(None) in kinds:
        return None
    if _KerasLoss in kinds:
        return read_keras_loss(node)
    if list in kinds:
        return read_losses(node)
    if Schedule in kinds and node.is_mapping:
        return read_schedule(node, name)
    if node.is_list and tuple in kinds:
        return tuple(read_value(each, name, kinds[tuple][0]) for each in node.elements(name))
    if node.is_list and Sequence in kinds:
        return [read_value(each, name, kinds[Sequence][0]) for each in node.elements(name)]
    if node.is_mapping and Mapping in kinds:
        items = node.items(name, node.names())
        _, each = kinds[Mapping]
        return {layer: read_value(value, name, each) for layer, (_, value) in items.items()}
    if set(kinds) == {Mapping}:
        raise node.error(
            f"{name} must be a mapping of layers to numbers; received {node.value!r}. Write "
            f"{name}: {{conv1: 0.5}}."
        )
    return read_scalar(node, name, kinds)


def read_scalar(node: Node, name: str, kinds: Mapping[Any, tuple[Any, ...]]) -> Any:
    """A single value of one of some types, or a share of the training."""
    value = node.value
    if name in _STEPS and Literal not in kinds and isinstance(value, str):
        return _read_share(node, name, kinds)
    if not (node.is_mapping or node.is_list):
        if not kinds.keys() & {int, float, bool}:
            return node.text
        if float in kinds and type(value) is int:
            return float(value)
        if type(value) in kinds or value in kinds.get(Literal, ()):
            return value
    raise node.error(f"{name} must be {' or '.join(_expected(name, kinds))}; received {value!r}.")


def _expected(name: str, kinds: Mapping[Any, Any]) -> list[str]:
    """What an argument of some types may be, in words."""
    if Sequence in kinds:
        return ["the name of a layer, a pattern, or a list of these"]
    words = [words for kind, words in _WORDS.items() if kind in kinds] or ["a single value"]
    words += ["a share of the training such as 60%"] if name in _STEPS else []
    return words + ([f"a schedule ({', '.join(SCHEDULES)})"] if Schedule in kinds else [])


def _read_share(node: Node, name: str, kinds: Mapping[Any, Any]) -> str | int:
    try:
        return schedules.step_of(name, node.text, 0)
    except TypeError:
        expected = " or ".join(_expected(name, {k: v for k, v in kinds.items() if k is not str}))
        raise node.error(f"{name} must be {expected}; received {node.text!r}.") from None
    except ValueError as error:
        raise node.error(str(error)) from None


def name_in(names: Mapping[str, type], value: Any, what: str) -> str:
    """The name that the class of a value has in files."""
    for name, cls in names.items():
        if type(value) is cls:
            return name
    raise ValueError(
        f"a recipe in a file must have {what}; received {type(value).__name__}. Keep the recipe in "
        "Python."
    )


def read_schedule(node: Node, what: str) -> Schedule:
    name, key, value = node.single(f"a schedule of {what}", SCHEDULES)
    if name != "points":
        return read_call(SCHEDULES[name], key, value, name)
    pairs = []
    for element in value.elements("points"):
        pair = element.elements("a point")
        if len(pair) != 2:
            raise element.error(f"a point must be [step, value]; received {len(pair)} elements.")
        step = read_value(pair[0], "step", schedules.Step)
        pairs.append((step, read_value(pair[1], "value", float)))
    return build(SCHEDULES[name], {"points": (key, value)}, {"points": pairs}, what)


def written_schedule(schedule: Schedule, number: Callable[[float], Schedule]) -> Any:
    """The call of a function of `schedules` that makes it; a number if that stands for it."""
    first, last = schedule.initial, schedule.final
    if schedule.curve != "points" and schedule == number(last):
        return last
    every: dict[str, Any] = {"begin": schedule.begin}
    every |= {} if schedule.frequency is None else {"frequency": schedule.frequency}
    every |= {} if schedule.end is None else {"end": schedule.end}
    curve = {"initial": first, "final": last, **every}
    calls: list[tuple[str, dict[str, Any]]] = [
        ("constant", {"value": first}),
        ("one_shot", {"value": first, "step": schedule.begin}),
        ("constant", {"value": first, **every}),
        ("linear", curve),
        ("polynomial", {**curve, "power": schedule.power}),
        ("cosine", curve),
        ("points", {"points": [list(point) for point in schedule.points]}),
    ]
    for name, arguments in calls:
        try:
            same = SCHEDULES[name](**arguments) == schedule
        except (TypeError, ValueError):
            continue
        if same:
            return {name: arguments.get("points", arguments)}
    functions = ", ".join(SCHEDULES)
    raise ValueError(
        f"a schedule in a file must come from one of {functions}; received {schedule}. "
        "Make it with one of them, or keep the recipe in Python."
    )


def read_losses(node: Node) -> list[DistillationLoss]:
    elements = node.elements("losses")
    if not elements:
        raise node.error(
            "losses must hold at least one loss; received none. Add one, such as soft_labels, "
            "or leave the key out."
        )
    return [read_loss(element) for element in elements]


def read_loss(node: Node) -> DistillationLoss:
    if node.is_mapping:
        name, key, value = node.single("a loss", LOSSES)
        return read_call(LOSSES[name], key, value, name)
    if node.is_list or node.text not in LOSSES:
        return Regression(read_keras_loss(node))
    return read_call(LOSSES[node.text], node, None, node.text)


def written_loss(loss: DistillationLoss) -> Any:
    name = name_in(LOSSES, loss, "losses of tfcompress.distillation")
    settings = {argument: getattr(loss, argument) for argument in arguments_of(type(loss))}
    if "loss" in settings:
        settings["loss"] = written_keras_loss(loss.loss)
    if "from_logits" in settings:
        theirs, ours = settings["from_logits"]
        settings["from_logits"] = theirs if theirs == ours else [theirs, ours]
    plain = type(loss)(settings["loss"]) if type(loss) is Regression else type(loss)()
    default = {argument: getattr(plain, argument) for argument in settings}
    default |= {"from_logits": None, "loss": "mean_squared_error"}
    kept = {argument: x for argument, x in settings.items() if x != default[argument]}
    if type(loss) is Regression and not set(kept) - {"loss"}:
        return settings["loss"]
    return {name: kept} if kept else name


def read_keras_loss(node: Node) -> Any:
    try:
        return named_in_keras("loss", node.value)
    except ValueError as error:
        mend = did_you_mean(str(node.value), LOSSES) or str(error).split(". ", 1)[1]
        raise node.error(
            f"unknown loss {node.value!r}; expected one of {', '.join(LOSSES)}, or the name of a "
            f"Keras loss such as mse. {mend}"
        ) from None


def written_keras_loss(loss: Any) -> str:
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
