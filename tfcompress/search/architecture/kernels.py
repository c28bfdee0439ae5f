"""Convolutions with smaller kernels, cut from the middle of those that were trained."""

from __future__ import annotations

from collections.abc import Mapping

import keras
import numpy as np
from keras import layers, ops

from tfcompress.graph.copying import copy_operation, copy_trainable
from tfcompress.graph.inputs import require_model
from tfcompress.graph.nodes import Graph, Node, exchanged, has_own_call, model_of, new_input
from tfcompress.kinds import has_plain_weights

_KINDS = (layers.Conv1D, layers.Conv2D, layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)


def kernel_sizes(layer) -> tuple[int, ...]:
    """The odd sizes that a convolution's kernel can be cut to, the present one last."""
    if not isinstance(layer, _KINDS) or has_own_call(type(layer)) or not has_plain_weights(layer):
        return ()
    sizes, plain = set(layer.kernel_size), set(layer.dilation_rate) == {1}
    if len(sizes) > 1 or layer.padding != "same" or not plain:
        return ()
    (size,) = sizes
    # Of one place a depthwise kernel mixes nothing, and a strided one skips places.
    least = 3 if isinstance(layer, _DEPTHWISE) or set(layer.strides) != {1} else 1
    return tuple(range(least, size + 1, 2)) if size % 2 and size > least else ()


def cut_kernel(kernel: np.ndarray, places: int, size: int) -> np.ndarray:
    """The middle of a kernel of shape (*places, inputs, outputs).

    Args:
        places: how many of its axes are places.
        size: of each of these axes that is left.
    """
    edges = [(n - size) // 2 for n in kernel.shape[:places]]
    return kernel[tuple(slice(edge, edge + size) for edge in edges)]


def with_kernel_sizes(model: keras.Model, sizes: Mapping[str, int]) -> keras.Model:
    """A flat model that is used up, with other kernel sizes: {name of a layer: size}."""
    require_model(model)
    smaller: dict[int, keras.Layer] = {}

    def call(node: Node, *args, **kwargs):
        layer = node.operation
        if sizes.get(node.name, layer) in (layer, getattr(layer, "kernel_size", (layer,))[0]):
            return layer(*args, **kwargs)
        if id(layer) not in smaller:
            smaller[id(layer)] = copy_operation(
                layer, {"kernel_size": (sizes[node.name],) * len(layer.kernel_size)}
            )
            found = smaller[id(layer)](*args, **kwargs)
            _fill(layer, smaller[id(layer)], sizes[node.name])
            return found
        return smaller[id(layer)](*args, **kwargs)

    return exchanged(Graph.of(model), call)


def _fill(old, new, size: int) -> None:
    kernel = ops.convert_to_numpy(old.kernel)
    new.kernel.assign(cut_kernel(kernel, len(old.kernel_size), size))
    if old.use_bias:
        new.bias.assign(ops.convert_to_numpy(old.bias))
    copy_trainable(old, new)


def resized_inside(model: keras.Model, height: int, width: int) -> keras.Model:
    """A flat model that is used up, which resizes its only input first."""
    graph = Graph.of(model)
    for node in graph.nodes:
        if not node.is_input:
            node.operation._inbound_nodes.clear()
            node.operation._outbound_nodes.clear()
    (inside,) = [t for node in graph.nodes if node.is_input for t in node.outputs]
    given = new_input(inside)
    x = layers.Resizing(height, width, name="resolution")(given)

    def call(node: Node, *args, **kwargs):
        return args[0] if node.is_input else node.operation(*args, **kwargs)

    return model_of(given, graph.run([x], call), model.name)
