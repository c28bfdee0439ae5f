"""Recipes as YAML files, and the ready ones that come with the package.

    rules:
      - layers: "*"
        techniques:
          - prune: {sparsity: {polynomial: {initial: 0.0, final: 0.8, end: 60%}}}
          - quantize: {bits: 8}
      - layers: head
        techniques: []

Keys are the arguments of the techniques and of the functions of `tfcompress.schedules`.
"""

import dataclasses
import inspect
import os
import re
import typing
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import keras

from tfcompress import schedules, yaml_nodes
from tfcompress.recipe import Recipe, Rule
from tfcompress.schedules import Schedule
from tfcompress.suggestions import expected_one_of
from tfcompress.techniques import Cluster, GroupLasso, Prune, Quantize, Regularize, Technique
from tfcompress.yaml_nodes import Node

TECHNIQUES: dict[str, type[Technique]] = {
    "prune": Prune,
    "cluster": Cluster,
    "quantize": Quantize,
}
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
_SECTIONS = ("rules",)
_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?%")
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
_FOLDER = resources.files("tfcompress") / "recipes"

Arguments = dict[str, tuple[Node, Node]]


def ready_recipes() -> list[str]:
    """The names of the recipes that come with the package, which `Recipe.load` takes.

    Example:
        >>> "sparse50-int8" in ready_recipes()
        True
    """
    names = [file.name for file in _FOLDER.iterdir() if file.name.endswith(".yaml")]
    return sorted(name.removesuffix(".yaml") for name in names)


def load(source: str | os.PathLike[str], steps: int | None = None) -> Recipe:
    """Reads a recipe; see `Recipe.load`."""
    return parse(*content_of(source), steps)


