"""remove_dead_channels: channels without any effect are removed, and the outputs stay the same."""

from __future__ import annotations

from collections.abc import Iterator

import keras
import numpy as np
from keras import KerasTensor, layers, ops

from tfcompress.channels.following import unwrapped
from tfcompress.channels.operations import mixes_channels
from tfcompress.channels.products import PRODUCTS, product_of
from tfcompress.channels.terms import leaves_of, places
from tfcompress.graph.layers import Parameter
from tfcompress.graph.nodes import Node, tensors_in
from tfcompress.kinds import (
    JOINT,
    MOVING,
    NORMALIZING,
    POOLING_ALL,
    REDUCING,
    channel_place,
    is_of,
)
from tfcompress.surgery.base import opened, with_report
from tfcompress.surgery.pruning.groups import ChannelGroup, Choice, Member, Structure
from tfcompress.surgery.pruning.prune_channels import report_of
from tfcompress.surgery.pruning.resizing import resized
from tfcompress.surgery.pruning.supports import leads_back, supports_of

# What is zero adds nothing to them.
_EXACT = PRODUCTS | {"Sum", "Any"} | JOINT


def remove_dead_channels(model: keras.Model) -> keras.Model:
    """A smaller copy of a model that computes the same: channels without effect are removed.

    A channel has no effect if everything that reads it finds zero there, whatever the input is, or
    multiplies it by zero; zeros are followed from the weights through the model. So are the
    channels that `ChannelPruning` or the patterns "filters" and "channels" of `Prune` leave at
    zero, together with their BatchNormalization. Where a zero counts, as in the mean that
    LayerNormalization takes over channels, it stays. One channel of each layer always stays.

    Args:
        model: any built Keras 3 model that `flatten` takes; it is left untouched.

    Returns:
        A flat Functional `keras.Model`, not compiled, whose outputs in inference equal the model's
        up to rounding. `surgery_report` tells what was removed.

    Raises:
        TypeError: the model is not a Keras 3 model.
        ValueError: the model is not built, or is wrapped by `compress`.

    Example:
        >>> model.fit(x, y, callbacks=[ChannelPruning(macs=0.5)])  # doctest: +SKIP
        >>> small = remove_dead_channels(model)  # doctest: +SKIP
    """
    structure = Structure(opened(model))
    choice = alive_channels(structure)
    return with_report(
        resized(structure, choice), report_of("remove_dead_channels", structure, choice)
    )


def alive_channels(structure: Structure) -> Choice:
    """The channels that have an effect, of each group with some that have none.

    Returns {name of a group: sorted indices}.
    """
    prunable = structure.prunable()
    if not prunable:
        return {}
    reader = _Reader(structure)
    for node in reader.nodes():
        reader.visit(node)
    choice = {}
    for name, group in prunable.items():
        alive = np.flatnonzero(~reader.unread[structure.numbers[name]])
        if len(alive) < group.size:
            choice[name] = alive if len(alive) else np.array([0])
    return choice


