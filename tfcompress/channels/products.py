"""Where channels go in sums of products of tensors."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import KerasTensor, tree

from tfcompress.channels.shapes import filled
from tfcompress.channels.terms import size_of
from tfcompress.channels.weighted import Axes, Call
from tfcompress.graph.nodes import Node

if TYPE_CHECKING:
    from tfcompress.channels.following import Follower

PRODUCTS = frozenset(("Matmul", "Einsum", "Dot", "Tensordot"))


def product_of(node: Node) -> tuple[list[Any], list[str], str] | None:
    """What an operation multiplies and adds up: (operands, labels of their axes, of the result's).

    Returns None if its axes are not told by labels. What is not among those of the result is added
    up, as in `ops.einsum`.
    """
    leaves = tree.flatten((node.args, node.kwargs))
    operands = [x for x in leaves if isinstance(x, KerasTensor) or np.ndim(x) > 0]
    ranks, kind = [len(x.shape) for x in operands], type(node.operation).__name__
    found = None
    if kind == "Einsum":
        found = _einsum(node.operation.subscripts, ranks)
    elif len(operands) == 2 and min(ranks) > 0:
        found = _BINARY[kind](node.operation, *ranks)
    if found is None or any(len(set(own)) < len(own) for own in (*found[0], found[1])):
        return None
    fits = list(map(len, found[0])) == ranks and len(found[1]) == len(node.outputs[0].shape)
    return (operands, *found) if fits else None


def _einsum(subscripts: str, ranks: list[int]) -> tuple[list[str], str] | None:
    left, arrow, result = subscripts.replace(" ", "").partition("->")
    labels = left.split(",")
    if not arrow or len(labels) != len(ranks):
        return None
    found = []
    for own, rank in zip(labels, ranks, strict=True):
        extra = rank - len(own.replace("...", ""))
        found.append(own.replace("...", "0123456789"[10 - extra :] if extra else ""))
    dots = max((x for x in map(_digits, found)), key=len)
    return found, result.replace("...", dots)


def _digits(labels: str) -> str:
    return "".join(x for x in labels if x.isdigit())


def _matmul(operation, a: int, b: int) -> tuple[list[str], str] | None:
    if min(a, b) < 2:
        return None
    batch = string.ascii_letters[: max(a, b) - 2]
    own = [batch[len(batch) - (rank - 2) :] for rank in (a, b)]
    return [f"{own[0]}YX", f"{own[1]}XZ"], f"{batch}YZ"


def _dot(operation, a: int, b: int) -> tuple[list[str], str] | None:
    ours, theirs = string.ascii_lowercase[:a], string.ascii_uppercase[:b]
    if isinstance(operation, keras.Layer):
        axes = operation.axes
        places = [axes] * 2 if isinstance(axes, int) else list(axes)
        theirs = ours[0] + theirs[1:]  # the batch
        return _summed(ours, theirs, [places[0] % a], [places[1] % b], batched=True)
    return _summed(ours, theirs, [a - 1], [b - 2]) if b > 1 else None


def _tensordot(operation, a: int, b: int) -> tuple[list[str], str] | None:
    ours, theirs, axes = string.ascii_lowercase[:a], string.ascii_uppercase[:b], operation.axes
    pairs = [range(a - axes, a), range(axes)] if isinstance(axes, int) else axes
    places = [np.ravel(list(np.atleast_1d(each))).tolist() for each in pairs]
    return _summed(ours, theirs, [i % a for i in places[0]], [i % b for i in places[1]])


def _summed(ours: str, theirs: str, left, right, batched: bool = False) -> tuple[list[str], str]:
    """Labels of two operands of which some axes are added up, pair by pair."""
    twins = {theirs[k]: ours[i] for i, k in zip(left, right, strict=True)}
    result = [x for i, x in enumerate(ours) if i not in left]
    result += [x for k, x in enumerate(theirs) if k not in right and not (batched and k == 0)]
    if batched and len(result) == 1:  # Keras leaves an axis beside the batch
        return [ours, "".join(twins.get(x, x) for x in theirs)], f"{result[0]}1"
    return [ours, "".join(twins.get(x, x) for x in theirs)], "".join(result)


_BINARY = {"Matmul": _matmul, "Dot": _dot, "Tensordot": _tensordot}


def product(flow: Follower, call: Call) -> list[Axes] | None:
    found = product_of(call.node)
    if found is None:
        return None
    operands, labels, result = found
    out: dict[str, Any] = {}
    sizes = dict(zip(result, call.shapes[0], strict=True))
    for x, own in zip(operands, labels, strict=True):
        axes = (
            flow.axes_of(x) if isinstance(x, KerasTensor) else flow.constant(x.shape, call.source)
        )
        for label, axis in zip(own, axes, strict=True):
            if axis is None or (size_of(axis) == 1 and sizes.get(label) != 1):
                continue  # which is repeated
            if label in out and size_of(out[label]) == size_of(axis):
                flow.same(out[label], axis)
            out.setdefault(label, axis)
    return [filled(flow, call, [out.get(label) for label in result])]


def attend(flow: Follower, call: Call) -> list[Axes] | None:
    """`ops.dot_product_attention` of (batch, length, heads, size) tensors."""
    query, key, value = (flow.axes_of(call.given[name]) for name in ("query", "key", "value"))
    for axes in call.inputs:
        flow.fix([axes[1], axes[-1]], f"{call.source} divides by the root of their number")
    heads = [axes[2] for axes in (query, key, value)]
    if len({axis and size_of(axis) for axis in heads}) > 1 or len(call.inputs) > 3:
        return None
    for axis in heads[1:]:
        flow.same(heads[0], axis)
    return [[*query[:3], value[-1]]]
