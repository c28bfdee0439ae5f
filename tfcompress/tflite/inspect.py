"""What is in a .tflite file, read from the flatbuffer itself.

The interpreter is not asked: it reports int4 tensors as int8, and delegates rewrite its graph.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from itertools import chain
from typing import Any

from tfcompress.tflite import flatbuffer
from tfcompress.tflite.inspection import (
    FLOATS,
    QUANTIZED,
    Inspection,
    LayerBytes,
    MetadataInfo,
    OpCount,
    OperatorInfo,
    SignatureInfo,
    TensorInfo,
)
from tfcompress.tflite.metadata import metadata_of
from tfcompress.tflite.metadata.types import Metadata
from tfcompress.tflite.plain_weights import has_codes, with_plain_weights
from tfcompress.tflite.statistics import Statistics, measure
from tfcompress.tflite.weight_codes import OPERATOR

CONTROL_FLOW = ("WHILE", "IF", "CALL", "CALL_ONCE", "STABLEHLO_COMPOSITE")
_ACTIVATIONS = ("RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")


def inspect(path: str | os.PathLike[str] | bytes) -> Inspection:
    """Describe a .tflite file: sizes, sparsity, unique values, tensors, operators, metadata.

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
    return inspect_parsed(model, data, path)


def inspect_parsed(model: Any, data: bytes, path: str | os.PathLike[str] | bytes) -> Inspection:
    """Describe a file that is unpacked already; see `inspect`."""
    known: dict[tuple, Statistics] = {}  # Tied weights are one buffer behind many tensors.
    plain, codes = with_plain_weights(model) if has_codes(model) else (model, {})
    graphs = [_tensors(model, g, known) for g in range(len(model.subgraphs))]
    for subgraph, index in codes:
        graphs[subgraph][index] = _decoded(plain, graphs[subgraph][index], codes[subgraph, index])
    tensors = tuple(t for graph in graphs for t in graph)
    operators = tuple(op for g in range(len(graphs)) for op in operators_of(model, g, graphs[g]))
    counts = Counter((op.name, op.dtype, op.version) for op in operators)
    groups = constants_by_operator(model, tensors, operators)
    decoded = _decoded_by_operator(graphs, operators)
    layers = tuple(_layer(*key, found, decoded.get(key, [])) for key, found in groups.items())
    constants = [t for found in groups.values() for t in found]
    weights = [t for t in (*constants, *chain(*decoded.values())) if t.is_weight]
    first = model.subgraphs[0]
    model_metadata, problem = _model_metadata(model, data, flatbuffer.describe(path))
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
        layer_bytes=layers,
        dtype_bytes={
            dtype: sum(t.bytes for t in constants if t.dtype == dtype)
            for dtype in sorted({t.dtype for t in constants})
        },
        weights_bytes=sum(t.bytes for t in constants),
        sparsity=_sparsity(weights),
        float_ops=_float_ops(tensors, operators),
        weights=sum(math.prod(t.shape) for t in weights),
        entropy_bytes=sum(t.entropy_bytes or 0 for t in weights),
        coded_bytes=sum(layer.coded_bytes for layer in layers),
        model_metadata=model_metadata,
        model_metadata_problem=problem,
    )


def _decoded(plain: Any, t: TensorInfo, code: str) -> TensorInfo:
    """A weight in a code, with the statistics of what it is decoded to."""
    tensor = plain.subgraphs[t.subgraph].tensors[t.index]
    axis = t.quantized_dimension if t.is_quantized else None
    found = measure(plain, tensor, t.zero_points, axis, is_weight=True)
    return dataclasses.replace(t, code=code, **vars(found))


def _decoded_by_operator(
    graphs: list[list[TensorInfo]], operators: tuple[OperatorInfo, ...]
) -> dict[tuple[int, OperatorInfo | None], list[TensorInfo]]:
    """Weights in codes by what is the first to read them, once they are decoded."""
    found: dict[tuple[int, OperatorInfo | None], list[TensorInfo]] = {}
    seen: set[tuple[int, int]] = set()
    waiting: dict[tuple[int, int], int] = {}
    for op in operators:
        if op.name == OPERATOR:
            pairs = zip(op.outputs, op.inputs[::2], strict=False)
            waiting |= {(op.subgraph, given): stored for given, stored in pairs}
            continue
        for key in ((op.subgraph, index) for index in op.inputs):
            if key in waiting and (op.subgraph, waiting[key]) not in seen:
                seen.add((op.subgraph, waiting[key]))
                found.setdefault((op.subgraph, op), []).append(graphs[key[0]][key[1]])
    return found


def _tensors(model: Any, subgraph: int, known: dict[tuple, Statistics]) -> list[TensorInfo]:
    graph = model.subgraphs[subgraph]
    scales = {i for t in graph.tensors for i in side_tensors(graph, t.quantization)}
    found = []
    for i, tensor in enumerate(graph.tensors):
        t = tensor_of(model, subgraph, i, tensor)
        found.append(t)
        if not t.is_constant:
            continue
        is_weight = len(t.shape) > 1 and (t.dtype in FLOATS or t.is_quantized) and i not in scales
        axis = t.quantized_dimension if t.is_quantized else None
        if axis is not None and t.shape[axis : axis + 1] != (t.scale_count,):
            axis = None
        points = t.zero_points if t.dtype in QUANTIZED else ()
        key = (tensor.buffer, t.dtype, t.shape, points, axis, is_weight, id(tensor.sparsity))
        if key not in known:
            known[key] = measure(model, tensor, points, axis, is_weight)
        found[-1] = dataclasses.replace(t, **vars(known[key]))
    return found


