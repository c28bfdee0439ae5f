"""Where channels go in operations that move and join axes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from keras import KerasTensor, tree

from tfcompress.channels.terms import Axis, Concat, Leaf, Product, size_of
from tfcompress.channels.weighted import Axes, Call

if TYPE_CHECKING:
    from tfcompress.channels.following import Follower


def filled(flow: Follower, call: Call, axes: Axes) -> Axes:
    """Unknown axes after the batch get groups of their own."""
    fresh = flow.fresh(call.shapes[0], call.source)
    return [new if axis is None else axis for axis, new in zip(axes, fresh, strict=True)]


def flatten(flow: Follower, call: Call) -> list[Axes]:
    x = call.inputs[0]
    if call.layer.data_format == "channels_first":
        x = [x[0], *x[2:], x[1]]
    return [_regrouped(flow, call, x)]


def reshape(flow: Follower, call: Call) -> list[Axes]:
    return [_regrouped(flow, call, call.inputs[0])]


def _regrouped(flow: Follower, call: Call, x: Axes) -> Axes:
    """The axes of a reshaped tensor, made of the factors of the ones that it had."""
    shape = call.shapes[0]
    factors, first = _factors(flow, x, shape)
    out: list[list[Axis]] = []
    for size in shape[first:] if factors is not None else ():
        taken = _take(flow, call, factors or [], size or 1)
        if taken is None:
            factors = None
            break
        out.append(taken)
    fresh = flow.fresh(shape, call.source)
    if factors is None:
        flow.fix(x, f"{call.source} arranges them anew")
        return fresh
    if out and out[-1]:
        out[-1] += factors  # of size 1
    pairs = zip(out, fresh[first:], strict=True)
    made = (Product(tuple(taken)) if taken else new for taken, new in pairs)
    return [*[None] * first, *made]


def _factors(
    flow: Follower, x: Axes, shape: tuple[int | None, ...]
) -> tuple[list[Axis] | None, int]:
    """What is arranged anew; and how many axes before it, whose sizes are open, stay.

    None in place of the factors if the sizes do not tell.
    """
    first, most = 0, min(len(x), len(shape))
    while first < most and x[first] is None and shape[first] is None:
        first += 1
    axes = [axis for axis in x[first:] if axis is not None]
    sizes = [size for size in shape[first:] if size is not None]
    open_axes = len(axes) + first < len(x) or len(sizes) + first < len(shape)
    if not first or open_axes or math.prod(map(size_of, axes)) != math.prod(sizes):
        return None, first
    factors: list[Axis] = []
    for axis in map(flow.channels.resolve, axes):
        factors += axis.parts if isinstance(axis, Product) else [axis]
    return factors, first


def _take(flow: Follower, call: Call, factors: list[Axis], size: int) -> list[Axis] | None:
    """Takes factors of a size off the front of a list; splits the last if need be."""
    taken: list[Axis] = []
    if size == 1 and not (factors and isinstance(flow.channels.resolve(factors[0]), Leaf)):
        return taken
    while size > 1 or not taken:
        axis = flow.channels.resolve(factors.pop(0)) if factors else None
        if axis is None:
            return None
        whole = size_of(axis)
        if size % whole == 0:
            taken.append(axis)
            size //= whole
            continue
        if whole % size or not isinstance(axis, Leaf):
            return None
        pieces = [flow.channels.new(n, call.source) for n in (size, whole // size)]
        flow.same(axis, Product(tuple(pieces)))
        taken.append(pieces[0])
        factors.insert(0, pieces[1])
        size = 1
    return taken


def permute(flow: Follower, call: Call) -> list[Axes]:
    x, layer = call.inputs[0], call.layer
    kind, order = type(layer).__name__, list(range(len(call.inputs[0])))
    if kind == "Permute":
        order = [0, *layer.dims]
    elif kind == "Transpose":
        order = list(layer.axes) if layer.axes is not None else order[::-1]
    elif kind == "Swapaxes":
        a, b = layer.axis1, layer.axis2
        order[a], order[b] = order[b], order[a]
    elif kind == "Moveaxis":
        numbers = np.empty(range(len(x)))  # whose shape tells where each axis goes
        order = list(np.moveaxis(numbers, layer.source, layer.destination).shape)
    return [[x[i] for i in order]]


def expand(flow: Follower, call: Call) -> list[Axes] | None:
    axis = call.layer.axis
    if not isinstance(axis, int):
        return None
    x, place = list(call.inputs[0]), axis % len(call.shapes[0])
    return [[*x[:place], flow.channels.new(1, call.source), *x[place:]]]


def squeeze(flow: Follower, call: Call) -> list[Axes]:
    x, axis = call.inputs[0], call.layer.axis
    wanted = [axis] if isinstance(axis, int) else axis
    gone = {a % len(x) for a in wanted} if wanted is not None else _ones(x)
    return [[a for i, a in enumerate(x) if i not in gone]]


def _ones(x: Axes) -> set[int]:
    return {i for i, axis in enumerate(x) if axis is not None and size_of(axis) == 1}


def align_right(flow: Follower, call: Call) -> list[Axes]:
    """A tensor that is repeated along new axes, or along ones of size 1."""
    shape, x = call.shapes[0], call.inputs[0]
    padded: Axes = [*[None] * (len(shape) - len(x)), *x]
    pairs = zip(padded, shape, strict=True)
    same = [a if a is not None and size_of(a) == size else None for a, size in pairs]
    return [filled(flow, call, same)]


def repeat(flow: Follower, call: Call) -> list[Axes] | None:
    """Each value several times, or all of them one after the other."""
    x, layer = call.inputs[0], call.layer
    given, tiles = layer.repeats, type(layer).__name__ == "Tile"
    if tiles:
        times = [given] if isinstance(given, int) else list(given)
        times = [*[1] * (len(x) - len(times)), *times]
    elif isinstance(layer.axis, int) and np.size(given) == 1:
        times = [1] * len(x)
        times[layer.axis] = int(np.ravel(given)[0])
    else:
        return None
    if len(times) > len(x):
        return None
    out: Axes = []
    for axis, count in zip(x, times, strict=True):
        many = flow.channels.new(count, call.source)
        if count > 1 and axis is not None:
            flow.fix([many], f"they are repetitions of {call.source}")
            axis = Product((many, axis) if tiles else (axis, many))
        out.append(axis)
    return [out]


def along(flow: Follower, call: Call) -> list[Axes] | None:
    """An operation that takes the places along one or some axes by their numbers."""
    x, axis = call.inputs[0], getattr(call.layer, "axis", None)
    if axis is None:
        return None
    numbered = {a % len(x) for a in np.ravel(axis).tolist()}
    flow.fix([x[a] for a in numbered], f"{call.source} takes them by their numbers")
    fresh = flow.fresh(call.shapes[0], call.source)
    return [[fresh[i] if i in numbered else a for i, a in enumerate(x)] for _ in call.shapes]


def take(flow: Follower, call: Call) -> list[Axes] | None:
    x, indices = call.given["x"], call.given["indices"]
    if call.layer.axis is None or not isinstance(x, KerasTensor):
        return None
    x = flow.axes_of(x)
    axis = call.layer.axis % len(x)
    flow.fix([x[axis]], f"{call.source} takes them by their numbers")
    is_tensor = isinstance(indices, KerasTensor)
    places = flow.axes_of(indices) if is_tensor else [None] * np.ndim(indices)
    return [filled(flow, call, [*x[:axis], *places, *x[axis + 1 :]])]


def cut_out(flow: Follower, call: Call) -> list[Axes] | None:
    """`ops.slice`."""
    starts = call.given["start_indices"]
    if len(call.inputs) > 1 or isinstance(starts, KerasTensor):
        return None
    out: Axes = []
    for axis, start, count in zip(call.inputs[0], starts, call.layer.shape, strict=True):
        bounds = slice(int(start), None if count == -1 else int(start) + count)
        whole = axis is None or bounds.indices(size_of(axis)) == (0, size_of(axis), 1)
        out.append(axis if whole else _sliced(flow, call, axis, bounds))
    return [out]


def blocks(flow: Follower, call: Call) -> list[Axes]:
    """Blocks of positions from channels, or channels from blocks of positions."""
    x, layer = call.inputs[0], call.layer
    place = 1 if layer.data_format == "channels_first" else len(x) - 1
    into, many = x[place], flow.channels.new(layer.block_size**2, call.source)
    flow.fix([many], f"they are places of the blocks of {call.source}")
    flow.fix([a for i, a in enumerate(x) if i != place], f"they are positions of {call.source}")
    out = flow.fresh(call.shapes[0], call.source)
    if into is not None and type(layer).__name__ == "DepthToSpace":
        out[place] = inner = flow.channels.new(size_of(into) // layer.block_size**2, call.source)
        flow.same(into, Product((many, inner)))
    elif into is not None:
        out[place] = Product((many, into))
    return [out]


def repeat_vector(flow: Follower, call: Call) -> list[Axes]:
    x, times = call.inputs[0], flow.channels.new(call.layer.n, call.source)
    flow.fix([times], f"they are repetitions of {call.source}")
    return [[x[0], times, x[1]]]


def concatenate(flow: Follower, call: Call) -> list[Axes]:
    axis = call.layer.axis % len(call.shapes[0])
    parts = [axes[axis] for axes in call.inputs]
    out: Axes = []
    for place in range(len(call.shapes[0])):
        column = [axes[place] for axes in call.inputs]
        if place != axis:
            for other in column[1:]:
                flow.same(column[0], other)
        out.append(column[0])
    known = [part for part in parts if part is not None]
    out[axis] = Concat(tuple(known)) if len(known) == len(parts) else None
    return [out]


def pad(flow: Follower, call: Call) -> list[Axes]:
    x, widths = call.inputs[0], list(call.layer.pad_width)
    widths = widths * len(x) if len(widths) == 1 else widths
    out = flow.fresh(call.shapes[0], call.source)
    for place, (axis, (before, after)) in enumerate(zip(x, widths, strict=True)):
        if axis is None:
            continue
        if before == after == 0:
            out[place] = axis
        elif call.layer.mode == "constant":
            ends = [flow.channels.new(n, call.source) if n else None for n in (before, after)]
            flow.fix(ends, f"they are what {call.source} adds")
            out[place] = Concat(tuple(p for p in (ends[0], axis, ends[1]) if p is not None))
        else:
            flow.fix([axis], f"{call.source} repeats some of them")
    return [out]


def split(flow: Follower, call: Call) -> list[Axes] | None:
    x, axis = call.inputs[0], call.layer.axis % len(call.inputs[0])
    sizes = [shape[axis] for shape in call.shapes]
    if x[axis] is None or None in sizes:
        return None
    parts = flow.channels.split(x[axis], [n for n in sizes if n is not None], call.source)
    # Without parts, what comes out is not known, and all that goes in stays.
    return [[*x[:axis], part, *x[axis + 1 :]] for part in parts] if parts else None


def get_item(flow: Follower, call: Call) -> list[Axes] | None:
    if _is_zeroed(flow, call):
        return None
    given = [*call.node.args[1:], *call.node.kwargs.values()]
    key = given[0] if isinstance(given[0], tuple | list) else (given[0],)
    x = call.inputs[0]
    out: Axes = []
    if Ellipsis in key:
        at = list(key).index(Ellipsis)
        left = len(x) - sum(part is not None for part in key) + 1
        key = (*key[:at], *[slice(None)] * left, *key[at + 1 :])
    rest = list(x)
    for part in key:
        if part is None:
            out.append(flow.channels.new(1, call.source))
        elif isinstance(part, slice):
            out.append(_sliced(flow, call, rest.pop(0), part))
        elif isinstance(part, int):
            flow.fix([rest.pop(0)], f"{call.source} takes one of them by its number")
        else:
            return None
    return [[*out, *rest]]


def _is_zeroed(flow: Follower, call: Call) -> bool:
    """Whether only the shape of a result is used: it is multiplied by zeros."""
    readers = flow.graph.consumers(call.node.outputs[0])
    leaves = [tree.flatten((node.args, node.kwargs)) for node in readers]
    arrays = [[x for x in found if hasattr(x, "shape")] for found in leaves]
    zeros = [any(not isinstance(x, KerasTensor) and not np.any(x) for x in each) for each in arrays]
    kinds = {type(node.operation).__name__ for node in readers}
    return kinds == {"Multiply"} and all(zeros)


def _sliced(flow: Follower, call: Call, axis: Axis | None, bounds: slice) -> Axis | None:
    if axis is None or bounds == slice(None):
        return axis
    start, stop, step = bounds.indices(size_of(axis))
    if step != 1 or stop <= start:
        flow.fix([axis], f"{call.source} takes some of them by their numbers")
        return None
    sizes = [start, stop - start, size_of(axis) - stop]
    found = flow.channels.split(axis, [n for n in sizes if n], call.source)
    if found:
        return found[1 if start else 0]
    part = flow.channels.new(stop - start, call.source)
    flow.fix([axis, part], f"{call.source} takes some of them by their numbers")
    return part


def gated(flow: Follower, call: Call) -> list[Axes] | None:
    """The first half of an axis, times a function of the second."""
    x, axis = call.inputs[0], call.layer.axis % len(call.inputs[0])
    half = x[axis] and size_of(x[axis]) // 2
    parts = flow.channels.split(x[axis], [half, half], call.source) if half else None
    if not parts:
        return None
    flow.same(*parts)
    return [[*x[:axis], parts[0], *x[axis + 1 :]]]


def stack(flow: Follower, call: Call) -> list[Axes] | None:
    first, place = call.inputs[0], call.layer.axis % len(call.shapes[0])
    if len(call.inputs) != call.shapes[0][place]:
        return None  # the others are constants
    for axes in call.inputs[1:]:
        for pair in zip(first, axes, strict=True):
            flow.same(*pair)
    many = flow.channels.new(len(call.inputs), call.source)
    flow.fix([many], f"they are the tensors of {call.source}")
    return [[*first[:place], many, *first[place:]]]


def unstack(flow: Follower, call: Call) -> list[Axes]:
    x, axis = call.inputs[0], call.layer.axis % len(call.inputs[0])
    flow.fix([x[axis]], f"{call.source} takes each of them by its number")
    return [[a for i, a in enumerate(x) if i != axis] for _ in call.shapes]
