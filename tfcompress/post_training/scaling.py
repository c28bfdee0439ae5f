"""Which channels of a flat model can be scaled so that it computes the same, and which alike."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from keras import KerasTensor, activations, ops, tree

from tfcompress.graph.folding import pads
from tfcompress.graph.nodes import Graph, Node, call_node, has_own_call
from tfcompress.kinds import (
    DEPTHWISE,
    FILLING,
    LINEAR,
    MOVING,
    POINTWISE,
    POOLING_ALL,
    SAME_SCALE,
    SEPARABLE,
    SPATIAL,
    TRANSPARENT,
    TRANSPOSED,
    channel_axes,
    channel_place,
    has_plain_weights,
    is_exactly,
    is_of,
)

_SCALED = LINEAR - SEPARABLE - {"EinsumDense"}
# What gives its input in inference.
PASSING = (POINTWISE & (TRANSPARENT | SAME_SCALE)) - FILLING
_POOLING = SPATIAL | POOLING_ALL
# Those of them that give a constant where all they are given is one.
_AVERAGING = {name for name in _POOLING if "Pool" in name or name.startswith(("Crop", "UpSamp"))}
# Of several tensors, scaled alike.
_JOINING = {"Add", "Subtract", "Average", "Maximum", "Minimum"}
_FUNCTIONS = {
    activations.linear: math.inf,
    activations.relu: math.inf,
    activations.leaky_relu: math.inf,
    activations.relu6: 6.0,
}


@dataclasses.dataclass
class Site:
    """A linear layer, and the numbers of the channels that it reads and gives."""

    layer: Any
    inputs: np.ndarray
    outputs: np.ndarray

    @property
    def name(self) -> str:
        return self.layer.name


def clip_of(operation: Any) -> float | None:
    """Where an operation or function that commutes with positive scales clips; None of others.

    That is infinity where it never does.
    """
    if operation in _FUNCTIONS:
        return _FUNCTIONS[operation]
    if is_exactly(operation, {"Activation"}):
        return clip_of(operation.activation)
    if is_exactly(operation, {"ReLU"}):
        limit = operation.max_value
        return None if operation.threshold else math.inf if limit is None else float(limit)
    if is_exactly(operation, {"Relu6"}):
        return 6.0
    names = {"Relu", "LeakyReLU", "LeakyRelu", "PReLU", *PASSING}
    return math.inf if is_exactly(operation, names) else None


class Scaling:
    """Channels of a flat model by numbers, and which of these have one scale.

    Each tensor has an array of numbers that broadcasts to the shape of one sample: values of one
    number are scaled alike. A channel can be scaled if a linear layer gives it, and all that comes
    before linear layers read it commutes with the scale.

    Attributes:
        sites: the linear layers, in the order of the graph.
        roots: number of a channel -> the least number that has the same scale.
        pins: (numbers, why they cannot be scaled).
        clips: identity of a node -> its name, its numbers, and the greatest value that it gives.
        fixed: numbers of which no constant can be subtracted: zeros stand beside them, say.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.sites: dict[int, Site] = {}
        self.pins: list[tuple[np.ndarray, str]] = []
        self.clips: dict[int, tuple[str, np.ndarray, float]] = {}
        self.fixed: list[np.ndarray] = []
        self._parents: list[int] = []
        self._numbers: dict[int, np.ndarray] = {}
        for node in graph.nodes:
            given = [self._numbers[id(t)] for t in node.inputs]
            made = self._through(node, given)
            for tensor, numbers in zip(node.outputs, made or self._barrier(node), strict=True):
                self._numbers[id(tensor)] = numbers
        for tensor in tree.flatten(graph.outputs):
            self.pin(self._numbers[id(tensor)], "is an output")
        self.roots = np.array([self._root(i) for i in range(len(self._parents))], int)

    def pin(self, numbers: np.ndarray, why: str) -> None:
        """Notes that channels keep their scale."""
        self.pins.append((np.unique(numbers), why))

    def free(self) -> np.ndarray:
        """Which roots can be scaled."""
        found = np.ones(len(self.roots), bool)
        for numbers, _ in self.pins:
            found[self.roots[numbers]] = False
        return found

    def shiftable(self) -> np.ndarray:
        """Which roots a constant can be taken from, that what reads them adds again."""
        found = self.free()
        for numbers in self.fixed:
            found[self.roots[numbers]] = False
        every = [self.roots[site.outputs] for site in self.sites.values()]
        counts = np.bincount(np.concatenate([*every, []]).astype(int), minlength=len(found))
        return found & (counts == 1)

    def _through(self, node: Node, given: list[np.ndarray]) -> list[np.ndarray] | None:
        """The numbers of what a node gives; None if it does not commute with scales."""
        operation = node.operation
        if is_of(operation, _SCALED):
            own = has_own_call(type(operation)) or not has_plain_weights(operation)
            return None if own else [self._linear(node, given[0])]
        if len(given) == 1 and clip_of(operation) is not None:
            return [self._clipped(node, given[0], clip_of(operation))]
        if len(given) == 1 and is_exactly(operation, _POOLING):
            filled = getattr(operation, "fill_value", 0) or getattr(operation, "constant_values", 0)
            return None if filled else [self._pooled(node, given[0])]
        if len(given) > 1 and is_exactly(operation, _JOINING):
            return self._joined(node, given)
        if is_exactly(operation, {"Concatenate"}) or (
            len(given) == 1 and is_exactly(operation, MOVING - FILLING)
        ):
            return self._moved(node, given)
        return None

    def _barrier(self, node: Node) -> list[np.ndarray]:
        """The numbers of what comes from where nothing can be scaled."""
        said = f"'{node.name}' ({type(node.operation).__name__})"
        for tensor in node.inputs:
            self.pin(self._numbers[id(tensor)], f"{said} reads it")
        found = [self._new(1).reshape((1,) * (len(t.shape) - 1)) for t in node.outputs]
        for numbers in found:
            self.pin(numbers, f"{said} gives it")
        return found

    def _linear(self, node: Node, given: np.ndarray) -> np.ndarray:
        layer = node.operation
        # Axes without the batch.
        place = channel_place(layer) % len(node.outputs[0].shape) - 1
        count = node.inputs[0].shape[place + 1]
        inputs = self._by_channel(given, place, count)
        if pads(layer):
            self.fixed.append(inputs)
        if id(layer) not in self.sites:
            shape = layer.kernel.shape
            size = math.prod(shape[axis] for axis in channel_axes(layer))
            self.sites[id(layer)] = Site(layer, inputs, self._new(size))
        else:
            self._unite(self.sites[id(layer)].inputs, inputs)
            self.fixed.append(self.sites[id(layer)].outputs)
        shape = [1] * (len(node.outputs[0].shape) - 1)
        shape[place] = -1
        numbers = self.sites[id(layer)].outputs.reshape(shape)
        limit = clip_of(layer.activation)
        if limit is None:
            self.pin(numbers, f"'{node.name}' has another activation")
            return numbers
        return self._clipped(node, numbers, limit)

    def _clipped(self, node: Node, numbers: np.ndarray, limit: float | None) -> np.ndarray:
        if limit is not None and limit < math.inf:
            self.clips[id(node)] = node.name, numbers, limit
        return numbers

    def _pooled(self, node: Node, given: np.ndarray) -> np.ndarray:
        rank = len(node.outputs[0].shape) - 1
        place = channel_place(node.operation) % (len(node.inputs[0].shape)) - 1
        numbers = self._by_channel(given, place, node.inputs[0].shape[place + 1])
        if not is_exactly(node.operation, _AVERAGING):
            self.fixed.append(numbers)
        shape = [1] * rank
        shape[place if rank == given.ndim else -1] = -1
        return numbers.reshape(shape)

    def _joined(self, node: Node, given: list[np.ndarray]) -> list[np.ndarray] | None:
        if len({len(t.shape) for t in (*node.inputs, *node.outputs)}) > 1:
            return None
        first, *others = np.broadcast_arrays(*given)
        for other in others:
            self._unite(first, other)
        self.fixed += given
        return [first]

    def _moved(self, node: Node, given: list[np.ndarray]) -> list[np.ndarray] | None:
        """The numbers of what only moves values: moved as they are."""
        found = {}
        for tensor, numbers in zip(node.inputs, given, strict=True):
            shape = [1 if size is None else size for size in tensor.shape[1:]]
            found[id(tensor)] = np.broadcast_to(numbers, shape)[None].astype("float32")
        args, kwargs = tree.map_structure(
            lambda x: found[id(x)] if isinstance(x, KerasTensor) else x, (node.args, node.kwargs)
        )
        try:
            made = [ops.convert_to_numpy(x) for x in tree.flatten(call_node(node, *args, **kwargs))]
        except Exception:  # sizes that are open
            return None
        for x, tensor in zip(made, node.outputs, strict=True):
            wanted = (1, *(1 if size is None else size for size in tensor.shape[1:]))
            if x.shape != wanted:
                return None
        return [x[0].astype(int) for x in made]

    def _by_channel(self, numbers: np.ndarray, place: int, count: int) -> np.ndarray:
        """One number for each channel; those at other places have the same scale from here on."""
        rows = np.moveaxis(numbers, place, -1).reshape(-1, numbers.shape[place])
        for row in np.unique(rows, axis=0)[1:] if len(rows) > 1 else ():
            self._unite(rows[0], row)
        return np.broadcast_to(rows[0], (count,))

    def _new(self, count: int) -> np.ndarray:
        start = len(self._parents)
        self._parents += range(start, start + count)
        return np.arange(start, start + count)

    def _unite(self, some: np.ndarray, others: np.ndarray) -> None:
        for a, b in np.unique(np.stack([some.ravel(), others.ravel()], 1), axis=0):
            a, b = self._root(a), self._root(b)
            self._parents[max(a, b)] = min(a, b)

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return int(number)


def widest(site: Site, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest absolute value that a layer's weight has for each input, and each output.

    Args:
        weight: the largest of the positions, of the last two axes of the kernel.
    """
    layer = site.layer
    if is_of(layer, DEPTHWISE):
        return weight.max(1), weight.reshape(-1)
    if is_of(layer, TRANSPOSED):
        return weight.max(0), weight.max(1)
    groups = getattr(layer, "groups", 1)
    if groups == 1:
        return weight.max(1), weight.max(0)
    each = weight.reshape(len(weight), groups, -1).max(2)
    return each.T.reshape(-1), weight.max(0)
