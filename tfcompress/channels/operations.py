"""Where channels go in operations without weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import KerasTensor, layers, tree

from tfcompress.channels.products import PRODUCTS, attend, product
from tfcompress.channels.shapes import (
    align_right,
    along,
    blocks,
    concatenate,
    cut_out,
    expand,
    filled,
    flatten,
    gated,
    get_item,
    pad,
    permute,
    repeat,
    repeat_vector,
    reshape,
    split,
    squeeze,
    stack,
    take,
    unstack,
)
from tfcompress.channels.terms import Axis, size_of
from tfcompress.channels.weighted import Axes, Call
from tfcompress.graph.nodes import Graph
from tfcompress.kinds import JOINT, MIXING, POINTWISE, POOLING_ALL, REDUCING, SPATIAL, channel_place

if TYPE_CHECKING:
    from tfcompress.channels.following import Follower


def _elementwise(flow: Follower, call: Call) -> list[Axes]:
    rank = len(call.shapes[0])
    if any(np.ndim(getattr(call.layer, name, 0)) for name in ("scale", "offset")):  # Rescaling
        flow.fix(call.inputs[0][-1:], f"{call.source} computes with a constant for each")
    columns: list[list[Axis]] = [[] for _ in range(rank)]
    for axes in call.inputs:
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


def _spatial(flow: Follower, call: Call) -> list[Axes]:
    x, place = call.inputs[0], channel_place(call.layer)
    flow.fix(x[2:] if place == 1 else x[1:-1], f"they are positions of {call.source}")
    axes = flow.fresh(call.shapes[0], call.source)
    axes[place] = x[place]
    return [axes]


def _global(flow: Follower, call: Call) -> list[Axes]:
    if call.layer.keepdims:
        return _spatial(flow, call)
    x = call.inputs[0]
    return [[x[0], x[channel_place(call.layer)]]]


def _reduce(flow: Follower, call: Call) -> list[Axes] | None:
    x, axis = call.inputs[0], call.layer.axis
    if axis is None:
        return None
    gone = {a % len(x) for a in ([axis] if isinstance(axis, int) else axis)}
    if call.layer.keepdims:
        fresh = flow.fresh(call.shapes[0], call.source)
        return [[new if i in gone else x[i] for i, new in enumerate(fresh)]]
    return [[a for i, a in enumerate(x) if i not in gone]]


def _scanned(flow: Follower, call: Call) -> list[Axes] | None:
    """`ops.associative_scan` of a function that computes each value from those at its place."""
    if not _is_elementwise(call.node.args[0], call.node.args[1]):
        return None
    axes = _elementwise(flow, call)[0]
    flow.fix([axes[call.layer.axis]], f"they are steps of {call.source}")
    return [axes] * len(call.shapes)


def _is_elementwise(function: Any, elements: Any) -> bool:
    """Whether a function of two structures like that of some tensors is made of such operations."""
    first, second = (tree.map_structure(lambda _: keras.Input((7,)), elements) for _ in "ab")
    try:
        nodes = Graph([first, second], function(first, second)).nodes
    except Exception:
        return False
    return _all_pointwise([node.operation for node in nodes if not node.is_input])


OPERATIONS: dict[str, Callable[[Follower, Call], list[Axes] | None]] = {
    **dict.fromkeys(POINTWISE | MIXING | JOINT, _elementwise),
    **dict.fromkeys(SPATIAL, _spatial),
    **dict.fromkeys(POOLING_ALL, _global),
    **dict.fromkeys(REDUCING, _reduce),
    **dict.fromkeys(("Logsumexp", "Norm"), _reduce),
    **dict.fromkeys(("Permute", "Transpose", "Swapaxes", "Moveaxis"), permute),
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
    **dict.fromkeys(("Repeat", "Tile"), repeat),
    **dict.fromkeys(("Flip", "Roll", "Cumsum", "Cumprod", "Sort", "Argsort"), along),
    "Take": take,
    "Slice": cut_out,
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), blocks),
    "Glu": gated,
    **dict.fromkeys(PRODUCTS, product),
    "DotProductAttention": attend,
    "AssociativeScan": _scanned,
}

# Functions that make each channel of all of them, though channels stay what they are.
_MIXING = {"softmax", "log_softmax", "sparsemax"}

# Names that functions have beside those of operations.
_NAMES = {name.lower() for name in POINTWISE}
_NAMES |= {"linear", "exponential", "swish", "hardswish", "mish", "sparseplus"}
_HOMES = ("keras.", "tensorflow.", "jax.", "torch.")


def mixes_channels(operation) -> bool:
    """Whether an operation, or an activation of a layer, computes each value from several."""
    if type(operation).__name__ in MIXING:
        return True
    return not all(map(is_pointwise, _activations(operation)))


def has_clear_activations(operation) -> bool:
    """Whether each activation of a layer is known to leave channels what they are."""
    return all(_is_mixing(f) or is_pointwise(f) for f in _activations(operation))


def is_pointwise(function: Any) -> bool:
    """Whether a function is known to compute each value of its result from that value alone."""
    if isinstance(function, keras.Layer):
        return not function.weights and _all_pointwise([function])
    name = getattr(function, "__name__", "").replace("_", "").lower()
    home = getattr(function, "__module__", None) or ""
    return (home.startswith(_HOMES) and name in _NAMES) or _traces_pointwise(function)


def _is_mixing(function: Any) -> bool:
    home = getattr(function, "__module__", None) or ""
    return home.startswith("keras.") and getattr(function, "__name__", "") in _MIXING


def _activations(operation) -> list[Any]:
    if isinstance(operation, layers.Bidirectional):
        return [
            *_activations(operation.forward_layer),
            *_activations(operation.backward_layer),
        ]
    names = ("activation", "recurrent_activation")
    found = [getattr(operation, name, None) for name in names]
    return [function for function in found if callable(function)]


def _all_pointwise(operations: list[Any]) -> bool:
    kinds = {type(operation).__name__ for operation in operations}
    return kinds <= POINTWISE and not any(map(mixes_channels, operations))


def _traces_pointwise(function: Callable) -> bool:
    """Whether a user's function is made of operations that are pointwise."""
    x = keras.Input((7,))
    try:
        y = function(x)
        graph = Graph([x], y)
    except Exception:
        return False
    nodes = [node for node in graph.nodes if not node.is_input]
    leaves = tree.flatten([(node.args, node.kwargs) for node in nodes])
    constants = [leaf for leaf in leaves if not isinstance(leaf, KerasTensor)]
    plain = not any(getattr(leaf, "shape", ()) for leaf in constants)
    return plain and _all_pointwise([node.operation for node in nodes])
