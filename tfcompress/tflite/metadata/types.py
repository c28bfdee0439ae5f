"""What a .tflite file can say about itself: names, descriptions, normalization, ranges, labels."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfcompress.errors import expected_one_of
from tfcompress.results import Rows, plain_fields, print_table

if TYPE_CHECKING:
    from rich.console import Console

_TEXTS = ("name", "description", "version", "author", "license")

# Of all texts and labels of a file together, far beyond what any model needs.
MOST_BYTES = 4 * 2**20
_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class TensorMetadata:
    """What is known about one input or output.

    Args:
        name: "" takes the name in the file's signature.
        description: in words.
        mean, std: raw values are normalized to (x - mean) / std before they go in; one number, or
            one for each channel. An image's raw values are 0 to 255.
        minimum, maximum: the range of the tensor's values, likewise.
        labels: a name for each value along the last dimension.

    Raises:
        ValueError: a value is of the wrong kind, `std` is not above 0, or mean and std, or minimum
            and maximum, do not belong together.

    Example:
        >>> TensorMetadata("image", mean=127.5, std=127.5).std
        (127.5,)
    """

    name: str = ""
    description: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    minimum: tuple[float, ...] = ()
    maximum: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key in ("name", "description"):
            _check_text(key, getattr(self, key))
        for key in ("mean", "std", "minimum", "maximum"):
            object.__setattr__(self, key, _numbers(key, getattr(self, key)))
        object.__setattr__(self, "labels", _labels(self.labels))
        _check_pair("mean", self.mean, "std", self.std)
        # A range may be open on one side.
        if self.minimum and self.maximum:
            _check_pair("minimum", self.minimum, "maximum", self.maximum)
        if any(value <= 0 for value in self.std):
            raise ValueError(f"std: received {list(self.std)}; expected numbers above 0.")
        if any(low > high for low, high in zip(self.minimum, self.maximum, strict=False)):
            raise ValueError(
                f"minimum: received {list(self.minimum)}; expected at most the maximum, "
                f"{list(self.maximum)}. Exchange them."
            )


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What is known about a model.

    Args:
        name, description, version, author, license: plain texts; "" says nothing.
        inputs, outputs: one for each input and output of the file, in its order, or only some,
            told apart by their names in the file's signature. Empty takes the signature's names.

    Raises:
        ValueError: a value is of the wrong kind.

    Example:
        >>> Metadata("digits", outputs=(TensorMetadata("digit", labels=list("0123456789")),)).name
        'digits'

    Source: the metadata schema of TensorFlow Lite (tensorflow.org/lite/models/convert/metadata).
    """

    name: str = ""
    description: str = ""
    version: str = ""
    author: str = ""
    license: str = ""
    inputs: tuple[TensorMetadata, ...] = ()
    outputs: tuple[TensorMetadata, ...] = ()

    def __post_init__(self) -> None:
        for key in _TEXTS:
            _check_text(key, getattr(self, key))
        for key, value in self.sides.items():
            if not isinstance(value, (list, tuple)) or not all(
                isinstance(entry, TensorMetadata) for entry in value
            ):
                raise ValueError(f"{key}: received {value!r:.80}; expected TensorMetadata objects.")
            object.__setattr__(self, key, tuple(value))

    @property
    def sides(self) -> dict[str, tuple[TensorMetadata, ...]]:
        """The inputs and the outputs, by these names."""
        return {"inputs": self.inputs, "outputs": self.outputs}

    def to_dict(self) -> dict[str, Any]:
        """Return plain texts, numbers, lists and dicts, as `load_metadata` takes them."""
        return plain_fields(self)


def short(value: float) -> float:
    """The shortest decimal number that stands for the same float32, which is what files hold."""
    return float(str(np.float32(value)))


