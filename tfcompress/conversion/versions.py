"""Op versions lowered to what the ops need, for compilers that reject newer ones.

A version says which features an op may use, and a converter stamps the highest that any op of its
kind needs, sometimes more. The least versions are those of TensorFlow's
`lite/tools/versioning/op_version.cc`, for ops on 8-bit integers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tfcompress.tflite import flatbuffer, run
from tfcompress.tflite.flatbuffer import changed
from tfcompress.tools.subject import drawn_inputs, tensors_of

# The least version by the type of an op's activations, where its features ask for no more.
_BY_TYPE: dict[str, dict[str, int]] = {
    name: versions
    for names, versions in (
        (
            "ADD ARG_MAX ARG_MIN AVERAGE_POOL_2D BATCH_MATMUL BATCH_TO_SPACE_ND CONCATENATION "
            "DEPTH_TO_SPACE EQUAL EXP GREATER GREATER_EQUAL L2_NORMALIZATION LESS LESS_EQUAL LOG "
            "LOGISTIC LOG_SOFTMAX MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD NOT_EQUAL PACK PAD "
            "PADV2 REDUCE_MAX REDUCE_MIN RELU6 RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR RSQRT SLICE "
            "SOFTMAX SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARED_DIFFERENCE "
            "STRIDED_SLICE SUB SUM TANH TOPK_V2 TRANSPOSE TRANSPOSE_CONV",
            {"int8": 2},
        ),
        ("ABS GELU RELU UNPACK", {"int8": 2, "uint8": 2}),
        ("CONV_2D DEPTHWISE_CONV_2D REVERSE_V2 TILE", {"int8": 3}),
        ("FULLY_CONNECTED", {"int8": 4}),
        ("EXPAND_DIMS HARD_SWISH LEAKY_RELU PRELU RELU_N1_TO_1 RESHAPE SQUEEZE", {}),
    )
    for name in names.split()
}


def lower_versions(model: Any) -> None:
    """Lower the versions of 8-bit ops to the least that their features need.

    Nothing else changes. LiteRT then runs the file of before and the new one on the same random
    inputs with its reference kernels and with its default ones: every byte of every output has to
    be equal.

    Args:
        model: the `ModelT` of a file, which is changed. Versions are never raised, ops of other
            types and of other subgraphs than the first keep theirs.
    """
    needed = _needed(model)
    if all(version == model.operatorCodes[op.opcodeIndex].version for op, version in needed):
        return
    before = flatbuffer.write(model)
    _give_versions(model, needed)
    lowered = flatbuffer.write(model)
    for kind in (run.REFERENCE, run.DEFAULT):
        if _outputs(model, before, kind) != _outputs(model, lowered, kind):
            raise ValueError(
                "op versions cannot be lowered: with lower ones LiteRT computes other outputs. "
                "Please report this model; convert it without target= meanwhile."
            )


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
        if not dtype or name not in _BY_TYPE:
            return None
        needed = _FEATURES[name](op.builtinOptions, inputs) if name in _FEATURES else 1
        return max(needed, _BY_TYPE[name].get(dtype, 1))
    except (AttributeError, IndexError, TypeError):  # Options or operands that are not there.
        return None


def _dtype(inputs: list[Any], outputs: list[Any]) -> str:
    """The one 8-bit type of all activations and results that have one; else ''."""
    types = {flatbuffer.dtype_name(t) for t in [*inputs, *outputs] if t is not None}
    narrow = types & {"int8", "uint8"}
    return narrow.pop() if len(narrow) == 1 and not types - narrow - {"int32", "bool"} else ""


def _fully_connected(options: Any, inputs: list[Any]) -> int:
    if inputs[1].sparsity is not None:
        return 8
    if len(inputs) == 2:
        return 6
    if options.keepNumDims:
        return 5
    return 2 if options.weightsFormat else 1


def _transpose_conv(options: Any, inputs: list[Any]) -> int:
    if options.fusedActivationFunction:
        return 4
    return 1 if inputs[3:4] in ([], [None]) else 3


def _strided_slice(options: Any, inputs: list[Any]) -> int:
    if options.offset:
        return 8
    if options.ellipsisMask or options.newAxisMask:
        return 6
    return 4 if _rank(inputs) > 4 else 1


def _transpose(options: Any, inputs: list[Any]) -> int:
    rank = _rank(inputs)
    return next((v for least, v in ((7, 8), (6, 6), (5, 4)) if rank >= least), 1)


def _broadcast(options: Any, inputs: list[Any]) -> int:
    one, other = (list(t.shape) for t in inputs[:2])
    return 3 if one != other and max(len(one), len(other)) > 4 else 1


def _rank(inputs: list[Any]) -> int:
    return len(inputs[0].shape)


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


# The least version for an op's options and inputs, where they count.
_FEATURES: dict[str, Callable[[Any, list[Any]], int]] = {
    # 6 is grouped.
    "CONV_2D": lambda options, inputs: 6 if inputs[0].shape[3] != inputs[1].shape[3] else 1,
    "DEPTHWISE_CONV_2D": lambda options, inputs: (
        2 if (options.dilationWFactor, options.dilationHFactor) != (1, 1) else 1
    ),
    "FULLY_CONNECTED": _fully_connected,
    "TRANSPOSE_CONV": _transpose_conv,
    "RESIZE_BILINEAR": lambda options, inputs: 3 if options.halfPixelCenters else 1,
    "RESIZE_NEAREST_NEIGHBOR": lambda options, inputs: (
        3 if options.alignCorners or options.halfPixelCenters else 1
    ),
    "STRIDED_SLICE": _strided_slice,
    "TRANSPOSE": _transpose,
    **dict.fromkeys(
        ("SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND"),
        lambda options, inputs: 3 if _rank(inputs) != 4 else 1,
    ),
    "SLICE": lambda options, inputs: 5 if _rank(inputs) > 4 else 1,
    **dict.fromkeys(("PAD", "PADV2"), lambda options, inputs: 4 if _rank(inputs) > 4 else 1),
    **dict.fromkeys(("MAXIMUM", "MINIMUM", "SUB"), _broadcast),
}


def _needed(model: Any) -> list[tuple[Any, int]]:
    """Each op of a model, and the version that it needs, or has if that is not known."""
    found = []
    for graph in model.subgraphs:
        for op in graph.operators:
            version = model.operatorCodes[op.opcodeIndex].version
            if graph is model.subgraphs[0]:
                version = min(version, least_version(model, graph, op) or version)
            found.append((op, version))
    return found


def _give_versions(model: Any, needed: list[tuple[Any, int]]) -> None:
    """Give each op a code of its version; one that several versions share becomes several."""
    codes: dict[tuple[int, int], Any] = {}
    for op, version in needed:
        key = (op.opcodeIndex, version)
        codes.setdefault(key, changed(model.operatorCodes[op.opcodeIndex], version=version))
        op.opcodeIndex = list(codes).index(key)
    model.operatorCodes = list(codes.values())


def _outputs(model: Any, data: bytes, kind: str) -> list[bytes]:
    """The bytes of all outputs of a file for a few random inputs."""
    inputs, outputs = drawn_inputs(model, "the file"), model.subgraphs[0].outputs
    found = tensors_of(data, inputs, outputs, kind)
    return [sample[index].tobytes() for sample in found for index in outputs]
