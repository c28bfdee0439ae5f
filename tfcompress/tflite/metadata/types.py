"""What a .tflite file can say about itself: names, descriptions, normalization, ranges, labels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

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
        for key in ("inputs", "outputs"):
            value = getattr(self, key)
            if not isinstance(value, (list, tuple)) or not all(
                isinstance(entry, TensorMetadata) for entry in value
            ):
                raise ValueError(f"{key}: received {value!r:.80}; expected TensorMetadata objects.")
            object.__setattr__(self, key, tuple(value))

    def to_dict(self) -> dict[str, Any]:
        """Return plain texts, numbers, lists and dicts, as `load_metadata` takes them."""
        plain = {key: getattr(self, key) for key in _TEXTS}
        for key in ("inputs", "outputs"):
            entries = [dataclasses.asdict(entry) for entry in getattr(self, key)]
            plain[key] = [
                {k: list(v) if isinstance(v, tuple) else v for k, v in entry.items()}
                for entry in entries
            ]
        return plain


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
