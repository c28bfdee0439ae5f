"""Layers opened into primitive operations, each of which LiteRT runs as one quantizable op.

Each function takes a built layer and the tensors it is called with, and computes the same with
smaller pieces that carry the layer's weights. The results are equal up to float rounding.
"""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable

import keras
from keras import layers, ops, tree

from tfcompress.graph.copying import copy_operation, copy_weights
from tfcompress.graph.inputs import mask_of
from tfcompress.graph.nodes import Graph, call_node, has_own_call, tensors_in, unique
from tfcompress.graph.recording import parameter_of
from tfcompress.graph.tracing import trace
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
from tfcompress.quantization.pieces import (
    Rsqrt,
    activate,
    constant,
    dense_of,
    hand_on,
    is_by_value,
    parts_of_separable,
    with_weights,
)
from tfcompress.quantization.placement import has_kernel
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
    function = recurrent.opener_of(layer, technique)
    if function is None:
        usual = functions.opener_of(layer, args)
        function = next((f for fits, f in _OPENERS if fits(layer)), usual)
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


def is_simple_user_layer(layer) -> bool:
    """Whether a user's leaf layer may be opened without losing what it does in training."""
    if not isinstance(layer, keras.Layer) or isinstance(layer, keras.Model) or layer._layers:
        return False
    if not has_own_call(type(layer)) and type(layer) is not layers.Lambda:
        return False
    return len(layer.variables) == len(layer.weights)  # else it is random


def open_user_layer(layer, *args, **kwargs):
    """A user's layer written in `keras.ops` -> its operations; as it is if it cannot be traced."""
    if _reads_mask(layer) and any(mask_of(x) is not None for x in tree.flatten((args, kwargs))):
        return layer(*args, **kwargs)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*computes something else if")
            inner = trace(layer, args, kwargs)
    except (ValueError, UserWarning):
        return layer(*args, **kwargs)
    tensors = unique(tensors_in((args, kwargs)))
    made: dict[int, object] = {}

    def as_tensor(value):
        if not isinstance(value, keras.Variable):
            return value
        if id(value) not in made:
            made[id(value)] = parameter_of(value, layer)(tensors[0])
        return made[id(value)]

    def call(node, *a, **k):
        if node.is_input:
            return a[0]
        a, k = tree.map_structure(as_tensor, (a, k))
        return node.operation(*a, **k)

    return inner.run(tensors, call)


def _reads_mask(layer) -> bool:
    """Whether a user's layer does something of its own with masks."""
    own = type(layer).compute_mask is not keras.Layer.compute_mask
    parameters = inspect.signature(layer.call).parameters
    return own or any(name == "mask" or name.endswith("_mask") for name in parameters)


def open_lstm(layer, x, initial_state=None, mask=None, **kwargs):
    """An unrolled LSTM -> Dense layers shared by all time steps, and gates."""
    if not _is_plain_call(x, initial_state, mask):
        return layer(x, initial_state=initial_state, mask=mask, **kwargs)
    cell = layer.cell
    inputs = dense_of(layer, cell.kernel, cell.bias, f"{layer.name}_inputs")
    recurrent = dense_of(layer, cell.recurrent_kernel, None, f"{layer.name}_recurrent")
    h = c = None
    outputs = []
    for step in _time_steps(layer, x):
        z = inputs(step) if h is None else ops.add(inputs(step), recurrent(h))
        i, f, g, o = ops.split(z, 4, axis=-1)
        c_new = ops.multiply(ops.sigmoid(i), ops.tanh(g))
        c = c_new if c is None else ops.add(ops.multiply(ops.sigmoid(f), c), c_new)
        h = ops.multiply(ops.sigmoid(o), ops.tanh(c))
        outputs.append(h)
    return _sequence(layer, outputs)


def open_gru(layer, x, initial_state=None, mask=None, **kwargs):
    """An unrolled GRU (reset_after) -> Dense layers shared by all time steps, and gates."""
    if not _is_plain_call(x, initial_state, mask):
        return layer(x, initial_state=initial_state, mask=mask, **kwargs)
    cell = layer.cell
    biases = (cell.bias[0], cell.bias[1]) if cell.use_bias else (None, None)
    inputs = dense_of(layer, cell.kernel, biases[0], f"{layer.name}_inputs")
    recurrent = dense_of(layer, cell.recurrent_kernel, biases[1], f"{layer.name}_recurrent")
    if cell.use_bias:  # an indexed variable does not hand on how it trains
        hand_on(inputs, "bias", cell.bias)
        hand_on(recurrent, "bias", cell.bias)
    h = ops.multiply(x[:, 0, :1], ops.zeros((1, layer.units), x.dtype))
    outputs = []
    for step in _time_steps(layer, x):
        z_x, r_x, n_x = ops.split(inputs(step), 3, axis=-1)
        z_h, r_h, n_h = ops.split(recurrent(h), 3, axis=-1)
        z, r = ops.sigmoid(ops.add(z_x, z_h)), ops.sigmoid(ops.add(r_x, r_h))
        n = ops.tanh(ops.add(n_x, ops.multiply(r, n_h)))
        h = ops.add(n, ops.multiply(z, ops.subtract(h, n)))
        outputs.append(h)
    return _sequence(layer, outputs)


def open_masked_mean(layer, x, mask=None):
    """GlobalAveragePooling1D with a mask -> cast, multiply, sum, sum, divide."""
    mask = mask_of(x) if mask is None else mask
    if mask is None:
        return layer(x)
    last = layer.data_format == "channels_last"
    kept = ops.expand_dims(ops.cast(mask, x.dtype), 2 if last else 1)
    over = {"axis": 1 if last else 2, "keepdims": layer.keepdims}
    return ops.divide(ops.sum(ops.multiply(x, kept), **over), ops.sum(kept, **over))


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
    (lambda x: is_plain_rnn(x) and type(x) is layers.LSTM, open_lstm),
    (lambda x: is_plain_rnn(x) and type(x) is layers.GRU and _has_parted_bias(x), open_gru),
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


def is_plain_rnn(layer) -> bool:
    """Whether an unrolled LSTM or GRU has the gates that `open_lstm`, `open_gru` know."""
    known = type(layer) is layers.LSTM or (type(layer) is layers.GRU and layer.reset_after)
    return (
        known
        and layer.unroll
        and not (layer.stateful or layer.return_state)
        and not (layer.dropout or layer.recurrent_dropout)
        and layer.activation is keras.activations.tanh
        and layer.recurrent_activation is keras.activations.sigmoid
    )


def _has_parted_bias(gru) -> bool:
    """Whether the two rows of a GRU's bias can train as two weights."""
    bias = gru.cell.bias
    return bias is None or (bias.constraint is None and is_by_value(bias.regularizer))


def _is_plain_call(x, initial_state, mask) -> bool:
    masked = mask is not None or mask_of(x) is not None
    return not masked and initial_state is None and None not in x.shape[1:]


def _time_steps(layer, x) -> list:
    steps = [x[:, t] for t in range(x.shape[1])]
    return steps[::-1] if layer.go_backwards else steps


def _sequence(layer, outputs: list):
    return ops.stack(outputs, axis=1) if layer.return_sequences else outputs[-1]
