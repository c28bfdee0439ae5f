"""Layers opened into primitive operations, each of which LiteRT runs as one quantizable op.

Each function takes a built layer and the tensors it is called with, and computes the same with
smaller pieces that carry the layer's weights. The results are equal up to float rounding.
"""

import inspect
from collections.abc import Callable

import keras
import numpy as np
from keras import KerasTensor, layers, ops, tree

from tfcompress import graph
from tfcompress.layers import Compressed, FakeQuant, FreezableBatchNorm, Parameter

_register = keras.saving.register_keras_serializable("tfcompress")


@_register
class Rsqrt(layers.Layer):
    """1 / sqrt(x), where x = 0 gives the largest result of the tensor, as LiteRT's int8 kernel."""

    def call(self, x):
        positive = x > 0
        y = ops.rsqrt(ops.where(positive, x, ops.ones_like(x)))
        zero = ops.zeros_like(y)
        return ops.where(positive, y, ops.max(ops.where(positive, y, zero)))

    def compute_output_shape(self, input_shape):
        return input_shape


def opener(layer) -> Callable | None:
    """The function that opens a layer, `f(layer, *args, **kwargs)`; None if it is a primitive."""
    for predicate, function in _OPENERS:
        if predicate(layer):
            return function
    return None


def with_weights(layer, x, **weights):
    """Calls a new layer on `x` and gives it weights (name -> variable or array)."""
    y = layer(x)
    for name, value in weights.items():
        getattr(layer, name).assign(value)
    return y


def constant(value, anchor, name: str, trainable: bool = True):
    """A weight as a tensor of the graph."""
    layer = Parameter(value.shape, trainable=trainable, name=name)
    return with_weights(layer, anchor, value=value)


def has_activation(layer) -> bool:
    """Whether the layer applies an activation of its own after its weights."""
    kinds = (layers.Dense, layers.EinsumDense, layers.Conv1D, layers.Conv2D, layers.Conv3D)
    kinds += (layers.DepthwiseConv1D, layers.DepthwiseConv2D, layers.Conv1DTranspose)
    kinds += (layers.Conv2DTranspose, layers.Conv3DTranspose)
    activation = getattr(layer, "activation", None)
    return isinstance(layer, kinds) and activation not in (None, keras.activations.linear)


def split_activation(layer, x):
    """Dense(relu) -> Dense, relu."""
    config = {**layer.get_config(), "activation": "linear"}
    plain = type(layer).from_config(config)
    y = plain(x)
    graph.copy_weights([(layer, plain)])
    return _run_activation(layer.activation, y, f"{layer.name}_activation")


def open_activation(layer, x):
    """silu -> sigmoid, multiply; hard_sigmoid -> add, relu6, multiply."""
    return _run_activation(layer.activation, x, layer.name)


def _run_activation(activation, x, name: str):
    known = keras.activations
    if activation is known.silu:
        return layers.Multiply(name=f"{name}_mul")([x, layers.Activation("sigmoid", name=name)(x)])
    if activation is known.hard_sigmoid:
        return ops.multiply(layers.ReLU(6.0, name=f"{name}_relu6")(ops.add(x, 3.0)), 1.0 / 6.0)
    return layers.Activation(activation, name=name)(x)


def open_separable(layer, x):
    """SeparableConv -> DepthwiseConv, pointwise Conv, activation."""
    rank = layer.rank
    config = layer.get_config()
    shared = {key: config[key] for key in ("padding", "data_format", "dtype", "trainable")}
    depthwise = (layers.DepthwiseConv1D if rank == 1 else layers.DepthwiseConv2D)(
        layer.kernel_size,
        strides=layer.strides,
        depth_multiplier=layer.depth_multiplier,
        dilation_rate=layer.dilation_rate,
        use_bias=False,
        name=f"{layer.name}_depthwise",
        **shared,
    )
    shared["padding"] = "valid"
    pointwise = (layers.Conv1D if rank == 1 else layers.Conv2D)(
        layer.filters, 1, use_bias=layer.use_bias, name=f"{layer.name}_pointwise", **shared
    )
    y = with_weights(depthwise, x, kernel=layer.depthwise_kernel)
    bias = {"bias": layer.bias} if layer.use_bias else {}
    y = with_weights(pointwise, y, kernel=layer.pointwise_kernel, **bias)
    return _run_activation(layer.activation, y, f"{layer.name}_activation")