def content_of(source: str | os.PathLike[str]) -> tuple[bytes, str]:
    """The YAML of a recipe.

    Args:
        source: the name of a ready recipe, or the path of a `.yaml` or `.yml` file.

    Returns:
        (content, name of the file for messages).

    Raises:
        ValueError: there is no such recipe or file.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"expected the path of a recipe or the name of a ready one; received {source!r}."
        )
    name = os.fspath(source)
    if name in ready_recipes():
        return (_FOLDER / f"{name}.yaml").read_bytes(), f"{name}.yaml"
    if Path(name).suffix in (".yaml", ".yml"):
        return yaml_nodes.read_bytes(name), name
    raise ValueError(
        f"unknown recipe {name!r}; name a .yaml file or a ready recipe: "
        f"{expected_one_of(name, ready_recipes())}"
    )


def parse(content: bytes, source: str, steps: int | None = None) -> Recipe:
    """Makes a recipe of YAML.

    Args:
        content: of the file.
        source: its name, for messages.
        steps: see `Recipe.load`.
    """
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise ValueError(
            f"steps must be a whole number of optimizer steps, 1 or more; received {steps!r}. "
            "It is epochs times batches of each."
        )
    root = yaml_nodes.parse(content, source)
    sections = root.items("a recipe", _SECTIONS)
    if "rules" not in sections:
        raise root.error("a recipe must have the key 'rules'; received none. Add one.")
    key, value = sections["rules"]
    elements = value.elements("rules")
    if not elements:
        raise key.error("rules must hold at least one rule; received none. Add one.")
    return Recipe([_Reader(steps).rule(element) for element in elements])


class _Reader:
    """Makes rules, techniques and schedules of nodes.

    Args:
        steps: optimizer steps of the whole training; None if that is not known.
    """

    def __init__(self, steps: int | None):
        self.steps = steps

    def rule(self, node: Node) -> Rule:
        keys = node.items("a rule", ("layers", "techniques"))
        _require(node, keys, ("layers", "techniques"), "a rule")
        layers = keys["layers"][1]
        if layers.is_mapping or layers.is_list or not layers.text:
            raise layers.error(
                "layers must be the name or the class of layers, or a pattern such as '*'; "
                f"received {layers.value!r}."
            )
        elements = keys["techniques"][1].elements("techniques")
        techniques = [self.technique(element) for element in elements]
        return _build(Rule, keys, {"layers": layers.text, "techniques": techniques}, "a rule")

    def technique(self, node: Node) -> Technique:
        known = ("regularize", *TECHNIQUES)
        if not node.is_mapping:  # `- quantize` alone, with the defaults
            if node.value not in known:
                raise node.error(
                    f"unknown technique {node.value!r}; {expected_one_of(str(node.value), known)}"
                )
            name, key, value = node.text, node, None
        else:
            name, key, value = _single(node, "a technique", known)
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
                return _build(lambda: Regularize(GroupLasso(strength)), keys, {}, "regularize")
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
        name, key, value = _single(node, f"a schedule of {what}", SCHEDULES)
        function = SCHEDULES[name]
        if name == "points":
            pairs = self.points(value)
            return _build(function, {"points": (key, value)}, {"points": pairs}, what)
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

    def make(self, function, key: Node, node: Node | None, parameters, hints, what: str):
        """Calls a function with the entries of a mapping as its arguments.

        Args:
            function: what to call.
            key, node: the key that names it and its value; no value gives no arguments.
            parameters: name -> whether it must be given.
            hints: name -> type.
            what: the function in words.
        """
        keys: Arguments = {}
        if node is not None and not node.is_null:
            keys = node.items(what, parameters)
        _require(key, keys, [name for name, needed in parameters.items() if needed], what)
        arguments = {name: self.argument(v, name, hints[name]) for name, (_, v) in keys.items()}
        return _build(function, {**keys, "": (key, key)}, arguments, what)

    def argument(self, node: Node, name: str, hint: Any) -> Any:
        if Schedule in typing.get_args(hint) and node.is_mapping:
            return self.schedule(node, name)
        return self.scalar(node, name, hint)

    def scalar(self, node: Node, name: str, hint: Any) -> Any:
        """A value of the type that a hint names."""
        kinds = {typing.get_origin(kind) or kind for kind in typing.get_args(hint) or [hint]}
        is_scalar = not (node.is_mapping or node.is_list)
        if is_scalar and not kinds & {int, float, bool}:
            return node.text
        value = node.value
        if name in _STEPS and isinstance(value, str) and (share := _PERCENT.fullmatch(value)):
            return self.share(node, name, float(share[1]))
        if float in kinds and type(value) is int:
            return float(value)
        if is_scalar and type(value) in kinds:
            return value
        expected = [words for kind, words in _WORDS.items() if kind in kinds]
        expected += ["a share of the training such as 60%"] if name in _STEPS else []
        expected += [f"a schedule ({', '.join(SCHEDULES)})"] if Schedule in kinds else []
        raise node.error(f"{name} must be {' or '.join(expected)}; received {value!r}.")

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


def _single(node: Node, what: str, expected) -> tuple[str, Node, Node]:
    """The only entry of a mapping: its name, its key and its value."""
    keys = node.items(what, expected)
    if len(keys) != 1:
        raise node.error(
            f"{what} must have one of the keys {', '.join(expected)}; received "
            f"{', '.join(keys) or 'none'}. Take one; a list may hold several of them."
        )
    name, (key, value) = next(iter(keys.items()))
    return name, key, value


def _require(node: Node, keys: Mapping[str, Any], names, what: str) -> None:
    for name in names:
        if name not in keys:
            given = ", ".join(keys) or "nothing"
            raise node.error(f"{what} must have the key {name!r}; received {given}. Add it.")


def _build(function, keys: Arguments, arguments: dict[str, Any], what: str):
    """Calls a function; its errors are given the line of the argument that they begin with."""
    try:
        return function(**arguments)
    except (TypeError, ValueError) as error:
        subject = str(error).split(" ", 1)[0]
        key, _ = keys.get(subject) or keys.get("") or next(iter(keys.values()))
        raise key.error(f"{what}: {error}") from error
