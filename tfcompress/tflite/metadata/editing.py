"""Metadata put into a file, in place of what it has, and read out of one."""

from __future__ import annotations

import dataclasses
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.errors import did_you_mean
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.metadata.packing import pack, unpack
from tfcompress.tflite.metadata.types import MOST_BYTES, Metadata, TensorMetadata, split_labels
from tfcompress.tflite.signature import io_names

ENTRY = "TFLITE_METADATA"


def add_metadata(data: bytes, metadata: Metadata) -> bytes:
    """Add metadata to a .tflite file, in place of what it has.

    An input of four dimensions with 1 or 3 channels is declared an image, so that MediaPipe feeds
    it pictures; for a float32 image it also asks for `mean` and `std`. The model stays the same.
    """
    return described(flatbuffer.read(data), metadata)


def described(model: Any, metadata: Metadata) -> bytes:
    """The bytes of a file that is unpacked already, with metadata; see `add_metadata`."""
    graph = model.subgraphs[0]
    taken, given = io_names(model)
    full = dataclasses.replace(
        metadata,
        inputs=_matched("inputs", metadata.inputs, taken),
        outputs=_matched("outputs", metadata.outputs, given),
    )
    for kind, entries in full.sides.items():
        for i, entry in enumerate(entries):
            tensor = graph.tensors[getattr(graph, kind)[i]]
            _check_sizes(f"{kind}[{i}] '{entry.name}'", entry, tensor)
    labels = _label_files(full)
    shapes = [graph.tensors[i].shape for i in graph.inputs]
    names = {place: name for name, (place, _) in labels.items()}
    _store(model, pack(full, shapes, names))
    return append_files(
        flatbuffer.write(model), {name: content for name, (_, content) in labels.items()}
    )


def read_metadata(data: bytes | str | os.PathLike[str]) -> Metadata | None:
    """Read the metadata of a .tflite file, whichever tool has written it.

    Returns the metadata, with the file's first labels of each tensor; None if it has none.
    """
    content = flatbuffer.load(data)
    name = flatbuffer.describe(data)
    return metadata_of(flatbuffer.read(content, name=name), content, name)


def descriptions(model: Any, data: bytes) -> tuple[list[str], list[str]]:
    """What the metadata of an unpacked file say of each input and output; "" where nothing."""
    graph = model.subgraphs[0]
    try:
        found = metadata_of(model, data, "the file")
    except ValueError:  # damaged, which takes nothing from what the file computes
        found = None
    sides = ((), ()) if found is None else (found.inputs, found.outputs)
    inputs, outputs = (
        [entry.description for entry in side[: len(indices)]] + [""] * (len(indices) - len(side))
        for side, indices in zip(sides, (graph.inputs, graph.outputs), strict=True)
    )
    return inputs, outputs


def metadata_of(model: Any, data: bytes, name: str) -> Metadata | None:
    """Read the metadata of a file that is unpacked already; see `read_metadata`."""
    entry = next((e for e in model.metadata if flatbuffer.text(e.name) == ENTRY), None)
    if entry is None:
        return None
    stored = model.buffers[entry.buffer].data
    try:
        fields, *tensors = unpack(b"" if stored is None else bytes(stored))
        labels = _read_labels(data, [t["labels"] for side in tensors for t in side if t["labels"]])
        inputs, outputs = (
            tuple(TensorMetadata(**{**t, "labels": labels[t["labels"]]}) for t in side)
            for side in tensors
        )
        return Metadata(**fields, inputs=inputs, outputs=outputs)
    except ValueError as error:
        raise ValueError(
            f"the metadata of {name} cannot be read: {error}. Write it again, with the model's "
            "labels and texts."
        ) from error


def _read_labels(data: bytes, files: list[str]) -> dict[str, tuple[str, ...]]:
    """The lines of label files by their names, for each tensor that has one."""
    labels: dict[str, tuple[str, ...]] = {"": ()}
    size = 0
    for file in files:
        if file not in labels:
            labels[file] = split_labels(read_file(data, file).decode("utf-8", "replace"))
        # All tensors may name one file, which a hostile one would use to take time and memory.
        size += sum(map(len, labels[file])) + len(labels[file])
        if size > MOST_BYTES:
            raise ValueError(f"its labels take more than {MOST_BYTES:,} bytes")
    return labels


def _matched(
    kind: str, given: Sequence[TensorMetadata], names: list[str]
) -> tuple[TensorMetadata, ...]:
    by_name = {entry.name: entry for entry in given}
    if len(by_name) == len(given) and set(by_name) <= set(names):
        return tuple(by_name.get(name, TensorMetadata(name)) for name in names)
    if len(given) != len(names):
        wrong = next((n for n in by_name if n not in names), given[0].name)
        raise ValueError(
            f"metadata: {kind}: received {len(given)} entries; the file has {len(names)} {kind}: "
            f"{', '.join(names)}. Give one for each in this order, or use these names. "
            f"{did_you_mean(wrong, names)}".strip()
        )
    pairs = list(zip(given, names, strict=True))
    for number, (entry, name) in enumerate(pairs):
        if entry.name != name and entry.name in names:
            raise ValueError(
                f"metadata: {kind}[{number}]: received the name {entry.name!r}; expected another "
                f"one or {name!r} there, as the file has the {kind} {', '.join(names)}. Use these "
                "names for all of them, or this order."
            )
    return tuple(dataclasses.replace(entry, name=entry.name or name) for entry, name in pairs)


