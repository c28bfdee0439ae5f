"""Ranges that end where the readers of a tensor tell nothing apart, while it is trained.

A mask of -1e9 or a padding by the lowest float would take all steps of a range. What reads such
tensors does not look beyond some value: a softmax gives 0 for scores far below the greatest of
their row, a maximum is never one of its lowest inputs. So a range is observed, or cut, down to
there; values beyond saturate, in Keras as in the file. Readers are found in the Functional model
that a quantizer is part of.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import layers, ops, tree

from tfcompress.graph.nodes import Graph, Node, as_node
from tfcompress.kinds import KEEPING, ROUNDING

# How far below the greatest score of a row exp is nothing, even for the sum of a long row; and
# where a sigmoid or an exp is less than half a step.
SOFTMAX_DEPTH = {8: 12.0, 16: 16.0}
DEPTH = {8: 8.0, 16: 12.0}

# Softmax inputs up to so wide a range are fine as they are.
PLAIN_WIDTH = 32.0

# Below the greatest of all scores: a row that does not come up to it is masked as a whole.
MASKED = 500.0

# From where to where functions tell values apart, by how deep they are read.
CURVES: dict[str, Callable[[float], tuple[float, float]]] = {
    "sigmoid": lambda depth: (-depth, depth),
    "tanh": lambda depth: (-depth / 2, depth / 2),
    "gelu": lambda depth: (-depth, math.inf),
    "elu": lambda depth: (-depth, math.inf),
    "hardsilu": lambda depth: (-3.0, math.inf),
    "relu": lambda depth: (0.0, math.inf),
    "relu6": lambda depth: (0.0, 6.0),
}

# Constants from which on an operand may be a mask.
_LARGE = 30.0

# As good as infinite, and a number in every file.
_GREATEST = 1e36

# The size from which on a number is a mask, and no value of a kind that others may have, too.
MASK = 1e4

_SUMS, _CHOICES = ("Add", "Subtract"), ("Where", "Maximum", "Minimum")
_FACTORS = ("Multiply", "Divide", "TrueDivide")
_TOPS = set("Max Amax MaxPool GlobalMaxPooling1D GlobalMaxPooling2D".split()) | {
    f"MaxPooling{rank}D" for rank in (1, 2, 3)
}
_KEEPING = (KEEPING | {"Cast"}) - ROUNDING - _TOPS


class Extremes:
    """In which tensors of a graph masks are, and whose readers look no further than some value."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self._tensors = {id(t): t for node in graph.nodes for t in node.outputs}
        self._bounded: dict[int, bool] = {}
        self._sizes: dict[int, float] = {}
        for node in graph.nodes:
            name = _name(node.operation)
            if name == "Log":  # of 0, as of a mask
                self._sizes.update({id(t): MASK for t in node.outputs})
            if node.is_input or name not in {*_SUMS, *_CHOICES, *_FACTORS, *_KEEPING}:
                continue
            if name in _SUMS:
                self._sizes.update({id(t): MASK for t in self._given(node)})
            sizes = [self._sizes[id(t)] for t in node.inputs if id(t) in self._sizes]
            if name not in _KEEPING or name == "Pad":
                leaves = tree.flatten((node.args, node.kwargs))
                sizes += [size for x in leaves if (size := _size_of(x))]
            if sizes:
                self._sizes.update({id(t): min(sizes) for t in node.outputs})

    def of(self, keys: list[int]) -> list[float | None] | None:
        """For tensors that share a range: the size of the least constant that came into each.

        0 where none did; None where something looks at all of its values. None if no masks matter.
        """
        bounded = [self._is_bounded(self._tensors[key]) for key in keys]
        sizes = [self._sizes.get(k, 0.0) if b else None for k, b in zip(keys, bounded, strict=True)]
        return sizes if any(sizes) else None

    def _given(self, node: Node) -> Iterator[Any]:
        """The floats that a node reads as the model is given them: any of them may be a mask."""
        for tensor in node.inputs:
            chain = [tensor]
            while (maker := self.graph.producer(chain[-1])) and _keeps(maker):
                chain.append(maker.inputs[0])
            if maker is not None and maker.is_input and "float" in str(chain[-1].dtype):
                yield from chain

    def _is_bounded(self, tensor) -> bool:
        """Whether all that read a tensor look no further than some value."""
        if id(tensor) not in self._bounded:
            nodes = self.graph.consumers(tensor)
            self._bounded[id(tensor)] = (
                bool(nodes)
                and not self.graph.is_output(tensor)
                and all(
                    _ends(node)
                    or (_hands_on(node, tensor) and all(map(self._is_bounded, node.outputs)))
                    for node in nodes
                )
            )
        return self._bounded[id(tensor)]


