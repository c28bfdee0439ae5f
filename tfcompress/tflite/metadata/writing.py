"""The metadata table of a .tflite file, written as a flatbuffer of its own (identifier M001).

Slots and numbers follow metadata_schema.fbs, version 1.5.0, of MediaPipe and tflite-support.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np

from tfcompress.tflite.metadata.types import Metadata, TensorMetadata

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
        metadata: of all inputs and outputs.
        shapes: of the inputs.
        files: names of label files, by ("inputs" or "outputs", position).

    Returns:
        The bytes.
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
