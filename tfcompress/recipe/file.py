"""Recipes as YAML files, and the ready ones that come with the package.

    rules:
      - layers: "*"
        techniques:
          - prune: {sparsity: {polynomial: {initial: 0.0, final: 0.8, end: 60%}}}
          - quantize: {bits: 8}
      - layers: head
        techniques: []

Keys are the arguments of the techniques and of the functions of `tfcompress.schedules`. A section
`distill` is described in `recipe_distill`, a section `shrink` in `recipe_shrink`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import os
import re
import typing
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import keras
import yaml

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
from tfcompress.distillation.distiller import Distillation
from tfcompress.errors import did_you_mean, expected_one_of, named_in_keras
from tfcompress.recipe import yaml as nodes
from tfcompress.recipe.yaml import ArgumentReader, Entries, Node, build, require, single
from tfcompress.schedules import Schedule
from tfcompress.surgery.shrink import ARGUMENTS, OPERATIONS, Shrink, check_arguments
from tfcompress.techniques import TECHNIQUES, GroupLasso, Regularize, Technique
from tfcompress.techniques.rules import Rule

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": schedules.constant,
    "polynomial": schedules.polynomial,
    "linear": schedules.linear,
    "cosine": schedules.cosine,
    "one_shot": schedules.one_shot,
    "points": schedules.points,
}

# Fields that `compress` fills in for each weight.
BOUND = {"axes", "inputs", "outputs", "channels", "follows"}

# Arguments that count optimizer steps, and may be shares of the whole training instead.
_STEPS = {"begin", "end", "step", "frequency", "delay", "freeze"}
_SECTIONS = ("rules", "distill", "shrink")
Parts = tuple[list[Rule], Distillation | None, Shrink | None]
_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?%")
_FOLDER = resources.files("tfcompress.recipe") / "ready"


def ready_recipes() -> list[str]:
    """The names of the recipes that come with the package, which `Recipe.load` takes."""
    names = [file.name for file in _FOLDER.iterdir() if file.name.endswith(".yaml")]
    return sorted(name.removesuffix(".yaml") for name in names)


def load(source: str | os.PathLike[str], steps: int | None = None) -> Parts:
    """What a recipe is made of; see `Recipe.load`."""
    return parse(*content_of(source), steps)


def content_of(source: str | os.PathLike[str]) -> tuple[bytes, str]:
    """The YAML of a recipe.

    Returns (content, name of the file for messages).
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"expected the path of a recipe or the name of a ready one; received {source!r}."
        )
    name = os.fspath(source)
    if name in ready_recipes():
        return (_FOLDER / f"{name}.yaml").read_bytes(), f"{name}.yaml"
    if Path(name).suffix in (".yaml", ".yml"):
        return nodes.read_bytes(name), name
    raise ValueError(
        f"unknown recipe {name!r}; name a .yaml file or a ready recipe: "
        f"{expected_one_of(name, ready_recipes())}"
    )


def parse(content: bytes, source: str, steps: int | None = None) -> Parts:
    """What YAML says of rules, distillation and surgery: the arguments of `Recipe`."""
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise ValueError(
            f"steps must be a whole number of optimizer steps, 1 or more; received {steps!r}. "
            "It is epochs times batches of each."
        )
    root = nodes.parse(content, source)
    sections = root.items("a recipe", _SECTIONS)
    if not sections:
        raise root.error("a recipe must have the key 'rules'; received none. Add one.")
    rules: list[Rule] = []
    if "rules" in sections:
        key, value = sections["rules"]
        elements = value.elements("rules")
        if not elements:
            raise key.error("rules must hold at least one rule; received none. Add one.")
        rules = [_Reader(steps).rule(element) for element in elements]
    distill, shrink = sections.get("distill"), sections.get("shrink")
    return rules, distill and read_distill(*distill), shrink and read_shrink(*shrink)


def distillation_of(content: bytes, source: str) -> Distillation | None:
    """What YAML says about learning from a teacher, which no length of the training changes.

    Returns the `Distillation`, or None if there is no such section.
    """
    section = _section(content, source, "distill")
    return section and read_distill(*section)


def shrink_of(content: bytes, source: str) -> Shrink | None:
    """What YAML says about surgery, which no length of the training changes.

    Returns the `Shrink`, or None if there is no such section.
    """
    section = _section(content, source, "shrink")
    return section and read_shrink(*section)


def _section(content: bytes, source: str, name: str) -> tuple[Node, Node] | None:
    return nodes.parse(content, source).items("a recipe", _SECTIONS).get(name)