def _check_sizes(where: str, entry: TensorMetadata, tensor: Any) -> None:
    signature = tensor.shapeSignature or tensor.shape
    last = signature[-1] if signature else 1
    if last == -1:
        return
    for key in ("mean", "minimum", "maximum"):
        count = len(getattr(entry, key))
        if count not in (0, 1, last):
            raise ValueError(
                f"metadata: {where}: {key}: received {count} values; expected 1, or one for each "
                f"of its {last} channels (shape {list(signature)})."
            )
    if entry.labels and len(entry.labels) != last:
        raise ValueError(
            f"metadata: {where}: received {len(entry.labels)} labels; expected {last}, as many as "
            f"its last dimension (shape {list(signature)}). Take the labels that the model was "
            "trained with."
        )


def _label_files(metadata: Metadata) -> dict[str, tuple[tuple[str, int], bytes]]:
    """The label files: by name, the place of their tensor and their content."""
    files = {}
    sides = metadata.sides.items()
    labels = {(kind, i): e.labels for kind, side in sides for i, e in enumerate(side) if e.labels}
    for number, (place, lines) in enumerate(labels.items(), 1):
        name = "labels.txt" if len(labels) == 1 else f"labels_{number}.txt"
        files[name] = place, "\n".join(lines).encode()
    return files


def _store(model: Any, content: bytes) -> None:
    """Put the table into a buffer of the model: into the old one, if there is one."""
    kept = [entry for entry in model.metadata if flatbuffer.text(entry.name) != ENTRY]
    used = {t.buffer for graph in model.subgraphs for t in graph.tensors}
    used |= {0, *(entry.buffer for entry in kept)}
    old = (e.buffer for e in model.metadata if e.buffer not in used)
    index = next(old, len(model.buffers))
    if index == len(model.buffers):
        model.buffers.append(schema.BufferT())
    model.buffers[index].data = np.frombuffer(content, np.uint8)
    model.metadata = [*kept, schema.MetadataT(name=ENTRY, buffer=index)]


_END, _END_SIZE = b"PK\x05\x06", 22
_LONG_END, _LONG_END_SIZE = b"PK\x06\x07", 20

# What zipfile raises for damaged archives, beside ValueError.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError),
    *(OSError, OverflowError, RuntimeError),
)
_MOST_FILES = 1_000
_LONGEST_DIRECTORY = 2**20


def append_files(data: bytes, files: dict[str, bytes]) -> bytes:
    """Append files as a zip archive; equal input gives equal bytes."""
    if not files:
        return data
    target = io.BytesIO(data)
    target.seek(0, io.SEEK_END)
    # Mode "w" counts from where the stream stands; "a" would look for an archive in the weights.
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in files.items():
            # Stored, as MediaPipe reads it; ZipInfo takes a fixed time.
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_STORED)
    return target.getvalue()


def read_file(data: bytes, name: str) -> bytes:
    """Read a file of the archive at the end of a .tflite file."""
    if not name or set(name) & set("/\\\0:") or name in (".", ".."):
        raise ValueError(f"{name!r:.80} is no name of a file without a folder")
    _check_directory(data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            info = next((i for i in archive.infolist() if i.filename == name), None)
            if info is None:
                raise ValueError(f"there is no file {name!r:.80} in its archive")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{name!r:.80} is compressed in an unusual way")
            if info.file_size > MOST_BYTES:
                raise ValueError(f"{name!r:.80} takes {info.file_size:,} bytes")
            with archive.open(info) as file:
                content = file.read(MOST_BYTES + 1)
    except _DAMAGE as error:
        raise ValueError(f"its archive cannot be read: {error}") from error
    if len(content) > MOST_BYTES:
        raise ValueError(f"{name!r:.80} unpacks to more than {MOST_BYTES:,} bytes")
    return content


def _check_directory(data: bytes) -> None:
    """Check the size of the archive's directory before `zipfile` makes objects of all of it."""
    end = len(data) - _END_SIZE
    if not (data[end : end + 4] == _END and data[-2:] == b"\0\0"):
        end = data.rfind(_END, max(0, end - 0xFFFF))
    if end < 0 or end + _END_SIZE > len(data):
        raise ValueError("there is no archive of files at its end")
    count, size = struct.unpack_from("<HI", data, end + 10)
    start = end - _LONG_END_SIZE
    is_long = start >= 0 and data[start : start + 4] == _LONG_END
    if is_long or count > _MOST_FILES or size > _LONGEST_DIRECTORY:
        raise ValueError(f"its archive has more than {_MOST_FILES:,} files or a damaged directory")
