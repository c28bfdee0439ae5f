"""The metadata table of a .tflite file, read with every offset and length checked."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import flatbuffers
import numpy as np

from tfcompress.tflite.metadata.types import Metadata, TensorMetadata, short


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a flatbuffer; `field` finds what a slot holds, None if it is left out."""

    reader: Reader
    position: int

    def field(self, slot: int, size: int = 4) -> int | None:
        """The position of a slot's value."""
        vtable = self.position - self.reader.number("<i", self.position)
        if 4 + 2 * slot >= self.reader.number("<H", vtable):
            return None
        offset = self.reader.number("<H", vtable + 4 + 2 * slot)
        if offset + size > self.reader.number("<H", vtable + 2):
            raise ValueError("a field lies outside of its table")
        return self.position + offset if offset else None

    def number(self, slot: int) -> int:
        field = self.field(slot, 1)
        return 0 if field is None else self.reader.number("<B", field)

    def _target(self, slot: int) -> int | None:
        field = self.field(slot)
        return None if field is None else field + self.reader.number("<I", field)

    def table(self, slot: int) -> Table | None:
        target = self._target(slot)
        return None if target is None else Table(self.reader, target)

    def tables(self, slot: int) -> Iterator[Table]:
        target = self._target(slot)
        for i in range(0 if target is None else self.reader.number("<I", target)):
            item = (target or 0) + 4 + 4 * i
            yield Table(self.reader, item + self.reader.number("<I", item))

    def text(self, slot: int) -> str:
        target = self._target(slot)
        # Other tools may write zeros at the end.
        return (
            ""
            if target is None
            else self.reader.vector(target, 1).decode("utf-8", "replace").replace("\0", "")
        )

    def floats(self, slot: int) -> tuple[float, ...]:
        target = self._target(slot)
        content = b"" if target is None else self.reader.vector(target, 4)
        return tuple(short(value) for (value,) in struct.iter_unpack("<f", content))


class Reader:
    """Bytes that are read within bounds, and not much more often than there are."""

    def __init__(self, data: bytes):
        self.data = data
        # A sound table is read once; one that refers to itself would be read for ever.
        self.bytes_left = 100_000 + 16 * len(data)

    def number(self, code: str, position: int) -> int:
        self._spend(8)
        if position < 0:
            raise ValueError("an offset points before the start")
        return struct.unpack_from(code, self.data, position)[0]

    def vector(self, position: int, size: int) -> bytes:
        length = size * self.number("<I", position)
        self._spend(length)
        if position + 4 + length > len(self.data):
            raise ValueError("a list or a text does not fit")
        return self.data[position + 4 : position + 4 + length]

    def _spend(self, size: int) -> None:
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise ValueError("tables lie on top of one another")


def unpack(data: bytes) -> tuple[dict, list[dict], list[dict]]:
    """Unpack the metadata table.

    Args:
        data: the bytes of the flatbuffer.

    Returns (fields of the model, of each input, of each output); those of a tensor are named as in
    `TensorMetadata`, but "labels" is the name of the file that holds them, "" if none.
    """
    if len(data) < 8 or data[4:8] != IDENTIFIER:
        raise ValueError(f"the identifier is {data[4:8]!r} instead of {IDENTIFIER!r}")
    try:
        reader = Reader(data)
        root = Table(reader, reader.number("<I", 0))
        texts = {0: "name", 1: "description", 2: "version", 4: "author", 5: "license"}
        model = {name: root.text(slot) for slot, name in texts.items()}
        # The first subgraph is the main one; no tool writes others.
        graph = next(root.tables(3), None)
        if graph is None:
            return model, [], []
        return (
            model,
            [_read_tensor(t) for t in graph.tables(2)],
            [_read_tensor(t) for t in graph.tables(3)],
        )
    except struct.error as error:
        raise ValueError("an offset points outside of it") from error