class _Reader(ArgumentReader):
    """Makes rules, techniques and schedules of nodes.

    Args:
        steps: optimizer steps of the whole training; None if that is not known.
    """

    def __init__(self, steps: int | None):
        self.steps = steps

    def rule(self, node: Node) -> Rule:
        keys = node.items("a rule", ("layers", "techniques"))
        require(node, keys, ("layers", "techniques"), "a rule")
        layers = keys["layers"][1]
        if layers.is_mapping or layers.is_list or not layers.text:
            raise layers.error(
                "layers must be the name or the class of layers, or a pattern such as '*'; "
                f"received {layers.value!r}."
            )
        elements = keys["techniques"][1].elements("techniques")
        techniques = [self.technique(element) for element in elements]
        return build(Rule, keys, {"layers": layers.text, "techniques": techniques}, "a rule")

    def technique(self, node: Node) -> Technique:
        known = ("regularize", *TECHNIQUES)
        if not node.is_mapping:  # `- quantize` alone, with the defaults
            if node.value not in known:
                raise node.error(
                    f"unknown technique {node.value!r}; {expected_one_of(str(node.value), known)}"
                )
            name, key, value = node.text, node, None
        else:
            name, key, value = single(node, "a technique", known)
        if name == "regularize":
            return self.regularize(key, value)
        cls = TECHNIQUES[name]
        hints = typing.get_type_hints(cls)
        fields = [f for f in dataclasses.fields(cls) if f.name not in BOUND]  # type: ignore
        parameters = {f.name: f.default is dataclasses.MISSING for f in fields}
        return self.make(cls, key, value, parameters, hints, name)

    def regularize(self, key: Node, value: Node | None) -> Regularize:
        expected = ("l1", "l2", "group_lasso")
        if value is None or value.is_null:
            raise key.error(f"regularize must have one of {', '.join(expected)}; received none.")
        keys = value.items("regularize", expected)
        if "group_lasso" in keys and len(keys) == 1:
            key, given = keys["group_lasso"]
            if not given.is_mapping:
                strength = self.scalar(given, "group_lasso", float)
                return build(lambda: Regularize(GroupLasso(strength)), keys, {}, "regularize")
            hints = {"strength": float, "pattern": str}
            parameters = {"strength": False, "pattern": False}
            return Regularize(self.make(GroupLasso, key, given, parameters, hints, "group_lasso"))
        if not keys or "group_lasso" in keys:
            raise key.error(
                "regularize must have l1, l2 or both, or group_lasso alone; received "
                f"{', '.join(keys) or 'none'}."
            )
        factors = {name: self.scalar(node, name, float) for name, (_, node) in keys.items()}
        for name, factor in factors.items():
            if factor < 0:
                raise keys[name][0].error(f"{name} must be 0 or more; received {factor}.")
        classes = {"l1": keras.regularizers.L1, "l2": keras.regularizers.L2}
        cls = keras.regularizers.L1L2 if len(factors) > 1 else classes[next(iter(factors))]
        return Regularize(cls(**factors))

    def schedule(self, node: Node, what: str) -> Schedule:
        name, key, value = single(node, f"a schedule of {what}", SCHEDULES)
        function = SCHEDULES[name]
        if name == "points":
            pairs = self.points(value)
            return build(function, {"points": (key, value)}, {"points": pairs}, what)
        signature = inspect.signature(function).parameters
        parameters = {n: p.default is inspect.Parameter.empty for n, p in signature.items()}
        return self.make(function, key, value, parameters, typing.get_type_hints(function), name)

    def points(self, node: Node) -> list[tuple[int, float]]:
        pairs = []
        for element in node.elements("points"):
            pair = element.elements("a point")
            if len(pair) != 2:
                raise element.error(
                    f"a point must be [step, value]; received {len(pair)} elements."
                )
            step = self.scalar(pair[0], "step", int)
            pairs.append((step, self.scalar(pair[1], "value", float)))
        return pairs

    def argument(self, node: Node, name: str, hint: Any) -> Any:
        if Schedule in typing.get_args(hint) and node.is_mapping:
            return self.schedule(node, name)
        return super().argument(node, name, hint)

    def scalar(self, node: Node, name: str, hint: Any) -> Any:
        if (
            name in _STEPS
            and isinstance(node.value, str)
            and (at := _PERCENT.fullmatch(node.value))
        ):
            return self.share(node, name, float(at[1]))
        return super().scalar(node, name, hint)

    def expected(self, name: str, kinds: set[Any]) -> list[str]:
        words = super().expected(name, kinds)
        words += ["a share of the training such as 60%"] if name in _STEPS else []
        return words + ([f"a schedule ({', '.join(SCHEDULES)})"] if Schedule in kinds else [])

    def share(self, node: Node, name: str, percent: float) -> int:
        if percent > 100:
            raise node.error(f"{name} must be 0% to 100% of the training; received {node.text}.")
        if self.steps is None:
            raise node.error(
                f"{name} is {node.text} of a training whose length is not known. Pass "
                "steps=epochs * batches to Recipe.load, or write a whole number of steps."
            )
        least = 1 if name == "frequency" else 0
        return max(least, round(self.steps * percent / 100))


