"""What the axes of the weights of Keras's layers count, and where their channels go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import keras
from keras import tree

from tfcompress.channels.attention import attention, grouped_heads, multi_head
from tfcompress.channels.operations import OPERATIONS, has_clear_activations
from tfcompress.channels.terms import Axis, Concat, Product, size_of
from tfcompress.channels.weighted import Axes, Call, Weight, variable_of
from tfcompress.kinds import (
    CONV_RECURRENT,
    CONVOLUTIONS,
    DEPTHWISE,
    NORMALIZING,
    SEPARABLE,
    TRANSPOSED,
    channel_place,
    equation_of,
    has_plain_weights,
    is_of,
    kinds_of,
)

if TYPE_CHECKING:
    from tfcompress.channels.following import Follower

Handler = Callable[["Follower", Call], list[Axes] | None]


def handler(operation) -> Handler | None:
    """The function that follows channels through an operation; None if its kind is not known."""
    if not has_plain_weights(operation) or not has_clear_activations(operation):
        return None
    for cls in type(operation).__mro__:
        home = cls.__module__.startswith(("keras.src.", "tfcompress."))
        same = getattr(cls, "call", None) is getattr(type(operation), "call", None)
        if home and same and cls.__name__ in _HANDLERS:
            return _HANDLERS[cls.__name__]
    return None


def _dense(flow: Follower, call: Call) -> list[Axes]:
    layer, (x,) = call.layer, call.inputs
    out = flow.channels.new(layer.units, call.source)
    weights = [Weight(layer.kernel, (x[-1], out), (1,)), Weight(layer.bias, (out,))]
    flow.register(call, weights, units=out)
    return [[*x[:-1], out]]


def _conv(flow: Follower, call: Call) -> list[Axes]:
    layer, (x,) = call.layer, call.inputs
    axis, positions = channel_place(layer), (None,) * layer.rank
    into, out = x[axis], flow.channels.new(layer.filters, call.source)
    rest: Axis = out
    counts = {"filters": out}
    if layer.groups > 1 and into is not None:
        groups = flow.channels.new(layer.groups, call.source)
        inner = flow.channels.new(size_of(into) // layer.groups, call.source)
        flow.same(into, Product((groups, inner)))
        into = inner
        rest = flow.channels.new(layer.filters // layer.groups, call.source)
        flow.same(out, Product((groups, rest)))
        counts["groups"] = groups
    kernel = Weight(layer.kernel, (*positions, into, out), (layer.rank + 1,))
    flow.register(call, [kernel, Weight(layer.bias, (out,))], **counts)
    return [_placed(flow, call, axis, out)]


def _conv_transpose(flow: Follower, call: Call) -> list[Axes]:
    layer, (x,) = call.layer, call.inputs
    axis, out = channel_place(layer), flow.channels.new(layer.filters, call.source)
    positions = (None,) * layer.rank
    kernel = Weight(layer.kernel, (*positions, out, x[axis]), (layer.rank,))
    flow.register(call, [kernel, Weight(layer.bias, (out,))], filters=out)
    return [_placed(flow, call, axis, out)]


def _depthwise(flow: Follower, call: Call) -> list[Axes]:
    layer, (x,) = call.layer, call.inputs
    axis = channel_place(layer)
    kernel, out, times = _depthwise_kernel(flow, call, layer.kernel, x[axis])
    flow.register(call, [kernel, Weight(layer.bias, (out,))], depth_multiplier=times)
    return [_placed(flow, call, axis, out)]


def _depthwise_kernel(flow: Follower, call: Call, kernel, into) -> tuple[Weight, Axis | None, Axis]:
    """A depthwise kernel, the axis that it makes, and the multiplier, which runs fastest in it."""
    layer = call.layer
    many = layer.depth_multiplier > 1
    times = flow.channels.new(layer.depth_multiplier, call.source)
    out = Product((into, times)) if many and into is not None else into
    makes = (layer.rank + 1,) if many else ()
    return Weight(kernel, (*(None,) * layer.rank, into, times), makes), out, times


def _separable(flow: Follower, call: Call) -> list[Axes]:
    layer, (x,) = call.layer, call.inputs
    axis, out = channel_place(layer), flow.channels.new(layer.filters, call.source)
    depthwise, between, times = _depthwise_kernel(flow, call, layer.depthwise_kernel, x[axis])
    place = (*(None,) * layer.rank, between, out)
    pointwise = Weight(layer.pointwise_kernel, place, (layer.rank + 1,))
    weights = [depthwise, pointwise, Weight(layer.bias, (out,))]
    flow.register(call, weights, filters=out, depth_multiplier=times)
    return [_placed(flow, call, axis, out)]


def _placed(flow: Follower, call: Call, axis: int, channels: Axis | None) -> Axes:
    """Axes of a convolution's output: its channels, and positions."""
    places = range(1, len(call.inputs[0]))
    moved = [call.inputs[0][i] for i in places if i != axis % len(call.inputs[0])]
    flow.fix(moved, f"they are positions of {call.source}")
    axes = flow.fresh(call.shapes[0], call.source)
    axes[axis] = channels
    return axes


