"""What the axes of the weights of attention layers count: whole heads may go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras

from tfcompress.channels.terms import Axis, Product
from tfcompress.channels.weighted import Axes, Call, Weight
from tfcompress.quantization.attention import is_plain_attention

if TYPE_CHECKING:
    from tfcompress.channels.following import Follower


def multi_head(flow: Follower, call: Call) -> list[Axes] | None:
    layer = call.layer
    if not is_plain_attention(layer):
        return flow.unknown(call)
    given = _tensors(flow, call)
    query, value = given["query"], given["value"]
    _fix_positions(flow, call, given)
    heads = flow.channels.new(layer.num_heads, f"the heads of {call.source}")
    size = flow.channels.new(layer.value_dense.kernel.shape[-1], f"the values of {call.source}")
    out = flow.channels.new(layer.output_dense.kernel.shape[-1], call.source)
    # Scores are divided by the root of their size, so that nothing can be cut of queries and keys.
    parts: list[tuple[Any, tuple[Axis | None, ...]]] = [
        (layer.query_dense, (query[-1], heads, None)),
        (layer.key_dense, (given.get("key", value)[-1], heads, None)),
        (layer.value_dense, (value[-1], heads, size)),
    ]
    weights = [Weight(layer.output_dense.kernel, (heads, size, out), (2,))]
    weights.append(Weight(layer.output_dense.bias, (out,)))
    for part, axes in parts:
        makes = (1, 2) if axes[2] is not None else (1,)
        weights += [Weight(part.kernel, axes, makes), Weight(part.bias, axes[1:])]
    flow.channels.fix(size, "attention loses whole heads")
    flow.register(call, weights, num_heads=heads, output_shape=out)
    return [[*query[:-1], out]]


def _tensors(flow: Follower, call: Call) -> dict[str, Axes]:
    """The axes of the tensors of a call, by the names of the arguments."""
    tensors = {k: v for k, v in call.given.items() if isinstance(v, keras.KerasTensor)}
    return {name: flow.axes_of(tensor) for name, tensor in tensors.items()}


def grouped_heads(flow: Follower, call: Call) -> list[Axes] | None:
    """Each head of keys and values serves several of the queries, which go with it."""
    layer, given = call.layer, _tensors(flow, call)
    query, value = given["query"], given["value"]
    _fix_positions(flow, call, given)
    heads = flow.channels.new(layer.num_key_value_heads, f"the heads of {call.source}")
    times = flow.channels.new(layer.num_query_heads // heads.size, call.source)
    flow.fix([times], f"they are the queries of one head of {call.source}")
    every = Product((heads, times))
    parts: list[tuple[Any, tuple[Axis | None, ...]]] = [
        (layer._query_dense, (query[-1], every, None)),
        (layer._key_dense, (given.get("key", value)[-1], heads, None)),
        (layer._value_dense, (value[-1], heads, None)),
    ]
    if layer.use_gate:
        parts.append((layer._gate_dense, (query[-1], every, None)))
    weights = [Weight(layer._output_dense.kernel, (every, None, query[-1]), (2,))]
    weights.append(Weight(layer._output_dense.bias, (query[-1],)))
    for part, axes in parts:
        weights += [Weight(part.kernel, axes, (1,)), Weight(part.bias, axes[1:])]
    flow.register(call, weights, num_query_heads=every, num_key_value_heads=heads)
    return [query]


def attention(flow: Follower, call: Call) -> list[Axes] | None:
    """Attention of a single head, without projections."""
    layer, (inputs, *_) = call.layer, call.node.args or (call.given["inputs"],)
    query, value, *keys = (flow.axes_of(tensor) for tensor in inputs)
    key = keys[0] if keys else value
    for axes in call.inputs:
        flow.fix(axes[1 : len(axes) - 1], f"they are positions of {call.source}")
    flow.same(query[-1], key[-1])
    scale = getattr(layer, "scale", None)
    if scale is not None:
        flow.register(call, [Weight(scale, (query[-1],) if len(scale.shape) else ())])
    return [[*query[:-1], value[-1]]]


def _fix_positions(flow: Follower, call: Call, given: dict[str, Axes]) -> None:
    for tensor in given.values():
        flow.fix(tensor[1:-1], f"they are positions of {call.source}")
    if "attention_mask" in given:
        flow.fix(given["attention_mask"][-1:], f"they are positions of {call.source}")
