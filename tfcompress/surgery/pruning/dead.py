"""remove_dead_channels: channels without any effect are removed, and the outputs stay the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import KerasTensor, layers, ops, tree

from tfcompress.channels.following import unwrapped
from tfcompress.channels.operations import mixes_channels
from tfcompress.channels.terms import leaves_of, places
from tfcompress.graph.copying import copy_operation
from tfcompress.graph.layers import FixedTraining, Parameter
from tfcompress.graph.nodes import Node, tensors_in, unique
from tfcompress.kinds import (
    JOINT,
    LINEAR,
    MOVING,
    NORMALIZING,
    POINTWISE,
    POOLING_ALL,
    RECURRENT,
    REDUCING,
    SPATIAL,
    channel_place,
    is_of,
)
from tfcompress.surgery.base import opened, with_report
from tfcompress.surgery.pruning.groups import ChannelGroup, Choice, Member, Structure
from tfcompress.surgery.pruning.prune_channels import report_of
from tfcompress.surgery.pruning.resizing import resized

# What is zero adds nothing to them.
_EXACT = {"Matmul", "Sum", "Any"} | JOINT


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
        self.reads: dict[str, dict[int, list[Member]]] = {}
        for number, group in self.groups.items():
            for member in group.members:
                if member.role == "reads":
                    self.reads.setdefault(member.layer, {}).setdefault(number, []).append(member)

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
        read = {} if layer is None else self.reads.get(layer.name, {})
        for number, members in read.items():
            self._visit_weights(node, layer, number, members)
        self._visit_sums(node, set(read))

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
        summed: dict[int, list[np.ndarray]] = {}
        for tensor, at in _summed_axes(node):
            for number in self._numbers(tensor, at):
                summed.setdefault(number, []).append(self._present(number, tensor))
        for number, present in summed.items():
            exact = type(node.operation).__name__ in _EXACT
            self.unread[number] &= ~np.all(present, axis=0) & exact
        if type(node.operation).__name__ in MOVING:
            return
        left = {number for tensor in node.outputs for number in self._numbers(tensor)}
        for number in {n for t in node.inputs for n in self._numbers(t)} - left - read - {*summed}:
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


def _summed_axes(node: Node) -> list[tuple[KerasTensor, list[int]]]:
    """(tensor, axes) pairs of values of which an operation without weights computes one."""
    operation, kind = node.operation, type(node.operation).__name__
    tensors = tensors_in((node.args, node.kwargs))
    rank = len(tensors[0].shape) if tensors else 0
    if kind == "Matmul":
        return list(zip(tensors, ([-1], [-2]), strict=False))
    if kind in REDUCING | JOINT:
        axis = getattr(operation, "axis", -1)
        every = list(range(rank)) if axis is None else np.ravel(axis).tolist()
        return [(tensors[0], every)]
    if kind in POOLING_ALL:
        channel = channel_place(operation) % rank
        return [(tensors[0], [i for i in range(1, rank) if i != channel])]
    return []


# Lengths that a model leaves open.
_OPEN = 8


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of a tensor.

    Attributes:
        varies: bool array, True where values may depend on the inputs of the model.
        value: array of the same shape, the value where it does not vary.
    """

    varies: np.ndarray
    value: np.ndarray

    @property
    def present(self) -> np.ndarray:
        """Where it can be anything but zero."""
        return self.varies | (self.value != 0)


def supports_of(structure: Structure) -> dict[int, np.ndarray]:
    """For each tensor of a model, where it can be anything but zero.

    Constants are followed from the weights on, without data: a place is False only if its value is
    zero for every input, in inference.

    Returns {id of a tensor of the graph, also inside of opened layers: bool array of its shape, for
    a batch of one}.
    """
    found: dict[int, np.ndarray] = {}
    opened = structure.follower.opened

    def call(node: Node, *args, **kwargs):
        if node.is_input:
            outputs = [args[0]]
        elif id(node) in opened:
            tensors = tree.flatten((node.args, node.kwargs))
            given = zip(tensors, tree.flatten((args, kwargs)), strict=True)
            new = {id(t): x for t, x in given if isinstance(t, KerasTensor)}
            inner = opened[id(node)].run([new[id(t)] for t in unique(node.inputs)], call)
            outputs = tree.flatten(inner)
        else:
            outputs = _known(node, args, kwargs)
        for tensor, known in zip(node.outputs, outputs, strict=True):
            found[id(tensor)] = _lean(known.present)
        return outputs if len(outputs) > 1 else outputs[0]

    inputs = [_input(tensor) for tensor in tree.flatten(structure.graph.inputs)]
    structure.graph.run(inputs, call)
    return found


