"""Which operators TFLite Micro has, and the method of its op resolver that adds each.

Source: tensorflow/lite/micro/micro_mutable_op_resolver.h of tflite-micro, 20 August 2026.
"""

from __future__ import annotations

from tfcompress.tflite.inspection import Inspection

_BUILTIN = """
    ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_MATMUL BATCH_TO_SPACE_ND
    BROADCAST_ARGS BROADCAST_TO CALL_ONCE CAST CEIL CONCATENATION CONV_2D COS CUMSUM
    DEPTH_TO_SPACE DEPTHWISE_CONV_2D DEQUANTIZE DIV DYNAMIC_UPDATE_SLICE EMBEDDING_LOOKUP ELU
    EQUAL EXP EXPAND_DIMS FILL FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER GATHER_ND GREATER
    GREATER_EQUAL HARD_SWISH IF L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG
    LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAXIMUM MAX_POOL_2D MIRROR_PAD MEAN
    MINIMUM MUL NEG NOT_EQUAL PACK PAD PADV2 PRELU QUANTIZE READ_VARIABLE REDUCE_ALL REDUCE_MAX
    REDUCE_MIN RELU RELU6 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND RSQRT
    SELECT_V2 SHAPE SIN SLICE SOFTMAX SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V SQUEEZE SQRT
    SQUARE SQUARED_DIFFERENCE STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE_CONV TRANSPOSE UNPACK
    UNIDIRECTIONAL_SEQUENCE_LSTM VAR_HANDLE WHILE ZEROS_LIKE
"""
_IRREGULAR = {
    "BATCH_MATMUL": "BatchMatMul",
    "CUMSUM": "CumSum",
    "PADV2": "PadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTM",
}
_CUSTOM = {
    "CIRCULAR_BUFFER": "CircularBuffer",
    "TFLite_Detection_PostProcess": "DetectionPostprocess",
    "TFLM_DECODE": "Decode",
    "ethos-u": "EthosU",
    "SignalDelay": "Delay",
    "SignalEnergy": "Energy",
    "SignalFftAutoScale": "FftAutoScale",
    "SignalFilterBank": "FilterBank",
    "SignalFilterBankLog": "FilterBankLog",
    "SignalFilterBankSpectralSubtraction": "FilterBankSpectralSubtraction",
    "SignalFilterBankSquareRoot": "FilterBankSquareRoot",
    "SignalFramer": "Framer",
    "SignalIrfft": "Irfft",
    "SignalOverlapAdd": "OverlapAdd",
    "SignalPCAN": "PCAN",
    "SignalRfft": "Rfft",
    "SignalStacker": "Stacker",
    "SignalWindow": "Window",
}


def _method(name: str) -> str:
    words = name.replace("2D", "2_D").split("_")
    return _IRREGULAR.get(name) or "".join(word.capitalize() for word in words)


METHODS = {
    **{name: f"Add{_method(name)}" for name in _BUILTIN.split()},
    **{name: f"Add{method}" for name, method in _CUSTOM.items()},
}


def resolver_methods(found: Inspection, where: str) -> dict[str, str]:
    """Return the methods that add the operators of a file, by operator.

    Args:
        found: what the file holds.
        where: what error messages call it.

    Returns:
        Method names by operator names, in alphabetical order.

    Raises:
        ValueError: TFLite Micro lacks an operator, or computes in other types.
    """
    names = sorted({op.name for op in found.operators})
    lacking = [name for name in names if name not in METHODS]
    if lacking:
        raise ValueError(
            f"TFLite Micro has no operator {', '.join(repr(n)[1:-1][:60] for n in lacking)}, which "
            f"{where} needs; expected built-in operators of TFLite Micro. Replace the layers that "
            "they come from."
        )
    hybrid = sorted({op.name for op in found.operators if op.dtype.startswith("dynamic")})
    narrow = {t.dtype for t in found.tensors} & {"float16", "bfloat16"}
    if hybrid or narrow:
        which = f"{', '.join(hybrid)} with float activations" if hybrid else f"{min(narrow)} values"
        raise ValueError(
            f"TFLite Micro cannot run {where}: Hybrid models are not supported ({which}); expected "
            "int8 or int16x8 quantization, or float32. Convert again with precision='int8'."
        )
    return {name: METHODS[name] for name in names}
