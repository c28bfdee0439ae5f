"""Measurements of operators that slide a kernel or multiply by weights; see `check_values`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tfcompress.tflite.check.operators import Op
from tfcompress.tflite.inspection import TensorInfo

# Where weights lie among the inputs; the bias follows them, but in TRANSPOSE_CONV.
_WEIGHTED = {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "TRANSPOSE_CONV": 1, "FULLY_CONNECTED": 1}
_POOLS = ("AVERAGE_POOL_2D", "MAX_POOL_2D", "L2_POOL_2D")
_SAME = 0


def output_channels(op: Op) -> int | None:
    """The channels that an operator with weights gives; None if it has none.

    Example:
        >>> output_channels(op)  # doctest: +SKIP
        16
    """
    if op.info.name not in _WEIGHTED or not op.outputs or not op.outputs[0].shape:
        return None
    return op.outputs[0].shape[-1]


def _weights(op: Op) -> TensorInfo:
    return op.needed(_WEIGHTED[op.info.name])


def _bias(op: Op) -> TensorInfo | None:
    position = 3 if op.info.name == "TRANSPOSE_CONV" else 2
    return op.inputs[position] if len(op.inputs) > position else None


def _image(op: Op) -> TensorInfo:
    return op.needed(2 if op.info.name == "TRANSPOSE_CONV" else 0)


def _kernel(op: Op) -> tuple[int, int]:
    if op.info.name in _POOLS:
        return op.option("filterHeight"), op.option("filterWidth")
    if op.info.name == "FULLY_CONNECTED":
        return 1, 1
    _, height, width, _ = _weights(op).shape
    return height, width


def _stride(op: Op) -> tuple[int, int]:
    return op.option("strideH"), op.option("strideW")


def _dilation(op: Op) -> tuple[int, int]:
    if op.info.name in _POOLS or op.info.name == "TRANSPOSE_CONV":
        return 1, 1
    return op.option("dilationHFactor"), op.option("dilationWFactor")


def _dilated(op: Op) -> tuple[int, int]:
    height, width = ((k - 1) * d + 1 for k, d in zip(_kernel(op), _dilation(op), strict=True))
    return height, width


def _padded(op: Op) -> bool:
    """Tells whether the padding SAME adds any rows or columns."""
    if op.option("padding") != _SAME:
        return False
    sides = zip(_image(op).shape[1:3], _dilated(op), _stride(op), strict=True)
    return any((-(-size // step) - 1) * step + kernel > size for size, kernel, step in sides)


def _transposed_shape_fits(op: Op) -> bool:
    """Tells whether the output is the input times the stride, plus what hangs over."""
    same = op.option("padding") == _SAME
    taken, given = _image(op).shape[1:3], op.outputs[0].shape[1:3]
    sides = zip(taken, given, _kernel(op), _stride(op), strict=True)
    return all(out == size * s + (0 if same else k - s) for size, out, k, s in sides)


def _weight_sum(op: Op) -> int:
    """The largest sum of absolute weights, zero point taken off, of an output channel."""
    weights = _weights(op)
    if not weights.is_constant:
        return 0
    values = op.values(weights).astype(np.int64) - (weights.zero_point or 0)
    axis = 3 if op.info.name == "DEPTHWISE_CONV_2D" else 0
    others = tuple(i for i in range(values.ndim) if i != axis)
    return int(np.abs(values).sum(axis=others).max(initial=0))


def _bias_dtype(op: Op) -> str:
    bias = _bias(op)
    return "none" if bias is None else bias.dtype


def _largest_bias(op: Op) -> int:
    bias = _bias(op)
    if bias is None or not bias.is_constant:
        return 0
    return int(max((abs(int(v)) for v in op.values(bias).ravel()), default=0))


def _groups(op: Op) -> int:
    return _image(op).shape[-1] // _weights(op).shape[-1]


def _weights_inner_rank(op: Op) -> int:
    """Dimensions of the weights larger than 1 between the first and the last."""
    return sum(d > 1 for d in _weights(op).shape[1:-1])


KERNELS: dict[str, Callable[[Op], Any]] = {
    "kernel_height": lambda op: _kernel(op)[0],
    "kernel_width": lambda op: _kernel(op)[1],
    "kernel_area": lambda op: _kernel(op)[0] * _kernel(op)[1],
    "kernel_side": lambda op: max(_kernel(op)),
    "dilated_kernel_height": lambda op: _dilated(op)[0],
    "dilated_kernel_area": lambda op: _dilated(op)[0] * _dilated(op)[1],
    "stride": lambda op: max(_stride(op)),
    "strides": _stride,
    "strides_match": lambda op: _stride(op)[0] == _stride(op)[1],
    "stride_exceeds_kernel": lambda op: any(
        s > k for s, k in zip(_stride(op), _kernel(op), strict=True)
    ),
    "dilation": lambda op: max(_dilation(op)),
    "dilations_match": lambda op: _dilation(op)[0] == _dilation(op)[1],
    "padding": lambda op: ("SAME", "VALID")[op.option("padding")],
    "padded": _padded,
    "depth_multiplier": lambda op: op.option("depthMultiplier"),
    "input_channels": lambda op: _image(op).shape[-1],
    "output_channels": lambda op: op.outputs[0].shape[-1],
    "groups": _groups,
    "weights_dtype": lambda op: _weights(op).dtype,
    "weights_scales": lambda op: _weights(op).scale_count,
    "weights_zero_points": lambda op: tuple(sorted(set(_weights(op).zero_points))),
    "weights_rank": lambda op: len(_weights(op).shape),
    "weights_inner_rank": _weights_inner_rank,
    "weights_are_constant": lambda op: op.is_settled(_weights(op)),
    "weight_sum": _weight_sum,
    "bias_dtype": _bias_dtype,
    "bias_is_constant": lambda op: (bias := _bias(op)) is None or op.is_settled(bias),
    "largest_bias": _largest_bias,
    "transposed_shape_fits": _transposed_shape_fits,
}
