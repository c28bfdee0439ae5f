"""What the limits of a target measure of an operator, and whether it keeps them.

`MEASURES` are small pure functions, by name. Each takes an `Op` and returns a number, a text, a
bool, or a tuple of them; where the operator lacks what it looks at, it raises one of
`UNMEASURABLE`, and the value counts as not known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfcompress.targets.operators import Op, is_real
from tfcompress.targets.targets import COMPARISONS
from tfcompress.tflite.inspection import FLOATS, QUANTIZED, TensorInfo

Value = bool | int | float | str | tuple[Any, ...]
UNMEASURABLE = (LookupError, AttributeError, TypeError, ValueError, ArithmeticError)
_ACTIVATIONS = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")


def measure(op: Op, name: str) -> Value | None:
    """Measures an operator.

    Returns the value, or None where it cannot be known.
    """
    function = MEASURES[name]
    try:
        return function(op)
    except UNMEASURABLE:
        return None


def is_kept(op: Op, limit: Mapping[str, Any]) -> bool | None:
    """Tells whether an operator keeps a limit.

    Returns none if what the limit looks at cannot be known.
    """
    condition = limit.get("when")
    if condition is not None:
        applies = is_kept(op, condition)
        if not applies:
            return None if applies is None else True
    value = measure(op, limit["value"])
    if value is None:
        return None
    name = next(name for name in COMPARISONS if name in limit)
    return compare(value, name, limit[name])


def compare(value: Value, comparison: str, expected: Any) -> bool:
    """Compares what was measured; of several values, each must hold."""
    values = value if isinstance(value, tuple) else (value,)
    if comparison in ("includes", "excludes"):
        return any(v in expected for v in values) == (comparison == "includes")
    if comparison == "equals":
        return all(v == expected for v in values)
    if comparison == "in":
        return all(v in expected for v in values)
    if any(isinstance(v, str) for v in values):
        return False
    if comparison == "multiple_of":
        return all(v % expected == 0 for v in values)
    return all(v >= expected if comparison == "min" else v <= expected for v in values)


def measured(op: Op, limit: Mapping[str, Any]) -> str:
    """Says what was measured, in a few words."""
    value = measure(op, limit["value"])
    name = limit["value"].replace("_", " ")
    if value is None:
        return f"{name} is not known"
    shown = ", ".join(map(str, value)) if isinstance(value, tuple) else value
    return f"{name} {shown if shown != '' else 'none'}"


def inner_rank(shape: tuple[int, ...]) -> int:
    """Counts dimensions from the first that is larger than 1."""
    return len(shape) - next((i for i, d in enumerate(shape) if d != 1), len(shape))


def _dynamic(tensor: TensorInfo, first: int) -> int:
    return sum(d < 0 for d in tensor.shape_signature[first:])


def _reals(op: Op) -> list[TensorInfo]:
    return [t for t in (*op.given, *op.outputs) if is_real(t)]


def _grids(op: Op) -> set[tuple[Any, ...]]:
    return {(t.scales, t.zero_points) for t in _reals(op)}


def _kinds(op: Op) -> set[str]:
    return {t.dtype for t in op.activations}


def _scale_ratios(op: Op) -> tuple[float, ...]:
    """The scales of quantized inputs, divided by that of the output."""
    made = op.outputs[0].scales
    return tuple(sorted(t.scales[0] / made[0] for t in op.given if t.is_quantized and made))


def _product_scale_ratio(op: Op) -> float:
    """The product of the scales of both inputs, divided by that of the output."""
    return op.needed(0).scales[0] * op.needed(1).scales[0] / op.outputs[0].scales[0]


def _positions(op: Op, kind: Callable[[TensorInfo | None], bool]) -> tuple[int, ...]:
    return tuple(i for i, tensor in enumerate(op.inputs) if kind(tensor))


def _is_smaller(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Tells whether `a` has to be repeated to fit `b`."""
    wide = (1,) * (len(b) - len(a)) + a
    return any(x < y for x, y in zip(wide, (1,) * (len(a) - len(b)) + b, strict=True))


def _broadcast(op: Op) -> str:
    first, second = op.needed(0).shape, op.needed(1).shape
    smaller = (_is_smaller(first, second), _is_smaller(second, first))
    return {0: "none", 1: "one", 2: "both"}[sum(smaller)]


def _image(op: Op) -> tuple[int, ...]:
    """Height, width and channels; what a tensor of fewer dimensions lacks counts as 1."""
    shape = op.needed(0).shape
    return shape[1:] if len(shape) > 3 else (*(1,) * (3 - len(shape)), *shape)