def _read_tensor(entry: Table) -> dict:
    found: dict = {"name": entry.text(0), "description": entry.text(1), "labels": ""}
    options = (unit.table(1) for unit in entry.tables(4) if unit.number(0) == NORMALIZATION)
    normalization = next(options, None)
    if normalization is not None:
        found |= _both("mean", normalization.floats(0), "std", normalization.floats(1))
    stats = entry.table(5)
    if stats is not None:
        found |= _both("maximum", stats.floats(0), "minimum", stats.floats(1))
    labels = [file.text(0) for file in entry.tables(6) if file.number(2) == AXIS_LABELS]
    # The first is the default, others are translations.
    return found | {"labels": labels[0] if labels else ""}


def _both(a: str, left: tuple[float, ...], b: str, right: tuple[float, ...]) -> dict:
    """Values that belong together; one for all channels is told from one for each."""
    if len(left) == 1 < len(right):
        left *= len(right)
    if len(right) == 1 < len(left):
        right *= len(left)
    return {a: left, b: right}


IDENTIFIER = b"M001"

# Nothing that is written here came later than the first version of the schema.
PARSER_VERSION = "1.0.0"
NORMALIZATION, AXIS_LABELS = 1, 2
_FEATURE, _IMAGE = 1, 2
_COLOR_SPACES = {3: 1, 1: 2}  # By channels: RGB, grayscale.


def pack(
    metadata: Metadata, shapes: Sequence[Sequence[int]], files: dict[tuple[str, int], str]
) -> bytes:
    """Pack metadata as a flatbuffer.

    Args:
        shapes: of the inputs.
    """
    builder = flatbuffers.Builder(1024)
    tensors = {"inputs": metadata.inputs, "outputs": metadata.outputs}
    packed = {
        kind: [
            _tensor(
                builder,
                entry,
                _content(builder, shapes[i] if kind == "inputs" else ()),
                files.get((kind, i)),
            )
            for i, entry in enumerate(entries)
        ]
        for kind, entries in tensors.items()
    }
    graph = _table(
        builder,
        10,
        {2: _tables(builder, packed["inputs"]), 3: _tables(builder, packed["outputs"])},
    )
    texts = {0: metadata.name, 1: metadata.description, 2: metadata.version}
    texts |= {4: metadata.author, 5: metadata.license, 7: PARSER_VERSION}
    slots = {slot: _text(builder, text) for slot, text in texts.items()}
    builder.Finish(_table(builder, 8, {**slots, 3: _tables(builder, [graph])}), IDENTIFIER)
    return bytes(builder.Output())


def _tensor(builder: Any, entry: TensorMetadata, content: int, labels: str | None) -> int:
    slots = {0: _text(builder, entry.name), 1: _text(builder, entry.description), 3: content}
    if entry.mean:
        options = {0: _floats(builder, entry.mean), 1: _floats(builder, entry.std)}
        normalization = _table(builder, 2, options)
        unit = _table(builder, 2, {1: normalization}, numbers={0: NORMALIZATION})
        slots[4] = _tables(builder, [unit])
    if entry.minimum or entry.maximum:
        values = {0: _floats(builder, entry.maximum), 1: _floats(builder, entry.minimum)}
        slots[5] = _table(builder, 2, values)
    if labels:
        name = {0: _text(builder, labels)}
        slots[6] = _tables(builder, [_table(builder, 5, name, numbers={2: AXIS_LABELS})])
    return _table(builder, 7, slots)


def _content(builder: Any, shape: Sequence[int]) -> int:
    color_space = _COLOR_SPACES.get(shape[3]) if len(shape) == 4 else None
    if color_space is None:
        return _table(builder, 3, {1: _table(builder, 0, {})}, numbers={0: _FEATURE})
    image = _table(builder, 2, {}, numbers={0: color_space})
    return _table(builder, 3, {1: image}, numbers={0: _IMAGE})


def _table(
    builder: Any, count: int, offsets: dict[int, int], numbers: dict[int, int] | None = None
) -> int:
    builder.StartObject(count)
    for slot, offset in offsets.items():
        builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
    for slot, number in (numbers or {}).items():
        builder.PrependUint8Slot(slot, number, 0)
    return builder.EndObject()


def _tables(builder: Any, offsets: list[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def _text(builder: Any, text: str) -> int:
    return builder.CreateString(text) if text else 0


def _floats(builder: Any, values: tuple[float, ...]) -> int:
    return builder.CreateNumpyVector(np.array(values, np.float32)) if values else 0
