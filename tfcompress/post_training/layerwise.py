"""Kernels exchanged layer by layer, each to give with the layers before what the float model gave.

Samples go through the model twice side by side: as it was, and with what was exchanged so far.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from tfcompress.errors import check, did_you_mean
from tfcompress.graph.flatten import flatten
from tfcompress.graph.folding import folded
from tfcompress.graph.inputs import require_model
from tfcompress.graph.nodes import Graph
from tfcompress.layers.compressed import require_plain
from tfcompress.post_training.hessians import Moments, kernel_of, moments_of
from tfcompress.post_training.kernels import Kernel, kernels_of
from tfcompress.post_training.walk import Call, run, walk

# What a kernel becomes, (groups, d, channels) as its matrix in the moments; None if it stays.
Change = Callable[[Kernel, Moments], np.ndarray | None]
Progress = Callable[[int, int], None]


def flat_copy(model: keras.Model) -> keras.Model:
    """A flat copy of a float model, with BatchNormalization folded, weights of its own."""
    require_model(model)
    require_plain(model)
    return folded(flatten(model))


def named_kernels(argument: str, given: Any, flat: keras.Model) -> dict[str, Any]:
    """What an argument says by the names of layers; what it says of all, for each with a kernel."""
    known = [kernel.name for kernel in kernels_of(Graph.of(flat))]
    check(bool(known), "model", "one with a Dense layer or a convolution", flat.name)
    if not isinstance(given, Mapping):
        return dict.fromkeys(known, given)
    mend = f"There are {', '.join(known[:10])}."
    for name in given:
        if name not in known:
            raise ValueError(
                f"{argument} must name layers with kernels; received '{name}'. "
                f"{did_you_mean(str(name), known, mend)}"
            )
    return dict(given)


def check_damp(damp: Any) -> None:
    """Raises unless kernels can be pulled to where they were by so much."""
    number = isinstance(damp, numbers.Real) and not isinstance(damp, bool)
    check(number and damp > 0, "damp", "a number above 0", damp, "0.1 is usual.")


def exchange(
    flat: keras.Model,
    batches: Sequence[Sequence[Any]],
    names: Collection[str],
    change: Change,
    *,
    dense: str = "per_channel",
    convolution: str = "per_channel",
    progress: Progress | None = None,
) -> None:
    """Exchanges kernels of a flat model in place, and fits their biases to them.

    A layer that is called several times gets what suits its first call.

    Args:
        batches: of samples, see `walk`.
        names: of the layers.
        change: what gives the new kernels.
        dense, convolution: see `kernels_of`.
        progress: called as `progress(done, total)` after each layer.
    """
    graph = Graph.of(flat)
    left = {id(k.layer): k for k in kernels_of(graph, dense, convolution) if k.name in names}
    total, old = len(left), dict[int, list[np.ndarray]]()

    def visit(node, calls: list[Call]) -> list[Any]:
        layer = node.operation
        wanted, given = calls[: len(batches)], calls[len(batches) :]
        if id(layer) in left:
            kernel = left.pop(id(layer))
            old[id(layer)] = layer.get_weights()
            moments = moments_of(layer, *([_input(call) for call in x] for x in (given, wanted)))
            matrix = change(kernel, moments)
            _assign(kernel, moments, moments.matrix if matrix is None else matrix)
            if progress is not None:
                progress(total - len(left), total)
        if id(layer) not in old:
            return run(node, calls)
        new = layer.get_weights()
        layer.set_weights(old[id(layer)])
        made = run(node, wanted)
        layer.set_weights(new)
        return made + run(node, given)

    walk(graph, [*batches, *batches], visit)


def _input(call: Call) -> Any:
    return tree.flatten(call)[0]


def _assign(kernel: Kernel, moments: Moments, matrix: np.ndarray) -> None:
    layer = kernel.layer
    layer.kernel.assign(kernel_of(layer, matrix, tuple(layer.kernel.shape)))
    if layer.use_bias:
        shift = moments.shift(matrix).reshape(-1)
        layer.bias.assign(ops.convert_to_numpy(layer.bias) + shift)
