"""A space of recipes: parts, each with options, of which a recipe takes one.

    weights:
      int8 after training: {precision: {"*": int8}}
      int8: {rules: [{layers: "*", techniques: [{quantize: {bits: 8}}]}]}
    zeros:
      none: {}
      "0.8": {before: [{prune: {sparsity: 0.8}}]}
    training:
      "rate x1": {}
      "rate x0.3": {training: {rate: 0.3}}

An option is a piece of a recipe, see `Recipe.load`: steps of `shrink` are joined in the order of
the parts, `before` are techniques that come before those of each rule, and `training` says how such
a recipe is trained. Options go from mild to strong: the last one makes the smallest file.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
from collections.abc import Mapping
from typing import Any

from tfcompress.errors import expected_one_of, is_whole
from tfcompress.files import writing
from tfcompress.recipe import file, yaml
from tfcompress.recipe.yaml import Node

_OPTION = ("shrink", "rules", "before", "distill", "precision", "training")
_TRAINING = ("rate", "batch_size", "optimizer")
_MOST = 10**9


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A recipe of a space, and how it is trained.

    Attributes:
        picks: the option of each part, by names; without parts that change nothing, as how it is
            trained where nothing is.
        recipe: the text of its YAML file.
        training: "rate" (times the learning rate) and what else of `fine_tune`.
    """

    picks: dict[str, str]
    recipe: str
    training: dict[str, Any]

    @property
    def key(self) -> str:
        """What tells it from others that would be trained in another way."""
        told = repr((self.recipe, sorted(self.training.items())))
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    @property
    def trains(self) -> bool:
        """Whether there is anything to train: techniques by rules."""
        return any(line.startswith("rules:") for line in self.recipe.splitlines())