def _keeps(node: Node) -> bool:
    return _name(node.operation) in _KEEPING and bool(node.inputs)


def _size_of(x) -> float:
    """The size of a constant's greatest value if that may be a mask, 0 if not."""
    if isinstance(x, keras.KerasTensor | str | bool | type(None)):
        return 0.0
    values = np.asarray(x)
    if values.dtype.kind not in "fiu" or not values.size:
        return 0.0
    most = float(np.abs(values.astype("float64")).max())
    return min(most, _GREATEST) if most >= _LARGE else 0.0


def _name(operation) -> str:
    """The name of what an operation computes, such as "Add" or "softmax"."""
    if isinstance(operation, layers.Activation):
        operation = operation.activation
        return getattr(operation, "__name__", type(operation).__name__).replace("_", "")
    name = type(operation).__name__
    plain = name.lower()
    return plain if plain in CURVES or plain in ("softmax", "exp") else name


def _ends(node: Node) -> bool:
    """Whether a node looks no further than some value of what it reads."""
    name = _name(node.operation)
    limited = isinstance(node.operation, layers.ReLU)  # one of its own kind
    return name in _TOPS or name in ("softmax", "exp") or (name in CURVES and not limited)


def _hands_on(node: Node, tensor) -> bool:
    """Whether it depends on the readers of a node's output how far it looks."""
    name = _name(node.operation)
    if name == "Where":
        return _operands(node)[0] is not tensor
    if name in _FACTORS:
        first, second = (*_operands(node), None)[:2]
        return first is tensor and second is not None and _factor(second) is not None
    return name in {*_SUMS, *_CHOICES, *_KEEPING}


def _operands(node: Node) -> list:
    return tree.flatten(node.args)


def _factor(x) -> float | None:
    """A number that is multiplied with; None if there are several, or it is a mask itself."""
    if isinstance(x, keras.KerasTensor) or np.size(x) != 1:
        return None
    value = float(np.asarray(x).ravel()[0])
    return value if 0.0 < abs(value) < MASK else None


@dataclasses.dataclass
class Reader:
    """What a tensor is read by in the end.

    Attributes:
        node: it.
        tensor: what it reads.
        path: what moves the values on the way there, in order; None if others join them there.
    """

    node: Node
    tensor: Any
    path: tuple[tuple[Node, Any], ...] | None


def _readers(quantizer, tensor, path=()) -> Iterator[Reader]:
    for node in _consumers(tensor):
        if node.operation is quantizer:  # another row of it
            yield from _readers(quantizer, node.outputs[0], path)
        elif _ends(node):
            yield Reader(node, tensor, path)
        elif _hands_on(node, tensor):
            after = _quantizer_after(node.outputs[0])
            if after is not None and after is not quantizer:
                yield Reader(node, tensor, path)
                continue
            alone = len(node.inputs) == 1 and path is not None
            for output in node.outputs:
                further = (*path, (node, output)) if alone else None
                yield from _readers(quantizer, output, further)


def _consumers(tensor) -> list[Node]:
    nodes = tensor._keras_history.operation._outbound_nodes
    found = {id(n): n for n in nodes if any(t is tensor for t in n.input_tensors)}
    return [as_node(n) for n in found.values()]


def _quantizer_after(tensor):
    return next((n.operation for n in _consumers(tensor) if hasattr(n.operation, "limits")), None)


def _quantizer_before(tensor):
    history = tensor._keras_history
    operation = history.operation
    while not hasattr(operation, "limits"):
        inputs = operation._inbound_nodes[history.node_index].input_tensors
        if _name(operation) not in _KEEPING or not inputs:
            return None
        history = inputs[0]._keras_history
        operation = history.operation
    return operation


def cut(quantizer, low, high):
    """A range, cut where none of the readers that have ranges of their own looks any further.

    (0, 0), as of one that was never observed, where one of theirs was not.
    """
    if None in quantizer.extremes:
        return low, high
    rows = [node.outputs[0] for node in quantizer._inbound_nodes]
    readers = [reader for tensor in rows for reader in _readers(quantizer, tensor)]
    if not readers or any(map(_is_top, readers)):
        return low, high
    spans = [_span(quantizer, reader) for reader in readers]
    known = functools.reduce(ops.logical_and, [span[2] for span in spans])
    least = ops.minimum(functools.reduce(ops.minimum, [span[0] for span in spans]), 0.0)
    most = ops.maximum(functools.reduce(ops.maximum, [span[1] for span in spans]), 0.0)
    least, most = ops.maximum(low, least), ops.minimum(high, most)
    width = most - least  # as much beyond is worth a bit
    least = ops.where(least - low > width, least, low)
    most = ops.where(high - most > width, most, high)
    return ops.where(known, least, 0.0), ops.where(known, most, 0.0)


