"""Samples known by their content: keys, what was kept for them, and what is still coming in."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import xxhash

# 128 bits: among a billion samples the chance that any two collide is 1e-21.
KEY = np.dtype("S16")


class Spec(NamedTuple):
    """One array per sample.

    Args:
        shape: of one sample, without the batch.
        dtype: a NumPy one, or bfloat16.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    def __str__(self):
        return f"{self.dtype.name} {self.shape}"


def spec(shape: Iterable[Any], dtype: Any) -> Spec:
    """A checked `Spec`.

    Args:
        shape: of one sample.
        dtype: a dtype, or its name.

    Raises:
        ValueError: a dimension is unknown, or the type is not one of numbers.
    """
    sizes = tuple(shape)
    if not all(isinstance(size, (int, np.integer)) and size > 0 for size in sizes):
        raise ValueError(
            f"a teacher's output of shape {sizes} per sample cannot be cached; expected sizes that "
            "are known and above 0. Fix the input shape of the teacher, or leave out the cache."
        )
    try:
        kind = np.dtype(dtype)
    except TypeError:  # bfloat16 is known by name once this is imported.
        kind = np.dtype(getattr(importlib.import_module("ml_dtypes"), str(dtype)))
    _require_numbers(kind, "outputs")
    return Spec(tuple(int(size) for size in sizes), kind.newbyteorder("="))


def describe(specs: Iterable[Spec]) -> str:
    """All of them in one line, as in `float32 (10,), int32 ()`."""
    return ", ".join(map(str, specs)) or "nothing"


def specs_of(arrays: Iterable[np.ndarray]) -> list[Spec]:
    """What the batches hold per sample."""
    return [Spec(array.shape[1:], array.dtype) for array in arrays]


def keys_of(inputs: Sequence[np.ndarray]) -> np.ndarray:
    """One key per sample: a hash of the bytes of all its inputs, their dtypes and shapes.

    Args:
        inputs: batches of equal length.

    Returns:
        As many keys of 16 bytes.

    Raises:
        ValueError: the batches differ in length, or hold texts or objects.
    """
    lengths = [array.shape[0] if array.ndim else None for array in inputs]
    if not lengths or None in lengths or len(set(lengths)) > 1:
        raise ValueError(
            "a cache needs inputs with as many samples each; received arrays of the shapes "
            f"{[array.shape for array in inputs]}. Give all inputs the batch as first dimension."
        )
    for array in inputs:
        _require_numbers(array.dtype, "inputs")
    start = xxhash.xxh3_128(describe(specs_of(inputs)).encode())
    columns = [raw(array) for array in inputs]
    sizes = [array.nbytes // max(len(array), 1) for array in inputs]
    keys = []
    for i in range(len(inputs[0])):
        key = start.copy()
        for column, size in zip(columns, sizes, strict=True):
            key.update(column[i * size : (i + 1) * size])
        keys.append(key.digest())
    return np.array(keys, KEY)


def raw(array: np.ndarray) -> memoryview:
    """The bytes of an array in row order; no copy if it is laid out so."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def is_registered(dtype: np.dtype) -> bool:
    """Whether it is none of NumPy's own types, but bfloat16 or its like."""
    return dtype.num >= 256


def _require_numbers(dtype: np.dtype, what: str) -> None:
    if dtype.kind not in "biufc" and not is_registered(dtype):
        raise ValueError(
            f"a cache takes {what} that are numbers; received {dtype.name}. Turn texts into "
            "numbers before the model, or leave out the cache."
        )


@dataclasses.dataclass(frozen=True)
class Rows:
    """What is kept for samples, found by their keys.

    Args:
        keys: sorted, without duplicates.
        order: for each key, the row that is its.
        outputs: arrays with a row for each key, in the order in which the samples came.
    """

    keys: np.ndarray
    order: np.ndarray
    outputs: list[np.ndarray]

    @classmethod
    def none(cls, specs: Iterable[Spec]) -> Rows:
        """No rows at all."""
        outputs = [np.empty((0, *shape), dtype) for shape, dtype in specs]
        return cls(np.empty(0, KEY), np.empty(0, np.int64), outputs)

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which keys are known, and the rows of those that are."""
        if not len(self.keys):
            return np.zeros(len(keys), bool), np.zeros(len(keys), np.int64)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return self.keys[places] == keys, self.order[places]


class Incoming:
    """New rows in the order in which they come, in memory or in files without a name.

    Args:
        specs: of the outputs.
        folder: where the files are; None keeps all in memory.
    """

    def __init__(self, specs: Sequence[Spec], folder: Path | None):
        self._specs = [Spec((), KEY), *specs]
        self._blocks: list[list[np.ndarray]] = [[] for _ in self._specs]
        self._files: list[IO[bytes]] = []
        columns = self._specs if folder else []
        with contextlib.ExitStack() as opened:
            for _ in columns:  # They vanish with the process, however that ends.
                self._files.append(
                    opened.enter_context(
                        tempfile.TemporaryFile(prefix=".teacher.", suffix=".tmp", dir=folder)
                    )
                )
            self._opened = opened.pop_all()
        weakref.finalize(self, self._opened.close)  # Where a training that failed never closes.

    def append(self, keys: np.ndarray, outputs: Sequence[np.ndarray]) -> None:
        """Adds samples."""
        for i, column in enumerate([keys, *outputs]):
            if self._files:
                self._files[i].write(raw(column))
            else:
                self._blocks[i].append(np.array(column))

    def columns(self) -> list[np.ndarray]:
        """The keys and the outputs, each in one array; those of files are mapped."""
        if not self._files:
            return [np.concatenate(blocks) for blocks in self._blocks]
        columns = []
        for file, (shape, dtype) in zip(self._files, self._specs, strict=True):
            file.flush()
            count = os.fstat(file.fileno()).st_size // (
                dtype.itemsize * int(np.prod(shape, dtype=np.int64))
            )
            columns.append(np.asarray(np.memmap(file, dtype, "r", shape=(count, *shape))))
        return columns

    def close(self) -> None:
        """Drops everything."""
        self._blocks = [[] for _ in self._specs]
        self._files = []
        with contextlib.suppress(OSError):  # A full disk takes no last bytes.
            self._opened.close()


def merge(rows: Rows, new: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The index of rows that are kept with new ones behind them; the first of equals stays.

    Args:
        rows: what is kept.
        new: keys in any order, with duplicates.

    Returns:
        Sorted keys, the row of each, and which of the new rows stay.
    """
    before = len(rows.keys)
    keys = np.concatenate([rows.keys, new]) if before else new
    places = np.argsort(keys, kind="stable")
    keys = keys[places]
    first = np.ones(len(keys), bool)
    first[1:] = keys[1:] != keys[:-1]
    if not first.all():
        keys, places = keys[first], places[first]
    stay = np.zeros(len(new), bool)
    stay[places[places >= before] - before] = True
    if not before and stay.all():
        return keys, places, stay
    numbers = np.concatenate([rows.order, before + np.cumsum(stay) - 1])
    return keys, numbers[places], stay
