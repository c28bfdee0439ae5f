"""The outputs of a teacher, kept for each sample: it runs once per sample, not once per epoch."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import itertools
import json
import os
import tempfile
import threading
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import xxhash

from tfcompress.files import models, writing


class TeacherCache:
    """Keeps what a teacher gives for each sample, found again by the content of the sample.

    So it needs no indices: data may be arrays, a `tf.data.Dataset` or a generator, shuffled and in
    batches of any size. Samples that change at random from epoch to epoch are noticed and refused.
    All methods may be called from several threads. An exception also stays in `error`, since those
    raised in a callback on the host reach the caller mangled.

    Args:
        path: the file that later trainings read, too; None keeps all in memory.
    """

    def __init__(self, path: writing.PathLike | None = None):
        if path is not None and not isinstance(path, (str, os.PathLike)):
            raise TypeError(
                f"a cache is kept in a file or in memory; expected its path or None, received "
                f"{type(path).__name__}."
            )
        self.path = None if path is None else Path(path)
        self.error: Exception | None = None
        self._lock = threading.RLock()
        self._kept: Kept | None = None
        self._incoming: Incoming | None = None
        self._running = False

    @property
    def samples(self) -> int:
        """How many samples are kept; those of an unfinished epoch do not count."""
        return len(self._kept.keys) if self._kept else 0

    def begin(
        self,
        fingerprint: str,
        specs: Iterable[tuple[Iterable[Any], Any]],
        *,
        whole_epochs: bool,
        replicas: int = 1,
    ) -> None:
        """Opens the cache for a training.

        Args:
            specs: shape per sample and dtype of each output.
        """
        self.close()
        self.error = None
        with self._remembered():
            wanted = [spec(*pair) for pair in specs]
            kept = self._opened(fingerprint, wanted)
            self._settled = whole_epochs and self.path is not None and kept.complete
            if self.path is not None and not self._settled:
                writing.check_writable(self.path)
            self._whole_epochs, self._replicas = whole_epochs, replicas
            self._hits = self._misses = self._late = self._batch = 0
            self._warned, self._inputs = False, kept.inputs
            self._kept, self._running = kept, True

    def lookup(self, inputs: Sequence[np.ndarray]) -> tuple[bool, list[np.ndarray]]:
        """The outputs for a batch, if they are kept for all of its samples."""
        with self._remembered():
            kept = self._begun()
            arrays = [np.asarray(array) for array in inputs]
            known, rows = kept.find(keys_of(arrays))
            with self._lock:
                self._count(kept, known, arrays)
            if known.all():
                return True, [np.take(output, rows, axis=0) for output in kept.outputs]
            return False, [np.zeros((len(known), *shape), dtype) for shape, dtype in kept.specs]

    def store(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        """Takes the outputs for a batch; they are found from the end of the epoch on."""
        with self._remembered():
            kept = self._begun()
            arrays = [np.asarray(array) for array in inputs]
            rows = [np.asarray(array) for array in outputs]
            keys = keys_of(arrays)
            _require_rows(rows, kept.specs, len(keys))
            new = ~kept.find(keys)[0]
            if not new.all():
                keys, rows = keys[new], [row[new] for row in rows]
            with self._lock:
                self._inputs = self._inputs or describe(specs_of(arrays))
                if len(keys):
                    self._append(keys, rows)

    def end_epoch(self, *, cut_short: bool = False) -> None:
        """Keeps what was stored; a file is written anew, in whole."""
        with self._remembered(), self._lock:
            kept = self._begun()
            self._warn_of_change(kept)
            whole = self._whole_epochs and not cut_short
            try:
                if self._incoming is not None:
                    complete = whole or (self._whole_epochs and kept.complete)
                    self._commit(kept, self._incoming, complete)
            finally:
                self._drop_incoming()
            if whole and self.samples:
                self._settled = True
            self._hits = self._misses = 0

    def close(self) -> None:
        """Ends a training, finished or not: what an unfinished epoch stored is dropped."""
        with self._lock:
            self._drop_incoming()
            self._running = False
            if self.path is not None:
                self._kept = None

    def _opened(self, fingerprint: str, specs: list[Spec]) -> Kept:
        empty = Kept.none(fingerprint, specs)
        if self.path is None:
            kept = self._kept
            same = kept and kept.fingerprint == fingerprint and kept.specs == specs
            return kept if kept and same else empty
        if not self.path.is_file():
            return empty
        kept = read(self.path)
        require_same(kept, self.path, fingerprint, specs)
        return kept

    @contextlib.contextmanager
    def _remembered(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.error = self.error or error
            raise

    def _begun(self) -> Kept:
        if self._kept is None or not self._running:
            raise RuntimeError("the cache is closed; expected a call of `begin` first.")
        return self._kept

    def _append(self, keys: np.ndarray, rows: list[np.ndarray]) -> None:
        try:
            if self._incoming is None:
                folder = self.path and Path(os.path.realpath(self.path)).parent
                self._incoming = Incoming(self._begun().specs, folder)
            self._incoming.append(keys, rows)
        except OSError as error:
            self._drop_incoming()  # Its columns may differ in length now.
            raise writing.unwritable(error, self.path or "", "rows of new samples") from error

    def _commit(self, kept: Kept, incoming: Incoming, complete: bool) -> None:
        if self.path is None:
            self._kept = kept.merged(incoming, complete=complete, inputs=self._inputs)
            return
        self._kept = write(self.path, kept, incoming, complete=complete, inputs=self._inputs)

    def _drop_incoming(self) -> None:
        if self._incoming is not None:
            self._incoming.close()
            self._incoming = None

    def _count(self, kept: Kept, known: np.ndarray, inputs: list[np.ndarray]) -> None:
        new = int(np.count_nonzero(~known))
        self._hits += len(known) - new
        self._misses += new
        self._batch = max(self._batch, len(known))
        if not self._settled or not new:
            return
        self._late += new
        # A batch that is not full may be left out at the end of each shuffled epoch.
        if self._late > self._batch * self._replicas - 1:
            raise ValueError(self._change(kept, describe(specs_of(inputs))))

    def _change(self, kept: Kept, received: str) -> str:
        """What to say of samples that should not be new."""
        where = f"'{self.path}'" if self.path else "the cache"
        kinds = ""
        if kept.inputs not in ("", received):
            kinds = f" These are {received} per sample, those {kept.inputs}."
        return (
            f"expected samples that are in {where}, which holds all {self.samples:,} of an earlier "
            f"epoch or training; received others ({self._late} so far).{kinds} If the data are "
            "augmented at random, make the augmentation layers a part of the student, or leave out "
            "the cache. For other data, name another file."
        )

    def _warn_of_change(self, kept: Kept) -> None:
        if self._whole_epochs or self._warned or self._hits or not self._misses:
            return
        if len(kept.keys):
            self._warned = True
            warnings.warn(
                f"none of the {self._misses:,} samples of this epoch was among the "
                f"{self.samples:,} that are cached: the data seem to change from epoch to epoch, "
                "and the cache only grows. If they are augmented at random, leave out the cache.",
                stacklevel=3,
            )


def _require_rows(rows: list[np.ndarray], specs: list[Spec], count: int) -> None:
    """Refuse outputs that are not as the training began."""
    received = specs_of(rows) if all(row.ndim for row in rows) else []
    if received != specs or any(len(row) != count for row in rows):
        raise ValueError(
            f"a cache takes {count} rows of {describe(specs)}; received arrays "
            f"{', '.join(f'{row.dtype.name} {row.shape}' for row in rows)}. Give each sample its "
            "outputs, as told to `begin`."
        )


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