def _fused(op: Op) -> str:
    return _ACTIVATIONS[getattr(op.options, "fusedActivationFunction", 0)]


def _zeros(op: Op) -> bool:
    """Tells whether all real constants stand for zeros."""
    constants = [t for t in op.given if t.is_constant and is_real(t)]
    return all((op.values(t) == (t.zero_point or 0)).all() for t in constants)


def _empty_constants(op: Op) -> int:
    """Counts inputs that have a buffer of their own without values, and none from elsewhere."""
    stored = op.model.subgraphs[op.info.subgraph].tensors
    own = (t for t in op.given if not t.is_constant and t.index not in op.fed)
    return sum(stored[t.index].buffer != 0 for t in own)


def _option(name: str) -> Callable[[Op], Value]:
    def read(op: Op) -> Value:
        value = op.option(name)
        if not isinstance(value, (bool, int, float)):
            raise TypeError(f"{name} is not a number")
        return value

    return read


_GENERAL: dict[str, Callable[[Op], Value]] = {
    "dtype": lambda op: op.info.dtype,
    "version": lambda op: op.info.version,
    "rank": lambda op: max(len(t.shape) for t in op.activations),
    "inner_rank": lambda op: max(inner_rank(t.shape) for t in op.activations),
    "input_rank": lambda op: len(op.needed(0).shape),
    "output_rank": lambda op: len(op.outputs[0].shape),
    "output_inner_rank": lambda op: inner_rank(op.outputs[0].shape),
    "ranks_match": lambda op: len(op.needed(0).shape) == len(op.needed(1).shape),
    "ranks_kept": lambda op: len(op.needed(0).shape) == len(op.outputs[0].shape),
    "second_rank": lambda op: len(op.needed(1).shape),
    "second_inner_rank": lambda op: inner_rank(op.needed(1).shape),
    "batch": lambda op: op.needed(0).shape[0] if op.needed(0).shape else 1,
    "batches": lambda op: tuple(t.shape[0] if t.shape else 1 for t in op.activations),
    "last_dimension": lambda op: op.needed(0).shape[-1],
    "smallest_image_dimension": lambda op: min(_image(op)),
    "image_area": lambda op: math.prod(_image(op)[:-1]),
    "elements": lambda op: max(math.prod(t.shape) for t in op.activations),
    "dynamic_dimensions": lambda op: sum(_dynamic(t, 0) for t in op.activations),
    "dynamic_inner_dimensions": lambda op: sum(_dynamic(t, 1) for t in op.activations),
    "inputs": lambda op: len(op.given),
    "outputs": lambda op: len(op.outputs),
    "constants": lambda op: _positions(op, lambda t: t is not None and t.is_constant),
    "constant_inputs": lambda op: sum(t.is_constant for t in op.given),
    "computed": lambda op: _positions(op, lambda t: t is not None and not t.is_constant),
    "computed_inputs": lambda op: sum(not t.is_constant for t in op.given),
    "omitted": lambda op: _positions(op, lambda t: t is None),
    "constants_are_zero": _zeros,
    "empty_constants": _empty_constants,
    "input_dtype": lambda op: op.needed(0).dtype,
    "second_dtype": lambda op: op.needed(1).dtype,
    "output_dtype": lambda op: op.outputs[0].dtype,
    "dtypes": lambda op: tuple(sorted(_kinds(op))),
    "real_dtypes": lambda op: tuple(sorted({t.dtype for t in _reals(op)})),
    "dtypes_match": lambda op: op.needed(0).dtype == op.outputs[0].dtype,
    "float_tensors": lambda op: sum(t.dtype in FLOATS for t in op.activations),
    "shapes_match": lambda op: op.needed(0).shape == op.outputs[0].shape,
    "scales_match": lambda op: len(_grids(op)) < 2,
    "unscaled": lambda op: sum(t.dtype in QUANTIZED and not t.scales for t in _reals(op)),
    "scales": lambda op: max(t.scale_count for t in op.activations),
    "scale_ratios": _scale_ratios,
    "product_scale_ratio": _product_scale_ratio,
    "second_scales": lambda op: op.needed(1).scale_count,
    "int16_zero_points": lambda op: tuple(
        sorted({z for t in op.activations if t.dtype == "int16" for z in t.zero_points})
    ),
    "second_zero_points": lambda op: tuple(sorted(set(op.needed(1).zero_points))),
    "requantizes": lambda op: op.needed(0).dtype in FLOATS or len(_kinds(op)) == 1,
    "smallest_scale": lambda op: min((s for t in _reals(op) for s in t.scales), default=1.0),
    "zero_points": lambda op: tuple(sorted({z for t in op.activations for z in t.zero_points})),
    "broadcast": _broadcast,
    "activation": _fused,
}

