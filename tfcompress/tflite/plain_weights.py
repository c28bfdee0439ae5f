"""Files whose weights are in codes, and the same files with the weights as they are decoded."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from tfcompress.tflite import flatbuffer
from tfcompress.tflite.flatbuffer import add_buffer, changed, dtype_name, op_name
from tfcompress.tflite.unused import drop_buffers, drop_tensors
from tfcompress.tflite.weight_codes import OPERATOR, code_of, restored

# Their kernels take a bias whose scale follows from others.
_BIASED = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED")


def has_codes(model: Any) -> bool:
    """Tell whether a file has weights in codes."""
    return any(
        op_name(model, op) == OPERATOR for graph in model.subgraphs for op in graph.operators
    )


def with_plain_weights(model: Any) -> tuple[Any, dict[tuple[int, int], str]]:
    """A copy of a file whose weights are constants that LiteRT reads, too.

    Indices of tensors stay as they are.

    Returns (a `ModelT`, the code of each weight by (subgraph, tensor)).
    """
    model, codes = copied(model), dict[tuple[int, int], str]()
    for number, graph in enumerate(model.subgraphs):
        decoders = [op for op in graph.operators if op_name(model, op) == OPERATOR]
        for op in decoders:
            for place, index in enumerate(op.outputs):
                if 2 * place + 1 < len(op.inputs) and index != -1:
                    codes[number, index] = _decode(model, graph, op.inputs[2 * place :], index)
        graph.operators = [op for op in graph.operators if op not in decoders]
        if decoders:
            _tell_all(model, graph)
    return model, codes


def plain_twin(model: Any) -> Any:
    """A copy of a file that computes the same without codes, in LiteRT, too."""
    twin, _ = with_plain_weights(model)
    for number in range(len(twin.subgraphs)):
        drop_tensors(twin, number)
    drop_buffers(twin)
    return twin


def _decode(model: Any, graph: Any, inputs: list[int], index: int) -> str:
    tensor = graph.tensors[index]
    stored, ancillary = (flatbuffer.tensor_bytes(model, graph.tensors[i]) for i in inputs[:2])
    where = f"the weight '{flatbuffer.text(tensor.name)}' in codes"
    if stored is None or ancillary is None or min(tensor.shape, default=0) < 1:
        raise ValueError(f"{where} is no constant. {flatbuffer.MEND}")
    scales, _ = flatbuffer.scales_of(tensor)
    axis = int(tensor.quantization.quantizedDimension) if len(scales) > 1 else None
    try:
        if axis is not None and not -1 < axis < len(tensor.shape):
            raise ValueError(f"its axis of channels is {axis}")
        values = restored(stored, ancillary, tuple(tensor.shape), dtype_name(tensor), axis)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where} cannot be decoded: {error}. {flatbuffer.MEND}") from error
    tensor.buffer = add_buffer(model, values.tobytes())
    return code_of(ancillary)


def _tell_all(model: Any, graph: Any) -> None:
    """Gives tensors what TFLite Micro does without, and LiteRT does not: scales, zero points."""
    for tensor in graph.tensors:
        scales, points = flatbuffer.scales_of(tensor)
        if len(points) == 1 < len(scales):
            every = np.full(len(scales), points[0], np.int64)
            tensor.quantization = changed(tensor.quantization, zeroPoint=every)
    for op in graph.operators:
        _scale_bias(model, graph, op)


def _scale_bias(model: Any, graph: Any, op: Any) -> None:
    if op_name(model, op) not in _BIASED or len(op.inputs) < 3 or -1 in op.inputs[:3]:
        return
    source, weight, bias = (graph.tensors[i] for i in op.inputs[:3])
    taken, scales = flatbuffer.scales_of(source)[0], flatbuffer.scales_of(weight)[0]
    if dtype_name(bias) != "int32" or bias.quantization is not None or len(taken) != 1:
        return
    told = np.float32(taken[0]) * np.asarray(scales, np.float32)
    points = np.zeros(len(told), np.int64)
    bias.quantization = changed(weight.quantization, scale=told, zeroPoint=points)
    bias.quantization.quantizedDimension = 0


def copied(model: Any) -> Any:
    """A model whose lists, tensors and operators can be changed; what is in buffers is shared."""
    graphs = [
        changed(
            graph,
            tensors=[copy.copy(tensor) for tensor in graph.tensors],
            operators=[copy.copy(op) for op in graph.operators],
        )
        for graph in model.subgraphs
    ]
    lists = {"operatorCodes": list(model.operatorCodes), "buffers": list(model.buffers)}
    tables = {name: copy.deepcopy(getattr(model, name)) for name in ("metadata", "signatureDefs")}
    return changed(model, subgraphs=graphs, **lists, **tables)
