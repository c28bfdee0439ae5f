"""The file of a teacher's outputs: HDF5, whole or not there, its rows mapped into memory."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from tfcompress import files
from tfcompress.distillation.cache_rows import (
    KEY,
    Incoming,
    Rows,
    Spec,
    describe,
    is_registered,
    merge,
    raw,
    spec,
)

_FORMAT = "tfcompress teacher cache"
_VERSION = 1
_BLOCK = 1 << 22  # bytes that are copied at once


@dataclasses.dataclass(frozen=True)
class Kept:
    """The outputs of one teacher for the samples seen so far.

    Args:
        fingerprint: of the teacher.
        specs: of its outputs.
        rows: keys and outputs.
        complete: all samples of a data set are there.
        inputs: what the samples are, in words.
    """

    fingerprint: str
    specs: list[Spec]
    rows: Rows
    complete: bool = False
    inputs: str = ""

    def merged(self, incoming: Incoming, *, complete: bool, inputs: str) -> Kept:
        """The same with new rows, in memory."""
        new, *outputs = incoming.columns()
        keys, order, stay = merge(self.rows, new)
        if not stay.all():
            outputs = [output[stay] for output in outputs]
        if len(self.rows.keys):
            pairs = zip(self.rows.outputs, outputs, strict=True)
            outputs = [np.concatenate(pair) for pair in pairs]
        rows = Rows(keys, order, outputs)
        return dataclasses.replace(self, rows=rows, complete=complete, inputs=inputs)


def read(path: Path) -> Kept:
    """Open a file; its rows are read when they are asked for.

    Args:
        path: of the file.

    Raises:
        ValueError: it is no cache, damaged, or of another version.
        OSError: it cannot be opened.
    """
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

    Args:
        path: of the file.
        kept: what was there before.
        incoming: the new rows.
        complete: see `Kept`.
        inputs: see `Kept`.

    Returns:
        What the new file holds.

    Raises:
        OSError: the disk is full, or the folder gone.
    """
    target = Path(os.path.realpath(path))
    header = dataclasses.replace(kept, complete=complete, inputs=inputs)
    try:
        with files.unfinished(target) as (descriptor, finish):
            # Opened by its number, since the file may have no name yet.
            name = f"/proc/self/fd/{descriptor}"
            count, columns = _columns(kept.rows, incoming)
            with open(name, "w+b") as stream:
                offsets = _lay_out(stream, header, count)
            for offset, blocks in zip(offsets, columns, strict=True):
                _fill(descriptor, offset, blocks)
            if target.exists():
                os.fchmod(descriptor, target.stat().st_mode & 0o7777)
            os.fsync(descriptor)
            with open(name, "rb") as stream:  # This file, even if another takes its place.
                written = _load(stream, path)
            finish()
    except OSError as error:
        raise files.unwritable(error, path, "a cache with new samples") from error
    return written


def _named(specs: Iterable[Spec]) -> dict[str, Spec]:
    """The datasets of a file, by name, in order."""
    outputs = {f"outputs_{i}": each for i, each in enumerate(specs)}
    return {"keys": Spec((), KEY), "order": Spec((), np.dtype(np.int64)), **outputs}


def _columns(rows: Rows, incoming: Incoming) -> tuple[int, list[Iterable[np.ndarray]]]:
    """How many samples there will be, and the contents of the datasets, in parts."""
    new, *outputs = incoming.columns()
    keys, order, stay = merge(rows, new)
    pairs = zip(rows.outputs, outputs, strict=True)
    return len(keys), [[keys], [order], *(_blocks(old, more, stay) for old, more in pairs)]


