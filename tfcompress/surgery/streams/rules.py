"""How each kind of layer goes on frame by frame: one rule for each, in one table."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import KerasTensor, layers, tree

from tfcompress.graph.layers import FixedTraining
from tfcompress.graph.nodes import Node
from tfcompress.kinds import (
    CONVOLUTIONS,
    DEPTHWISE,
    JOINT,
    MIXING,
    NORMALIZING,
    POINTWISE,
    REDUCING,
    SEPARABLE,
    equation_of,
    is_known,
    kinds_of,
)
from tfcompress.quantization.kernels import inner_layer
from tfcompress.surgery.streams.lines import Ahead, Line
from tfcompress.surgery.streams.making import Maker
from tfcompress.surgery.streams.memories import convolution, crop, pad, pad_values, pooling
from tfcompress.surgery.streams.recurrent import integer_lstm, recurrent, stepped

# (maker, node, lines of its inputs or None of constants, args, kwargs) -> (outputs, their line)
Rule = Callable[[Maker, Node, list, tuple, dict], tuple[Any, Any]]

_WHOLE = "reads the whole window"


def rule_of(operation) -> Rule | None:
    """The rule for an operation; None if it is not known how it goes on in a stream."""
    inner = inner_layer(operation)
    if isinstance(inner, FixedTraining):
        inner = inner.layer
    if not is_known(inner):
        return None
    return next((_RULES[kind] for kind in kinds_of(inner) if kind in _RULES), None)


def alike(maker: Maker, node: Node, lines: list, args: tuple, kwargs: dict):
    """A node that computes each frame from the same frame of its inputs, and constants."""
    found = [line for line in lines if line is not None]
    if any(line.axis is None for line in found):
        raise Ahead("reads frames beside what is made of a whole window")
    ahead = _own_frames(node, found[0])
    if ahead:
        raise Ahead(ahead)
    if any(line.zeros for line in found):
        raise Ahead(
            "reads padded frames: pad right before the convolution or pooling that needs them",
            window=False,
        )
    if len({line.stride for line in found}) > 1:
        raise Ahead("reads tensors of different frames a second", window=False)
    latest = max(found, key=lambda line: line.late)
    new = []
    tensors = [x for x in tree.flatten((args, kwargs)) if isinstance(x, KerasTensor)]
    for number, (x, line) in enumerate(zip(tensors, lines, strict=True)):
        if line is not None:
            x, line = maker.delay(f"{node.name}_{number}", x, line, latest.late - line.late)
        new.append(x)
    rest = iter(new)
    args, kwargs = tree.map_structure(
        lambda x: next(rest) if isinstance(x, KerasTensor) else x, (args, kwargs)
    )
    return maker.layer(node.operation)(*args, **kwargs), latest.changed(
        axis=_axis_in(node, lines, latest)
    )


def _axis_in(node: Node, lines: list, latest: Line) -> int | None:
    """Where the frames are in the output: inputs of fewer axes are aligned at the last."""
    ranks = [
        line.axis - len(t.shape)
        for t, line in zip(node.inputs, lines, strict=True)
        if line is not None and line.axis is not None
    ]
    if len(set(ranks)) > 1:
        raise Ahead("has its frames at different axes in its inputs")
    return ranks[0] + len(node.outputs[0].shape)


def _own_frames(node: Node, line: Line) -> str | None:
    """Why a layer does not treat all frames alike; None if it does."""
    layer = inner_layer(node.operation)
    rank, axis = len(node.inputs[0].shape), line.place
    over = getattr(layer, "axis", None)
    computes = isinstance(layer, layers.Softmax | layers.BatchNormalization) or any(
        kind in NORMALIZING | MIXING | JOINT for kind in kinds_of(layer)
    )
    axes = over if isinstance(over, list | tuple) else [over]
    if computes and any(isinstance(a, int) and a % rank == axis for a in axes):
        return "computes over all frames"
    if isinstance(layer, layers.Concatenate) and layer.axis % rank == axis:
        return "puts frames behind one another"
    if isinstance(layer, layers.GroupNormalization):
        return "normalizes by the values of all frames"
    shared = getattr(layer, "shared_axes", None)
    if isinstance(layer, layers.PReLU) and axis not in (shared or ()):
        return "has a weight for each frame: pass shared_axes with the axis of the frames"
    if isinstance(layer, layers.Normalization) and axis in layer._keep_axis:
        return "has a mean for each frame"
    return None


def dense(maker: Maker, node: Node, lines: list, args: tuple, kwargs: dict):
    """A layer that multiplies the last axis alone."""
    if lines[0].axis == len(node.inputs[0].shape) - 1:
        raise Ahead("adds up all frames")
    return alike(maker, node, lines, args, kwargs)


def einsum(maker: Maker, node: Node, lines: list, args: tuple, kwargs: dict):
    """An EinsumDense whose kernel does not know frames."""
    (line,), layer = lines, inner_layer(node.operation)
    given, kernel, made = equation_of(layer)
    if "." in given:
        raise Ahead("has an equation with dots")
    letter = given[line.axis]
    if letter in kernel or letter not in made:
        raise Ahead("adds up or tells apart all frames")
    axis = made.index(letter)
    shape = node.outputs[0].shape
    fixed = [None if i == axis else size for i, size in enumerate(shape)][1:]
    twin = maker.layer(node.operation, output_shape=tuple(fixed))
    return twin(*args, **kwargs), line.changed(axis=axis)


def embedding(maker: Maker, node: Node, lines: list, args: tuple, kwargs: dict):
    """A row of a table for each number."""
    return maker.layer(node.operation)(*args, **kwargs), lines[0]


def reshape(maker: Maker, node: Node, lines: list, args: tuple, kwargs: dict):
    """A reshape that leaves the frames an axis of their own."""
    line = lines[0]
    before, after = tuple(node.inputs[0].shape), tuple(node.outputs[0].shape)
    axis = _kept_axis(before, after, line)
    shape = list(after[1:])
    shape[axis - 1] = args[0].shape[line.axis]
    y = layers.Reshape(shape, name=node.name, dtype=args[0].dtype)(args[0])
    return y, line.changed(axis=axis)


def _kept_axis(before: tuple, after: tuple, line: Line) -> int:
    sides = before[1 : line.axis], before[line.place + 1 :]
    for axis in range(1, len(after)):
        found = after[1:axis], after[axis + 1 :]
        known = after[axis] == before[line.place] and not any(None in side for side in found)
        if known and [*map(math.prod, found)] == [*map(math.prod, sides)]:
            return axis
    raise Ahead("puts all frames into one")


def transpose(maker: Maker, node: Node, lines: list, args: tuple, kwargs: dict):
    """Axes in another order."""
    order = getattr(node.operation, "dims", None)
    axes = [0, *order] if order else getattr(node.operation, "axes", None)
    rank = len(node.inputs[0].shape)
    axes = [a % rank for a in axes] if axes is not None else list(range(rank))[::-1]
    y = maker.layer(node.operation)(*args, **kwargs)
    return y, lines[0].changed(axis=axes.index(lines[0].axis))


def expand(maker: Maker, node: Node, lines: list, args: tuple, kwargs: dict):
    """A new axis of one value."""
    line, added = lines[0], node.operation.axis
    added = [added] if isinstance(added, int) else list(added)
    rank = len(node.outputs[0].shape)
    rest = [i for i in range(rank) if i not in {a % rank for a in added}]
    y = maker.layer(node.operation)(*args, **kwargs)
    return y, line.changed(axis=rest[line.axis])


def squeeze(maker: Maker, node: Node, lines: list, args: tuple, kwargs: dict):
    """An axis of one value less."""
    line, gone = lines[0], node.operation.axis
    shape = node.inputs[0].shape
    if gone is None:
        gone = [i for i, size in enumerate(shape) if size == 1]
    gone = {a % len(shape) for a in ([gone] if isinstance(gone, int) else gone)}
    if line.axis in gone:
        raise Ahead("takes the axis of the frames away")
    rest = [i for i in range(len(shape)) if i not in gone]
    return keras.ops.squeeze(args[0], tuple(gone)), line.changed(axis=rest.index(line.axis))


def reduce(maker: Maker, node: Node, lines: list, args: tuple, kwargs: dict):
    """A sum, mean or the like over other axes than that of the frames."""
    line, over = lines[0], node.operation.axis
    rank = len(node.inputs[0].shape)
    axes = set(range(rank)) if over is None else {a % rank for a in _listed(over)}
    if line.axis in axes:
        raise Ahead(_WHOLE)
    kept = range(rank) if node.operation.keepdims else [a for a in range(rank) if a not in axes]
    y = maker.layer(node.operation)(*args, **kwargs)
    return y, line.changed(axis=list(kept).index(line.axis))


def _listed(value) -> list:
    return [value] if isinstance(value, int) else list(value)


def select(maker: Maker, node: Node, lines: list, args: tuple, kwargs: dict):
    """Part of a tensor: of all frames, of later ones, or the last frame."""
    line, x = lines[0], args[0]
    key = args[1] if len(args) > 1 else kwargs["key"]
    key = key if isinstance(key, tuple) else (key,)
    if any(not isinstance(part, slice | int) for part in key):
        raise Ahead("selects by more than numbers and slices")
    if len(key) <= line.axis or key[line.axis] == slice(None):
        gone = [i for i, part in enumerate(key[: line.axis]) if isinstance(part, int)]
        return x[key], line.changed(axis=line.axis - len(gone))
    if line.zeros:
        raise Ahead("reads padded frames", window=False)
    part, before = key[line.axis], node.inputs[0].shape[line.axis]
    rest = lambda new: (*key[: line.axis], new, *key[line.axis + 1 :])  # noqa: E731
    if isinstance(part, int):
        if part != -1 and part != (before or 0) - 1:
            raise Ahead("reads one frame of the window that is not its last")
        return x[rest(-1)], line.changed(axis=None)
    start, stop, step = part.indices(before or 2**31)
    if step != 1 or (before is None and (part.start or 0) < 0):
        raise Ahead("selects frames by steps or from the end of an unknown window")
    gone = [i for i, each in enumerate(key[: line.axis]) if isinstance(each, int)]
    line = line.changed(length=before and stop - start, late=line.late + start)
    return x[rest(slice(None))], line.changed(axis=line.axis - len(gone))


def aside(maker: Maker, node: Node, lines: list, args: tuple, kwargs: dict):
    """What works along other axes than that of the frames."""
    over, rank = node.operation.axis, len(node.inputs[0].shape)
    if over is None or lines[0].axis in {a % rank for a in _listed(over)}:
        raise Ahead(_WHOLE)
    return alike(maker, node, lines, args, kwargs)


def split(maker: Maker, node: Node, lines: list, args: tuple, kwargs: dict):
    """Parts along another axis than that of the frames."""
    if node.operation.axis % len(node.inputs[0].shape) == lines[0].axis:
        raise Ahead("parts the frames of the window")
    y = maker.layer(node.operation)(*args, **kwargs)
    return y, [lines[0]] * len(node.outputs)


def matmul(maker: Maker, node: Node, lines: list, args: tuple, kwargs: dict):
    """A product of frames with a matrix of weights."""
    line, rank = lines[0], len(node.inputs[0].shape)
    if line is None or any(other is not None for other in lines[1:]) or line.axis == rank - 1:
        raise Ahead("multiplies all frames with one another")
    return alike(maker, node, lines, args, kwargs)


def distributed(maker: Maker, node: Node, lines: list, args: tuple, kwargs: dict):
    """A layer that is called with each frame."""
    if lines[0].axis != 1:
        raise Ahead("is called with parts of an axis that is not that of the frames")
    return maker.layer(node.operation)(*args, **kwargs), lines[0]


def constant(maker: Maker, node: Node, lines: list, args: tuple, kwargs: dict):
    """Weights, which need the input for its place in the graph alone."""
    return maker.layer(node.operation)(*args, **kwargs), None


def whole(why: str) -> Rule:
    """The rule of what reads a whole window."""

    def refuse(maker: Maker, node: Node, lines: list, args: tuple, kwargs: dict):
        raise Ahead(why)

    return refuse


_RULES: dict[str, Rule] = {
    **dict.fromkeys(POINTWISE | MIXING | JOINT | NORMALIZING, alike),
    **dict.fromkeys(("BatchNormalization", "PReLU", "Normalization"), alike),
    **dict.fromkeys(("Concatenate", "KeepMask", "Maximum", "Minimum"), alike),
    **dict.fromkeys(("Dense",), dense),
    **dict.fromkeys(("EinsumDense",), einsum),
    **dict.fromkeys(("Embedding", "ReversibleEmbedding"), embedding),
    **dict.fromkeys(CONVOLUTIONS | DEPTHWISE | SEPARABLE | {"Conv3D"}, convolution),
    **dict.fromkeys(
        (f"{kind}Pooling{n}D" for kind in ("Average", "Max") for n in (1, 2, 3)), pooling
    ),
    **dict.fromkeys((f"ZeroPadding{n}D" for n in (1, 2, 3)), pad),
    **dict.fromkeys((f"Cropping{n}D" for n in (1, 2, 3)), crop),
    **dict.fromkeys(("RNN", "LSTM", "GRU", "SimpleRNN", "ConvLSTM"), recurrent),
    **dict.fromkeys(("Reshape",), reshape),
    **dict.fromkeys(("Permute", "Transpose"), transpose),
    **dict.fromkeys(("ExpandDims",), expand),
    **dict.fromkeys(("Squeeze",), squeeze),
    **dict.fromkeys(("GetItem",), select),
    "Pad": pad_values,
    "Split": split,
    **dict.fromkeys(("Flip", "Cumsum", "Roll"), aside),
    "Matmul": matmul,
    **dict.fromkeys(("TimeDistributed",), distributed),
    **dict.fromkeys(REDUCING, reduce),
    **dict.fromkeys(("Parameter", "Constant"), constant),
    "Flatten": reshape,
    "StepRNN": stepped,
    "IntegerLSTM": integer_lstm,
    "Bidirectional": whole("runs backwards from the window's end"),
    **dict.fromkeys(
        (f"Global{kind}Pooling{n}D" for kind in ("Average", "Max") for n in (1, 2, 3)),
        whole(_WHOLE),
    ),
    **dict.fromkeys(
        ("MultiHeadAttention", "GroupQueryAttention", "Attention", "AdditiveAttention"),
        whole("attends to all frames"),
    ),
}
