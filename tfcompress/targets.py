"""Targets: what a device or runtime asks of a .tflite file, read from `tflite_targets/*.json`."""

import json
import os
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from tfcompress.suggestions import expected_one_of

_FOLDER = resources.files("tflite_targets")


class Target(Mapping[str, Any]):
    """A target's settings, read-only, as keys and as attributes: `target.weights.bits`."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]):
        self._values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_"):  # Asked for by copy and pickle, before there are any values.
            raise AttributeError(key)
        if key not in self._values:
            raise AttributeError(f"a target has no {key!r} here; {expected_one_of(key, self)}")
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Target({self._values})"


def list_targets() -> list[str]:
    """Return the names of the targets that tfcompress knows, in alphabetical order.

    Returns:
        list of str: names that `load_target` accepts.

    Example:
        >>> "edge_tpu" in list_targets()
        True
    """
    names = [file.name for file in _FOLDER.iterdir() if file.name.endswith(".json")]
    return sorted(name.removesuffix(".json") for name in names if name != "schema.json")


def load_target(name_or_path: str | os.PathLike[str]) -> Target:
    """Load one target by its name, or from a JSON file of your own.

    Args:
        name_or_path (str or path): a name from `list_targets()`, or the path of a `.json` file.

    Returns:
        Target: the settings, read-only. Sizes are in bytes; `None` means not known or not asked.

    Raises:
        ValueError: if the name is not known or the file is not a valid target.
        FileNotFoundError: if the path does not exist.

    Example:
        >>> load_target("edge_tpu").weights.bits
        8
    """
    given = os.fspath(name_or_path)
    if given in list_targets():
        text = (_FOLDER / f"{given}.json").read_text(encoding="utf-8")
    elif Path(given).suffix == ".json":
        if not Path(given).is_file():
            raise FileNotFoundError(
                f"no target file {given}; {expected_one_of(given, list_targets())}"
            )
        text = Path(given).read_bytes().decode("utf-8", errors="replace")
    else:
        raise ValueError(f"unknown target {given!r}; {expected_one_of(given, list_targets())}")
    try:
        target = json.loads(text, object_hook=Target)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"target file {given} is not valid JSON: {error}") from None
    _check(target, json.loads((_FOLDER / "schema.json").read_text(encoding="utf-8")), given)
    return target


_TYPES = {Target: "object", tuple: "array", list: "array", str: "string", int: "integer"}
_TYPES |= {float: "number", bool: "boolean", type(None): "null"}


def _check(value: Any, schema: Mapping[str, Any], where: str) -> None:
    """Check what schema.json says on types, choices and keys, so that no validator is needed."""
    if "type" in schema and _TYPES[type(value)] not in schema["type"]:
        raise ValueError(f"{where} must be {' or '.join(schema['type'])}; received {value!r}")
    if "enum" in schema and value not in schema["enum"]:
        raise ValueError(f"{where} must be one of {schema['enum']}; received {value!r}")
    for key in schema.get("required", ()) if isinstance(value, Target) else ():
        if key not in value:
            raise ValueError(f"{where} lacks the key {key!r}; see tflite_targets/README.md")
    for key, item in value.items() if isinstance(value, Target) else ():
        known = schema.get("properties", {})
        if key not in known and not schema["additionalProperties"]:
            raise ValueError(f"{where} has an unknown key {key!r}; {expected_one_of(key, known)}")
        _check(item, known.get(key) or schema["additionalProperties"], f"{where}: {key}")
    for index, item in enumerate(value) if isinstance(value, tuple) else ():
        _check(item, schema["items"], f"{where}[{index}]")
