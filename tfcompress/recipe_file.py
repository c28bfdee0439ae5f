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

import dataclasses
import inspect
import os
import re
import typing
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from tfcompress import recipe_distill, recipe_shrink, schedules, yaml_nodes
from tfcompress.recipe import Recipe, Rule
from tfcompress.schedules import Schedule
from tfcompress.suggestions import expected_one_of
from tfcompress.techniques import Cluster, GroupLasso, Prune, Quantize, Regularize, Technique
from tfcompress.yaml_arguments import ArgumentReader, build, require, single
from tfcompress.yaml_nodes import Node

if TYPE_CHECKING:
    from tfcompress.distillation.settings import Distillation
    from tfcompress.surgery.settings import Shrink

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
_SECTIONS = ("rules", "distill", "shrink")
_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?%")
_FOLDER = resources.files("tfcompress") / "recipes"


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
    return Recipe(
        rules,
        distill and recipe_distill.read(*distill),
        shrink and recipe_shrink.read(*shrink),
    )


def distillation_of(content: bytes, source: str) -> "Distillation | None":
    """What YAML says about learning from a teacher, which no length of the training changes.

    Args:
        content, source: see `parse`.

    Returns:
        The `Distillation`, or None if there is no such section.
    """
    section = _section(content, source, "distill")
    return section and recipe_distill.read(*section)


def shrink_of(content: bytes, source: str) -> "Shrink | None":
    """What YAML says about surgery, which no length of the training changes.

    Args:
        content, source: see `parse`.

    Returns:
        The `Shrink`, or None if there is no such section.
    """
    section = _section(content, source, "shrink")
    return section and recipe_shrink.read(*section)


def _section(content: bytes, source: str, name: str) -> tuple[Node, Node] | None:
    return yaml_nodes.parse(content, source).items("a recipe", _SECTIONS).get(name)


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
