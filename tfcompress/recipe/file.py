"""Recipes as YAML files, and the ready ones that come with the package.

    shrink:
      channels: {macs: 0.5}
      epochs: 5
    distill:
      losses: [soft_labels, features: {teacher_layer: a, student_layer: b}]
    rules:
      - layers: "*"
        techniques:
          - prune: {sparsity: {polynomial: {initial: 0.0, final: 0.8, end: 60%}}}
          - quantize: {bits: 8}
      - layers: head
        techniques: []
    precision:
      "*": int4
      head: int8

Techniques, schedules, losses and steps of surgery have names, and their keys are the arguments of
the classes and functions that the names stand for: `read_...` makes these of nodes, by the types
of the arguments, and `written_...` tells what is not as by default.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import os
import typing
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import keras

from tfcompress import schedules
from tfcompress.conversion.precisions import LAYER_PRECISIONS
from tfcompress.distillation.distiller import Distillation
from tfcompress.errors import expected_one_of
from tfcompress.recipe import yaml as nodes
from tfcompress.recipe.arguments import (
    BOUND,
    arguments_of,
    name_in,
    read_call,
    read_value,
    written_loss,
    written_schedule,
)
from tfcompress.recipe.yaml import Entries, Node, build
from tfcompress.schedules import Schedule
from tfcompress.surgery.shrink import OPERATIONS, Shrink, checked
from tfcompress.techniques import (
    TECHNIQUES,
    GroupLasso,
    Regularize,
    Technique,
)
from tfcompress.techniques.prune import gradual
from tfcompress.techniques.rules import Rule

_SECTIONS = ("rules", "distill", "shrink", "precision")
_DISTILL = ("alpha", "temperature", "losses", "cache", "start_from_teacher", "dropout")
Parts = tuple[list[Rule], Distillation | None, Shrink | None, dict[str, str] | None]
_FOLDER = resources.files("tfcompress.recipe") / "ready"


def ready_recipes() -> list[str]:
    """The names of the recipes that come with the package, which `Recipe.load` takes."""
    names = [file.name for file in _FOLDER.iterdir() if file.name.endswith(".yaml")]
    return sorted(name.removesuffix(".yaml") for name in names)


@dataclasses.dataclass(frozen=True)
class Parsed:
    """What a file says.

    Attributes:
        content: the bytes of the file.
        rules: each with the node that it was read from; shares of the training may stand in them.
        distill, shrink, precision: what no length of the training changes; None if there is no such
            section.
    """

    content: bytes
    rules: list[tuple[Rule, Node]]
    distill: Distillation | None
    shrink: Shrink | None
    precision: dict[str, str] | None

    def parts(self, steps: int | None = None) -> Parts:
        """The arguments of `Recipe`, for a training of so many steps if they are given."""
        whole = isinstance(steps, int) and not isinstance(steps, bool) and steps >= 1
        if steps is not None and not whole:
            raise ValueError(
                f"steps must be a whole number of optimizer steps, 1 or more; received {steps!r}. "
                "It is epochs times batches of each."
            )
        rules = [rule if steps is None else _over(rule, node, steps) for rule, node in self.rules]
        return rules, self.distill, self.shrink, self.precision


def load(source: str | os.PathLike[str]) -> Parsed:
    """Parses a file, or one of those that come with the package; see `Recipe.load`."""
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"expected the path of a recipe or the name of a ready one; received {source!r}."
        )
    name = os.fspath(source)
    if name in ready_recipes():
        return parse((_FOLDER / f"{name}.yaml").read_bytes(), f"{name}.yaml")
    if Path(name).suffix in (".yaml", ".yml"):
        return parse(nodes.read_bytes(name), name)
    raise ValueError(
        f"unknown recipe {name!r}; name a .yaml file or a ready recipe: "
        f"{expected_one_of(name, ready_recipes())}"
    )


def parse(content: bytes, source: str) -> Parsed:
    """What YAML says; `source` names the file in messages."""
    root = nodes.parse(content, source)
    sections = root.items("a recipe", _SECTIONS)
    if not sections:
        raise root.error("a recipe must have the key 'rules'; received none. Add one.")
    rules: list[tuple[Rule, Node]] = []
    if "rules" in sections:
        key, value = sections["rules"]
        rules = [(read_rule(node), node) for node in value.elements("rules")]
        if not rules:
            raise key.error("rules must hold at least one rule; received none. Add one.")
    distill, shrink = sections.get("distill"), sections.get("shrink")
    distillation = distill and read_distill(*distill)
    precision = sections.get("precision") and read_precision(*sections["precision"])
    return Parsed(content, rules, distillation, shrink and read_shrink(*shrink), precision)


def to_yaml(recipe: Any) -> str:
    """A recipe as the text of a YAML file that `Recipe.load` reads."""
    told: dict[str, Any] = {}
    if recipe.shrink is not None:
        told["shrink"] = written_shrink(recipe.shrink)
    if recipe.distill is not None:
        told["distill"] = written_distill(recipe.distill)
    if recipe.rules:
        told["rules"] = [written_rule(rule) for rule in recipe.rules]
    if recipe.precision is not None:
        told["precision"] = written_precision(recipe.precision)
    return nodes.text_of(told)


def read_rule(node: Node) -> Rule:
    keys = node.items("a rule", ("layers", "techniques"))
    node.require(keys, ("layers", "techniques"), "a rule")
    layers = keys["layers"][1]
    if layers.is_mapping or layers.is_list or not layers.text:
        raise layers.error(
            "layers must be the name or the class of layers, or a pattern such as '*'; "
            f"received {layers.value!r}."
        )
    techniques = [read_technique(each) for each in keys["techniques"][1].elements("techniques")]
    return build(Rule, keys, {"layers": layers.text, "techniques": techniques}, "a rule")


def _over(rule: Rule, node: Node, steps: int) -> Rule:
    """A rule for a training of so many steps."""
    try:
        techniques = [technique.over(0, steps) for technique in rule.techniques]
    except ValueError as error:
        raise node.error(f"in a training of {steps} steps: {error}") from error
    return dataclasses.replace(rule, techniques=techniques)


def written_pattern(layers: Any) -> str:
    if not isinstance(layers, str):
        raise ValueError(
            "a recipe in a file must have patterns for layers; received "
            f"{layers!r}. Write the name or class of the layers, such as 'Dense'."
        )
    return layers


def written_rule(rule: Rule) -> dict[str, Any]:
    return {
        "layers": written_pattern(rule.layers),
        "techniques": [written_technique(t) for t in rule.techniques],
    }


def precision_in(path: str | os.PathLike[str]) -> dict[str, str]:
    """The precisions by layer in a recipe's file."""
    found = load(path).precision
    if found is None:
        raise ValueError(
            f"'{path}' must have the section 'precision'; received a recipe without it. Add it, as "
            "in precision: {'*': int4, head: int8}."
        )
    return found


