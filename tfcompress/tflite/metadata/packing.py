"""The metadata table of a .tflite file, read with every offset and length checked."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import flatbuffers
import numpy as np
from flatbuffers import number_types

from tfcompress.tflite.flatbuffer import Verifier
from tfcompress.tflite.metadata.types import Metadata, TensorMetadata, short

# What the slots of each table refer to, as in `flatbuffer`; of a unit, what fits its type is read.
_TABLES: dict[str, dict[int, Any]] = {
    "Model": {0: str, 1: str, 2: str, 3: ["SubGraph"], 4: str, 5: str},
    "SubGraph": {2: ["Tensor"], 3: ["Tensor"]},
    "Tensor": {0: str, 1: str, 4: ["ProcessUnit"], 5: "Stats", 6: ["AssociatedFile"]},
    "ProcessUnit": {1: "Options"},
    "Normalization": {0: 4, 1: 4},
    "Stats": {0: 4, 1: 4},
    "AssociatedFile": {0: str},
    "Options": {},
}


class _Table(flatbuffers.table.Table):
    """A table that was verified; a slot that is left out is empty."""

    def _at(self, slot: int) -> int:
        return self.Offset(4 + 2 * slot)

    def byte(self, slot: int) -> int:
        return self.GetSlot(4 + 2 * slot, 0, number_types.Uint8Flags)

    def table(self, slot: int) -> _Table | None:
        at = self._at(slot)
        return _Table(self.Bytes, self.Indirect(self.Pos + at)) if at else None

    def tables(self, slot: int) -> Iterator[_Table]:
        at = self._at(slot)
        for i in range(self.VectorLen(at) if at else 0):
            yield _Table(self.Bytes, self.Indirect(self.Vector(at) + 4 * i))

    def text(self, slot: int) -> str:
        at = self._at(slot)
        content = self.String(self.Pos + at) if at else b""
        # Other tools may write zeros at the end.
        return content.decode("utf-8", "replace").replace("\0", "")

    def floats(self, slot: int) -> tuple[float, ...]:
        at = self._at(slot)
        values = self.GetVectorAsNumpy(number_types.Float32Flags, at) if at else ()
        return tuple(short(value) for value in values)


def unpack(data: bytes) -> tuple[dict, list[dict], list[dict]]:
    """Unpack the metadata table.

    Returns (fields of the model, of each input, of each output); those of a tensor are named as in
    `TensorMetadata`, but "labels" is the name of the file that holds them, "" if none.
    """
    if len(data) < 8 or data[4:8] != IDENTIFIER:
        raise ValueError(f"the identifier is {data[4:8]!r} instead of {IDENTIFIER!r}")
    try:
        verifier = Verifier(data, _TABLES)
        verifier.root("Model")
        root = _Table(data, verifier.number("<I", 0))
        texts = {0: "name", 1: "description", 2: "version", 4: "author", 5: "license"}
        model = {name: root.text(slot) for slot, name in texts.items()}
        # The first subgraph is the main one; no tool writes others.
        graph = next(root.tables(3), None)
        if graph is None:
            return model, [], []
        taken, given = ([_read_tensor(t, verifier) for t in graph.tables(slot)] for slot in (2, 3))
        return model, taken, given
    except struct.error as error:
        raise ValueError("an offset points outside of it") from error


def _read_tensor(entry: _Table, verifier: Verifier) -> dict:
    found: dict = {"name": entry.text(0), "description": entry.text(1), "labels": ""}
    options = (unit.table(1) for unit in entry.tables(4) if unit.byte(0) == NORMALIZATION)
    normalization = next(options, None)
    if normalization is not None:
        verifier.table(normalization.Pos, "Normalization")
        found |= _both("mean", normalization.floats(0), "std", normalization.floats(1))
    stats = entry.table(5)
    if stats is not None:
        found |= _both("maximum", stats.floats(0), "minimum", stats.floats(1))
    labels = [file.text(0) for file in entry.tables(6) if file.byte(2) == AXIS_LABELS]
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
    packed: dict[str, list[int]] = {}
    for kind, entries in metadata.sides.items():
        packed[kind] = []
        for i, entry in enumerate(entries):
            content = _content(builder, shapes[i] if kind == "inputs" else ())
            packed[kind].append(_tensor(builder, entry, content, files.get((kind, i))))
    sides = {2: _tables(builder, packed["inputs"]), 3: _tables(builder, packed["outputs"])}
    graph = _table(builder, 10, sides)
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
