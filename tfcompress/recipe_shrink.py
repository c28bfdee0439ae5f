"""The section `shrink` of recipe files, read and written.

    shrink:
      channels: {macs: 0.5, score: l2, scope: global, round_to: 8, keep: [head]}
      factorize: {method: svd, energy: 0.95, layers: "dense*"}
      separable: {layers: "conv*", depth_multiplier: 1}
      epochs: 5

Surgery in the order in which it is written, and how long the smaller model trains in float before
the techniques begin. Keys are the arguments of `prune_channels`, `factorize` and `to_separable`.
"""

import functools
from collections.abc import Mapping
from typing import Any

from tfcompress.surgery.arguments import ARGUMENTS, OPERATIONS, check_arguments
from tfcompress.surgery.settings import Shrink
from tfcompress.yaml_arguments import ArgumentReader, Entries, build
from tfcompress.yaml_nodes import Node

# What a file may give for the kinds of arguments in `ARGUMENTS`; words are text.
_HINTS: dict[str, Any] = {
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


def read(key: Node, node: Node) -> Shrink:
    """Makes a `Shrink` of the section.

    Args:
        key, node: the word `shrink` and what belongs to it.

    Raises:
        ValueError: something in it is wrong; says the line and the key.
    """
    entries: Entries = {} if node.is_null else node.items("shrink", (*OPERATIONS, "epochs"))
    reader = _Reader()
    steps = {
        name: reader.step(name, *nodes) for name, nodes in entries.items() if name in OPERATIONS
    }
    arguments: dict[str, Any] = {"steps": steps}
    if "epochs" in entries:
        arguments["epochs"] = reader.scalar(entries["epochs"][1], "epochs", int)
    return build(Shrink, {**entries, "": (key, key)}, arguments, "shrink")


def written(shrink: Shrink) -> dict[str, Any]:
    """A `Shrink` as plain data of YAML.

    Raises:
        ValueError: YAML cannot tell a score or a choice of layers that is code of one's own.
    """
    told: dict[str, Any] = {}
    for name, arguments in shrink.steps:
        given = {key: value for key, value in arguments.items() if value is not None}
        told[name] = {key: _plain(value, key) for key, value in given.items()}
    return {**told, "epochs": shrink.epochs} if shrink.epochs else told


class _Reader(ArgumentReader):
    """Makes the arguments of surgery of nodes."""

    words: Mapping[Any, str] = {
        **ArgumentReader.words,
        list: "the name of a layer, a pattern, or a list of these",
    }

    def step(self, operation: str, key: Node, node: Node) -> dict[str, Any]:
        """The arguments of one operation."""
        kinds = ARGUMENTS[operation]
        hints = {
            name: str if isinstance(kind, tuple) else _HINTS[kind] for name, kind in kinds.items()
        }
        function = functools.partial(_arguments, operation)
        return self.make(function, key, node, dict.fromkeys(kinds, False), hints, operation)

    def argument(self, node: Node, name: str, hint: Any) -> Any:
        if hint is list and node.is_list:
            return [self.scalar(each, name, str) for each in node.elements(name)]
        if hint == _HINTS["rank"]:
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
