"""Where the tensors of a model can be anything but zero."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import KerasTensor, layers, ops, tree

from tfcompress.channels.following import unwrapped
from tfcompress.channels.operations import mixes_channels
from tfcompress.channels.products import PRODUCTS, product_of
from tfcompress.channels.weighted import arguments_of
from tfcompress.graph.copying import copy_operation
from tfcompress.graph.layers import FixedTraining
from tfcompress.graph.nodes import Node, unique
from tfcompress.kinds import (
    CONV_RECURRENT,
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
from tfcompress.surgery.pruning.groups import Structure


def leads_back(node: Node) -> bool:
    """Whether a ReversibleEmbedding reads with what it makes channels with elsewhere."""
    kind, (x, *_) = type(unwrapped(node.operation)), node.inputs
    return kind.__name__ == "ReversibleEmbedding" and len(x.shape) == len(node.outputs[0].shape)


_RECURRENT = (layers.RNN, layers.Bidirectional)

# What computes each value along an axis from others there; moves values by numbers, which may be
# tensors.
_SCANNING, _NUMBERED = {"Cumsum", "Cumprod", "Sort"}, {"GetItem", "Slice", "Take"}

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
    if isinstance(operation, layers.Embedding) and not leads_back(node):
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
    if kind == "Glu":
        halves = [
            np.split(x, 2, axis=operation.axis) for x in (inputs[0].varies, inputs[0].present)
        ]
        return [np.any(halves[0], axis=0) & halves[1][0]]
    if kind in _SCANNING and isinstance(operation.axis, int):
        return [np.any(inputs[0].varies, axis=operation.axis, keepdims=True)]
    if kind in MOVING and (kind not in _NUMBERED or (len(inputs) == 1 and args[0] is inputs[0])):
        return [y != 0 for y in _run(node, args, kwargs, lambda known: known.varies)]
    if kind in PRODUCTS and (found := product_of(node)) is not None and len(found[0]) == 2:
        return [_of_products(*tree.flatten((args, kwargs)), labels=found[1], result=found[2])]
    used: Any = True
    if is_of(operation, NORMALIZING) and isinstance(operation.axis, int):
        scale = getattr(operation, "gamma", None)
        scale = getattr(operation, "scale", None) if scale is None else scale
        used = _along(scale, operation.axis, inputs[0].varies.ndim)
    elif isinstance(operation, _RECURRENT) and not mixes_channels(operation):
        return _of_recurrent(operation, arguments_of(operation, args, kwargs), len(values))
    return [used] * len(values)


def _of_recurrent(layer, given: dict[str, Any], count: int) -> list[Any]:
    """Units without weights stay as they begin, which is zero where no other state is given."""
    parts, joins = [layer], True
    if isinstance(layer, layers.Bidirectional):
        parts, joins = [layer.forward_layer, layer.backward_layer], layer.merge_mode == "concat"
        if layer.merge_mode not in ("concat", "sum"):
            return [True] * count
    states = [x for x in tree.flatten(given.get("initial_state")) if x is not None]
    known = all(is_of(part, RECURRENT) or _is_conv_lstm(part) for part in parts)
    if not known or not all(isinstance(state, Known) for state in states):
        return [True] * count
    given_ones = [np.any(x.present, axis=tuple(range(x.varies.ndim - 1))) for x in states]
    units = [np.any([_used_units(part), *given_ones], axis=0) for part in parts]
    either = np.any(units, axis=0)
    return [np.concatenate(units) if joins else either, *[either] * (count - 1)]


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


def _is_conv_lstm(operation) -> bool:
    """Whether it is one whose channels are last."""
    return is_of(operation, CONV_RECURRENT) and channel_place(operation.cell) == -1


def _used_units(layer) -> np.ndarray:
    """The units of a recurrent layer with weights: the others stay as they begin."""
    many = layer.filters if is_of(layer, CONV_RECURRENT) else layer.units
    found = [ops.convert_to_numpy(v) != 0 for v in layer.cell.weights]
    rows = [v.reshape(-1, v.shape[-1] // many, many) for v in found]
    return np.any([np.any(v, axis=(0, 1)) for v in rows], axis=0)


def _of_product(kind: str, args: tuple, kwargs: dict, inputs: list[Known]) -> np.ndarray:
    """A product does not vary where a factor is zero, nor a quotient where its dividend is."""
    factors = [x for x in tree.flatten((args, kwargs)) if x is not None]
    factors = factors[:1] if "Divide" in kind else factors
    present = [x.present if isinstance(x, Known) else np.asarray(x) != 0 for x in factors]
    varies = np.any(np.broadcast_arrays(*(x.varies for x in inputs)), axis=0)
    return np.all(np.broadcast_arrays(varies, *present), axis=0)


def _of_products(*leaves, labels: list[str], result: str) -> np.ndarray:
    """A sum of products of two tensors varies where one of the products does."""
    operands = [x for x in leaves if isinstance(x, Known) or np.ndim(x) > 0]
    a, b = (x if isinstance(x, Known) else _constant(x) for x in operands)
    numbers = {label: i for i, label in enumerate(dict.fromkeys("".join(labels)))}
    left, right, out = ([numbers[x] for x in own if x in numbers] for own in (*labels, result))
    varies = np.zeros((), bool)
    for x, y in ((a.varies, b.present), (a.present, b.varies)):
        products = (x.astype("float32"), left, y.astype("float32"), right, out)
        varies = varies | (np.einsum(*products, optimize=True) > 0.5)
    return varies if len(out) == len(result) else varies[..., None]  # of the layer Dot


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
