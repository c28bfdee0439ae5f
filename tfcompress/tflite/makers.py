"""Which operator of a .tflite file computes a tensor."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from tfcompress.tflite import flatbuffer

# These pass the numbers on, rounded at most.
STORED_ANEW = ("QUANTIZE", "DEQUANTIZE")
SHAPED_ANEW = (*STORED_ANEW, "RESHAPE", "SQUEEZE")


def maker_of(model: Any, index: int, passed_on: Collection[str] = SHAPED_ANEW) -> Any:
    """The operator of the first graph that computes a tensor, behind those that only pass it on.

    Returns the operator, None if there is none.
    """
    operators = model.subgraphs[0].operators
    makers = {i: op for op in operators for i in op.outputs}
    for _ in operators:
        if index not in makers:
            return None
        if flatbuffer.op_name(model, makers[index]) not in passed_on:
            return makers[index]
        index = makers[index].inputs[0]
    return None