LOSSES: dict[str, type[DistillationLoss]] = {
    "soft_labels": SoftLabels,
    "features": Features,
    "attention_transfer": AttentionTransfer,
    "relational": Relational,
    "contrastive": Contrastive,
    "regression": Regression,
}

_DISTILL_HINTS = {
    "alpha": float,
    "temperature": float,
    "losses": list,
    "cache": str | None,
    "start_from_teacher": bool,
}


def read_distill(key: Node, node: Node) -> Distillation:
    """Makes a `Distillation` of the section."""
    entries = {}
    with contextlib.suppress(ValueError):  # of which `make` tells
        entries = node.items("distill", (*_DISTILL_HINTS, "teacher"))
    if "teacher" in entries:
        raise entries["teacher"][0].error(
            "a recipe serves any teacher; received one in distill. Take the key out: the teacher "
            "is named on the command line, --teacher FILE of tfcompress compress."
        )
    return _DistillReader().make(
        Distillation, key, node, dict.fromkeys(_DISTILL_HINTS, False), _DISTILL_HINTS, "distill"
    )


def written_distill(distill: Distillation) -> dict[str, Any]:
    """A `Distillation` as plain data of YAML, without what is as by default."""
    default = Distillation()
    names = [name for name in _DISTILL_HINTS if name != "losses"]
    told = {name: getattr(distill, name) for name in names}
    told = {name: value for name, value in told.items() if value != getattr(default, name)}
    if distill.losses is not None:
        told["losses"] = [_loss(loss) for loss in distill.losses]
    return told


class _DistillReader(ArgumentReader):
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


# What a file may give for the kinds of arguments in `ARGUMENTS`; words are text.
_SHRINK_HINTS: dict[str, Any] = {
    "share": float,
    "part": float,
    "count": int,
    "seed": int,
    "shares": dict,
    "names": list,
    "layers": list,
    "rank": int | str | dict,
    "flag": bool,
}


def read_shrink(key: Node, node: Node) -> Shrink:
    """Makes a `Shrink` of the section."""
    entries: Entries = {} if node.is_null else node.items("shrink", (*OPERATIONS, "epochs"))
    reader = _ShrinkReader()
    steps = {
        name: reader.step(name, *nodes) for name, nodes in entries.items() if name in OPERATIONS
    }
    arguments: dict[str, Any] = {"steps": steps}
    if "epochs" in entries:
        arguments["epochs"] = reader.scalar(entries["epochs"][1], "epochs", int)
    return build(Shrink, {**entries, "": (key, key)}, arguments, "shrink")


def written_shrink(shrink: Shrink) -> dict[str, Any]:
    """A `Shrink` as plain data of YAML."""
    told: dict[str, Any] = {}
    for name, arguments in shrink.steps:
        given = {key: value for key, value in arguments.items() if value is not None}
        told[name] = {key: _plain(value, key) for key, value in given.items()}
    return {**told, "epochs": shrink.epochs} if shrink.epochs else told


class _ShrinkReader(ArgumentReader):
    """Makes the arguments of surgery of nodes."""

    words: Mapping[Any, str] = {
        **ArgumentReader.words,
        list: "the name of a layer, a pattern, or a list of these",
    }

    def step(self, operation: str, key: Node, node: Node) -> dict[str, Any]:
        """The arguments of one operation."""
        kinds = ARGUMENTS[operation]
        hints = {
            name: str if isinstance(kind, tuple) else _SHRINK_HINTS[kind]
            for name, kind in kinds.items()
        }
        function = functools.partial(_arguments, operation)
        return self.make(function, key, node, dict.fromkeys(kinds, False), hints, operation)

    def argument(self, node: Node, name: str, hint: Any) -> Any:
        if hint is list and node.is_list:
            return [self.scalar(each, name, str) for each in node.elements(name)]
        if hint == _SHRINK_HINTS["rank"]:
            return self.rank(node, name)
        if hint is dict and node.is_mapping:
            items = _named(node, name).items()
            return {layer: self.scalar(value, name, float) for layer, (_, value) in items}
        if hint is dict:
            raise node.error(
                f"{name} must be a mapping of layers to numbers; received {node.value!r}. Write "
                f"{name}: {{conv1: 0.5}}."
            )
        return self.scalar(node, name, hint)

    def rank(self, node: Node, name: str) -> Any:
        """A number, two of them, "evbmf", or these for each layer."""
        if node.is_mapping:
            return {x: self.rank(value, name) for x, (_, value) in _named(node, name).items()}
        if node.is_list:
            return tuple(self.scalar(each, name, int) for each in node.elements(name))
        return node.text if node.value == "evbmf" else self.scalar(node, name, int)


