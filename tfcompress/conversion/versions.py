"""Op versions lowered to what the ops need, for compilers that reject newer ones.

A version says which features an op may use, and a converter stamps the highest that any op of its
kind needs, sometimes more. The least versions are those of TensorFlow's
`lite/tools/versioning/op_version.cc`, for ops on 8-bit integers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from tfcompress.tflite import flatbuffer, run

_SINCE_2 = """
    ADD ARG_MAX ARG_MIN AVERAGE_POOL_2D BATCH_MATMUL CONCATENATION DEPTH_TO_SPACE EQUAL EXP GREATER
    GREATER_EQUAL L2_NORMALIZATION LESS LESS_EQUAL LOG LOGISTIC LOG_SOFTMAX MAX_POOL_2D MEAN
    MIRROR_PAD NOT_EQUAL PACK REDUCE_MAX REDUCE_MIN RELU6 RSQRT SOFTMAX SPACE_TO_DEPTH SPLIT SPLIT_V
    SQRT SQUARED_DIFFERENCE SUM TANH TOPK_V2
"""

_SINCE_1 = "EXPAND_DIMS HARD_SWISH LEAKY_RELU PRELU RELU_N1_TO_1 RESHAPE SQUEEZE"

# The least version by the type of an op's activations, where nothing else counts.
_BY_TYPE: dict[str, dict[str, int]] = {
    **{name: {"int8": 2} for name in _SINCE_2.split()},
    **{name: {"int8": 2, "uint8": 2} for name in ("ABS", "GELU", "RELU", "UNPACK")},
    **{name: {"int8": 3} for name in ("REVERSE_V2", "TILE")},
    **{name: {} for name in _SINCE_1.split()},
}


def lower_versions(data: bytes) -> bytes:
    """Lower the versions of 8-bit ops to the least that their features need.

    Nothing else changes. Before the new file is given out, LiteRT runs both on the same random
    inputs with its reference kernels and with its default ones: every byte of every output has to
    be equal.

    Args:
        data: the bytes of a .tflite file. Versions are never raised, ops of other types and of
            other subgraphs than the first keep theirs.
    """
    model = flatbuffer.read(data)
    if not _lower(model):
        return data
    lowered = flatbuffer.write(model)
    for kind in (run.REFERENCE, run.DEFAULT):
        if _outputs(data, kind) != _outputs(lowered, kind):
            raise ValueError(
                "op versions cannot be lowered: with lower ones LiteRT computes other outputs. "
                "Please report this model; convert it without target= meanwhile."
            )
    return lowered


def least_version(model: Any, graph: Any, op: Any) -> int | None:
    """Return the least version that an op's features need.

    Returns the version, from 1 on; None if the op is not one on 8-bit integers that is known here.
    """
    name = flatbuffer.op_name(model, op)
    inputs = [None if i == -1 else graph.tensors[i] for i in op.inputs]
    outputs = [graph.tensors[i] for i in op.outputs if i != -1]
    dtype = _dtype(inputs, outputs)
    try:
        if name in ("MUL", "QUANTIZE", "DEQUANTIZE"):
            return _by_scales(name, inputs, outputs)
        if not dtype:
            return None
        if name in _BY_TYPE:
            return _BY_TYPE[name].get(dtype, 1)
        return (
            _BY_FEATURES[name](op.builtinOptions, inputs, dtype) if name in _BY_FEATURES else None
        )
    except (AttributeError, IndexError, TypeError):  # Options or operands that are not there.
        return None


def _dtype(inputs: list[Any], outputs: list[Any]) -> str:
    """The one 8-bit type of all activations and results that have one; else ''."""
    types = {flatbuffer.dtype_name(t) for t in [*inputs, *outputs] if t is not None}
    narrow = types & {"int8", "uint8"}
    return narrow.pop() if len(narrow) == 1 and not types - narrow - {"int32", "bool"} else ""


def _convolution(options: Any, inputs: list[Any], dtype: str) -> int:
    if inputs[0].shape[3] != inputs[1].shape[3]:
        return 6  # grouped
    return 3 if dtype == "int8" else 1


def _depthwise(options: Any, inputs: list[Any], dtype: str) -> int:
    if dtype == "int8":
        return 3
    return 2 if (options.dilationWFactor, options.dilationHFactor) != (1, 1) else 1


def _fully_connected(options: Any, inputs: list[Any], dtype: str) -> int:
    if inputs[1].sparsity is not None:
        return 8
    if len(inputs) == 2:
        return 6
    if options.keepNumDims:
        return 5
    if dtype == "int8":
        return 4
    return 2 if options.weightsFormat else 1


def _transpose_conv(options: Any, inputs: list[Any], dtype: str) -> int:
    if options.fusedActivationFunction:
        return 4
    if inputs[3:4] not in ([], [None]):
        return 3
    return 2 if dtype == "int8" else 1


def _resize(options: Any, inputs: list[Any], dtype: str) -> int:
    if options.halfPixelCenters:
        return 3
    return 2 if dtype == "int8" else 1


def _resize_nearest(options: Any, inputs: list[Any], dtype: str) -> int:
    return 3 if options.alignCorners else _resize(options, inputs, dtype)


def _strided_slice(options: Any, inputs: list[Any], dtype: str) -> int:
    if options.offset:
        return 8
    if options.ellipsisMask or options.newAxisMask:
        return 6
    return _above_rank_4(4)(options, inputs, dtype)


def _transpose(options: Any, inputs: list[Any], dtype: str) -> int:
    rank = len(inputs[0].shape)
    wide = next((v for least, v in ((7, 8), (6, 6), (5, 4)) if rank >= least), 1)
    return max(wide, 2 if dtype == "int8" else 1)


def _space_batch(options: Any, inputs: list[Any], dtype: str) -> int:
    if len(inputs[0].shape) != 4:
        return 3
    return 2 if dtype == "int8" else 1


def _above_rank_4(version: int) -> Callable[[Any, list[Any], str], int]:
    def least(options: Any, inputs: list[Any], dtype: str) -> int:
        if len(inputs[0].shape) > 4:
            return version
        return 2 if dtype == "int8" else 1

    return least


def _broadcast(options: Any, inputs: list[Any], dtype: str) -> int:
    shapes = [list(t.shape) for t in inputs[:2]]
    if shapes[0] != shapes[1] and max(map(len, shapes)) > 4:
        return 3
    return 2 if dtype == "int8" else 1


def _by_scales(name: str, inputs: list[Any], outputs: list[Any]) -> int | None:
    """The least version of an op for which scales count."""
    types = [flatbuffer.dtype_name(t) for t in (inputs[0], outputs[0])]
    if not {"int8", "uint8"} & set(types) or set(types) - {"int8", "uint8", "float32"}:
        return None
    if name == "QUANTIZE":
        return 3 if len(outputs[0].quantization.scale) > 1 else 1
    if name == "DEQUANTIZE":
        several = len(inputs[0].quantization.scale) > 1
        return (5 if several else 2) if types[0] == "int8" else 1
    first, second, result = (t.quantization.scale[0] for t in (*inputs, *outputs))
    if first * second / result >= 1.0:
        return 3
    return 2 if types[0] == "int8" else 1


_BY_FEATURES: dict[str, Callable[[Any, list[Any], str], int]] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _fully_connected,
    "TRANSPOSE_CONV": _transpose_conv,
    "RESIZE_BILINEAR": _resize,
    "RESIZE_NEAREST_NEIGHBOR": _resize_nearest,
    "STRIDED_SLICE": _strided_slice,
    "TRANSPOSE": _transpose,
    "SPACE_TO_BATCH_ND": _space_batch,
    "BATCH_TO_SPACE_ND": _space_batch,
    "SLICE": _above_rank_4(5),
    "PAD": _above_rank_4(4),
    "PADV2": _above_rank_4(4),
    "MAXIMUM": _broadcast,
    "MINIMUM": _broadcast,
    "SUB": _broadcast,
}


def _lower(model: Any) -> bool:
    """Give each op a code of the version that it needs; tells whether anything changed."""
    first = model.subgraphs[0]
    old = model.operatorCodes
    codes: list[Any] = []
    index_of: dict[tuple[int, int], int] = {}
    found = []
    for graph in model.subgraphs:
        for op in graph.operators:
            version = old[op.opcodeIndex].version
            if graph is first:
                version = min(version, least_version(model, graph, op) or version)
            found.append((op, version))
    changed = any(version != old[op.opcodeIndex].version for op, version in found)
    # Ops of one kind may need different versions, so a code may become several.
    for op, version in found:
        key = (op.opcodeIndex, version)
        if key not in index_of:
            index_of[key] = len(codes)
            codes.append(copy.copy(old[op.opcodeIndex]))
            codes[-1].version = version
        op.opcodeIndex = index_of[key]
    model.operatorCodes = codes
    return changed


def _outputs(data: bytes, kind: str) -> list[bytes]:
    """The bytes of all outputs for a few random inputs."""
    from tfcompress.tools.subject import drawn_inputs, tensors_of

    model = flatbuffer.read(data)
    inputs, outputs = drawn_inputs(model, "the file"), model.subgraphs[0].outputs
    found = tensors_of(data, inputs, outputs, kind)
    return [sample[index].tobytes() for sample in found for index in outputs]
