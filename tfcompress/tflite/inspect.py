"""What is in a .tflite file, read from the flatbuffer itself.

The interpreter is not asked: it reports int4 tensors as int8, and delegates rewrite its graph.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from typing import Any

import numpy as np

from tfcompress.tflite import flatbuffer
from tfcompress.tflite.inspection import (
    QUANTIZED,
    Inspection,
    LayerBytes,
    MetadataInfo,
    OpCount,
    OperatorInfo,
    SignatureInfo,
    TensorInfo,
)

__all__ = [
    "Inspection",
    "LayerBytes",
    "MetadataInfo",
    "OpCount",
    "OperatorInfo",
    "SignatureInfo",
    "TensorInfo",
    "inspect",
]

FLOATS = ("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")
CONTROL_FLOW = ("WHILE", "IF", "CALL", "CALL_ONCE", "STABLEHLO_COMPOSITE")
_ACTIVATIONS = ("RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")


def inspect(path: str | os.PathLike[str] | bytes) -> Inspection:
    """Describe a .tflite file: sizes, tensors, operators, metadata.

    Args:
        path: the file, or its bytes.

    Returns:
        An `Inspection`; sizes in bytes, all subgraphs (also the bodies of WHILE and IF).

    Raises:
        ValueError: there is no such file, or it is not a whole .tflite file.

    Example:
        >>> found = inspect("model.tflite")  # doctest: +SKIP
        >>> [(c.name, c.dtype, c.count) for c in found.op_counts]  # doctest: +SKIP
    """
    data = flatbuffer.load(path)
    model = flatbuffer.read(data, name=flatbuffer.describe(path))
    graphs = [_tensors(model, g) for g in range(len(model.subgraphs))]
    tensors = tuple(t for graph in graphs for t in graph)
    operators = tuple(op for g in range(len(graphs)) for op in _operators(model, g, graphs[g]))
    counts = Counter((op.name, op.dtype, op.version) for op in operators)
    layer_bytes, dtype_bytes = _constant_bytes(model, tensors, operators)
    first = model.subgraphs[0]
    return Inspection(
        path=os.fspath(path) if isinstance(path, (str, os.PathLike)) else "",
        file_bytes=len(data),
        zipped_bytes=flatbuffer.zipped_size(data),
        description=flatbuffer.text(model.description),
        schema_version=model.version,
        metadata=tuple(_metadata(model, entry) for entry in model.metadata),
        signatures=tuple(_signature(entry) for entry in model.signatureDefs),
        inputs=tuple(graphs[0][i] for i in first.inputs),
        outputs=tuple(graphs[0][i] for i in first.outputs),
        tensors=tensors,
        operators=operators,
        op_counts=tuple(OpCount(*key, count) for key, count in sorted(counts.items())),
        layer_bytes=layer_bytes,
        dtype_bytes=dtype_bytes,
        weights_bytes=sum(dtype_bytes.values()),
        sparsity=_overall_sparsity(model, tensors),
        float_ops=_float_ops(tensors, operators),
    )


def _tensors(model: Any, subgraph: int) -> list[TensorInfo]:
    graph = model.subgraphs[subgraph]
    return [_tensor(model, subgraph, i, tensor) for i, tensor in enumerate(graph.tensors)]


def _tensor(model: Any, subgraph: int, index: int, tensor: Any) -> TensorInfo:
    dtype, quantization = flatbuffer.dtype_name(tensor), tensor.quantization
    stored = model.buffers[tensor.buffer].data
    size = 0 if stored is None else len(stored)
    scales, zero_points, block = _scales(model, model.subgraphs[subgraph], quantization)
    return TensorInfo(
        subgraph=subgraph,
        index=index,
        name=flatbuffer.text(tensor.name),
        shape=tuple(tensor.shape),
        shape_signature=tuple(tensor.shapeSignature or tensor.shape),
        dtype=dtype,
        is_constant=size > 0,
        bytes=size or flatbuffer.stored_size(tensor.shape, dtype),
        scales=scales,
        zero_points=zero_points,
        quantized_dimension=quantization.quantizedDimension if len(scales) > 1 else None,
        block_size=block,
        sparsity=_sparsity(model, tensor, zero_points) if size else None,
    )


def _scales(
    model: Any, graph: Any, quantization: Any
) -> tuple[tuple[float, ...], tuple[int, ...], int | None]:
    if quantization is None:
        return (), (), None
    scales = () if quantization.scale is None else tuple(map(float, quantization.scale))
    points = () if quantization.zeroPoint is None else tuple(map(int, quantization.zeroPoint))
    side = _side_tensors(graph, quantization)
    if not side:
        return scales, points, None
    # Blockwise: the scales are a constant of their own.
    values = flatbuffer.tensor_values(model, graph.tensors[side[0]])
    scales = () if values is None else tuple(map(float, values.ravel()))
    return scales, points, quantization.details.blockSize


def _side_tensors(graph: Any, quantization: Any) -> list[int]:
    """Return the tensors that hold the scales and zero points of a blockwise one."""
    details: Any = None if quantization is None else quantization.details
    if not hasattr(details, "blockSize"):
        return []
    return [i for i in (details.scales, details.zeroPoints) if 0 < i < len(graph.tensors)]


def _sparsity(model: Any, tensor: Any, zero_points: tuple[int, ...]) -> float | None:
    elements = math.prod(tensor.shape)
    dtype = flatbuffer.dtype_name(tensor)
    if tensor.sparsity is not None and dtype in ("float16", "float32", "int8") and elements > 0:
        # Only some values are stored; the others are zeros.
        raw = flatbuffer.tensor_bytes(model, tensor) or b""
        # Nothing says how many values a sparse constant stores: ignore an incomplete last one.
        whole = len(raw) * 8 // flatbuffer.BITS[dtype] * flatbuffer.BITS[dtype] // 8
        stored = flatbuffer.decode(raw[:whole], dtype)
        return 1.0 - np.count_nonzero(stored) / elements
    values = flatbuffer.tensor_values(model, tensor)
    if values is None or values.size == 0:
        return None
    if dtype not in QUANTIZED or not zero_points:
        return float(np.mean(values == 0))
    zero: Any = zero_points[0]
    axis = tensor.quantization.quantizedDimension
    if 0 <= axis < values.ndim and len(zero_points) == values.shape[axis]:
        zero = np.reshape(zero_points, [-1 if d == axis else 1 for d in range(values.ndim)])
    return float(np.mean(values == zero))


def _overall_sparsity(model: Any, tensors: tuple[TensorInfo, ...]) -> float | None:
    zeros, elements, seen = 0.0, 0, set()
    for t in tensors:
        buffer = model.subgraphs[t.subgraph].tensors[t.index].buffer
        is_weight = len(t.shape) > 1 and (t.dtype in FLOATS or t.is_quantized)
        if is_weight and t.sparsity is not None and buffer not in seen:
            seen.add(buffer)
            zeros += t.sparsity * math.prod(t.shape)
            elements += math.prod(t.shape)
    return zeros / elements if elements else None


def _operators(model: Any, subgraph: int, tensors: list[TensorInfo]) -> list[OperatorInfo]:
    found = []
    for index, op in enumerate(model.subgraphs[subgraph].operators):
        name = flatbuffer.op_name(model, op)
        inputs = [tensors[i] for i in op.inputs if i != -1]
        outputs = [tensors[i] for i in op.outputs if i != -1]
        fused = getattr(op.builtinOptions, "fusedActivationFunction", 0)
        found.append(
            OperatorInfo(
                subgraph=subgraph,
                index=index,
                name=name,
                version=model.operatorCodes[op.opcodeIndex].version,
                inputs=tuple(op.inputs),
                outputs=tuple(op.outputs),
                dtype=_op_dtype(name, inputs, outputs),
                activation=_ACTIVATIONS[fused - 1] if 0 < fused <= len(_ACTIVATIONS) else None,
                layer=outputs[0].name if outputs else "",
            )
        )
    return found


def _op_dtype(name: str, inputs: list[TensorInfo], outputs: list[TensorInfo]) -> str:
    if name == "DEQUANTIZE" and inputs:
        return inputs[0].dtype
    # Comparisons and arg-max give no real numbers but take some; SHAPE only looks at dimensions.
    taken = [] if name in ("SHAPE", "RANK") else sorted(inputs, key=lambda t: t.is_constant)
    real = [t for t in outputs + taken if t.dtype in FLOATS or t.is_quantized]
    if not real:
        return (outputs + inputs)[0].dtype if outputs or inputs else "none"
    weights = [t for t in inputs if t.is_constant and t.is_quantized]
    if real[0].dtype in FLOATS and weights and name not in CONTROL_FLOW:
        return f"dynamic_{weights[0].dtype}"
    return real[0].dtype


def _float_ops(
    tensors: tuple[TensorInfo, ...], operators: tuple[OperatorInfo, ...]
) -> tuple[OperatorInfo, ...]:
    # Quantized constants alone do not count: weight-only files dequantize them and use floats.
    activations = any(t.is_quantized and not t.is_constant for t in tensors)
    if not activations and not any(op.dtype.startswith("dynamic") for op in operators):
        return ()
    aside = ("QUANTIZE", "DEQUANTIZE", *CONTROL_FLOW)
    return tuple(op for op in operators if op.dtype in FLOATS and op.name not in aside)


def _constant_bytes(
    model: Any, tensors: tuple[TensorInfo, ...], operators: tuple[OperatorInfo, ...]
) -> tuple[tuple[LayerBytes, ...], dict[str, int]]:
    info = {(t.subgraph, t.index): t for t in tensors}
    consumers: dict[tuple[int, int], OperatorInfo] = {}
    for op in operators:
        for i in op.inputs:
            consumers.setdefault((op.subgraph, i), op)
    uses: list[tuple[TensorInfo, OperatorInfo | None]] = []
    for op in operators:
        # Weights that are stored narrow and widened first belong to the layer behind.
        widens = op.name in ("DEQUANTIZE", "DENSIFY") and op.outputs
        user = consumers.get((op.subgraph, op.outputs[0]), op) if widens else op
        graph = model.subgraphs[op.subgraph]
        for i in op.inputs:
            side = [] if i == -1 else _side_tensors(graph, graph.tensors[i].quantization)
            uses += [(info[op.subgraph, j], user) for j in [i, *side] if j != -1]
    sizes: dict[tuple[int, OperatorInfo | None], int] = {}
    dtypes: dict[str, int] = {}
    seen = set()
    for t, found in [*uses, *((t, None) for t in tensors)]:
        buffer = model.subgraphs[t.subgraph].tensors[t.index].buffer
        if t.is_constant and buffer not in seen:
            seen.add(buffer)
            sizes[t.subgraph, found] = sizes.get((t.subgraph, found), 0) + t.bytes
            dtypes[t.dtype] = dtypes.get(t.dtype, 0) + t.bytes
    layers = tuple(
        LayerBytes(op.layer if op else "", op.name if op else "", subgraph, size)
        for (subgraph, op), size in sizes.items()
    )
    return layers, dict(sorted(dtypes.items()))


def _metadata(model: Any, entry: Any) -> MetadataInfo:
    name, data = flatbuffer.text(entry.name), model.buffers[entry.buffer].data
    stored = b"" if data is None else bytes(data)
    is_text = name in ("min_runtime_version", "keras_version")
    readable = flatbuffer.text(stored).rstrip("\0") if is_text else None
    return MetadataInfo(name, len(stored), readable)


def _signature(entry: Any) -> SignatureInfo:
    inputs, outputs = (
        {flatbuffer.text(item.name): item.tensorIndex for item in items}
        for items in (entry.inputs, entry.outputs)
    )
    return SignatureInfo(flatbuffer.text(entry.signatureKey), entry.subgraphIndex, inputs, outputs)