def _lay_out(stream: IO[bytes], kept: Kept, count: int) -> list[int]:
    """Write all but the rows; gives where those belong, so that a full disk meets no HDF5."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    offsets = []
    with h5py.File(stream, "w", alignment_threshold=1, alignment_interval=64) as file:
        file.attrs["format"] = _FORMAT
        file.attrs["version"] = _VERSION
        file.attrs["fingerprint"] = kept.fingerprint
        file.attrs["specs"] = json.dumps([(shape, dtype.name) for shape, dtype in kept.specs])
        file.attrs["complete"] = kept.complete
        file.attrs["inputs"] = kept.inputs
        for key, each in _named(kept.specs).items():
            shape, dtype = _stored(each)
            space = h5py.h5s.create_simple((count, *shape))
            kind = h5py.h5t.py_create(dtype)
            dataset = h5py.h5d.create(file.id, key.encode(), kind, space, creation)
            offsets.append(dataset.get_offset())
    return offsets


def _stored(each: Spec) -> Spec:
    """The same bytes in a type that HDF5 knows: it lacks bfloat16."""
    if each.dtype == KEY:
        return Spec((KEY.itemsize,), np.dtype(np.uint8))
    if is_registered(each.dtype):
        return Spec(each.shape, np.dtype(f"u{each.dtype.itemsize}"))
    return each


def _blocks(old: np.ndarray, new: np.ndarray, stay: np.ndarray) -> Iterator[np.ndarray]:
    step = max(1, _BLOCK // (old.dtype.itemsize * int(np.prod(old.shape[1:], dtype=np.int64))))
    for start in range(0, len(old), step):
        yield old[start : start + step]
    for start in range(0, len(new), step):
        yield new[start : start + step][stay[start : start + step]]


def _fill(descriptor: int, offset: int, blocks: Iterable[np.ndarray]) -> None:
    for block in blocks:
        view = raw(block)
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written


def _load(stream: IO[bytes], path: Path) -> Kept:
    try:
        with h5py.File(stream, "r") as file:
            header = dict(file.attrs)
            known = (header.get("format"), header.get("version")) == (_FORMAT, _VERSION)
            specs = [spec(*pair) for pair in json.loads(header["specs"])] if known else []
            parts = _parts(file, specs) if known else []
            texts = [str(header[key]) for key in ("fingerprint", "inputs")] if known else []
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, files.reason_of(error)) from error
    if not known:
        raise _unknown(header, path)
    content = np.asarray(np.memmap(stream, np.uint8, "r"))
    keys, order, *outputs = (
        content[start:stop].view(dtype).reshape(shape) for start, stop, dtype, shape in parts
    )
    if (keys[1:] <= keys[:-1]).any() or not _are_rows(order):
        raise _damaged(path, "the keys are not in order")
    complete = bool(header.get("complete"))
    return Kept(texts[0], specs, Rows(keys, order, outputs), complete, texts[1])


def _parts(file: h5py.File, specs: list[Spec]) -> list[tuple[int, int, Any, Any]]:
    """Start, end, dtype and shape of each dataset in the file."""
    count = len(file["keys"])
    parts = []
    for key, (shape, dtype) in _named(specs).items():
        full = (count, *shape)
        start = file[key].id.get_offset()
        stop = start + dtype.itemsize * int(np.prod(full, dtype=np.int64))
        if file[key].id.get_storage_size() != stop - start:
            raise OSError(f"{key} are not of the shape {full}")
        parts.append((start, stop, dtype, full))
    return parts


def _are_rows(order: np.ndarray) -> bool:
    """Whether each row occurs once."""
    inside = bool(len(order)) and order.min() >= 0 and order.max() < len(order)
    return bool(inside and np.bincount(order, minlength=len(order)).max() == 1)


def _unknown(header: dict[str, Any], path: Path) -> ValueError:
    if header.get("format") != _FORMAT:
        return ValueError(
            f"'{path}' is an HDF5 file, but no cache of a teacher (perhaps a model); expected one, "
            "or no file. Name another file."
        )
    return ValueError(
        f"'{path}' is a cache of version {header.get('version')}; expected {_VERSION}. Name "
        "another file, or delete it: it is filled again in the first epoch."
    )


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"'{path}' is damaged, or no cache of a teacher: {reason}; expected a file that an earlier "
        "training wrote, or none. Name another file, or delete it if it was a cache: it is filled "
        "again in the first epoch."
    )


def require_same(kept: Kept, path: Path, fingerprint: str, specs: list[Spec]) -> None:
    """Refuse a file of other outputs.

    Args:
        kept: what it holds.
        path: of the file.
        fingerprint: of the teacher at hand.
        specs: of its outputs.

    Raises:
        ValueError: it holds those of another teacher, or of other layers.
    """
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