def open_layer_norm(layer, x):
    """LayerNormalization -> mean, subtract, multiply, mean, add, rsqrt, multiply, add."""
    axes = list(layer.axis) if isinstance(layer.axis, list | tuple) else [layer.axis]
    centered = ops.subtract(x, ops.mean(x, axis=axes, keepdims=True))
    y = _normalize(layer, centered, axes, layer.epsilon)
    return _scale_and_shift(layer, y)


def open_rms_norm(layer, x):
    """RMSNormalization -> multiply, mean, add, rsqrt, multiply, multiply."""
    axes = list(layer.axis) if isinstance(layer.axis, list | tuple) else [layer.axis]
    y = _normalize(layer, x, axes, layer.epsilon)
    return ops.multiply(y, constant(layer.scale, x, f"{layer.name}_gamma", layer.trainable))


def open_group_norm(layer, x):
    """GroupNormalization over the last axis -> reshape, the steps of a layer norm, reshape."""
    shape = tuple(x.shape)
    groups = layer.groups if layer.groups > 0 else shape[-1]
    space = 1
    for size in shape[1:-1]:
        space *= size
    grouped = ops.reshape(x, (-1, space, groups, shape[-1] // groups))
    centered = ops.subtract(grouped, ops.mean(grouped, axis=[1, 3], keepdims=True))
    y = ops.reshape(_normalize(layer, centered, [1, 3], layer.epsilon), (-1, *shape[1:]))
    return _scale_and_shift(layer, y)


def _normalize(layer, centered, axes, epsilon: float):
    variance = ops.mean(ops.multiply(centered, centered), axis=axes, keepdims=True)
    inverse = Rsqrt(name=f"{layer.name}_rsqrt")(ops.add(variance, epsilon))
    return ops.multiply(centered, inverse)


def _scale_and_shift(layer, y):
    if layer.gamma is not None and layer.scale:
        gamma = constant(layer.gamma, y, f"{layer.name}_gamma", layer.trainable)
        y = ops.multiply(y, gamma)
    if layer.beta is not None and layer.center:
        y = ops.add(y, constant(layer.beta, y, f"{layer.name}_beta", layer.trainable))
    return y


def is_plain_attention(layer) -> bool:
    """Whether a MultiHeadAttention is one over the time axis of 3-D inputs, without a gate."""
    return (
        isinstance(layer, layers.MultiHeadAttention)
        and len(layer._query_dense.kernel.shape) == 3
        and tuple(layer._attention_axes or (1,)) == (1,)
        and not getattr(layer, "_use_gate", False)
        and not getattr(layer, "_sliding_window", None)
    )


def open_attention(layer, query, value, key=None, attention_mask=None, **kwargs):
    """MultiHeadAttention -> Dense projections, matmul, softmax, matmul, Dense."""
    closed = ("query_mask", "value_mask", "key_mask", "return_attention_scores")
    masked = any(keras.src.backend.get_keras_mask(x) is not None for x in (query, value))
    if masked or any(kwargs.get(name) is not None and kwargs[name] is not False for name in closed):
        return layer(query, value, key=key, attention_mask=attention_mask, **kwargs)
    key = value if key is None else key
    if kwargs.get("use_causal_mask") and attention_mask is None:
        attention_mask = np.tril(np.ones((1, query.shape[1], value.shape[1]), "float32"))
    heads, key_dim, value_dim = layer.num_heads, layer.key_dim, layer.value_dim

    def project(part, x, size):
        y = _dense_of(part, x, heads * size)
        return ops.transpose(ops.reshape(y, (-1, x.shape[1], heads, size)), (0, 2, 1, 3))

    q = project(layer._query_dense, query, key_dim)
    k = project(layer._key_dense, key, key_dim)
    v = project(layer._value_dense, value, value_dim)
    scores = ops.matmul(q, ops.transpose(k, (0, 1, 3, 2)))
    scores = ops.multiply(scores, 1.0 / float(key_dim) ** 0.5)
    if attention_mask is not None:
        # -30 leaves e-30 of a masked score and keeps the int8 range of the others.
        blocked = ops.multiply(ops.subtract(1.0, ops.cast(attention_mask, scores.dtype)), -30.0)
        scores = ops.add(scores, blocked if len(blocked.shape) == 4 else blocked[:, None])
    weights = layers.Softmax(name=f"{layer.name}_softmax")(scores)
    if layer._dropout:
        weights = layers.Dropout(layer._dropout, name=f"{layer.name}_dropout")(weights)
    mixed = ops.transpose(ops.matmul(weights, v), (0, 2, 1, 3))
    mixed = ops.reshape(mixed, (-1, query.shape[1], heads * value_dim))
    return _dense_of(layer._output_dense, mixed, layer._output_dense.kernel.shape[-1])


def _dense_of(einsum, x, units: int):
    """The Dense that computes what one of attention's EinsumDense layers does."""
    kernel = ops.reshape(einsum.kernel, (-1, units))
    bias = {"bias": ops.reshape(einsum.bias, (-1,))} if einsum.bias is not None else {}
    name = f"{einsum.path.split('/')[-2]}_{einsum.name}" if "/" in einsum.path else einsum.name
    dense = layers.Dense(units, use_bias=bool(bias), name=name, trainable=einsum.trainable)
    return with_weights(dense, x, kernel=kernel, **bias)


def is_matrix_einsum(layer) -> bool:
    """Whether an EinsumDense contracts only the last axes of its input, in order."""
    if not isinstance(layer, layers.EinsumDense):
        return False
    left, out = layer.equation.replace(" ", "").split("->")
    x, kernel = left.split(",")
    shared = "".join(axis for axis in x if axis in kernel)
    free = "".join(axis for axis in kernel if axis not in x)
    return bool(shared) and x.endswith(shared) and kernel == shared + free and (
        out == x.removesuffix(shared) + free
    )


def open_einsum(layer, x):
    """EinsumDense that is a matrix product -> reshape, Dense, reshape."""
    left, out = layer.equation.replace(" ", "").split("->")
    inputs, kernel = left.split(",")
    count = sum(axis in kernel for axis in inputs)
    kept = tuple(x.shape[1 : len(x.shape) - count])
    size = 1
    for dim in x.shape[len(x.shape) - count :]:
        size *= dim
    free = tuple(layer.kernel.shape[count:])
    units = 1
    for dim in free:
        units *= dim
    flat = x if count == 1 else ops.reshape(x, (-1, *kept, size))
    bias = {}
    if layer.bias is not None:
        bias = {"bias": ops.reshape(ops.broadcast_to(layer.bias, free), (-1,))}
    dense = layers.Dense(units, use_bias=bool(bias), name=layer.name, trainable=layer.trainable)
    y = with_weights(dense, flat, kernel=ops.reshape(layer.kernel, (size, units)), **bias)
    y = y if len(free) == 1 else ops.reshape(y, (-1, *kept, *free))
    return _run_activation(layer.activation, y, f"{layer.name}_activation")


def open_lstm(layer, x, **_):
    """An unrolled LSTM -> Dense layers shared by all time steps, and gates."""
    cell, units = layer.cell, layer.units
    inputs, recurrent = _gates(layer, 4 * units, cell.kernel, cell.recurrent_kernel, cell.bias)
    h = c = None
    outputs = []
    for step in _time_steps(layer, x):
        z = inputs(step) if h is None else ops.add(inputs(step), recurrent(h))
        i, f, g, o = ops.split(z, 4, axis=-1)
        i, f, o = (keras.ops.sigmoid(gate) for gate in (i, f, o))
        new = ops.multiply(i, ops.tanh(g))
        c = new if c is None else ops.add(ops.multiply(f, c), new)
        h = ops.multiply(o, ops.tanh(c))
        outputs.append(h)
    return _sequence(layer, outputs)


def open_gru(layer, x, **_):
    """An unrolled GRU (reset_after) -> Dense layers shared by all time steps, and gates."""
    cell, units = layer.cell, layer.units
    bias = cell.bias
    inputs, recurrent = _gates(
        layer, 3 * units, cell.kernel, cell.recurrent_kernel, bias[0] if cell.use_bias else None,
        bias[1] if cell.use_bias else None,
    )
    h = ops.multiply(x[:, 0, :1], ops.zeros((1, units)))
    outputs = []
    for step in _time_steps(layer, x):
        z_x, r_x, n_x = ops.split(inputs(step), 3, axis=-1)
        z_h, r_h, n_h = ops.split(recurrent(h), 3, axis=-1)
        z, r = ops.sigmoid(ops.add(z_x, z_h)), ops.sigmoid(ops.add(r_x, r_h))
        n = ops.tanh(ops.add(n_x, ops.multiply(r, n_h)))
        h = ops.add(n, ops.multiply(z, ops.subtract(h, n)))
        outputs.append(h)
    return _sequence(layer, outputs)


def _gates(layer, size: int, kernel, recurrent_kernel, bias, recurrent_bias=None):
    """The input and the recurrent projection of an RNN cell, as built Dense layers."""
    made = []
    for name, weight, offset in (
        ("inputs", kernel, bias), ("recurrent", recurrent_kernel, recurrent_bias)
    ):
        dense = layers.Dense(size, use_bias=offset is not None, name=f"{layer.name}_{name}")
        dense.build((None, weight.shape[0]))
        dense.kernel.assign(weight)
        if offset is not None:
            dense.bias.assign(offset)
        dense.trainable = layer.trainable
        made.append(dense)
    return made


def _time_steps(layer, x) -> list:
    steps = [x[:, t] for t in range(x.shape[1])]
    return steps[::-1] if layer.go_backwards else steps


def _sequence(layer, outputs: list):
    return ops.stack(outputs, axis=1) if layer.return_sequences else outputs[-1]


def is_plain_rnn(layer) -> bool:
    """Whether an unrolled LSTM or GRU has the gates that `open_lstm`, `open_gru` know."""
    known = isinstance(layer, layers.LSTM) or (
        isinstance(layer, layers.GRU) and layer.reset_after
    )
    return (
        known
        and layer.unroll
        and not (layer.stateful or layer.return_state)
        and not (layer.dropout or layer.recurrent_dropout)
        and layer.activation is keras.activations.tanh
        and layer.recurrent_activation is keras.activations.sigmoid
    )


def is_simple_user_layer(layer) -> bool:
    """Whether a user's leaf layer can be opened without losing what it does in training."""
    foreign = not type(layer).__module__.startswith(("keras.src.layers.", "tfcompress."))
    if not foreign or not isinstance(layer, layers.Layer) or isinstance(layer, keras.Model):
        return False
    return "training" not in inspect.signature(layer.call).parameters and not layer._layers


def open_user_layer(layer, *args, **kwargs):
    """A user's layer written in `keras.ops` -> its operations; as it is if it cannot be traced."""
    try:
        inner = graph.trace(layer, args, kwargs)
    except ValueError:
        return layer(*args, **kwargs)
    leaves = [x for x in tree.flatten((args, kwargs)) if isinstance(x, KerasTensor)]
    unique = list({id(x): x for x in leaves}.values())
    made: dict[int, Parameter] = {}

    def call(node, *a, **k):
        if node.is_input:
            return a[0]
        a, k = tree.map_structure(
            lambda v: _as_parameter(v, layer, unique[0], made), (a, k)
        )
        return node.operation(*a, **k)

    return inner.run(unique, call)


def _as_parameter(value, layer, anchor, made: dict):
    if not isinstance(value, keras.Variable):
        return value
    if id(value) not in made:
        trainable = layer.trainable and value.trainable
        name = f"{layer.name}_{value.name}"
        made[id(value)] = constant(value, anchor, name, trainable)
    return made[id(value)]


def open_average(layer, inputs):
    """Average -> adds, multiply."""
    total = inputs[0]
    for x in inputs[1:]:
        total = ops.add(total, x)
    return ops.multiply(total, 1.0 / len(inputs))


_OPENERS: list[tuple[Callable, Callable | None]] = [
    (lambda x: isinstance(x, Compressed | FakeQuant | FreezableBatchNorm | Parameter), None),
    (lambda x: isinstance(x, layers.SeparableConv1D | layers.SeparableConv2D), open_separable),
    (is_matrix_einsum, open_einsum),
    (has_activation, split_activation),
    (lambda x: isinstance(x, layers.Activation), open_activation),
    (lambda x: isinstance(x, layers.LayerNormalization), open_layer_norm),
    (lambda x: isinstance(x, layers.RMSNormalization), open_rms_norm),
    (lambda x: isinstance(x, layers.GroupNormalization) and x.axis == -1, open_group_norm),
    (is_plain_attention, open_attention),
    (lambda x: is_plain_rnn(x) and isinstance(x, layers.LSTM), open_lstm),
    (lambda x: is_plain_rnn(x) and isinstance(x, layers.GRU), open_gru),
    (lambda x: isinstance(x, layers.Average), open_average),
    (is_simple_user_layer, open_user_layer),
]