def _input(tensor) -> Known:
    shape = tuple(tensor.shape)
    batch = (shape[0] or 1,) if shape else ()  # which is fixed in a stateful model
    shape = (*batch, *(_OPEN if n is None else n for n in shape[1:]))
    return Known(np.broadcast_to(True, shape), np.broadcast_to(np.float32(0), shape))


def _known(node: Node, args: tuple, kwargs: dict) -> list[Known]:
    """What is known of the outputs of an operation."""
    if _depends_on_lengths(node):
        args, kwargs = tree.map_structure(_zeros_alone, (args, kwargs))
    values = _run(node, args, kwargs, lambda known: np.where(known.varies, 0, known.value))
    inputs = [x for x in tree.flatten((args, kwargs)) if isinstance(x, Known)]
    varies = _varying(node, args, kwargs, inputs, values)
    shaped = (np.broadcast_to(v, y.shape) for v, y in zip(varies, values, strict=True))
    pairs = zip(shaped, values, strict=True)
    return [Known(_lean(v), _lean(np.where(v, 0, y))) for v, y in pairs]


def _lean(array: np.ndarray) -> np.ndarray:
    """The same array, which holds but once what is equal all along an axis."""
    shape = array.shape
    for axis in range(array.ndim):
        first = array[(slice(None),) * axis + (slice(0, 1),)]
        if np.all(array == first):
            array = first
    return np.broadcast_to(array.copy(), shape)


def _depends_on_lengths(node: Node) -> bool:
    """Whether constants become others where the model leaves a length open, as in a sum."""
    is_open = any(None in tuple(tensor.shape)[1:] for tensor in node.inputs)
    kind = type(unwrapped(node.operation)).__name__
    if kind in REDUCING and (node.operation.axis is None or 0 in np.ravel(node.operation.axis)):
        return True  # over the batch
    return is_open and kind not in POINTWISE | MOVING


def _zeros_alone(x):
    """What is known of a tensor, but for values that are not zero."""
    return Known(x.present, x.value) if isinstance(x, Known) else x


def _constant(x) -> Known:
    value = ops.convert_to_numpy(x)
    return Known(np.zeros(value.shape, bool), value)


def _run(node: Node, args: tuple, kwargs: dict, array) -> list[np.ndarray]:
    """The results of an operation on an array for each of its tensors."""

    def tensor(old, x):
        if not isinstance(old, KerasTensor):
            return old
        return ops.convert_to_tensor(array(x).astype("float32"), old.dtype)

    given = (node.args, node.kwargs)
    pairs = zip(tree.flatten(given), tree.flatten((args, kwargs)), strict=True)
    packed = tree.pack_sequence_as(given, [tensor(*pair) for pair in pairs])
    with keras.StatelessScope():  # what an operation writes down, as averages, is given up
        results = node.operation(*packed[0], **packed[1])
    return [ops.convert_to_numpy(ops.cast(y, "float32")) for y in tree.flatten(results)]


def _varying(node: Node, args, kwargs, inputs: list[Known], values) -> list[Any]:
    """Where the outputs may depend on the inputs of the model; arrays that broadcast."""
    operation = unwrapped(node.operation)
    kind = type(operation).__name__
    if kind == "Parameter":
        return [False]
    if isinstance(node.operation, FixedTraining) and node.operation.training:
        return [True] * len(values)  # also what it draws
    if is_of(operation, LINEAR) and not mixes_channels(operation):
        return [_through_weights(operation, inputs[0].varies)]
    inner = operation.layer if isinstance(operation, layers.TimeDistributed) else None
    if is_of(inner, LINEAR) and not mixes_channels(inner):  # one time step is one sample
        return [_through_weights(inner, inputs[0].varies[0])[None]]
    if isinstance(operation, layers.BatchNormalization):
        return [inputs[0].varies & _along(operation.gamma, operation.axis, inputs[0].varies.ndim)]
    if isinstance(operation, layers.Embedding):
        table = ops.convert_to_numpy(operation.embeddings)
        return [np.any(table != table[0], axis=0)]
    if kind in ("Multiply", "LogicalAnd", "Divide", "TrueDivide"):
        return [_of_product(kind, args, kwargs, inputs)]
    if kind in JOINT:
        return [_of_scaled(operation, kind, inputs[0])]
    if kind in POINTWISE and not mixes_channels(operation):
        return [np.any(np.broadcast_arrays(*(x.varies for x in inputs)), axis=0)]
    if kind == "PReLU":
        return [inputs[0].varies]
    if kind in SPATIAL | POOLING_ALL | REDUCING:
        return [_of_pool(operation, kind, inputs[0].varies)]
    if kind in MOVING:
        return [y != 0 for y in _run(node, args, kwargs, lambda known: known.varies)]
    if kind == "Matmul":
        return [_of_matmul(*tree.flatten((args, kwargs))[:2])]
    used: Any = True
    if is_of(operation, NORMALIZING) and isinstance(operation.axis, int):
        scale = getattr(operation, "gamma", None)
        scale = getattr(operation, "scale", None) if scale is None else scale
        used = _along(scale, operation.axis, inputs[0].varies.ndim)
    elif len(inputs) != 1 or mixes_channels(operation):
        used = True
    elif is_of(operation, RECURRENT):
        used = _used_units(operation)
    elif isinstance(operation, layers.Bidirectional) and operation.merge_mode in ("concat", "sum"):
        both = (operation.forward_layer, operation.backward_layer)
        if all(is_of(layer, RECURRENT) for layer in both):
            units = [_used_units(layer) for layer in both]
            joins = operation.merge_mode == "concat"
            used = np.concatenate(units) if joins else units[0] | units[1]
    return [used] * len(values)