def _arguments(operation: str, **given: Any) -> dict[str, Any]:
    check_arguments(operation, given)
    return given


def _named(node: Node, what: str) -> Entries:
    """The entries of a mapping whose keys are names of the user's own."""
    keys = [Node(key, node.source) for key, _ in node._node.value]
    return node.items(what, [key.text for key in keys if not (key.is_mapping or key.is_list)])


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each, name) for key, each in value.items()}
    if isinstance(value, set | frozenset):
        value = sorted(value)
    if isinstance(value, list | tuple):
        return [_plain(each, name) for each in value]
    if callable(value):
        raise ValueError(
            f"a recipe in a file must have names for {name}; received {value!r}. Keep the recipe "
            "in Python."
        )
    return value


def to_yaml(recipe: Any) -> str:
    """A recipe as the text of a YAML file that `Recipe.load` reads."""
    rules = []
    for rule in recipe.rules:
        if not isinstance(rule.layers, str):
            raise ValueError(
                "a recipe in a file must have patterns for layers; received "
                f"{rule.layers!r}. Write the name or class of the layers, such as 'Dense'."
            )
        rules.append(
            {"layers": rule.layers, "techniques": [_technique(t) for t in rule.techniques]}
        )
    told: dict[str, Any] = {}
    if recipe.shrink is not None:
        told["shrink"] = written_shrink(recipe.shrink)
    if recipe.distill is not None:
        told["distill"] = written_distill(recipe.distill)
    if rules:
        told["rules"] = rules
    return yaml.safe_dump(told, sort_keys=False, allow_unicode=True)


def _technique(technique: Technique) -> Any:
    if isinstance(technique, Regularize):
        return {"regularize": _regularizer(technique.regularizer)}
    names = {cls: name for name, cls in TECHNIQUES.items()}
    if type(technique) not in names:
        raise ValueError(
            "a recipe in a file must have techniques of tfcompress; received "
            f"{type(technique).__name__}. Keep the recipe in Python."
        )
    settings = {}
    for field in dataclasses.fields(technique):  # type: ignore[arg-type]
        value = getattr(technique, field.name)
        if field.name in BOUND or value == field.default:
            continue
        if callable(value) and not isinstance(value, Schedule):
            raise ValueError(
                f"a recipe in a file must name its {field.name}; received the function {value!r}. "
                "Keep the recipe in Python."
            )
        settings[field.name] = _schedule(value) if isinstance(value, Schedule) else value
    name = names[type(technique)]
    return {name: settings} if settings else name


def _schedule(schedule: Schedule) -> Any:
    """The call of a function of `schedules` that makes it."""
    first, last = schedule.initial, schedule.final
    every: dict[str, Any] = {"begin": schedule.begin, "frequency": schedule.frequency}
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
        if same and arguments == {"value": first}:
            return first
        if same:
            return {name: arguments.get("points", arguments)}
    functions = ", ".join(SCHEDULES)
    raise ValueError(
        f"a schedule in a file must come from one of {functions}; received {schedule}. "
        "Make it with one of them, or keep the recipe in Python."
    )


def _regularizer(regularizer: Any) -> dict[str, Any]:
    config = regularizer.get_config() if hasattr(regularizer, "get_config") else {}
    if type(regularizer) is GroupLasso:
        return {"group_lasso": {k: v for k, v in config.items() if k not in BOUND}}
    kinds = (keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2)
    if type(regularizer) in kinds:
        return {name: float(config[name]) for name in ("l1", "l2") if name in config}
    raise ValueError(
        "a recipe in a file must have the regularizers l1, l2 or group_lasso; received "
        f"{regularizer!r}. Keep the recipe in Python."
    )
