"""The memory that the activations of a .tflite file take while it runs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from tfcompress.tflite import flatbuffer

# Their output is their input under another shape: LiteRT lets both share memory.
_RELABEL = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "BITCAST")

# They read an element of the input after they have written others, so they never run in place;
# LiteRT lets some of the rest (ADD, MUL, SOFTMAX, ...) overwrite an input.
_NOT_IN_PLACE = (
    *("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "CONV_3D", "CONV_3D_TRANSPOSE"),
    *("FULLY_CONNECTED", "BATCH_MATMUL", "AVERAGE_POOL_2D", "MAX_POOL_2D", "MEAN", "SUM"),
    *("CONCATENATION", "PACK", "PAD", "PADV2", "MIRROR_PAD", "TRANSPOSE", "REDUCE_MAX"),
    *("SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"),
    *("GATHER", "TILE", "REVERSE_V2", "CUMSUM"),
)

_SUBGRAPH_OPTIONS = (
    *("condSubgraphIndex", "bodySubgraphIndex"),
    *("thenSubgraphIndex", "elseSubgraphIndex", "initSubgraphIndex"),
)


def activation_bytes(model: Any) -> int:
    """Return the most bytes of activations that are live at once, a lower bound of the arena.

    A tensor lives from the operator that makes it to the last one that reads it, variables for
    ever. RESHAPE and the like take no memory of their own, and an operator that could overwrite
    an input nobody reads later is taken to do so. The bodies of WHILE and IF come on top of the
    operator that runs them. The arena of an interpreter without delegates (LiteRT, LiteRT for
    Microcontrollers) is larger by alignment, gaps and the kernels' scratch memory.

    Args:
        model: a `ModelT`, as from `flatbuffer.read`. Dynamic dimensions count as they stand in
            the tensor's shape, mostly as 1.
    """
    peaks: dict[int, int] = {}
    for subgraph in _called_first(model):
        peaks[subgraph] = max(live_bytes(model, subgraph, peaks), default=0)
    return peaks[0]


def _called_first(model: Any) -> list[int]:
    """The first subgraph and all that it calls, each once, behind those that it calls itself.

    Not by recursion: a damaged file may nest thousands, and call each from many places.
    """
    order: list[int] = []
    seen = {0}
    waiting = [(0, iter(_bodies_of_graph(model, 0)))]
    while waiting:
        subgraph, bodies = waiting[-1]
        body = next((b for b in bodies if b not in seen), None)
        if body is None:
            order.append(subgraph)
            waiting.pop()
        else:
            seen.add(body)
            waiting.append((body, iter(_bodies_of_graph(model, body))))
    return order


def _bodies_of_graph(model: Any, subgraph: int) -> list[int]:
    return [body for op in model.subgraphs[subgraph].operators for body in _bodies(model, op)]


def _bodies(model: Any, op: Any) -> list[int]:
    """The subgraphs that an operator runs."""
    named = {getattr(op.builtinOptions, name, -1) for name in _SUBGRAPH_OPTIONS}
    return sorted(body for body in named if 0 < body < len(model.subgraphs))


def live_bytes(model: Any, subgraph: int, peaks: Mapping[int, int] | None = None) -> list[int]:
    """Return the bytes of activations that are live while each operator of a graph runs.

    One number for a graph without operators. `peaks` has the most of graphs that it may call.
    """
    graph = model.subgraphs[subgraph]
    owner = _owners(model, graph)
    sizes = [_activation_size(model, tensor) for tensor in graph.tensors]
    first, last = _lifetimes(graph, owner)
    # Python integers: the shapes of a damaged file may overflow others.
    changes = [0] * (len(graph.operators) + 2)
    for i in first:
        changes[first[i]] += sizes[i]
        changes[last[i] + 1] -= sizes[i]
    live = list(itertools.accumulate(changes))
    for step, op in enumerate(graph.operators):
        made = op.outputs[0] if op.outputs else -1
        if made != -1 and flatbuffer.op_name(model, op) not in (*_NOT_IN_PLACE, *_RELABEL):
            output = sizes[owner[made]]
            dying = [sizes[owner[i]] for i in op.inputs if i != -1 and last[owner[i]] == step]
            live[step] -= output if output <= max(dying, default=0) else 0
        # A damaged file may call itself: what is not known yet counts as nothing.
        live[step] += sum((peaks or {}).get(body, 0) for body in _bodies(model, op))
    return live[: max(1, len(graph.operators))]


def _lifetimes(graph: Any, owner: list[int]) -> tuple[dict[int, int], dict[int, int]]:
    """Return for each tensor that owns memory the first and the last step that need it."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    # Outputs live beyond the last operator.
    end = len(graph.operators)
    variables = [i for i, tensor in enumerate(graph.tensors) if tensor.isVariable]
    spans = [(step, [*op.inputs, *op.outputs]) for step, op in enumerate(graph.operators)]
    spans += [(0, [*graph.inputs, *variables]), (end, [*graph.outputs, *variables])]
    for step, used in spans:
        for i in (owner[i] for i in used if i != -1):
            first[i] = min(step, first.get(i, step))
            last[i] = max(step, last.get(i, step))
    return first, last


def _activation_size(model: Any, tensor: Any) -> int:
    if flatbuffer.is_constant(model, tensor):
        return 0
    return flatbuffer.stored_size(tensor.shape, flatbuffer.dtype_name(tensor))


def _owners(model: Any, graph: Any) -> list[int]:
    """Return for each tensor the one whose memory it uses: mostly itself."""
    owner = list(range(len(graph.tensors)))
    constants = [flatbuffer.is_constant(model, tensor) for tensor in graph.tensors]
    for op in graph.operators:
        if flatbuffer.op_name(model, op) in _RELABEL and op.inputs and op.outputs:
            source, target = op.inputs[0], op.outputs[0]
            if -1 not in (source, target) and not constants[source]:
                owner[target] = owner[source]
    return owner
