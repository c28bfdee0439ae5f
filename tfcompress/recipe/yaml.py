"""YAML read as nodes that know their line, so that errors can name it; nothing in it is run.

Scalars follow YAML 1.2: `2:4`, `no` and `1x4` are text, `1e-5` is a number.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml

from tfcompress.errors import expected_one_of

_LARGEST = 1_000_000
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}
_DEFAULT_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")}

# Name -> (the key, the value).
Entries = dict[str, tuple["Node", "Node"]]


class _Loader(yaml.BaseLoader):
    """Composes nodes; knows no tags, and no aliases, which can make a small file endless."""

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.composer.ComposerError(
                None, None, "anchors and aliases are not taken; write it out", event.start_mark
            )
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Writes out what stands in several places, as what reads it knows no aliases."""

    def ignore_aliases(self, data):
        return True


def text_of(told: Any) -> str:
    """Plain data as YAML."""
    return yaml.dump(told, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class Node:
    """A value in a file and where it stands.

    Args:
        node: of PyYAML.
        source: the file's name, for messages.
    """

    def __init__(self, node: Any, source: str):
        self._node, self.source = node, source
        self.line = node.start_mark.line + 1

    def _inner(self, node: Any) -> Node:
        return Node(node, self.source)

    def error(self, message: str) -> ValueError:
        """A ValueError that begins with the file and the line."""
        return ValueError(f"{self.source}, line {self.line}: {message}")

    @property
    def is_mapping(self) -> bool:
        return isinstance(self._node, yaml.MappingNode)

    @property
    def is_list(self) -> bool:
        return isinstance(self._node, yaml.SequenceNode)

    @property
    def is_null(self) -> bool:
        return not (self.is_mapping or self.is_list) and self.value is None

    @property
    def text(self) -> str:
        """A scalar as it is written."""
        return self._node.value

    @property
    def value(self) -> Any:
        """A scalar as bool, int, float, None or str; anything else as text for messages."""
        if self.is_mapping or self.is_list:
            start, end = self._node.start_mark, self._node.end_mark
            shown = " ".join((start.buffer or "")[start.pointer : end.pointer].split())
            return shown if len(shown) < 60 else "a mapping" if self.is_mapping else "a list"
        text = self.text
        if self._node.style is not None:  # quoted
            return text
        if text.lower() in _WORDS:
            return _WORDS[text.lower()]
        if _INT.fullmatch(text):
            return int(text) if len(text) < 20 else float(text)
        return float(text) if _FLOAT.fullmatch(text) else text

    def names(self) -> list[str]:
        """The keys of a mapping, which are the user's own names."""
        keys = [self._inner(key) for key, _ in self._node.value]
        return [key.text for key in keys if not (key.is_mapping or key.is_list)]

    def items(self, what: str, expected: Iterable[str]) -> Entries:
        """The entries of a mapping whose keys are known."""
        expected = list(expected)
        if not self.is_mapping:
            raise self.error(
                f"{what} must be a mapping of {', '.join(expected)}; received {self.value!r}."
            )
        found: Entries = {}
        for key_node, value_node in self._node.value:
            key, value = self._inner(key_node), self._inner(value_node)
            name = key.value if key.is_mapping or key.is_list else key.text
            if name not in expected:
                raise key.error(
                    f"unknown key {name!r} in {what}; {expected_one_of(name, expected)}"
                )
            if name in found:
                first = found[name][0].line
                raise key.error(
                    f"{what} has the key {name!r} twice, first in line {first}. Keep one of them."
                )
            found[name] = (key, value)
        return found

    def elements(self, what: str) -> list[Node]:
        """The elements of a list."""
        if not self.is_list:
            raise self.error(
                f"{what} must be a list, each element after '- '; received {self.value!r}."
            )
        return [self._inner(node) for node in self._node.value]

    def single(self, what: str, expected: Iterable[str]) -> tuple[str, Node, Node]:
        """The only entry of a mapping: its name, its key and its value."""
        expected = list(expected)
        entries = self.items(what, expected)
        if len(entries) != 1:
            raise self.error(
                f"{what} must have one of the keys {', '.join(expected)}; received "
                f"{', '.join(entries) or 'none'}. Take one; a list may hold several of them."
            )
        name, (key, value) = next(iter(entries.items()))
        return name, key, value

    def require(self, entries: Mapping[str, Any], names: Iterable[str], what: str) -> None:
        """Raises unless entries that belong to this key have all names that they must have."""
        for name in names:
            if name not in entries:
                given = ", ".join(entries) or "nothing"
                raise self.error(f"{what} must have the key {name!r}; received {given}. Add it.")


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Reads a file that is to be parsed."""
    source = os.fspath(path)
    try:
        with open(path, "rb") as stream:
            content = stream.read(_LARGEST + 1)
    except FileNotFoundError as error:
        raise ValueError(f"no file at '{source}'; expected a YAML file. Check the path.") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ValueError(
            f"cannot read '{source}': {reason}; expected a YAML file. Check the path."
        ) from error
    if len(content) > _LARGEST:
        raise ValueError(
            f"'{source}' has more than {_LARGEST:,} bytes; expected a YAML file of a few lines. "
            "Name another file."
        )
    return content


def parse(content: bytes, source: str) -> Node:
    """Parses YAML."""
    try:
        text = content.decode("utf-8-sig")
        root = yaml.compose(text, Loader=_Loader)
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{source}, line {number}: not UTF-8 text: {error.reason}. Save it as UTF-8."
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        what = "; ".join(part for part in (error.context, error.problem) if part)
        raise ValueError(f"{source}{line}: not valid YAML: {what}.") from error
    except (yaml.YAMLError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"{source}: not valid YAML: {' '.join(reason.split())[:200]}.") from error
    if root is None:
        raise ValueError(f"{source} is empty; expected YAML.")
    _refuse_tags(root, source)
    return Node(root, source)


def _refuse_tags(root: yaml.Node, source: str) -> None:
    todo = [root]
    while todo:
        node = todo.pop()
        if node.tag not in _DEFAULT_TAGS:
            raise Node(node, source).error(
                f"the tag {node.tag!r} is not taken; expected plain values. Leave it out."
            )
        if isinstance(node, yaml.MappingNode):
            todo += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            todo += node.value


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
