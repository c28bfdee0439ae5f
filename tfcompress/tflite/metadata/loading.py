"""Metadata as JSON: strict keys, and errors that say where."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfcompress.suggestions import expected_one_of
from tfcompress.tflite.metadata.types import MOST_BYTES, Metadata, TensorMetadata, split_labels


def load_metadata(source: str | os.PathLike[str] | Mapping[str, Any] | Metadata) -> Metadata:
    """Read metadata from a JSON file or a dict.

    The keys are the fields of `Metadata`; "inputs" and "outputs" are lists of objects with the
    fields of `TensorMetadata`. "labels" may also name a text file beside the JSON file, with one
    label in each line.

    Args:
        source: a path, a dict, or `Metadata`, which is passed on.

    Returns:
        The metadata.

    Raises:
        ValueError: the file cannot be read, is no JSON, or has a key or value that is not expected.

    Example:
        >>> load_metadata({"name": "digits", "outputs": [{"labels": ["0", "1"]}]}).outputs[0].labels
        ('0', '1')
    """
    if isinstance(source, Metadata):
        return source
    if isinstance(source, Mapping):
        return _model(source, "metadata", None)
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(
            f"metadata: received {type(source).__name__}; expected the path of a JSON file, or a "
            "dict."
        )
    path = Path(source)
    try:
        content = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        if not isinstance(error, (json.JSONDecodeError, RecursionError)):
            raise
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise ValueError(
            f"'{path}' is no JSON: {reason}; expected metadata such as "
            '{"name": "digits", "outputs": [{"labels": ["0", "1"]}]}.'
        ) from error
    return _model(content, f"'{path}'", path.parent)


def _model(content: Any, where: str, folder: Path | None) -> Metadata:
    values = _fields(content, Metadata, where)
    for key in ("inputs", "outputs"):
        entries = values.get(key, [])
        if not isinstance(entries, (list, tuple)):
            raise ValueError(f"{where}: {key}: received {entries!r:.80}; expected a list.")
        values[key] = tuple(
            _tensor(entry, f"{where}: {key}[{i}]", folder) for i, entry in enumerate(entries)
        )
    return _made(Metadata, values, where)


def _tensor(content: Any, where: str, folder: Path | None) -> TensorMetadata:
    if isinstance(content, TensorMetadata):
        return content
    values = _fields(content, TensorMetadata, where)
    if isinstance(values.get("labels"), str):
        values["labels"] = _labels(values["labels"], f"{where}.labels", folder)
    return _made(TensorMetadata, values, where)


def _fields(content: Any, kind: type, where: str) -> dict[str, Any]:
    known = [field.name for field in dataclasses.fields(kind)]
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{where}: received {content!r:.80}; expected an object with keys of "
            f"{', '.join(known)}."
        )
    for key in content:
        if key not in known:
            raise ValueError(
                f"{where}: unknown key {key!r:.80}; {expected_one_of(str(key), known)}"
            )
    return dict(content)


def _made(kind: type, values: dict[str, Any], where: str) -> Any:
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _labels(name: str, where: str, folder: Path | None) -> tuple[str, ...]:
    path = Path(name)
    # JSON of others must not bring any file of this machine into a model.
    if folder is None or path.is_absolute() or ".." in path.parts:
        raise ValueError(
            f"{where}: received {name!r:.80}; expected a list of labels, or the name of a text "
            "file beside the JSON file."
        )
    return split_labels(_read(folder / path))


def _read(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise ValueError(f"'{path}' is no regular file; expected a text file.")
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"'{path}' is too large; expected at most {MOST_BYTES:,} bytes.")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"no file at '{path}'; expected a text file. Check the path.") from None
    except OSError as error:
        raise ValueError(f"cannot read '{path}': {error.strerror}. Check the path.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is no text in UTF-8; save it as UTF-8.") from error
