"""Operations of a quantized file that stayed float, and why."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from tfcompress.tflite import flatbuffer, loops, ranges
from tfcompress.tflite.report import FloatOp

if TYPE_CHECKING:
    from tfcompress.tflite.inspection import Inspection

_NO_KERNEL = "LiteRT has no integer kernel that is used for it"


def reasons(file: Any, known: Collection[int], floats: Collection[int]) -> dict[str, str]:
    """Why operations will stay float if they do, before a file is quantized.

    Args:
        file: its `ModelT`, still float.
        known: indices of tensors whose ranges are known.
        floats: indices of tensors whose operation is to stay float.

    Returns:
        The reasons by the name of the operation's output; of all operations of the first graph.
    """
    found = {}
    tensors = file.subgraphs[0].tensors
    for op in file.subgraphs[0].operators:
        reason = _NO_KERNEL
        if any(index in floats for index in op.outputs):
            reason = "left out of the recipe, or without an integer kernel"
        elif any(index not in known for index in ranges.floats_of(file, op)):
            reason = "the range of one of its tensors is not known"
        for index in op.outputs:
            found[flatbuffer.text(tensors[index].name)] = reason
    return found


def listed(file: Inspection, reasons: Mapping[str, str]) -> list[FloatOp]:
    """The operations of a quantized file that stayed float.

    Args:
        file: as inspected.
        reasons: see above.

    Returns:
        One entry for each, in order.
    """
    names = {(t.subgraph, t.index): t.name for t in file.tensors}
    found = []
    for op in file.operators:
        if op.name in ("QUANTIZE", "DEQUANTIZE") or "float" not in op.dtype:
            continue
        tensor = names.get((op.subgraph, op.outputs[0]), "") if op.outputs else ""
        reason = loops.reason(file, op) or reasons.get(tensor, _NO_KERNEL)
        found.append(FloatOp(op.name, tensor, reason))
    return found
