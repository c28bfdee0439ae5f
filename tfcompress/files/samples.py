"""Calibration and test data in any usual form, as validated single samples by input name."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

_FORMS = (
    "Pass an array, a list of arrays, a dict of arrays, a generator of batches or a tf.data.Dataset"
)

# What a model takes -> kinds of NumPy dtypes that can be turned into it.
_KINDS = {"float": "fiub", "bfloat": "fiub", "string": "SUO"}
_KINDS |= dict.fromkeys(("int", "uint", "bool"), "iub")


class Input(Protocol):
    """What must be known of a model's input; a `keras.KerasTensor` will do."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int | None, ...]: ...  # The batch comes first.
    @property
    def dtype(self) -> str: ...


def batches(
    data: Any, inputs: Sequence[Input], limit: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Turn data of any usual form into validated batches of one sample.

    Args:
        data: one of
            an array, for a model of one input;
            a list or tuple of arrays, one for each input;
            a dict of arrays by input name;
            a `tf.data.Dataset`, a `keras.utils.PyDataset`, a generator or another iterable whose
            elements are arrays, tuples or dicts, with or without the batch axis. As in
            `Model.fit`, what follows the inputs in a tuple (labels, weights) is left out.

    Returns iterator of dicts, input name -> array of shape (1, ...): float32 where the model takes
    floats, the model's own dtype where it takes integers or bools.
    """
    check_limit(limit)
    samples = itertools.islice(_samples(data, inputs, limit), limit)
    first = next(samples, None)
    if first is None:
        raise ValueError(
            "the data is empty: received no samples; expected at least one. "
            "A generator may have been used up: make it anew for each call."
        )
    return itertools.chain([first], samples)


def check_limit(limit: int | None) -> None:
    """Raises unless this is a number of samples, or None for all."""
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ValueError(
            f"the number of samples must be a whole number of at least 1; received {limit!r}. "
            "Leave it out to take all."
        )


def _samples(
    data: Any, inputs: Sequence[Input], limit: int | None
) -> Iterator[dict[str, np.ndarray]]:
    number = 0
    for element in _elements(data, inputs, limit):
        rows = {
            wanted.name: as_rows(wanted, value)
            for wanted, value in zip(inputs, _by_input(element, inputs), strict=True)
        }
        lengths = {name: len(array) for name, array in rows.items()}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"'{name}' {length}" for name, length in lengths.items())
            raise ValueError(
                f"the inputs must have the same number of samples; received {found}. "
                "Cut them to the same length."
            )
        for i in range(min(lengths.values())):
            yield {w.name: _cast(w, rows[w.name][i : i + 1], number) for w in inputs}
            number += 1


def _elements(data: Any, inputs: Sequence[Input], limit: int | None) -> Iterator[Any]:
    """Yield one array, dict or list of arrays at a time; an iterable gives several."""
    if data is None or isinstance(data, (str, bytes, os.PathLike)):
        mend = "Load files with numpy.load first." if data is not None else f"{_FORMS}."
        raise ValueError(f"expected data for the model; received {data!r}. {mend}")
    names = {f"{c.__module__.split('.')[0]}.{c.__name__}" for c in type(data).__mro__}
    if isinstance(data, Mapping):
        yield data
    elif isinstance(data, (list, tuple)):
        yield from _list_elements(data, inputs)
    elif "keras.PyDataset" in names:
        count = len(data) if data.num_batches is None else data.num_batches
        yield from (_without_labels(data[i], inputs) for i in range(count))
    elif "tensorflow.DatasetV2" in names:
        if limit is None and int(data.cardinality()) == -1:
            raise ValueError(
                "the tf.data.Dataset has no end; expected a finite one. "
                "Limit it with dataset.take(100), or drop its repeat()."
            )
        yield from (_without_labels(element, inputs) for element in data)
    elif hasattr(data, "__array__"):
        yield data
    elif isinstance(data, Iterable):
        yield from (_without_labels(element, inputs) for element in data)
    else:
        raise ValueError(f"expected data; received {type(data).__name__}. {_FORMS}.")


def _list_elements(data: Sequence[Any], inputs: Sequence[Input]) -> Iterator[Any]:
    if not data:
        return
    if all(isinstance(item, (Mapping, tuple)) for item in data):
        yield from (_without_labels(item, inputs) for item in data)
    elif len(inputs) == 1 and not _holds_arrays(data):
        yield data  # Nested lists of numbers.
    elif len(data) == len(inputs):
        yield data
    elif len(inputs) == 1 and isinstance(data, list):
        yield from data
    else:
        raise _wrong_number(len(data), inputs)


def _without_labels(element: Any, inputs: Sequence[Input]) -> Any:
    """Return the inputs of (inputs,), (inputs, labels) or (inputs, labels, weights)."""
    if not isinstance(element, tuple) and not _holds_arrays(element):
        return element
    if not element:
        raise _wrong_number(0, inputs)
    nested = isinstance(element[0], (Mapping, tuple)) or _holds_arrays(element[0])
    if len(inputs) == 1 or nested:
        if len(element) > 3:
            raise _wrong_number(len(element), inputs)
        return element[0]
    return element


def _holds_arrays(value: Any) -> bool:
    return isinstance(value, list) and any(
        isinstance(item, (Mapping, tuple)) or getattr(item, "ndim", 0) > 0 for item in value
    )


def _by_input(element: Any, inputs: Sequence[Input]) -> list[Any]:
    if isinstance(element, Mapping):
        expected = [wanted.name for wanted in inputs]
        missing = [name for name in expected if name not in element]
        unknown = [str(name) for name in element if name not in expected]
        if missing or unknown:
            raise ValueError(
                f"the data must have the names {', '.join(expected)}; "
                f"received {', '.join(map(str, element)) or 'none'}. "
                + (f"Add {', '.join(missing)}. " if missing else "")
                + (f"Leave out {', '.join(unknown)}." if unknown else "")
            )
        return [element[name] for name in expected]
    if isinstance(element, tuple) or (len(inputs) > 1 and isinstance(element, list)):
        if len(element) != len(inputs):
            raise _wrong_number(len(element), inputs)
        return list(element)
    if isinstance(element, list) and len(inputs) == 1 and len(element) == 1:
        return element if _holds_arrays(element) else [element]
    if len(inputs) != 1:
        raise _wrong_number(1, inputs)
    return [element]


def _wrong_number(received: int, inputs: Sequence[Input]) -> ValueError:
    names = ", ".join(f"'{wanted.name}'" for wanted in inputs)
    if len(inputs) == 1:
        mend = "Pass the inputs alone, without labels."
    else:
        mend = "Pass a dict of arrays by name, or one array for each in this order."
    return ValueError(
        f"the model has {len(inputs)} input(s), {names}; received {received} array(s). {mend}"
    )


def as_rows(wanted: Input, value: Any) -> np.ndarray:
    """Return an array whose first axis counts samples, of the input's shape and kind of dtype."""
    where = f"data for input '{wanted.name}'"
    try:
        array = np.asarray(value)
    except Exception as error:  # Ragged lists and tensors, tensors on another device.
        reason = " ".join(str(error).split())[:150]
        raise ValueError(
            f"{where} cannot be made an array: {reason}. Pass numpy arrays of numbers, "
            "all samples of the same shape."
        ) from error
    _check_kind(where, array, wanted.dtype)
    expected = tuple(wanted.shape[1:])
    for candidate in (array, array[None]):
        if candidate.ndim == len(expected) + 1 and _matches(candidate.shape[1:], expected):
            return candidate
    sizes = ["any" if size is None else str(size) for size in expected]
    text = f"({', '.join(['samples', *sizes])})"
    raise ValueError(
        f"{where}: received shape {array.shape}; expected {text}: "
        f"{_shape_mend(array.shape, expected)}."
    )


def _matches(shape: Sequence[int], expected: Sequence[int | None]) -> bool:
    return len(shape) == len(expected) and all(
        want in (None, size) for size, want in zip(shape, expected, strict=True)
    )


def _shape_mend(received: tuple[int, ...], expected: tuple[int | None, ...]) -> str:
    known = ", ".join(["-1", *(str(size) for size in expected)])
    for shape in (received, received[1:]):
        if expected[-1:] == (1,) and _matches(shape, expected[:-1]):
            return "add a channel axis with x[..., None]"
        if shape[-1:] == (1,) and _matches(shape[:-1], expected):
            return "drop the last axis with x[..., 0]"
        if len(shape) == len(expected) == 3 and _matches((*shape[1:], shape[0]), expected):
            return "move the channels last with np.moveaxis(x, -3, -1)"
    sample = received[1:]
    if received and math.prod(sample) == math.prod(size or 0 for size in expected):
        return f"reshape with x.reshape({known})"
    if len(sample) == len(expected) == 3 and sample[-1] == expected[-1]:
        return f"resize the images to {expected[0]}x{expected[1]}"
    if len(sample) == len(expected) == 3 and sample[:-1] == expected[:-1]:
        return f"the images need {expected[-1]} channel(s)"
    return "prepare the data as for model.predict"


def _check_kind(where: str, array: np.ndarray, wanted: str) -> None:
    accepted = _KINDS.get(wanted.rstrip("0123456789"), "")
    if not accepted:
        raise ValueError(f"{where}: the model takes {wanted}, which cannot be converted to LiteRT.")
    kind = "f" if array.dtype.name == "bfloat16" else array.dtype.kind
    if kind in accepted:
        return
    if wanted == "string":
        mend = "make it an array of texts"
    elif kind == "f":
        mend = f"convert it with x.astype('{wanted}')"
    elif kind == "O":
        mend = "it may hold samples of different shapes, or None; make it an array of numbers"
    else:
        mend = "make it an array of numbers"
    raise ValueError(f"{where}: received dtype {array.dtype}; expected {wanted}: {mend}.")


def _as_bytes(text: Any) -> bytes:
    return text if isinstance(text, bytes) else str(text).encode()


def _cast(wanted: Input, row: np.ndarray, number: int) -> np.ndarray:
    """Return one sample as the model takes it; its values must survive that."""
    where = f"data for input '{wanted.name}', sample {number}"
    row = np.ascontiguousarray(row)
    if wanted.dtype == "string":
        return np.vectorize(_as_bytes, [object])(row)
    if wanted.dtype.startswith(("float", "bfloat")):
        with np.errstate(over="ignore", invalid="ignore"):
            values = row.astype(np.float32)
        if not np.isfinite(values).all():
            bad = int(np.size(values) - np.isfinite(values).sum())
            raise ValueError(
                f"{where}: received {bad} value(s) that are NaN or infinite; expected finite "
                "numbers: remove such samples or replace them with np.nan_to_num(x)."
            )
        return values
    lowest, highest = (0, 1)
    if wanted.dtype != "bool":
        limits = np.iinfo(wanted.dtype)
        lowest, highest = int(limits.min), int(limits.max)
    if row.size and (int(row.min()) < lowest or int(row.max()) > highest):
        raise ValueError(
            f"{where}: received values from {row.min()} to {row.max()}; expected {wanted.dtype}, "
            f"{lowest} to {highest}: check what the data holds."
        )
    return row.astype(wanted.dtype)
