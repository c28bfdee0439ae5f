"""Measurements of operators that work along axes or move values about; see `check_values`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tfcompress.tflite.check.operators import Op
from tfcompress.tflite.inspection import TensorInfo

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


def _padding(op: Op) -> np.ndarray:
    return op.values(op.needed(1)).reshape(-1, 2)


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
