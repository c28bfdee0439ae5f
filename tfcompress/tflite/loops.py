"""Loops of a file (WHILE), which recurrent layers become that are not unrolled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras

from tfcompress.tflite import flatbuffer

if TYPE_CHECKING:
    from tfcompress.tflite.inspection import Inspection, OperatorInfo

_MEND = "rebuild the recurrent layer with unroll=True"


def require_no_loops(file: Any, model: Any, io_dtype: str) -> None:
    """Raise if a file with a loop is to have integer inputs and outputs.

    Args:
        file: its `ModelT`, still float.
        model: the Keras model that it was made of, or a SavedModel.
        io_dtype: that is asked for.

    Raises:
        ValueError: it has a loop, and `io_dtype` is not float32.
    """
    graph = file.subgraphs[0]
    loops = [op for op in graph.operators if flatbuffer.op_name(file, op) == "WHILE"]
    if not loops or io_dtype == "float32":
        return
    layers = _rolled(model)
    if layers:
        named = f"layer {layers[0]}" if len(layers) == 1 else f"each of layers {', '.join(layers)}"
    else:
        named = f"'{flatbuffer.text(graph.tensors[loops[0].outputs[0]].name)}'"
    raise ValueError(
        f"{named} is a loop (WHILE), for which LiteRT has no integer kernel; received "
        f"io_dtype='{io_dtype}' (a target may ask for it): {_MEND}, which becomes integer as a "
        "whole, or pass io_dtype='float32', which leaves the loop float."
    )


def _rolled(model: Any) -> list[str]:
    """The quoted names of a Keras model's recurrent layers that are not unrolled."""
    if not isinstance(model, keras.Model):
        return []
    layers = model._flatten_layers()
    names = [e.name for e in layers if isinstance(e, keras.layers.RNN) and not e.unroll]
    return [f"'{name}'" for name in dict.fromkeys(names)]


def reason(file: Inspection, op: OperatorInfo) -> str | None:
    """Why an operator of a quantized file is float, if a loop is why.

    Args:
        file: as inspected.
        op: one of its operators.

    Returns:
        The reason in words; None if it is another.
    """
    if op.name == "WHILE":
        return f"a loop: {_MEND}"
    if op.subgraph != 0 and any(other.name == "WHILE" for other in file.operators):
        return f"inside a loop (WHILE): {_MEND}"
    return None
