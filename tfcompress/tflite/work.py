"""How long LiteRT may take over one run of a file, by the sizes of what its operators compute."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

# In seconds of processor time. A reference kernel on a slow board computes more in one of them.
_LEAST, _MOST = 10, 3600
_NUMBERS, _BYTES = 5e6, 1e7
_TURNS = 1000  # of a loop, of which files do not tell


def seconds(content: bytes, threads: int = 1) -> int:
    """What no file needs but one that does not end, by far.

    Args:
        content: of a file that its readers have passed.
    """
    root = schema.Model.GetRootAs(content)
    graphs = [root.Subgraphs(i) for i in range(root.SubgraphsLength())]
    work = sum(_work(graph) * (_TURNS if i else 1) for i, graph in enumerate(graphs))
    return int(threads * min(_LEAST + len(content) / _BYTES + work / _NUMBERS, _MOST))


def _work(graph: Any) -> float:
    """Products and sums of a graph: those of a matrix product are the root of its three sizes."""
    sizes = [_size(graph.Tensors(i)) for i in range(graph.TensorsLength())]
    total = 0.0
    for i in range(graph.OperatorsLength()):
        operator = graph.Operators(i)
        taken = [operator.Inputs(k) for k in range(operator.InputsLength())]
        given = [operator.Outputs(k) for k in range(operator.OutputsLength())]
        largest = sorted((sizes[k] for k in (*taken, *given) if 0 <= k < len(sizes)), reverse=True)
        total += sum(largest) + math.sqrt(math.prod(largest[:3]))
    return total


def _size(tensor: Any) -> float:
    shape = tensor.ShapeAsNumpy() if tensor.ShapeLength() else np.empty(0)
    return float(np.prod(np.maximum(np.abs(shape), 1), dtype=np.float64))