def _normalization(flow: Follower, call: Call) -> list[Axes]:
    layer, x = call.layer, call.inputs[0]
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    places = tuple(x[axis] for axis in sorted(axis % len(x) for axis in axes))
    names = ("gamma", "beta", "moving_mean", "moving_variance", "scale")
    found = [getattr(layer, name, None) for name in names]
    weights = [Weight(v, places) for v in found if hasattr(v, "assign")]
    flow.register(call, weights)
    return [x]


def _group_normalization(flow: Follower, call: Call) -> list[Axes]:
    """Channels of a group are normalized together, so that all groups stay equally wide."""
    layer, x = call.layer, call.inputs[0]
    into, counts = x[layer.axis], {}
    if into is not None:
        many = size_of(into) if layer.groups == -1 else layer.groups
        groups = flow.channels.new(many, f"the groups of {call.source}")
        inner = flow.channels.new(size_of(into) // many, call.source)
        flow.same(into, Product((groups, inner)))
        counts["groups"] = groups
    weights = [Weight(v, (into,)) for v in (layer.gamma, layer.beta) if hasattr(v, "assign")]
    flow.register(call, weights, **counts)
    return [x]


def _prelu(flow: Follower, call: Call) -> list[Axes]:
    layer, x = call.layer, call.inputs[0]
    shared = layer.shared_axes or ()
    axes = tuple(None if place in shared else axis for place, axis in enumerate(x[1:], start=1))
    flow.register(call, [Weight(layer.alpha, axes)])
    return [x]


def _embedding(flow: Follower, call: Call) -> list[Axes]:
    layer, (x,) = call.layer, call.inputs
    out = flow.channels.new(layer.output_dim, call.source)
    flow.register(call, [Weight(layer.embeddings, (None, out), (1,))], output_dim=out)
    return [[*x, out]]


def _reversible(flow: Follower, call: Call) -> list[Axes]:
    """An embedding that also leads back, to a number for each word."""
    layer, x = call.layer, call.inputs[0]
    backwards = len(call.shapes[0]) == len(x)
    width = flow.channels.new(layer.output_dim, call.source)
    weights = [Weight(layer.embeddings, (None, width), (1,))]
    if not layer.tie_weights:
        weights.append(Weight(layer.reverse_embeddings, (width, None), (1,)))
    flow.register(call, weights, output_dim=width)
    if not backwards:
        return [[*x, width]]
    flow.same(x[-1], width)
    return [[*x[:-1], *flow.fresh((None, layer.input_dim), call.source)[1:]]]


def _einsum(flow: Follower, call: Call) -> list[Axes] | None:
    layer, (x,) = call.layer, call.inputs
    taken, kernel, result = equation_of(layer)
    extra = len(x) - len(taken.replace("...", ""))
    dots = "0123456789"[:extra]  # letters for the axes that the dots stand for
    if extra < 0 or ("..." in taken) != (extra > 0):
        return flow.unknown(call)
    taken, result = taken.replace("...", dots), result.replace("...", dots)
    known: dict[str, Axis | None] = dict(zip(taken, x, strict=True))
    for letter, size in zip(kernel, layer.kernel.shape, strict=True):
        if letter not in known:
            known[letter] = flow.channels.new(size, call.source)
    made = tuple(i for i, letter in enumerate(kernel) if letter not in taken)
    weights = [Weight(layer.kernel, tuple(known[letter] for letter in kernel), made)]
    if layer.bias is not None:
        letters = result[len(result) - len(layer.bias.shape) :]
        own = (known[letter] if letter in layer.bias_axes else None for letter in letters)
        weights.append(Weight(layer.bias, tuple(own)))
    given = layer.partial_output_shape  # without the axes that dots stand for
    letters = result[len(result) - len(given) :]
    told = (None if n is None else known[x] for n, x in zip(given, letters, strict=True))
    flow.register(call, weights, output_shape=tuple(told))
    return [[known[letter] for letter in result]]


def _time_distributed(flow: Follower, call: Call) -> list[Axes] | None:
    x = call.inputs[0]
    shapes = [(shape[0], *shape[2:]) for shape in call.shapes]
    inner = Call(call.name, call.layer.layer, [[x[0], *x[2:]]], shapes, call.node)
    if len(call.inputs) > 1 or handler(inner.layer) is None:
        return flow.unknown(call)
    return [[axes[0], x[1], *axes[1:]] for axes in flow.follow(inner)]


def _parameter(flow: Follower, call: Call) -> list[Axes]:
    variable = variable_of(call.layer)
    axes = tuple(flow.channels.new(size, call.source) for size in variable.shape)
    matrix = sum(size > 1 for size in variable.shape) > 1
    makes = (len(axes) - 1,) if matrix else ()
    flow.register(call, [Weight(variable, axes, makes)], shape=axes)
    return [list(axes)]


# Blocks of `units` columns in the weights of a cell.
GATES = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}