def tensor_of(model: Any, subgraph: int, index: int, tensor: Any) -> TensorInfo:
    """Describe a tensor, without the statistics of its values."""
    dtype, quantization = flatbuffer.dtype_name(tensor), tensor.quantization
    stored = model.buffers[tensor.buffer].data
    size = 0 if stored is None else len(stored)
    scales, zero_points = flatbuffer.scales_of(tensor)
    side, block = side_tensors(model.subgraphs[subgraph], quantization), None
    if side:  # Blockwise: the scales are a constant of their own.
        values = flatbuffer.tensor_values(model, model.subgraphs[subgraph].tensors[side[0]])
        scales = () if values is None else tuple(map(float, values.ravel()))
        block = quantization.details.blockSize
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
    )


def side_tensors(graph: Any, quantization: Any) -> list[int]:
    """Return the tensors that hold the scales and zero points of a blockwise one."""
    details: Any = None if quantization is None else quantization.details
    if not hasattr(details, "blockSize"):
        return []
    return [i for i in (details.scales, details.zeroPoints) if 0 < i < len(graph.tensors)]


def operators_of(model: Any, subgraph: int, tensors: list[TensorInfo]) -> list[OperatorInfo]:
    """Describe the operators of a graph, given its tensors."""
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


def constants_by_operator(
    model: Any, tensors: tuple[TensorInfo, ...], operators: tuple[OperatorInfo, ...]
) -> dict[tuple[int, OperatorInfo | None], list[TensorInfo]]:
    """Group the constants by what is the first to use them; those in one buffer are one."""
    info = {(t.subgraph, t.index): t for t in tensors}
    consumers: dict[tuple[int, int], OperatorInfo] = {}
    for op in operators:
        for i in op.inputs:
            consumers.setdefault((op.subgraph, i), op)
    uses: list[tuple[TensorInfo, OperatorInfo | None]] = []
    for op in operators:
        # Weights that are stored narrow and widened first belong to the layer behind.
        widens = op.name in ("DEQUANTIZE", "DENSIFY", OPERATOR) and op.outputs
        user = consumers.get((op.subgraph, op.outputs[0]), op) if widens else op
        graph = model.subgraphs[op.subgraph]
        for i in op.inputs:
            side = [] if i == -1 else side_tensors(graph, graph.tensors[i].quantization)
            uses += [(info[op.subgraph, j], user) for j in [i, *side] if j != -1]
    owners: dict[int, tuple[TensorInfo, OperatorInfo | None]] = {}
    for t, found in [*uses, *((t, None) for t in tensors)]:
        buffer = model.subgraphs[t.subgraph].tensors[t.index].buffer
        # A bias of the same bytes may share the buffer of a weight, which tells more.
        if t.is_constant and (buffer not in owners or t.is_weight > owners[buffer][0].is_weight):
            owners[buffer] = t, found
    groups: dict[tuple[int, OperatorInfo | None], list[TensorInfo]] = {}
    for t, found in owners.values():
        groups.setdefault((t.subgraph, found), []).append(t)
    return groups


def _layer(
    subgraph: int,
    op: OperatorInfo | None,
    constants: list[TensorInfo],
    decoded: list[TensorInfo],
) -> LayerBytes:
    weights = [t for t in (*constants, *decoded) if t.is_weight]
    channels = [t.unique_per_channel for t in weights if t.unique_per_channel is not None]
    return LayerBytes(
        layer=op.layer if op else "",
        operator=op.name if op else "",
        subgraph=subgraph,
        bytes=sum(t.bytes for t in constants),
        dtype=max(decoded or constants, key=lambda t: t.bytes).dtype,
        computes=op.dtype if op else "",
        weights=sum(math.prod(t.shape) for t in weights),
        sparsity=_sparsity(weights),
        unique=max((t.unique or 0 for t in weights), default=None),
        unique_per_channel=max(channels, default=None),
        entropy_bytes=sum(t.entropy_bytes or 0 for t in weights),
        coded_bytes=sum(t.bytes if t.coded_bytes is None else t.coded_bytes for t in constants),
        code=", ".join(dict.fromkeys(t.code for t in decoded)),
        decoded_bytes=sum(t.bytes for t in decoded),
    )


def _sparsity(weights: list[TensorInfo]) -> float | None:
    zeros = sum((t.sparsity or 0.0) * math.prod(t.shape) for t in weights)
    return zeros / sum(math.prod(t.shape) for t in weights) if weights else None


def _metadata(model: Any, entry: Any) -> MetadataInfo:
    name, data = flatbuffer.text(entry.name), model.buffers[entry.buffer].data
    stored = b"" if data is None else bytes(data)
    is_text = name in ("min_runtime_version", "keras_version")
    readable = flatbuffer.text(stored).rstrip("\0") if is_text else None
    return MetadataInfo(name, len(stored), readable)


def _model_metadata(model: Any, data: bytes, name: str) -> tuple[Metadata | None, str | None]:
    # The model itself runs without it.
    try:
        return metadata_of(model, data, name), None
    except ValueError as error:
        return None, str(error)


def _signature(entry: Any) -> SignatureInfo:
    inputs, outputs = (
        {flatbuffer.text(item.name): item.tensorIndex for item in items}
        for items in (entry.inputs, entry.outputs)
    )
    return SignatureInfo(flatbuffer.text(entry.signatureKey), entry.subgraphIndex, inputs, outputs)
