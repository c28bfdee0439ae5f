"""Targets: what a device or runtime asks of a .tflite file, read from `tflite_targets/*.json`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from tfcompress.errors import did_you_mean, expected_one_of
from tfcompress.files.configs import short

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
        name_or_path (str or path): a name from `list_targets()`, or the path of a `.json` file,
            which may build upon a known target: `{"extends": "ethos_u55", "memory": ...}`.

    Returns:
        Target: the settings, read-only. Sizes are in bytes; `None` means not known or not asked.

    Raises:
        TypeError: if it is neither.
        ValueError: if the name is not known or the file is not a valid target.
        FileNotFoundError: if the path does not exist.

    Example:
        >>> load_target("edge_tpu").weights.bits
        8
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise TypeError(
            f"target: received {name_or_path!r:.80}; expected a name or the path of a .json file. "
            f"Names: {', '.join(list_targets())}."
        )
    given = os.fspath(name_or_path)
    if given in list_targets():
        text = _shipped(given)
    elif Path(given).suffix == ".json":
        if not Path(given).is_file():
            raise FileNotFoundError(
                f"no target file {given}; {expected_one_of(given, list_targets())}"
            )
        text = Path(given).read_bytes().decode("utf-8", errors="replace")
    else:
        known = expected_one_of(given.lower(), list_targets())
        raise ValueError(f"unknown target {given!r}; {known}")
    try:
        target = _target(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"target file {given} is not valid JSON: {error}") from None
    if isinstance(target, Target) and "extends" in target:
        target = _extended(target, given)
    _check(target, json.loads(_shipped("schema")), given)
    _check_references(target, given)
    return target


def source_of(target: Target, rule: str | None) -> tuple[str | None, str | None]:
    """Source and date of one of a target's rules; None if there is none of this id."""
    found = next((entry for entry in target.rules if entry.id == rule), None)
    return (found.source, found.date) if found else (None, None)


def _shipped(name: str) -> str:
    return (_FOLDER / f"{name}.json").read_text(encoding="utf-8")


def _target(value: Any) -> Any:
    if isinstance(value, dict):
        return Target({key: _target(item) for key, item in value.items()})
    return [_target(item) for item in value] if isinstance(value, list) else value


def _extended(own: Target, where: str) -> Target:
    """Fill up what a file that extends a known target leaves out; rules add up."""
    if own.extends not in list_targets():
        known = expected_one_of(str(own.extends), list_targets())
        raise ValueError(f"{where}: extends must name a target; received {own.extends!r}; {known}")
    base = _target(json.loads(_shipped(own.extends)))
    merged = _merged(base, Target({k: v for k, v in own.items() if k != "extends"}))
    if isinstance(own.get("rules"), tuple):
        merged = Target({**merged, "rules": [*own.rules, *base.rules]})
    return merged


def _merged(base: Target, own: Target) -> Target:
    both = dict(base)
    for key, value in own.items():
        inner = isinstance(value, Target) and isinstance(base.get(key), Target)
        both[key] = _merged(base[key], value) if inner else value
    return Target(both)


_TYPES = {Target: "object", tuple: "array", list: "array", str: "string", int: "integer"}
_TYPES |= {float: "number", bool: "boolean", type(None): "null"}


def _check(value: Any, schema: Mapping[str, Any], where: str) -> None:
    """Check a value against schema.json, so that no validator is needed."""
    if "type" in schema and _TYPES[type(value)] not in schema["type"]:
        expected = " or ".join(schema["type"])
        raise ValueError(f"{where} must be {expected}; received {value!r:.80}")
    if "enum" in schema and value not in schema["enum"]:
        raise ValueError(
            f"{where} must be one of {_listed(schema['enum'], value)}; received {value!r:.80}"
        )
    _check_size(value, schema, where)
    if isinstance(value, Target):
        _check_keys(value, schema, where)
    for index, item in enumerate(value) if isinstance(value, (tuple, list)) else ():
        _check(item, schema["items"], f"{where}[{index}]")


def _check_size(value: Any, schema: Mapping[str, Any], where: str) -> None:
    if isinstance(value, str):
        if len(value) < schema.get("minLength", 0):
            raise ValueError(f"{where} must not be empty; received {value!r}")
        if "pattern" in schema and not re.search(schema["pattern"], value):
            raise ValueError(f"{where} must match {schema['pattern']}; received {value!r:.80}")
    if isinstance(value, (tuple, list)):
        if len(value) < schema.get("minItems", 0):
            raise ValueError(f"{where} must hold something; received an empty list")
        if schema.get("uniqueItems") and any(item in value[:i] for i, item in enumerate(value)):
            raise ValueError(f"{where} must not hold anything twice; received {value!r:.80}")
    if isinstance(value, (int, float)) and value < schema.get("minimum", value):
        raise ValueError(f"{where} must be at least {schema['minimum']}; received {value!r}")