def recurrent(flow: Follower, call: Call) -> list[Axes]:
    layer = call.layer
    out = flow.channels.new(layer.units, call.source)
    x = _steps(flow, call, [out])
    flow.register(call, _cell_weights(layer, x[-1], out), units=out)
    return _sequence(layer, x, [out], len(call.shapes))


def _steps(flow: Follower, call: Call, outs: list[Axis]) -> Axes:
    """The axes of the sequence that a recurrent layer goes through; its states are noted."""
    given = call.given
    states = tree.flatten(given.get("initial_state"))
    place = channel_place(getattr(call.layer, "cell", None))
    for i, state in enumerate(states):
        if isinstance(state, keras.KerasTensor):
            flow.same(flow.axes_of(state)[place], outs[i * len(outs) // len(states)])
    x = call.inputs[0]
    if isinstance(given.get("mask"), keras.KerasTensor):
        flow.fix(flow.axes_of(given["mask"])[1:], f"they are steps of {call.source}")
    flow.fix(x[1:2], f"they are steps of {call.source}")
    return x


def _conv_lstm(flow: Follower, call: Call) -> list[Axes]:
    layer, cell = call.layer, call.layer.cell
    out = flow.channels.new(layer.filters, call.source)
    x = _steps(flow, call, [out])
    first = channel_place(cell) == 1
    into = x[2] if first else x[-1]
    gates, positions = Concat((out,) * 4), (None,) * cell.rank
    weights = [Weight(cell.kernel, (*positions, into, gates), (cell.rank + 1,))]
    weights.append(Weight(cell.recurrent_kernel, (*positions, out, gates), (cell.rank + 1,)))
    if cell.use_bias:
        weights.append(Weight(cell.bias, (gates,)))
    flow.register(call, weights, filters=out)
    flow.fix(x[3:] if first else x[2:-1], f"they are positions of {call.source}")
    found = []
    for shape in call.shapes:
        axes = flow.fresh(shape, call.source)
        axes[len(shape) - cell.rank - 1 if first else -1] = out
        found.append(axes)
    return found


def bidirectional(flow: Follower, call: Call) -> list[Axes] | None:
    layer, x = call.layer, call.inputs[0]
    directions = [layer.forward_layer, layer.backward_layer]
    plain = all(is_of(part, GATES) for part in directions)
    if not plain or layer.merge_mode is None:
        return flow.unknown(call)
    outs: list[Axis] = [flow.channels.new(part.units, call.source) for part in directions]
    _steps(flow, call, outs)
    pairs = zip(directions, outs, strict=True)
    weights = [w for part, out in pairs for w in _cell_weights(part, x[-1], out)]
    counts = dict(zip(("layer.units", "backward_layer.units"), outs, strict=True))
    flow.register(call, weights, **counts)
    flow.same(*outs)  # Keras takes both directions to be equally wide
    merged = outs if layer.merge_mode == "concat" else outs[:1]
    return _sequence(layer, x, merged, len(call.shapes))


_HANDLERS: dict[str, Handler] = {
    **OPERATIONS,
    "Dense": _dense,
    **dict.fromkeys(CONVOLUTIONS, _conv),
    **dict.fromkeys(TRANSPOSED, _conv_transpose),
    **dict.fromkeys(DEPTHWISE, _depthwise),
    **dict.fromkeys(SEPARABLE, _separable),
    **dict.fromkeys(("BatchNormalization", "FrozenBatchNormalization"), _normalization),
    **dict.fromkeys(NORMALIZING, _normalization),
    "GroupNormalization": _group_normalization,
    "PReLU": _prelu,
    "Embedding": _embedding,
    "ReversibleEmbedding": _reversible,
    "EinsumDense": _einsum,
    "MultiHeadAttention": multi_head,
    "GroupedQueryAttention": grouped_heads,
    **dict.fromkeys(("Attention", "AdditiveAttention"), attention),
    **dict.fromkeys(GATES, recurrent),
    **dict.fromkeys(CONV_RECURRENT, _conv_lstm),
    "Bidirectional": bidirectional,
    "TimeDistributed": _time_distributed,
    "Parameter": _parameter,
}


def _cell_weights(layer, into: Axis | None, out: Axis) -> Iterator[Weight]:
    cell = layer.cell
    gates = Concat((out,) * next(GATES[kind] for kind in kinds_of(layer) if kind in GATES))
    yield Weight(cell.kernel, (into, gates), (1,))
    yield Weight(cell.recurrent_kernel, (out, gates), (1,))
    if cell.use_bias:
        two = len(cell.bias.shape) == 2  # a GRU's input and recurrent biases
        yield Weight(cell.bias, (None, gates) if two else (gates,))


def _sequence(layer, x: Axes, outs: list[Axis], count: int) -> list[Axes]:
    whole: Axis = Concat(tuple(outs)) if len(outs) > 1 else outs[0]
    first: Axes = [*x[:2], whole] if layer.return_sequences else [x[0], whole]
    return [first, *([x[0], outs[0]] for _ in range(count - 1))]