def _is_top(reader: Reader) -> bool:
    """Whether a reader looks at the greatest of some values, and so far below."""
    name = _name(reader.node.operation)
    return name == "softmax" or name in _TOPS or _is_centering(reader)


def _is_centering(reader: Reader) -> bool:
    """Whether a reader subtracts the maximum, as a softmax does that is written by hand."""
    operands = _operands(reader.node)
    if _name(reader.node.operation) != "Subtract" or operands[0] is not reader.tensor:
        return False
    history = getattr(operands[1], "_keras_history", None)
    if history is None or _name(history.operation) not in ("Max", "Amax"):
        return False
    return history.operation._inbound_nodes[history.node_index].input_tensors[0] is reader.tensor


def _span(quantizer, reader: Reader) -> tuple:
    """From where to where a reader looks, and whether that is known: numbers or scalars."""
    node, depth = reader.node, DEPTH[quantizer.bits]
    name = _name(node.operation)
    if name in CURVES:
        return *CURVES[name](depth), True
    after = _quantizer_after(node.outputs[0])
    if after is None:
        return -math.inf, math.inf, True
    low, high = after.limits()
    known = ops.convert_to_tensor(high > low)
    if name == "exp":
        top = ops.log(ops.where(high > 0.0, high, 1.0))
        return top - depth, math.inf, known
    operands = _operands(node)
    if name in _SUMS:
        first = operands[0] is reader.tensor
        least, most = _range_of(operands[1 if first else 0])
        if name == "Add":
            low, high = low - most, high - least
        elif first:
            low, high = low + least, high + most
        else:
            low, high = least - high, most - low
    elif name in _FACTORS:
        factor = _factor(operands[1]) or 1.0
        factor = factor if name == "Multiply" else 1.0 / factor
        low, high = (low / factor, high / factor)[:: 1 if factor > 0 else -1]
    return low, high, known


def _range_of(x) -> tuple:
    """The values that an operand may have, its range before it is cut."""
    if not isinstance(x, keras.KerasTensor):
        values = np.asarray(x)
        return float(values.min()), float(values.max())
    quantizer = _quantizer_before(x)
    return (-math.inf, math.inf) if quantizer is None else quantizer.union()


def least_seen(quantizer, source: int, x, low, high):
    """How low the values of a tensor are that readers tell apart, if they look for the greatest."""
    found, size = [], quantizer.extremes[source]
    if size is None:
        return low
    tensor = next((n.outputs[0] for n in quantizer._inbound_nodes if _source(n) == source), None)
    readers = [] if tensor is None else list(_readers(quantizer, tensor))
    if not any(map(_is_top, readers)):
        return low
    for reader in readers:
        if not _is_top(reader):
            least, _, known = _span(quantizer, reader)
            found.append(ops.where(known, least, low))
            continue
        view = _moved(x, reader)
        name = _name(reader.node.operation)
        if name in _TOPS:
            tops = view if reader.path is None else reader.node.operation(view)
            hidden = size / 2 if size >= MASK else math.inf
            found.append(ops.min(ops.where(tops > -hidden, tops, 0.0)))
            continue
        tops = view if reader.path is None else ops.max(view, axis=_axis(reader))
        greatest = ops.maximum(ops.max(tops), -MASK)
        least = ops.min(ops.where(tops > greatest - MASKED, tops, greatest))
        depth = least - SOFTMAX_DEPTH[quantizer.bits]
        found.append(ops.where(high - low > PLAIN_WIDTH, depth, low))
    least = functools.reduce(ops.minimum, found)
    return ops.maximum(low, ops.cast(least, low.dtype))


def _source(node) -> int:
    arguments = node.arguments
    return arguments.kwargs.get("source", (*arguments.args, 0, 0)[1])


def _moved(x, reader: Reader):
    """The values as a reader gets them."""
    for node, before in reader.path or ():
        leaves = tree.flatten((node.args, node.kwargs))
        leaves = [x if isinstance(leaf, keras.KerasTensor) else leaf for leaf in leaves]
        args, kwargs = tree.pack_sequence_as((node.args, node.kwargs), leaves)
        outputs = tree.flatten(node.operation(*args, **kwargs))
        x = outputs[next(i for i, t in enumerate(node.outputs) if t is before)]
    return x


def _axis(reader: Reader):
    operation = reader.node.operation
    if _is_centering(reader):
        operation = _operands(reader.node)[1]._keras_history.operation
    axis = getattr(operation, "axis", -1)
    return tuple(axis) if isinstance(axis, list) else axis