def _check_keys(value: Target, schema: Mapping[str, Any], where: str) -> None:
    for key in schema.get("required", ()):
        if key not in value:
            raise ValueError(f"{where} lacks the key {key!r}; see tflite_targets/README.md")
    for key, item in value.items():
        known = schema.get("properties", {})
        if key not in known and not schema["additionalProperties"]:
            raise ValueError(f"{where} has an unknown key {key!r}; {expected_one_of(key, known)}")
        names = schema.get("propertyNames", {}).get("enum")
        if names is not None and key not in names:
            raise ValueError(
                f"{where} has an unknown key {key!r}; expected one of {_listed(names, key)}"
            )
        _check(item, known.get(key) or schema["additionalProperties"], f"{where}: {key}")


def _listed(names: list[Any], received: Any) -> str:
    """The names, or of very many the first and the closest."""
    if len(names) <= 30:
        return str(names)
    close = did_you_mean(str(received), map(str, names))
    return f"{', '.join(map(str, names[:10]))}, ... ({len(names)} in all). {close}".rstrip()


# How a limit compares what was measured: it has exactly one of these keys.
COMPARISONS = ("equals", "min", "max", "multiple_of", "in", "includes", "excludes")


def _check_references(target: Target, where: str) -> None:
    """Check that names stand for something, and that each limit has one comparison."""
    if target.precision not in target.precisions:
        listed = ", ".join(target.precisions)
        raise ValueError(
            f"{where}: precision must be one of precisions, {listed}; received {target.precision!r}"
        )
    rules = [rule.id for rule in target.rules]
    for rule in rules:
        if rules.count(rule) > 1:
            raise ValueError(f"{where}: rules has the id {rule!r} twice; expected each once")
    for name, limit in target.limits.items():
        here = f"{where}: limits: {name}"
        _check_comparison(limit, here)
        if "when" in limit:
            _check_comparison(limit.when, f"{here}: when")
        _check_name(limit.status, target.statuses, f"{here}: status")
        _check_name(limit.rule, rules, f"{here}: rule")
    for key in ("weights", "shapes", "memory", "channels", "inputs", "metadata", "refused_io"):
        if target[key] is not None:
            _check_name(target[key].rule, [*rules, None], f"{where}: {key}: rule")
    for key in ("precisions_rule", "io_rule"):
        _check_name(target[key], [*rules, None], f"{where}: {key}")
    _check_name(target.operators_rule, rules, f"{where}: operators_rule")
    for name in target.common_limits:
        _check_name(name, target.limits, f"{where}: common_limits")
    for name, entry in target.operators.items():
        here = f"{where}: operators: {name}"
        _check_name(entry.get("rule", target.operators_rule), rules, f"{here}: rule")
        for limit in (*entry.limits, *entry.get("exempt", ())):
            _check_name(limit, target.limits, f"{here}: limits")


def _check_comparison(limit: Target, where: str) -> None:
    given = [key for key in COMPARISONS if key in limit]
    if len(given) != 1:
        raise ValueError(
            f"{where} must have exactly one of {', '.join(COMPARISONS)}; received {given}"
        )


def _check_name(name: Any, known: Iterable[Any], where: str) -> None:
    names = list(known)
    if name not in names:
        listed = expected_one_of(str(name), [n for n in names if n is not None])
        raise ValueError(f"{where} names {short(name)}, which is not there; {listed}")


IO_DTYPES = {
    "float32": ("float32",),
    "float16": ("float32",),
    "dynamic_int8": ("float32",),
    "int8": ("float32", "int8", "uint8"),
    "int16x8": ("float32", "int16"),
    "int4": ("float32", "int8", "uint8"),
}


def io_pair(io_dtype: Any) -> tuple[str, str]:
    """The types of inputs and of outputs: one for both, or two, as in "uint8,float32"."""
    parts = io_dtype.split(",") if isinstance(io_dtype, str) else io_dtype
    names = [str(part).strip() for part in parts] if isinstance(parts, list | tuple) else []
    if len(names) not in (1, 2):
        raise ValueError(
            f"io_dtype must be one type, or the inputs' and the outputs' as in 'uint8,float32'; "
            f"received {io_dtype!r}."
        )
    return names[0], names[-1]
