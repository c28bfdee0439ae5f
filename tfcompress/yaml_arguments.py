"""Functions called with the entries of a YAML mapping as their arguments."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tfcompress.yaml_nodes import Node

# name -> (node of the key, node of the value)
Entries = dict[str, tuple[Node, Node]]


class ArgumentReader:
    """Makes the arguments of functions of nodes, by the types that they are annotated with.

    Attributes:
        words: what an argument of a type is called in messages.
    """

    words: Mapping[Any, str] = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        type(None): "null",
        str: "text",
    }

    def make(
        self,
        function: Callable[..., Any],
        key: Node,
        node: Node | None,
        parameters: Mapping[str, bool],
        hints: Mapping[str, Any],
        what: str,
    ) -> Any:
        """Calls a function with the entries of a mapping as its arguments.

        Args:
            function: what to call.
            key, node: the key that names it and its value; no value gives no arguments.
            parameters: name -> whether it must be given.
            hints: name -> type.
            what: the function in words.
        """
        entries: Entries = {}
        if node is not None and not node.is_null:
            entries = node.items(what, parameters)
        require(key, entries, [name for name, needed in parameters.items() if needed], what)
        arguments = {name: self.argument(v, name, hints[name]) for name, (_, v) in entries.items()}
        return build(function, {**entries, "": (key, key)}, arguments, what)

    def argument(self, node: Node, name: str, hint: Any) -> Any:
        """The value of an argument."""
        return self.scalar(node, name, hint)

    def scalar(self, node: Node, name: str, hint: Any) -> Any:
        """A value of the type that a hint names."""
        kinds = {typing.get_origin(kind) or kind for kind in typing.get_args(hint) or [hint]}
        is_scalar = not (node.is_mapping or node.is_list)
        if is_scalar and not kinds & {int, float, bool}:
            return node.text
        value = node.value
        if is_scalar and float in kinds and type(value) is int:
            return float(value)
        if is_scalar and type(value) in kinds:
            return value
        expected = " or ".join(self.expected(name, kinds))
        raise node.error(f"{name} must be {expected}; received {value!r}.")

    def expected(self, name: str, kinds: set[Any]) -> list[str]:
        """What an argument of some types may be, in words."""
        return [words for kind, words in self.words.items() if kind in kinds] or ["a single value"]


def single(node: Node, what: str, expected: Iterable[str]) -> tuple[str, Node, Node]:
    """The only entry of a mapping: its name, its key and its value.

    Args:
        node: the mapping.
        what: the mapping in words, for messages.
        expected: the names that it may have.

    Raises:
        ValueError: there are several entries, or none, or an unknown one.
    """
    expected = list(expected)
    entries = node.items(what, expected)
    if len(entries) != 1:
        raise node.error(
            f"{what} must have one of the keys {', '.join(expected)}; received "
            f"{', '.join(entries) or 'none'}. Take one; a list may hold several of them."
        )
    name, (key, value) = next(iter(entries.items()))
    return name, key, value


def require(node: Node, entries: Mapping[str, Any], names: Iterable[str], what: str) -> None:
    """Raises unless a mapping has all keys that it must have."""
    for name in names:
        if name not in entries:
            given = ", ".join(entries) or "nothing"
            raise node.error(f"{what} must have the key {name!r}; received {given}. Add it.")


def build(
    function: Callable[..., Any], entries: Entries, arguments: dict[str, Any], what: str
) -> Any:
    """Calls a function; its errors are given the line of the argument that they begin with."""
    try:
        return function(**arguments)
    except (TypeError, ValueError) as error:
        subject = str(error).split(" ", 1)[0]
        key, _ = entries.get(subject) or entries.get("") or next(iter(entries.values()))
        raise key.error(f"{what}: {error}") from error
