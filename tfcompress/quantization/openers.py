"""Layers opened into primitive operations, each of which LiteRT runs as one quantizable op.

Each function takes a built layer and the tensors it is called with, and computes the same with
smaller pieces that carry the layer's weights. The results are equal up to float rounding.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import keras
from keras import layers, ops

from tfcompress.graph.copying import copy_operation, copy_weights
from tfcompress.graph.inputs import mask_of
from tfcompress.graph.nodes import Graph, call_node, exchanged, tensors_in, unique
from tfcompress.kinds import FOLDING, LINEAR, SEPARABLE, is_exactly
from tfcompress.quantization import functions, recurrent, spectra
from tfcompress.quantization.attention import (
    is_dot_attention,
    is_dot_product,
    is_matrix_einsum,
    is_other_einsum,
    is_plain_attention,
    open_attention,
    open_dot_attention,
    open_dot_product,
    open_einsum,
    open_other_einsum,
    open_softmax,
)
from tfcompress.quantization.kernels import has_kernel
from tfcompress.quantization.loops import is_recurrent
from tfcompress.quantization.pieces import (
    Rsqrt,
    activate,
    constant,
    parts_of_separable,
    with_weights,
)
from tfcompress.quantization.step_openers import (
    is_bidirectional,
    open_bidirectional,
    open_recurrent,
)
from tfcompress.quantization.traced import is_simple_user_layer, open_user_layer
from tfcompress.techniques.quantize import Quantize

__all__ = ["Rsqrt", "constant", "opener", "with_weights"]


def opener(layer, args: tuple = (), technique: Quantize | None = None) -> Callable | None:
    """The function that opens a layer, `f(layer, *args, **kwargs)`; None if it is a primitive.

    Args:
        args: what it is called with, on which that may depend.
        technique: how its activations are quantized; by default as usual.

    Returns a function that computes what the layer does, up to float rounding, with primitives that
    carry copies of its weights; or None. The function calls the layer itself if it is called in a
    way that has no primitives (with masks, say).
    """
    usual = functions.opener_of(layer, args)
    function = next((f for fits, f in _OPENERS if fits(layer)), usual)
    if is_bidirectional(layer):
        inside = functools.partial(opener, technique=technique)
        function = functools.partial(open_bidirectional, inside)
    function = recurrent.opener_of(layer, technique, function) or function
    return None if function is None else functools.partial(_open_deeply, function, technique)


def _open_deeply(function: Callable, technique: Quantize | None, operation, *args, **kwargs):
    """What an operation is opened into, opened in its turn."""
    outputs = function(operation, *args, **kwargs)
    tensors = unique(with_masks(tensors_in((args, kwargs)))[0])
    pieces = Graph(tensors, outputs)
    found = {
        id(node.operation): opener(node.operation, node.args, technique) for node in pieces.nodes
    }
    left = getattr(operation, "activation", None)
    for node in pieces.nodes:
        part = node.operation
        if part is operation or (left and getattr(part, "activation", None) is left):
            found[id(part)] = None  # what could not be opened
    if not any(found.values()):
        return outputs

    def call(node, *a, **k):
        opened = None if node.is_input else found[id(node.operation)]
        return call_node(node, *a, **k) if opened is None else opened(node.operation, *a, **k)

    return pieces.run(tensors, call)


def _deepened(model: keras.Model) -> keras.Model:
    """A model of one step with its operations opened."""

    def call(node, *args, **kwargs):
        opened = None if node.is_input else opener(node.operation, node.args)
        if opened is None:
            return call_node(node, *args, **kwargs)
        return opened(node.operation, *args, **kwargs)

    return exchanged(Graph.of(model), call)


def with_masks(tensors: list) -> tuple[list, tuple[int, ...]]:
    """Tensors and the masks that they carry, which layers read as well; and which of them do."""
    masks = {i: mask for i, x in enumerate(tensors) if (mask := mask_of(x)) is not None}
    return [*tensors, *masks.values()], tuple(masks)


def has_activation(layer) -> bool:
    """Whether the layer applies an activation of its own after its weights."""
    if not is_exactly(layer, LINEAR - SEPARABLE):
        return False
    return layer.activation not in (None, keras.activations.linear)


def split_activation(layer, x, **_):
    """Dense(relu) -> Dense, relu."""
    plain = copy_operation(layer)
    plain.activation = keras.activations.linear
    y = plain(x)
    copy_weights([(layer, plain)])
    return activate(layer.activation, y, f"{layer.name}_activation", layer.dtype_policy)


def is_opened_activation(layer) -> bool:
    """Whether an Activation has no integer kernel, but its parts may have."""
    return type(layer) is layers.Activation and not has_kernel(layer)


def open_activation(layer, x):
    """silu -> sigmoid, multiply; and so on."""
    return activate(layer.activation, x, layer.name, layer.dtype_policy)


def open_separable(layer, x):
    """SeparableConv -> DepthwiseConv, pointwise Conv, activation."""
    depthwise, pointwise = parts_of_separable(layer, f"{layer.name}_pointwise")
    y = with_weights(depthwise, x, kernel=layer.depthwise_kernel)
    y = with_weights(pointwise, y, kernel=layer.pointwise_kernel, bias=layer.bias)
    return activate(layer.activation, y, f"{layer.name}_activation", layer.dtype_policy)


def open_layer_norm(layer, x):
    """LayerNormalization -> mean, subtract, multiply, mean, add, rsqrt, multiply, add."""
    axes = _axes(layer, x)
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    centered = ops.subtract(x, ops.mean(x, axis=axes, keepdims=True))
    y = _normalize(layer, centered, axes)
    return _scale_and_shift(layer, y, shape)


def open_rms_norm(layer, x):
    """RMSNormalization -> multiply, mean, add, rsqrt, multiply, multiply."""
    axes = _axes(layer, x)
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    return _times(layer, _normalize(layer, x, axes), layer.scale, shape)


def open_group_norm(layer, x):
    """GroupNormalization over the last axis -> reshape, the steps of a layer norm, reshape."""
    shape = tuple(x.shape)
    if None in shape[1:]:
        return layer(x)
    groups = layer.groups if layer.groups > 0 else shape[-1]
    grouped = ops.reshape(x, (-1, math.prod(shape[1:-1]), groups, shape[-1] // groups))
    centered = ops.subtract(grouped, ops.mean(grouped, axis=[1, 3], keepdims=True))
    y = ops.reshape(_normalize(layer, centered, [1, 3]), (-1, *shape[1:]))
    return _scale_and_shift(layer, y, [1] * (len(shape) - 1) + [shape[-1]])


def _is_float32(layer, *kinds) -> bool:
    """Whether a layer is of a kind, and casts nothing on the way as half precision does."""
    return type(layer) in kinds and layer.compute_dtype == "float32"


def _axes(layer, x) -> list[int]:
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    return sorted(axis % len(x.shape) for axis in axes)


def _normalize(layer, centered, axes):
    variance = ops.mean(ops.multiply(centered, centered), axis=axes, keepdims=True)
    rsqrt = Rsqrt(name=f"{layer.name}_rsqrt", dtype=layer.dtype_policy)
    return ops.multiply(centered, rsqrt(ops.add(variance, layer.epsilon)))


def _scale_and_shift(layer, y, shape):
    if layer.scale and layer.gamma is not None:
        y = _times(layer, y, layer.gamma, shape)
    if layer.center and layer.beta is not None:
        name = f"{layer.name}_beta"
        beta = constant(layer.beta, y, name, layer.trainable, shape, layer.dtype_policy)
        y = ops.add(y, beta)
    return y


def _times(layer, y, gamma, shape):
    name = f"{layer.name}_gamma"
    scale = constant(gamma, y, name, layer.trainable, shape, layer.dtype_policy)
    return ops.multiply(y, scale)


def open_average(layer, inputs):
    """Average -> adds, multiply."""
    if any(mask_of(x) is not None for x in inputs):  # it joins their masks
        return layer(inputs)
    total = inputs[0]
    for x in inputs[1:]:
        total = ops.add(total, x)
    return ops.multiply(total, 1.0 / len(inputs))


def open_many(layer, inputs):
    """Add, Multiply of three and more -> of two each."""
    if len(inputs) <= 2:
        return layer(inputs)
    total = inputs[0]
    for number, x in enumerate(inputs[1:]):
        name = f"{layer.name}_{number}" if number < len(inputs) - 2 else layer.name
        total = type(layer)(name=name, dtype=layer.dtype_policy)([total, x])
    return total


def open_unit_norm(layer, x):
    """UnitNormalization -> the steps of an RMS normalization."""
    return ops.normalize(x, axis=layer.axis, order=2, epsilon=1e-12)


def open_dot(layer, inputs):
    """Dot(normalize=True) -> two unit normalizations, Dot."""
    axes = [layer.axes] * 2 if isinstance(layer.axes, int) else layer.axes
    units = [ops.normalize(x, axis=a) for x, a in zip(inputs, axes, strict=True)]
    plain = layers.Dot(layer.axes, name=layer.name, dtype=layer.dtype_policy)
    return plain(units)


def is_time_distributed(layer) -> bool:
    """Whether a TimeDistributed calls a layer that does the same in training."""
    inner = layer.layer if type(layer) is layers.TimeDistributed else None
    return is_exactly(inner, FOLDING | SEPARABLE)


def open_time_distributed(layer, x, mask=None):
    """TimeDistributed -> reshape, its layer, reshape; Dense alone, which takes any rank."""
    shape = tuple(x.shape)
    if mask is not None or mask_of(x) is not None or None in shape[1:]:
        return layer(x, mask=mask)
    twin = copy_operation(layer.layer)
    dense = isinstance(twin, layers.Dense)
    y = twin(x if dense else ops.reshape(x, (-1, *shape[2:])))
    copy_weights([(layer.layer, twin)])
    return y if dense else ops.reshape(y, (-1, shape[1], *y.shape[1:]))


def open_masked_mean(layer, x, mask=None):
    """GlobalAveragePooling1D with a mask -> cast, multiply, mean, mean, divide."""
    mask = mask_of(x) if mask is None else mask
    if mask is None:
        return layer(x)
    last = layer.data_format == "channels_last"
    kept = ops.expand_dims(ops.cast(mask, x.dtype), 2 if last else 1)
    over = {"axis": 1 if last else 2, "keepdims": layer.keepdims}
    return ops.divide(ops.mean(ops.multiply(x, kept), **over), ops.mean(kept, **over))


# The first that fits opens the layer.
_OPENERS: list[tuple[Callable, Callable]] = [
    (lambda x: is_exactly(x, SEPARABLE), open_separable),
    (is_matrix_einsum, open_einsum),
    (is_other_einsum, open_other_einsum),
    (has_activation, split_activation),
    (is_opened_activation, open_activation),
    # One that does not subtract the mean is an RMS normalization in disguise, and stays.
    (
        lambda x: _is_float32(x, layers.LayerNormalization) and not x.rms_scaling,
        open_layer_norm,
    ),
    (lambda x: _is_float32(x, layers.RMSNormalization), open_rms_norm),
    (lambda x: _is_float32(x, layers.GroupNormalization) and x.axis == -1, open_group_norm),
    (is_plain_attention, open_attention),
    (is_recurrent, lambda *args, **kwargs: open_recurrent(_deepened, *args, **kwargs)),
    (lambda x: type(x) is layers.Average, open_average),
    (lambda x: type(x) in (layers.Add, layers.Multiply), open_many),
    (lambda x: type(x) is layers.ReLU and not has_kernel(x), functions.relu),
    (lambda x: type(x) is layers.ELU and x.alpha != 1.0, functions.elu),
    (lambda x: type(x) is layers.UnitNormalization, open_unit_norm),
    (lambda x: type(x) is layers.Dot and x.normalize, open_dot),
    (is_time_distributed, open_time_distributed),
    (is_dot_attention, open_dot_attention),
    (is_dot_product, open_dot_product),
    (lambda x: type(x) is layers.Softmax, open_softmax),
    (lambda x: type(x) is layers.GlobalAveragePooling1D, open_masked_mean),
    (lambda x: type(x) is layers.MelSpectrogram, spectra.mel_spectrogram),
    (is_simple_user_layer, open_user_layer),
]
