"""What nothing in a file refers to: tensors, and the contents of buffers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def drop_tensors(model: Any, subgraph: int = 0) -> dict[int, int]:
    """Take out tensors of a graph that nothing refers to. Changes `model`.

    Returns the new indices by the old ones; -1, which stands for none, stays.
    """
    graph = model.subgraphs[subgraph]
    used = {i for op in graph.operators for i in _tensors_of(op) if i >= 0}
    used |= {*graph.inputs, *graph.outputs}
    used |= {i for i, tensor in enumerate(graph.tensors) if tensor.isVariable}
    blocks = [graph.tensors[i].quantization.details for i in sorted(used) if _in_blocks(graph, i)]
    used |= {details.scales for details in blocks}
    new = {old: position for position, old in enumerate(sorted(used))}
    new[-1] = -1
    graph.tensors = [graph.tensors[i] for i in sorted(used)]
    for op in graph.operators:
        op.inputs, op.outputs = [new[i] for i in op.inputs], [new[i] for i in op.outputs]
        op.intermediates = [new[i] for i in _some(op.intermediates)] or None
    for details in blocks:
        details.scales = new[details.scales]
    graph.inputs, graph.outputs = [new[i] for i in graph.inputs], [new[i] for i in graph.outputs]
    for signature in model.signatureDefs:
        for entry in (*signature.inputs, *signature.outputs):
            if signature.subgraphIndex == subgraph:
                entry.tensorIndex = new[entry.tensorIndex]
    return new


def _in_blocks(graph: Any, index: int) -> bool:
    """Whether the scales of a tensor are another tensor."""
    quantization = graph.tensors[index].quantization
    return hasattr(getattr(quantization, "details", None), "blockSize")


def _tensors_of(op: Any) -> Iterator[int]:
    """The tensors that an operator reads, gives or keeps; -1 for those that it may do without."""
    for indices in (op.inputs, op.outputs, op.intermediates):
        yield from _some(indices)


def _some(indices: Any) -> list[int]:
    return [] if indices is None else [int(i) for i in indices]


def drop_buffers(model: Any) -> None:
    """Take out buffers that nothing refers to, and have equal ones once. Changes `model`."""
    users = [*model.metadata, *(t for graph in model.subgraphs for t in graph.tensors)]
    kept, known = [model.buffers[0]], dict[bytes, int]()
    for user in users:
        data = model.buffers[user.buffer].data
        content = b"" if data is None else np.asarray(data, np.uint8).tobytes()
        if not content:
            user.buffer = 0
            continue
        if content not in known:
            known[content] = len(kept)
            kept.append(model.buffers[user.buffer])
        user.buffer = known[content]
    model.buffers = kept
