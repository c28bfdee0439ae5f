"""Where channels go in operations without weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from keras import KerasTensor, ops, tree

from tfcompress.channels.activations import POINTWISE
from tfcompress.channels.axes import Axis, size_of
from tfcompress.channels.shape_axes import (
    align_right,
    concatenate,
    expand,
    filled,
    flatten,
    get_item,
    pad,
    permute,
    repeat_vector,
    reshape,
    split,
    squeeze,
    stack,
    unstack,
)
from tfcompress.channels.weighted import Axes, Call

if TYPE_CHECKING:
    from tfcompress.channels.following import Follower

# Operations whose channels are those of their inputs, by the names of classes, of layers and of the
# operations of keras.ops alike.
ELEMENTWISE = POINTWISE | {"Softmax", "LogSoftmax", "Sparsemax", "UnitNormalization", "Masking"}
SPATIAL = set(
    (
        "MaxPooling1D MaxPooling2D MaxPooling3D AveragePooling1D AveragePooling2D AveragePooling3D "
        "AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D "
        "AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D "
        "UpSampling1D UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D "
        "Cropping1D Cropping2D Cropping3D Resizing MaxPool AveragePool Resize AdaptiveMaxPool "
        "AdaptiveAveragePool PadImages CropImages"
    ).split()
)
GLOBAL = set(
    (
        "GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D "
        "GlobalMaxPooling2D GlobalMaxPooling3D"
    ).split()
)
REDUCING = set("Mean Sum Max Amax Min Amin Prod Std Var Median Any All".split())


def _elementwise(flow: Follower, call: Call) -> list[Axes]:
    rank = len(call.shapes[0])
    if any(np.ndim(getattr(call.layer, name, 0)) for name in ("scale", "offset")):  # Rescaling
        flow.fix(call.inputs[0][-1:], f"{call.source} computes with a constant for each")
    columns: list[list[Axis]] = [[] for _ in range(rank)]
    for axes in [*call.inputs, *_constants(flow, call)]:
        for axis, column in zip(reversed(axes), reversed(columns), strict=False):
            if axis is not None:
                column.append(axis)
    out: Axes = []
    for column, size in zip(columns, call.shapes[0], strict=True):
        column = [axis for axis in column if size_of(axis) == size]
        for axis in column[1:]:
            flow.same(column[0], axis)
        out.append(column[0] if column else None)
    return [filled(flow, call, out)]


def _constants(flow: Follower, call: Call) -> list[Axes]:
    """The axes of arrays among the arguments, of which all values stay in their places."""
    found: list[Axes] = []
    for leaf in tree.flatten((call.node.args, call.node.kwargs)):
        shape = () if isinstance(leaf, KerasTensor) else tuple(getattr(leaf, "shape", ()))
        if shape and np.ptp(ops.convert_to_numpy(leaf)) > 0:
            axes: Axes = [flow.channels.new(size, call.source) for size in shape]
            for axis in axes:
                if axis is not None and size_of(axis) > 1:
                    flow.channels.keep(axis, f"{call.source} computes with a constant for each")
            found.append(axes)
    return found


def _spatial(flow: Follower, call: Call) -> list[Axes]:
    first = getattr(call.layer, "data_format", None) == "channels_first"
    x = call.inputs[0]
    flow.fix(x[2:] if first else x[1:-1], f"they are positions of {call.source}")
    axes = flow.fresh(call.shapes[0], call.source)
    axes[1 if first else -1] = call.inputs[0][1 if first else -1]
    return [axes]


def _global(flow: Follower, call: Call) -> list[Axes]:
    if call.layer.keepdims:
        return _spatial(flow, call)
    x = call.inputs[0]
    return [[x[0], x[1 if call.layer.data_format == "channels_first" else -1]]]


def _reduce(flow: Follower, call: Call) -> list[Axes] | None:
    x, axis = call.inputs[0], call.layer.axis
    if axis is None:
        return None
    gone = {a % len(x) for a in ([axis] if isinstance(axis, int) else axis)}
    if call.layer.keepdims:
        fresh = flow.fresh(call.shapes[0], call.source)
        return [[new if i in gone else x[i] for i, new in enumerate(fresh)]]
    return [[a for i, a in enumerate(x) if i not in gone]]


def _matmul(flow: Follower, call: Call) -> list[Axes] | None:
    if len(call.inputs) != 2 or min(len(axes) for axes in call.inputs) < 2:
        return None
    a, b = call.inputs
    flow.same(a[-1], b[-2])
    for x, y in zip(a[-3::-1], b[-3::-1], strict=False):
        if x is not None and y is not None and size_of(x) == size_of(y):
            flow.same(x, y)
    return [[*(a if len(a) >= len(b) else b)[:-2], a[-2], b[-1]]]


OPERATIONS: dict[str, Callable[[Follower, Call], list[Axes] | None]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(SPATIAL, _spatial),
    **dict.fromkeys(GLOBAL, _global),
    **dict.fromkeys(REDUCING, _reduce),
    **dict.fromkeys(("Permute", "Transpose", "Swapaxes"), permute),
    **dict.fromkeys(("BroadcastTo", "RepeatBatch"), align_right),
    "Flatten": flatten,
    "Reshape": reshape,
    "RepeatVector": repeat_vector,
    "ExpandDims": expand,
    "Squeeze": squeeze,
    "Concatenate": concatenate,
    "Pad": pad,
    "Split": split,
    "Stack": stack,
    "Unstack": unstack,
    "GetItem": get_item,
    "Matmul": _matmul,
}
