"""What the limits of a target measure of an operator: small pure functions, by name.

Each takes an `Op` and returns a number, a text, a bool, or a tuple of them; where the operator
lacks what it looks at, it raises one of `UNMEASURABLE`, and the value counts as not known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tfcompress.tflite.check.axes import AXES
from tfcompress.tflite.check.kernels import KERNELS
from tfcompress.tflite.check.operators import Op, is_real
from tfcompress.tflite.inspection import FLOATS, QUANTIZED, TensorInfo

Value = bool | int | float | str | tuple[Any, ...]
UNMEASURABLE = (LookupError, AttributeError, TypeError, ValueError, ArithmeticError)

_ACTIVATIONS = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")


def measure(op: Op, name: str) -> Value | None:
    """Measures an operator.

    Args:
        op: the operator.
        name: one of `MEASURES`.

    Returns:
        The value, or None where it cannot be known.

    Raises:
        KeyError: no measurement has this name.

    Example:
        >>> measure(op, "kernel_height")  # doctest: +SKIP
        3
    """
    function = MEASURES[name]
    try:
        return function(op)
    except UNMEASURABLE:
        return None


def inner_rank(shape: tuple[int, ...]) -> int:
    """Counts dimensions from the first that is larger than 1.

    Example:
        >>> inner_rank((1, 1, 8, 1, 3))
        3
    """
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


def _option(name: str) -> Callable[[Op], Value]:
    def read(op: Op) -> Value:
        value = op.option(name)
        if not isinstance(value, (bool, int, float)):
            raise TypeError(f"{name} is not a number")
        return value

    return read


def _is_dynamic_op(op: Op) -> bool:
    return op.info.dtype.startswith("dynamic_")


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
MEASURES: dict[str, Callable[[Op], Value]] = {
    **_GENERAL,
    **{name: _option(field) for name, field in _OPTIONS.items()},
    **KERNELS,
    **AXES,
}
