"""What a cache keeps of a teacher: rows found by a hash of their sample, in memory or in a file."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import itertools
import json
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import xxhash

from tfcompress.files import models, writing

_FORMAT, _VERSION = "tfcompress teacher cache", 2  # before it, files were HDF5
_BLOCK = 1 << 22  # bytes that are copied at once


@dataclasses.dataclass(frozen=True)
class Kept:
    """The outputs of one teacher for the samples seen so far.

    Args:
        fingerprint: of the teacher.
        specs: of its outputs.
        keys: of the samples, sorted, without duplicates.
        order: for each key, the row that is its.
        outputs: arrays with a row for each key, in the order in which the samples came.
        complete: all samples of a data set are there.
        inputs: what the samples are, in words.
    """

    fingerprint: str
    specs: list[Spec]
    keys: np.ndarray
    order: np.ndarray
    outputs: list[np.ndarray]
    complete: bool = False
    inputs: str = ""

    @classmethod
    def none(cls, fingerprint: str, specs: list[Spec]) -> Kept:
        """No samples yet."""
        outputs = [np.empty((0, *shape), dtype) for shape, dtype in specs]
        return cls(fingerprint, specs, np.empty(0, KEY), np.empty(0, np.int64), outputs)

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which keys are known, and the rows of those that are."""
        if not len(self.keys):
            return np.zeros(len(keys), bool), np.zeros(len(keys), np.int64)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return self.keys[places] == keys, self.order[places]

    def index_with(self, new: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keys and order with new rows behind, and which of these stay: the first of equals."""
        before = len(self.keys)
        keys = np.concatenate([self.keys, new]) if before else new
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
        numbers = np.concatenate([self.order, before + np.cumsum(stay) - 1])
        return keys, numbers[places], stay

    def merged(self, incoming: Incoming, *, complete: bool, inputs: str) -> Kept:
        """The same with new rows, in memory."""
        keys, order, stay = self.index_with(incoming.keys)
        outputs = incoming.outputs
        if len(self.keys) or not stay.all():
            pairs = zip(self.outputs, outputs, strict=True)
            outputs = [np.concatenate([old, new[stay]]) for old, new in pairs]
        return Kept(self.fingerprint, self.specs, keys, order, outputs, complete, inputs)


class Incoming:
    """New rows in the order in which they come, in memory or in files without a name.

    Args:
        specs: of the outputs.
        folder: where the files are; None keeps all in memory.
    """

    def __init__(self, specs: Sequence[Spec], folder: Path | None):
        self._specs, self._keys = specs, [np.empty(0, KEY)]
        with contextlib.ExitStack() as opened:
            self._streams = [opened.enter_context(_nameless(folder)) for _ in specs]
            self._opened = opened.pop_all()
        weakref.finalize(self, self._opened.close)  # Where a training that failed never closes.

    def append(self, keys: np.ndarray, outputs: Sequence[np.ndarray]) -> None:
        """Adds samples."""
        for stream, output in zip(self._streams, outputs, strict=True):
            stream.write(raw(output))
        self._keys.append(keys)

    @property
    def keys(self) -> np.ndarray:
        """The keys of all rows."""
        return np.concatenate(self._keys)

    @property
    def outputs(self) -> list[np.ndarray]:
        """All rows of each output; those of files are mapped."""
        pairs = zip(self._streams, self._specs, strict=True)
        return [_content(stream, dtype).reshape(-1, *shape) for stream, (shape, dtype) in pairs]

    def close(self) -> None:
        """Drops everything."""
        with contextlib.suppress(OSError):  # A full disk takes no last bytes.
            self._opened.close()


def _nameless(folder: Path | None) -> IO[bytes]:
    if folder is None:
        return io.BytesIO()
    return tempfile.TemporaryFile(prefix=".teacher.", suffix=".tmp", dir=folder)


def _content(stream: IO[bytes], dtype: np.dtype) -> np.ndarray:
    if isinstance(stream, io.BytesIO):
        return np.frombuffer(stream.getvalue(), dtype)
    return np.asarray(np.memmap(stream, dtype, "r"))


def read(path: Path) -> Kept:
    """Open a file; its rows are read when they are asked for."""
    try:
        stream = path.open("rb")
    except OSError as error:
        raise type(error)(
            f"cannot read the cache '{path}': {error.strerror}. Check its permissions, or name "
            "another file."
        ) from error
    with stream:
        return _load(stream, path)


def write(path: Path, kept: Kept, incoming: Incoming, *, complete: bool, inputs: str) -> Kept:
    """Write what is kept and new rows behind it, in whole, or leave the file as it was.

    A file is a row of arrays, as `np.save` writes them: a header in JSON, the keys, their order,
    and the outputs, whose dtypes are in the header, since that of bfloat16 has no name in NumPy.
    """
    target = Path(os.path.realpath(path))
    keys, order, stay = kept.index_with(incoming.keys)
    header = {
        _FORMAT: _VERSION,
        "fingerprint": kept.fingerprint,
        "specs": [(shape, dtype.name) for shape, dtype in kept.specs],
        "complete": complete,
        "inputs": inputs,
    }
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    try:
        with writing.unfinished(target) as (descriptor, finish):
            with os.fdopen(descriptor, "wb", closefd=False) as stream:
                for array in (text, keys, order):
                    _save(stream, array, len(array), [])
                for old, new in zip(kept.outputs, incoming.outputs, strict=True):
                    _save(stream, old, len(keys), _staying(new, stay))
            if target.exists():
                os.fchmod(descriptor, target.stat().st_mode & 0o7777)
            os.fsync(descriptor)
            # This file, which may have no name yet, even if another takes its place.
            with open(f"/proc/self/fd/{descriptor}", "rb") as stream:
                written = _load(stream, path)
            finish()
    except OSError as error:
        raise writing.unwritable(error, path, "a cache with new samples") from error
    return written


def _align(stream: IO[bytes]) -> None:
    """Go to where an array may begin: NumPy copies those that are not aligned."""
    stream.seek(-stream.tell() % 64, os.SEEK_CUR)


def _save(stream: IO[bytes], array: np.ndarray, count: int, blocks: Iterable[np.ndarray]) -> None:
    """Write an array with blocks behind it, `count` rows in all, as one .npy file."""
    _align(stream)
    shape = (count, *array.shape[1:])
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    for block in itertools.chain([array], blocks):
        stream.write(raw(block))


def _staying(rows: np.ndarray, stay: np.ndarray) -> Iterator[np.ndarray]:
    step = max(1, _BLOCK // (rows.nbytes // len(rows)))
    for start in range(0, len(rows), step):
        yield rows[start : start + step][stay[start : start + step]]


def _load(stream: IO[bytes], path: Path) -> Kept:
    if stream.read(len(models.HDF5)) == models.HDF5:
        raise ValueError(
            f"'{path}' is an HDF5 file, but no cache of a teacher (perhaps a model, or a cache of "
            "an earlier version); expected one, or no file. Name another file, or delete it if it "
            "was a cache: it is filled again in the first epoch."
        )
    stream.seek(0)
    try:
        header = json.loads(bytes(_map(stream, (), np.dtype(np.uint8))))
        version = header.pop(_FORMAT)
        kept = _kept(stream, **header) if version == _VERSION else None
    except Exception as error:  # NumPy raises many kinds for damaged headers.
        raise ValueError(
            f"'{path}' is damaged, or no cache of a teacher: {models.reason_of(error)}; expected a "
            "file that an earlier training wrote, or none. Name another file, or delete it if it "
            "was a cache: it is filled again in the first epoch."
        ) from error
    if kept is None:
        raise ValueError(
            f"'{path}' is a cache of version {version}; expected {_VERSION}. Name another file, or "
            "delete it: it is filled again in the first epoch."
        )
    return kept


def _kept(stream: IO[bytes], fingerprint: str, specs: list, complete: bool, inputs: str) -> Kept:
    """What the arrays behind a header hold."""
    checked = [spec(*pair) for pair in specs]
    keys, order = _map(stream, (), KEY), _map(stream, (), np.dtype(np.int64))
    outputs = [_map(stream, *each) for each in checked]
    if any(len(array) != len(keys) for array in (order, *outputs)):
        raise ValueError("there are not as many rows as keys")
    inside = order.min() >= 0 and order.max() < len(order)
    if not inside or np.bincount(order).max() > 1 or (keys[1:] <= keys[:-1]).any():
        raise ValueError("the keys are not in order")
    return Kept(str(fingerprint), checked, keys, order, outputs, bool(complete), str(inputs))


def _map(stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The next array of a file, if its rows are such; they are read when they are asked for."""
    _align(stream)
    np.lib.format.read_magic(stream)
    (count, *sizes), _, found = np.lib.format.read_array_header_1_0(stream)
    if (tuple(sizes), found) != (shape, np.dtype(dtype.str)):
        raise ValueError(f"there are {found} {tuple(sizes)} in place of {Spec(shape, dtype)}")
    array = np.memmap(stream, dtype, "r", stream.tell(), (count, *shape))
    stream.seek(array.offset + array.nbytes)
    return np.asarray(array)


def require_same(kept: Kept, path: Path, fingerprint: str, specs: list[Spec]) -> None:
    """Refuse a file of other outputs."""
    if kept.fingerprint != fingerprint:
        raise ValueError(
            f"'{path}' holds outputs of another teacher, or of other layers of it (fingerprint "
            f"{kept.fingerprint[:16]}); expected those of this one ({fingerprint[:16]}). Name "
            "another file, or delete it: it is filled again in the first epoch."
        )
    if kept.specs != specs:
        raise ValueError(
            f"'{path}' holds {describe(kept.specs)} per sample; expected what the teacher gives "
            f"now, {describe(specs)}. Name another file, or delete it: it is filled again in the "
            "first epoch."
        )


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
    """One key per sample: a hash of the bytes of all its inputs, their dtypes and shapes."""
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