def read_precision(key: Node, value: Node) -> dict[str, str]:
    patterns = value.names() if value.is_mapping else ["'*'"]
    found = {}
    for pattern, (_, given) in value.items("precision", patterns).items():
        if given.value not in LAYER_PRECISIONS:
            raise given.error(
                f"unknown precision {given.value!r} for {pattern!r}; "
                f"{expected_one_of(str(given.value), LAYER_PRECISIONS)}"
            )
        found[pattern] = given.value
    if not found:
        raise key.error("precision must hold at least one pattern; received none. Add one.")
    return found


def written_precision(rules: Mapping[Any, str]) -> dict[str, str]:
    return {written_pattern(pattern): precision for pattern, precision in rules.items()}


def read_technique(node: Node) -> Technique:
    known = ("regularize", *TECHNIQUES)
    name, key, value = node.text, node, None  # `- quantize` alone, with the defaults
    if node.is_mapping:
        name, key, value = node.single("a technique", known)
    elif node.value not in known:
        raise node.error(
            f"unknown technique {node.value!r}; {expected_one_of(str(node.value), known)}"
        )
    if name == "regularize":
        return read_regularize(key, value)
    return read_call(TECHNIQUES[name], key, value, name)


def written_technique(technique: Technique) -> Any:
    if isinstance(technique, Regularize):
        return {"regularize": written_regularizer(technique.regularizer)}
    name = name_in(TECHNIQUES, technique, "techniques of tfcompress")
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
        if isinstance(value, Schedule):
            number = gradual if field.name == "sparsity" else schedules.constant
            value = written_schedule(value, number)
        settings[field.name] = value
    return {name: settings} if settings else name