@dataclasses.dataclass(frozen=True)
class Space:
    """Parts and their options.

    Attributes:
        parts: {part: {option: its piece of a recipe}}, as plain data.
        first: picks that are tried before others, by names; parts left out have their first option.
    """

    parts: Mapping[str, Mapping[str, Mapping[str, Any]]]
    first: tuple[Mapping[str, str], ...] = ()

    def __len__(self) -> int:
        size = 1
        for options in self.parts.values():
            size = min(_MOST, size * len(options))
        return size

    @property
    def mildest(self) -> dict[str, str]:
        """The first option of each part."""
        return {part: next(iter(options)) for part, options in self.parts.items()}

    def candidate(self, picks: Mapping[str, str]) -> Candidate:
        """The recipe of some options; a part that is left out has its first one.

        Raises:
            ValueError: if they are no recipe together.
        """
        named = {part: picks.get(part, option) for part, option in self.mildest.items()}
        told, training = _merged([self.parts[part][option] for part, option in named.items()])
        if "rules" not in told:  # Nothing is trained: how it would be is no choice.
            named = {p: o for p, o in named.items() if not self._only_trains(p)}
        text = yaml.text_of(told)
        file.parse(text.encode(), "; ".join(f"{p}: {o}" for p, o in named.items()))
        return Candidate(named, text, training)

    def _only_trains(self, part: str) -> bool:
        """Whether a part says how a recipe is trained, and nothing else."""
        return all(option.keys() <= {"distill", "training"} for option in self.parts[part].values())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Space:
        """Reads a space from a YAML file, and tries each of its options.

        Raises:
            ValueError: if it is none; says the line, or the option.
        """
        source = os.fspath(path)
        root = yaml.parse(yaml.read_bytes(path), source)
        if not root.is_mapping or not root.names():
            raise root.error("a space must be a mapping of parts to their options. Add one.")
        parts: dict[str, dict[str, Any]] = {}
        first: list[dict[str, str]] = []
        for name, (key, node) in root.items("a space", root.names()).items():
            if name == "first":
                first = [_data(each) for each in node.elements("first")]
                continue
            if not node.is_mapping or not node.names():
                raise key.error(f"the part {name!r} must be a mapping of options. Add one.")
            options = node.items(f"the part {name!r}", node.names())
            parts[name] = {option: _option(*pair) for option, pair in options.items()}
        space = cls(parts, tuple(first))
        space.check(source)
        return space

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the space as a YAML file, which `load` reads again."""
        told = {"first": [dict(picks) for picks in self.first], **self.parts}
        text = yaml.text_of(told)
        writing.atomic_write(path, (_HEAD + text).encode())

    def check(self, source: str) -> None:
        """Raises unless options are pieces of recipes, of which the first make one together."""
        for part, options in self.parts.items():
            for option, piece in options.items():
                where = f"{source}: the option {option!r} of {part!r}"
                whole = {"rules", "precision"} & piece.keys()
                told, _ = _merged([piece if whole else {**_PLAIN, **piece}])
                file.parse(yaml.text_of(told).encode(), where)
        self.candidate({})
        for picks in self.first:
            for part, option in picks.items():
                known = self.parts.get(part, {})
                if option not in known:
                    what = f"option {option!r} of {part!r}" if known else f"part {part!r}"
                    listed = expected_one_of(option if known else part, known or self.parts)
                    raise ValueError(f"{source}: 'first' names an unknown {what}; {listed}")


# What an option is tried beside, if it has no rules of its own.
_PLAIN = {"rules": [{"layers": "*", "techniques": ["quantize"]}]}

_HEAD = """\
# What `tfcompress auto` may try: of each part one option at a time. Take options out, change their
# numbers, or write some of your own, from mild to strong. What `first` names is tried first.
"""


def _option(key: Node, node: Node) -> dict[str, Any]:
    """An option as plain data, with keys that there are."""
    if node.is_null:
        return {}
    entries = node.items(f"the option {key.text!r}", _OPTION)
    if "training" in entries:
        _check_training(*entries["training"])
    return {name: _data(each) for name, (_, each) in entries.items()}


def _check_training(key: Node, node: Node) -> None:
    for name, (_, value) in node.items("training", _TRAINING).items():
        given = value.value
        number = isinstance(given, (int, float)) and not isinstance(given, bool)
        right = {
            "rate": number and 0 < given <= 1000,
            "batch_size": is_whole(given),
            "optimizer": isinstance(given, str),
        }[name]
        if not right:
            raise value.error(f"{name} of training must be {_EXPECTED[name]}; received {given!r}.")


_EXPECTED = {
    "rate": "a number that the learning rate is multiplied by, such as 0.3",
    "batch_size": "a whole number, 1 or more",
    "optimizer": "the name of a Keras optimizer such as adam",
}


def _data(node: Node) -> Any:
    """A node as plain data."""
    if node.is_mapping:
        return {name: _data(value) for name, (_, value) in node.items("it", node.names()).items()}
    if node.is_list:
        return [_data(each) for each in node.elements("it")]
    return node.value


def _merged(pieces: list[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The recipe that pieces make together, and how it is trained."""
    told: dict[str, Any] = {}
    training: dict[str, Any] = {}
    before: list[Any] = []
    for piece in copy.deepcopy(pieces):
        told.setdefault("shrink", {}).update(piece.get("shrink") or {})
        before += piece.get("before") or []
        rate = training.get("rate", 1.0) * (piece.get("training") or {}).get("rate", 1.0)
        training |= piece.get("training") or {}
        training |= {"rate": rate} if rate != 1.0 else {}
        for name in ("distill", "precision", "rules"):
            if piece.get(name) is not None:
                told[name] = piece[name]
    for rule in told.get("rules", []):
        if rule["techniques"]:
            rule["techniques"] = before + rule["techniques"]
    if "rules" not in told:  # Nothing is trained.
        told.pop("distill", None)
        training = {}
    order = ("shrink", "distill", "rules", "precision")
    return {name: told[name] for name in order if told.get(name) not in (None, [])
            and (name != "shrink" or told[name])}, training  # fmt: skip