def split_labels(text: str) -> tuple[str, ...]:
    """The labels of a text file, one in each line."""
    # Not splitlines(), which also takes separators for ends of lines that other readers do not.
    lines = [line.rstrip("\r").replace("\r", " ").replace("\0", "") for line in text.split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    return tuple(lines)


def _check_text(key: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{key}: received {value!r:.80}; expected a text.")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{key}: received {value!r:.80}; expected a text in Unicode.") from None
    if "\0" in value:
        raise ValueError(f"{key}: received {value!r:.80}; expected a text without zero bytes.")
    if size > MOST_BYTES:
        raise ValueError(
            f"{key}: received {size:,} bytes; expected a text of at most {MOST_BYTES:,}."
        )


def _numbers(key: str, value: Any) -> tuple[float, ...]:
    entries = list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value]
    for entry in entries:
        number = isinstance(entry, (int, float, np.integer, np.floating))
        # Beyond the largest float32 nothing can be stored.
        if not number or isinstance(entry, bool) or not -_LARGEST <= entry <= _LARGEST:
            raise ValueError(
                f"{key}: received {entry!r:.80}; expected a number, or a list of one for each "
                "channel."
            )
    numbers = tuple(short(entry) for entry in entries)
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{key}: received {value!r:.80}; expected finite numbers.")
    return numbers


def _labels(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"labels: received {value!r:.80}; expected a list of texts.")
    for number, label in enumerate(value):
        _check_text(f"labels[{number}]", label)
        # One line of the file that they are kept in stands for each; readers drop an empty last.
        if "\n" in label or "\r" in label or (number == len(value) - 1 and not label.strip()):
            raise ValueError(
                f"labels[{number}]: received {label!r:.80}; expected a text of one line, and the "
                "last not empty. Give a class without a name a number."
            )
    return tuple(value)


def _check_pair(a: str, left: tuple[float, ...], b: str, right: tuple[float, ...]) -> None:
    if len(left) != len(right):
        raise ValueError(
            f"{a}: received {len(left)} values, and {len(right)} for {b}; expected as many of both."
        )


def load_metadata(source: str | os.PathLike[str] | Mapping[str, Any] | Metadata) -> Metadata:
    """Read metadata from a JSON file or a dict.

    The keys are the fields of `Metadata`; "inputs" and "outputs" are lists of objects with the
    fields of `TensorMetadata`. "labels" may also name a text file beside the JSON file, with one
    label in each line.
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
            _tensor_of(entry, f"{where}: {key}[{i}]", folder) for i, entry in enumerate(entries)
        )
    return _made(Metadata, values, where)


def _tensor_of(content: Any, where: str, folder: Path | None) -> TensorMetadata:
    if isinstance(content, TensorMetadata):
        return content
    values = _fields(content, TensorMetadata, where)
    if isinstance(values.get("labels"), str):
        values["labels"] = _labels_of_file(values["labels"], f"{where}.labels", folder)
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


def _labels_of_file(name: str, where: str, folder: Path | None) -> tuple[str, ...]:
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


def print_metadata(console: Console, metadata: Metadata | None, problem: str | None) -> None:
    """Print what a file says of itself, or why that cannot be read; nothing if it says nothing."""
    if problem:
        print_table(console, "Metadata", "what,value", [("problem", problem)])
    if metadata is None:
        return
    rows: Rows = [(key, getattr(metadata, key)) for key in _TEXTS if getattr(metadata, key)]
    for kind, entries in metadata.sides.items():
        rows += [(f"{kind[:-1]} {entry.name}", _tensor_text(entry)) for entry in entries]
    print_table(console, "Metadata", "what,value", rows)


def _tensor_text(entry: TensorMetadata) -> str:
    parts = [entry.description] if entry.description else []
    if entry.mean:
        parts.append(f"(x - {_numbers_text(entry.mean)}) / {_numbers_text(entry.std)}")
    if entry.minimum or entry.maximum:
        parts.append(f"{_numbers_text(entry.minimum)} to {_numbers_text(entry.maximum)}")
    if entry.labels:
        more = ", ..." if len(entry.labels) > 5 else ""
        parts.append(f"{len(entry.labels)} labels: {', '.join(entry.labels[:5])}{more}")
    return "; ".join(parts)


def _numbers_text(values: tuple[float, ...]) -> str:
    text = ", ".join(f"{value:g}" for value in values[:4]) + (", ..." if len(values) > 4 else "")
    return f"[{text}]" if len(values) > 1 else text or "?"