def read_regularize(key: Node, value: Node | None) -> Regularize:
    expected = ("l1", "l2", "group_lasso")
    if value is None or value.is_null:
        raise key.error(f"regularize must have one of {', '.join(expected)}; received none.")
    keys = value.items("regularize", expected)
    if "group_lasso" in keys and len(keys) == 1:
        key, given = keys["group_lasso"]
        if given.is_mapping:
            return Regularize(read_call(GroupLasso, key, given, "group_lasso"))
        strength = read_value(given, "group_lasso", float)
        return build(lambda: Regularize(GroupLasso(strength)), keys, {}, "regularize")
    if not keys or "group_lasso" in keys:
        raise key.error(
            "regularize must have l1, l2 or both, or group_lasso alone; received "
            f"{', '.join(keys) or 'none'}."
        )
    factors = {name: read_value(node, name, float) for name, (_, node) in keys.items()}
    for name, factor in factors.items():
        if factor < 0:
            raise keys[name][0].error(f"{name} must be 0 or more; received {factor}.")
    classes = {"l1": keras.regularizers.L1, "l2": keras.regularizers.L2}
    cls = keras.regularizers.L1L2 if len(factors) > 1 else classes[next(iter(factors))]
    return Regularize(cls(**factors))


def written_regularizer(regularizer: Any) -> dict[str, Any]:
    config = regularizer.get_config() if hasattr(regularizer, "get_config") else {}
    if type(regularizer) is GroupLasso:
        return {"group_lasso": {name: config[name] for name in arguments_of(GroupLasso)}}
    kinds = (keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2)
    if type(regularizer) in kinds:
        return {name: float(config[name]) for name in ("l1", "l2") if name in config}
    raise ValueError(
        "a recipe in a file must have the regularizers l1, l2 or group_lasso; received "
        f"{regularizer!r}. Keep the recipe in Python."
    )


def read_distill(key: Node, node: Node) -> Distillation:
    if node.is_mapping and "teacher" in node.names():
        teacher, _ = node.items("distill", node.names())["teacher"]
        raise teacher.error(
            "a recipe serves any teacher; received one in distill. Take the key out: the teacher "
            "is named on the command line, --teacher FILE of tfcompress compress."
        )
    arguments = {name: arguments_of(Distillation)[name] for name in _DISTILL}
    return read_call(Distillation, key, node, "distill", arguments)


def written_distill(distill: Distillation) -> dict[str, Any]:
    default = Distillation()
    told = {name: getattr(distill, name) for name in _DISTILL}
    if distill.losses is not None:
        told["losses"] = [written_loss(loss) for loss in distill.losses]
    return {name: value for name, value in told.items() if value != getattr(default, name)}


def read_shrink(key: Node, node: Node) -> Shrink:
    entries: Entries = {} if node.is_null else node.items("shrink", (*OPERATIONS, "epochs"))
    steps = {name: read_step(name, *x) for name, x in entries.items() if name in OPERATIONS}
    arguments: dict[str, Any] = {"steps": steps}
    if "epochs" in entries:
        arguments["epochs"] = read_value(entries["epochs"][1], "epochs", int)
    return build(Shrink, {**entries, "": (key, key)}, arguments, "shrink")


def read_step(operation: str, key: Node, node: Node) -> dict[str, Any]:
    arguments = {}
    for name, (hint, _) in arguments_of(OPERATIONS[operation]).items():
        # In a file what is left out is not there, rather than null.
        given = [each for each in typing.get_args(hint) if each is not type(None)]
        arguments[name] = (functools.reduce(operator.or_, given), False)
    return read_call(lambda **given: checked(operation, given), key, node, operation, arguments)


def written_shrink(shrink: Shrink) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name, arguments in shrink.steps:
        given = {key: value for key, value in arguments.items() if value is not None}
        told[name] = {key: _plain(value, key) for key, value in given.items()}
    return {**told, "epochs": shrink.epochs} if shrink.epochs else told


def _plain(value: Any, name: str) -> Any:
    """An argument of a step as plain data."""
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