class _Reader:
    """Finds the channels that no node of a graph takes notice of.

    Attributes:
        unread: number of a group -> bool array, True where no node that was visited reads it.
    """

    def __init__(self, structure: Structure):
        self.structure, self.supports = structure, supports_of(structure)
        groups = structure.groups.values()
        self.unread = {structure.numbers[g.name]: np.ones(g.size, bool) for g in groups}
        self.groups: dict[int, ChannelGroup] = {structure.numbers[g.name]: g for g in groups}
        self.layers = {id(layer.layer): layer for layer in structure.follower.layers}
        self.members: dict[str, dict[int, list[Member]]] = {}
        for number, group in self.groups.items():
            for member in group.members:
                self.members.setdefault(member.layer, {}).setdefault(number, []).append(member)

    def nodes(self) -> Iterator[Node]:
        """The nodes that compute something, those inside of opened layers in place of these."""
        for node in self.structure.graph.nodes:
            inner = self.structure.follower.opened.get(id(node))
            for part in [node] if inner is None else inner.nodes:
                if not part.is_input:
                    yield part

    def visit(self, node: Node) -> None:
        """Notes which channels a node takes notice of."""
        operation, depth = unwrapped(node.operation), 0
        while isinstance(operation, layers.TimeDistributed):
            operation, depth = operation.layer, depth + 1
        for place in _mixed_axes(operation, len(node.inputs[0].shape) - depth):
            at = [place + depth]
            for number in self._numbers(node.inputs[0], at) - self._whole_groups(operation):
                self.unread[number][:] = False
        if mixes_channels(operation):
            for number in self._numbers(node.outputs[0], [-1]):
                self.unread[number][:] = False
        if isinstance(operation, Parameter):  # what is done with it is seen elsewhere
            return
        layer = self.layers.get(id(operation))
        members = {} if layer is None else self.members.get(layer.name, {})
        backwards, read = leads_back(node), set()
        for number, every in members.items():
            mine = [member for member in every if member.role == "reads" or backwards]
            if mine:
                self._visit_weights(node, layer, number, mine)
                read.add(number)
        self._visit_sums(node, read)

    def _visit_weights(self, node: Node, layer, number: int, members: list[Member]) -> None:
        """A layer takes notice of a channel unless it is zero or its weights for it are."""
        used = np.zeros(self.groups[number].size, bool)
        for member in members:
            values = ops.convert_to_numpy(member.variable)
            used |= np.any(member.slices(values) != 0, axis=1)
        near = [t for t in node.inputs if number in self._numbers(t)]
        recurrent = any(member.variable.name == "recurrent_kernel" for member in members)
        if recurrent or not near:
            near += [t for t in node.outputs if number in self._numbers(t)]
        present = [self._present(number, tensor) for tensor in near]
        present = present or [self._made(number, layer.name)]
        self.unread[number] &= ~(used & np.any(present, axis=0))

    def _made(self, number: int, layer: str) -> np.ndarray:
        """Which channels that stay inside of a layer, such as heads, it computes from weights."""
        group = self.groups[number]
        made = np.zeros(group.size, bool)
        for member in group.members:
            if member.layer == layer and member.role != "reads":
                values = ops.convert_to_numpy(member.variable)
                made |= np.any(member.slices(values) != 0, axis=1)
        return made

    def _visit_sums(self, node: Node, read: set[int]) -> None:
        """A sum of products takes no notice of a channel that is zero in one of the factors."""
        exact, summed = type(node.operation).__name__ in _EXACT, set[int]()
        for factors in _summed_axes(node):
            found: dict[int, list[np.ndarray]] = {}
            for tensor, at in factors:
                for number in self._numbers(tensor, at):
                    found.setdefault(number, []).append(self._present(number, tensor))
            for number, present in found.items():
                self.unread[number] &= ~np.all(present, axis=0) & exact
            summed |= found.keys()
        if type(node.operation).__name__ in MOVING:
            return
        left = {number for tensor in node.outputs for number in self._numbers(tensor)}
        for number in {n for t in node.inputs for n in self._numbers(t)} - left - read - summed:
            self.unread[number][:] = False  # whatever became of it

    def _whole_groups(self, operation) -> set[int]:
        """The groups whose channels GroupNormalization takes together, each on its own."""
        layer = self.layers.get(id(operation))
        count = None if layer is None else layer.counts.get("groups")
        is_one = isinstance(operation, layers.GroupNormalization)
        if not is_one or count is None or isinstance(count, tuple):
            return set()
        return {leaf.group for leaf in leaves_of(count)}

    def _numbers(self, tensor, at: list[int] | None = None) -> set[int]:
        """The groups that are counted by axes of a tensor, by number."""
        axes = self.structure.axes_of(tensor)
        chosen = axes if at is None else [axes[i] for i in at]
        leaves = [leaf for axis in chosen if axis is not None for leaf in leaves_of(axis)]
        return {leaf.group for leaf in leaves} & set(self.groups)

    def _present(self, number: int, tensor) -> np.ndarray:
        """Which channels of a group can be anything but zero in a tensor."""
        support = self.supports[id(tensor)]
        present = np.zeros(self.groups[number].size, bool)
        for place, axis in enumerate(self.structure.axes_of(tensor)):
            if axis is None:
                continue
            index = places(axis).get(number)
            if index is not None:
                others = tuple(i for i in range(support.ndim) if i != place)
                present |= np.any(np.any(support, axis=others)[index], axis=1)
        return present


def _mixed_axes(operation, rank: int) -> list[int]:
    """The axes of an operation's input along which every value, zero or not, changes the others."""
    if isinstance(operation, layers.Masking):
        return [] if operation.mask_value == 0 else [rank - 1]
    if not is_of(operation, NORMALIZING) and not mixes_channels(operation):
        return []
    if hasattr(operation, "kernel"):  # whose outputs are mixed
        return []
    if isinstance(operation, layers.GroupNormalization):
        return list(range(1, rank))
    axis = getattr(operation, "axis", -1)
    axes = [axis] if isinstance(axis, int) else list(axis or range(rank))
    return [place % rank for place in axes]


def _summed_axes(node: Node) -> list[list[tuple[KerasTensor, list[int]]]]:
    """What an operation without weights adds up: for each sum (factor, its axes) pairs."""
    operation, kind = node.operation, type(node.operation).__name__
    tensors = tensors_in((node.args, node.kwargs))
    rank = len(tensors[0].shape) if tensors else 0
    if kind in PRODUCTS:
        found = product_of(node)
        if found is None:
            return []
        operands, labels, result = found
        pairs = [p for p in zip(operands, labels, strict=True) if isinstance(p[0], KerasTensor)]
        gone = sorted(set("".join(labels)) - set(result))
        sums = [[(x, [own.index(one)]) for x, own in pairs if one in own] for one in gone]
        if getattr(operation, "normalize", False):  # by the size of each factor
            return [[factor] for factors in sums for factor in factors]
        return sums
    if kind in ("Attention", "AdditiveAttention"):  # scores sum products of what is attended to
        return [[(tensor, [-1])] for tensor in tensors]
    if kind in REDUCING | JOINT:
        axis = getattr(operation, "axis", -1)
        every = list(range(rank)) if axis is None else np.ravel(axis).tolist()
        return [[(tensors[0], every)]]
    if kind in POOLING_ALL:
        channel = channel_place(operation) % rank
        return [[(tensors[0], [i for i in range(1, rank) if i != channel])]]
    return []