_OPTIONS = {
    "align_corners": "alignCorners",
    "half_pixel_centers": "halfPixelCenters",
    "keep_dims": "keepDims",
    "keep_num_dims": "keepNumDims",
    "beta": "beta",
    "block_size": "blockSize",
    "adj_x": "adjX",
    "adj_y": "adjY",
    "ellipsis_mask": "ellipsisMask",
    "new_axis_mask": "newAxisMask",
    "shrink_axis_mask": "shrinkAxisMask",
    "weights_format": "weightsFormat",
    "mirror_mode": "mode",
    "batch_dims": "batchDims",
    "one_hot_axis": "axis",
}


def _axes(op: Op) -> tuple[int, ...]:
    """The axes, counted from 0, the batch."""
    if op.info.name in _AXES_INPUT:
        found = [int(v) for v in op.values(op.needed(_AXES_INPUT[op.info.name])).ravel()]
    else:
        found = [int(op.option("axis"))]
    rank = len(_subject(op).shape)
    if any(not -rank <= axis < rank for axis in found):
        raise ValueError(f"axes {found} do not fit {rank} dimensions")
    return tuple(sorted(axis % rank for axis in found))


def _axes_from_end(op: Op) -> tuple[int, ...]:
    rank = len(_subject(op).shape)
    return tuple(axis - rank for axis in _axes(op))


def _axis_sizes(op: Op) -> tuple[int, ...]:
    return tuple(_subject(op).shape[axis] for axis in _axes(op))


def _squeezes_leading(op: Op) -> bool:
    """Tells whether only 1s before the first larger dimension are taken away."""
    shape = op.needed(0).shape
    dims = op.option("squeezeDims")
    last = max((d % len(shape) for d in np.asarray(dims).ravel().tolist()), default=-1)
    return all(d == 1 for d in shape[: last + 1])


def _padded_axes(op: Op) -> tuple[int, ...]:
    return tuple(i for i, pair in enumerate(_padding(op)) if pair.any())


def _steps(op: Op) -> tuple[int, ...]:
    return tuple(int(v) for v in op.values(op.needed(3)).ravel())


def _depth_step(op: Op) -> int:
    """The step along the last dimension."""
    steps, rank = _steps(op), len(op.needed(0).shape)
    return steps[-1] if len(steps) == rank else 1


def _permutation(op: Op) -> str:
    return " ".join(str(int(v)) for v in op.values(op.needed(1)).ravel())


def _scale(axis: int) -> Callable[[Op], float]:
    def of(op: Op) -> float:
        """By how much RESIZE enlarges an axis; below 1 where it shrinks it."""
        size, made = op.needed(0).shape[axis], op.outputs[0].shape[axis]
        if op.option("alignCorners") and size > 1:
            return (made - 1) / (size - 1)
        return made / size

    return of


def _resizes_nothing(op: Op) -> bool:
    """Tells whether RESIZE copies: the same size, or a single point."""
    taken, made = op.needed(0).shape[1:3], op.outputs[0].shape[1:3]
    return taken == made or taken == (1, 1)


def _resizes_alike(op: Op) -> bool:
    """Tells whether RESIZE enlarges height and width alike, or one of both at size 1."""
    height, width = _scale(1)(op), _scale(2)(op)
    made = op.outputs[0].shape
    return height == width or (made[1] == 1 and height == 1) or (made[2] == 1 and width == 1)


def _scales(op: Op) -> tuple[float, ...]:
    """The factors of both axes, without that of an axis that stays 1."""
    pairs = zip(op.outputs[0].shape[1:3], (_scale(1)(op), _scale(2)(op)), strict=True)
    return tuple(sorted({scale for made, scale in pairs if made != 1}))


def _scales_are_powers(op: Op) -> bool:
    return all(math.log2(scale).is_integer() for scale in _scales(op))


AXES: dict[str, Callable[[Op], Any]] = {
    "axes": _axes,
    "axes_from_end": _axes_from_end,
    "axis_sizes": _axis_sizes,
    "axis_elements": lambda op: math.prod(_axis_sizes(op)),
    "squeezes_leading": _squeezes_leading,
    "padded_axes": _padded_axes,
    "smallest_padding": lambda op: int(_padding(op).min(initial=0)),
    "padding_rows": lambda op: len(_padding(op)),
    "slice_steps": _steps,
    "depth_step": _depth_step,
    "permutation": _permutation,
    "resize_height": _scale(1),
    "resize_width": _scale(2),
    "resize_factors": _scales,
    "resizes_nothing": _resizes_nothing,
    "resizes_alike": _resizes_alike,
    "resizes_by_powers_of_two": _scales_are_powers,
}