def _through_weights(layer, varies: np.ndarray) -> np.ndarray:
    """Where sums of products with the weights of a layer vary."""
    config = layer.get_config()
    plain = {"activation": None, "use_bias": False, "bias_axes": None}
    twin = copy_operation(layer, {k: v for k, v in plain.items() if k in config})
    twin.dtype_policy = "float32"
    x = ops.convert_to_tensor(varies.astype("float32"))
    twin(x)
    for ours, theirs in zip(twin.weights, layer.weights, strict=False):  # biases are last
        ours.assign((ops.convert_to_numpy(theirs) != 0).astype("float32"))
    return ops.convert_to_numpy(twin(x)) > 0.5  # they are whole numbers, but for rounding


def _along(weight, axis, rank: int) -> Any:
    """Where a weight along an axis is not zero, to be broadcast; True without one."""
    place = axis[0] if isinstance(axis, list | tuple) and len(axis) == 1 else axis
    if not hasattr(weight, "assign") or not isinstance(place, int) or len(weight.shape) != 1:
        return True
    shape = [1] * rank
    shape[place] = -1
    return (ops.convert_to_numpy(weight) != 0).reshape(shape)


def _used_units(layer) -> np.ndarray:
    """The units of a recurrent layer with weights: the others stay as they begin."""
    found = [ops.convert_to_numpy(v) != 0 for v in layer.cell.weights]
    rows = [v.reshape(-1, v.shape[-1] // layer.units, layer.units) for v in found]
    return np.any([np.any(v, axis=(0, 1)) for v in rows], axis=0)


def _of_product(kind: str, args: tuple, kwargs: dict, inputs: list[Known]) -> np.ndarray:
    """A product does not vary where a factor is zero, nor a quotient where its dividend is."""
    factors = [x for x in tree.flatten((args, kwargs)) if x is not None]
    factors = factors[:1] if "Divide" in kind else factors
    present = [x.present if isinstance(x, Known) else np.asarray(x) != 0 for x in factors]
    varies = np.any(np.broadcast_arrays(*(x.varies for x in inputs)), axis=0)
    return np.all(np.broadcast_arrays(varies, *present), axis=0)


def _of_matmul(*factors) -> np.ndarray:
    """A sum of products varies where one of the products does."""
    a, b = (x if isinstance(x, Known) else _constant(x) for x in factors)
    pairs = ((a.varies, b.present), (a.present, b.varies))
    return sum(np.matmul(x.astype("float32"), y.astype("float32")) for x, y in pairs) > 0.5


def _of_scaled(operation, kind: str, x: Known) -> np.ndarray:
    """What is not zero changes with the others that are divided, or masked, with it."""
    axis = -1 if kind == "Masking" else operation.axis
    axis = tuple(axis) if isinstance(axis, list | tuple) else axis
    others = np.any(x.varies, axis=axis, keepdims=True)
    return x.varies | (x.present & others)


def _of_pool(operation, kind: str, varies: np.ndarray) -> np.ndarray:
    """Of what takes several places to one: it varies where any of them does."""
    if kind in REDUCING:
        axis = operation.axis
        axis = tuple(axis) if isinstance(axis, list | tuple) else axis
        return np.any(varies, axis=axis, keepdims=operation.keepdims)
    channel = channel_place(operation) % varies.ndim
    moved = tuple(axis for axis in range(1, varies.ndim) if axis != channel)
    flat = kind in POOLING_ALL and not operation.keepdims
    return np.any(varies, axis=moved, keepdims=not flat)