def _stride(op: Op) -> tuple[int, int]:
    return op.option("strideH"), op.option("strideW")


def _padded(op: Op) -> bool:
    """Tells whether the padding SAME adds any rows or columns."""
    if op.option("padding") != _SAME:
        return False
    sides = zip(_image_tensor(op).shape[1:3], _dilated(op), _stride(op), strict=True)
    return any((-(-size // step) - 1) * step + kernel > size for size, kernel, step in sides)


def _transposed_shape_fits(op: Op) -> bool:
    """Tells whether the output is the input times the stride, plus what hangs over."""
    same = op.option("padding") == _SAME
    taken, given = _image_tensor(op).shape[1:3], op.outputs[0].shape[1:3]
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
    return _image_tensor(op).shape[-1] // _weights(op).shape[-1]


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
    "strides_match_or_follow_a_row": lambda op: (
        _stride(op)[0] == _stride(op)[1]
        or (_stride(op) == (1, 2) and _kernel(op)[0] == _image_tensor(op).shape[1] == 1)
    ),
    "stride_exceeds_kernel": lambda op: any(
        s > k for s, k in zip(_stride(op), _kernel(op), strict=True)
    ),
    "dilation": lambda op: max(_dilation(op)),
    "dilations_match": lambda op: _dilation(op)[0] == _dilation(op)[1],
    "padding": lambda op: ("SAME", "VALID")[op.option("padding")],
    "padded": _padded,
    "depth_multiplier": lambda op: op.option("depthMultiplier"),
    "input_channels": lambda op: _image_tensor(op).shape[-1],
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

MEASURES: dict[str, Callable[[Op], Value]] = {
    **_GENERAL,
    **{name: _option(field) for name, field in _OPTIONS.items()},
    **KERNELS,
    **AXES,
}

# Where the axes are: an input, or an option of this name.
_REDUCING = ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "REDUCE_ALL", "REDUCE_ANY")
_AXES_INPUT = dict.fromkeys((*_REDUCING, "ARG_MAX", "ARG_MIN", "CUMSUM", "REVERSE_V2"), 1)
_AXES_INPUT |= {"SPLIT": 0, "SPLIT_V": 2, "EXPAND_DIMS": 1}

# Their axis counts the dimensions of what they give.
_OF_OUTPUT = ("EXPAND_DIMS", "PACK")


def _subject(op: Op) -> TensorInfo:
    if op.info.name in _OF_OUTPUT:
        return op.outputs[0]
    return op.needed(1 if op.info.name == "SPLIT" else 0)


def _padding(op: Op) -> np.ndarray:
    return op.values(op.needed(1)).reshape(-1, 2)


# Where weights lie among the inputs; the bias follows them, but in TRANSPOSE_CONV.
_WEIGHTED = {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "TRANSPOSE_CONV": 1, "FULLY_CONNECTED": 1}
_POOLS = ("AVERAGE_POOL_2D", "MAX_POOL_2D", "L2_POOL_2D")
_SAME = 0


def output_channels(op: Op) -> int | None:
    """The channels that an operator with weights gives; None if it has none."""
    if op.info.name not in _WEIGHTED or not op.outputs or not op.outputs[0].shape:
        return None
    return op.outputs[0].shape[-1]


def _weights(op: Op) -> TensorInfo:
    return op.needed(_WEIGHTED[op.info.name])


def _bias(op: Op) -> TensorInfo | None:
    position = 3 if op.info.name == "TRANSPOSE_CONV" else 2
    return op.inputs[position] if len(op.inputs) > position else None


def _image_tensor(op: Op) -> TensorInfo:
    return op.needed(2 if op.info.name == "TRANSPOSE_CONV" else 0)


def _kernel(op: Op) -> tuple[int, int]:
    if op.info.name in _POOLS:
        return op.option("filterHeight"), op.option("filterWidth")
    if op.info.name == "FULLY_CONNECTED":
        return 1, 1
    _, height, width, _ = _weights(op).shape
    return height, width


def _dilation(op: Op) -> tuple[int, int]:
    if op.info.name in _POOLS or op.info.name == "TRANSPOSE_CONV":
        return 1, 1
    return op.option("dilationHFactor"), op.option("dilationWFactor")


def _dilated(op: Op) -> tuple[int, int]:
    height, width = ((k - 1) * d + 1 for k, d in zip(_kernel(op), _dilation(op), strict=True))
    return height, width
