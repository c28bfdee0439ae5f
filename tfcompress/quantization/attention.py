"""MultiHeadAttention and EinsumDense opened into Dense layers and matrix products."""

import math

import numpy as np
from keras import layers, ops

from tfcompress.graph.inputs import mask_of
from tfcompress.kinds import equation_of
from tfcompress.quantization.functions import product
from tfcompress.quantization.pieces import activate, constant, dense_of

# What a masked score becomes: e-30 of it is left, and the other scores keep their int8 steps.
_MASKED = -30.0

# Arguments of a call for which an attention is left as it is.
_CLOSED = ("query_mask", "value_mask", "key_mask", "return_attention_scores")


def is_plain_attention(layer) -> bool:
    """Whether an attention layer of several heads is one over the time axis, without a gate."""
    if type(layer) is layers.GroupQueryAttention:
        return not (layer.use_gate or layer.sliding_window)
    return (
        type(layer) is layers.MultiHeadAttention
        and len(layer.query_dense.kernel.shape) == 3
        and len(layer.query_dense.equation.split(",")[0]) == 3
        and tuple(layer._attention_axes or (1,)) == (1,)
        and not getattr(layer, "_use_gate", False)
        and not getattr(layer, "_sliding_window", None)
    )


def open_attention(layer, query, value, key=None, attention_mask=None, **kwargs):
    """MultiHeadAttention -> Dense projections, matmul, softmax, matmul, Dense."""
    key = value if key is None else key
    tensors = (query, value, key)
    masked = any(mask_of(x) is not None for x in tensors)
    closed = any(kwargs.get(name) is not None and kwargs[name] is not False for name in _CLOSED)
    if masked or closed or any(None in x.shape[1:] for x in tensors):
        return layer(query, value, key=key, attention_mask=attention_mask, **kwargs)
    grouped = type(layer) is layers.GroupQueryAttention
    before = "_" if grouped else ""
    parts = [getattr(layer, f"{before}{x}_dense") for x in ("query", "key", "value", "output")]
    names = [f"{layer.name}_{x}" for x in ("query", "key", "value")]
    q, k, v = map(_heads, parts[:3], (query, key, value), names)
    if grouped:
        k, v = (_repeated(x, layer.num_repeats) for x in (k, v))
    scores = ops.matmul(q, ops.transpose(k, (0, 1, 3, 2)))
    scores = ops.multiply(scores, 1.0 / math.sqrt(q.shape[-1]))
    if kwargs.get("use_causal_mask"):
        scores = _mask(scores, _causal(query, value, scores.dtype))
    if attention_mask is not None:
        scores = _mask(scores, ops.cast(attention_mask, scores.dtype))
    mixed = ops.transpose(ops.matmul(_weights(layer, scores), v), (0, 2, 1, 3))
    mixed = ops.reshape(mixed, (-1, query.shape[1], q.shape[1] * v.shape[-1]))
    output = parts[3]
    y = dense_of(output, output.kernel, output.bias, f"{layer.name}_output", inputs=2)(mixed)
    free = tuple(output.kernel.shape[2:])
    return y if len(free) == 1 else ops.reshape(y, (-1, query.shape[1], *free))


def is_dot_attention(layer) -> bool:
    """Whether a layer is an Attention of one head whose scores are products."""
    return type(layer) is layers.Attention and layer.score_mode == "dot"


def open_dot_attention(layer, inputs, **kwargs):
    """Attention -> matmul, softmax, matmul."""
    query, value, key = (*inputs, inputs[1])[:3]
    masked = any(mask_of(x) is not None for x in inputs) or kwargs.get("mask") is not None
    closed = masked or kwargs.get("return_attention_scores")
    if closed or any(None in x.shape[1:] or len(x.shape) != 3 for x in inputs):
        return layer(inputs, **kwargs)
    scores = ops.matmul(query, ops.transpose(key, (0, 2, 1)))
    if layer.scale is not None:
        name = f"{layer.name}_scale"
        factor = constant(layer.scale, scores, name, shape=(1, 1, 1), dtype=layer.dtype_policy)
        scores = ops.multiply(scores, factor)
    if kwargs.get("use_causal_mask"):
        scores = _mask(scores, _causal(query, value, scores.dtype))
    return ops.matmul(_weights(layer, scores), value)


def _weights(layer, scores):
    """The softmax of scores, and the layer's dropout."""
    policy = layer.dtype_policy
    weights = layers.Softmax(name=f"{layer.name}_softmax", dtype=policy)(scores)
    if not layer.dropout:
        return weights
    name = f"{layer.name}_dropout"
    return layers.Dropout(layer.dropout, seed=layer.seed, name=name, dtype=policy)(weights)


def _causal(query, value, dtype):
    """1 where a position may look, as a constant."""
    lower = np.tril(np.ones((query.shape[1], value.shape[1]), "float32"))
    return ops.convert_to_tensor(lower, dtype)


def _repeated(x, times: int):
    """(batch, heads, time, size) with each head so many times in a row."""
    if times == 1:
        return x
    _, heads, time, size = x.shape
    copies = ops.concatenate([x[:, :, None]] * times, axis=2)
    return ops.reshape(copies, (-1, heads * times, time, size))


def _heads(einsum, x, name: str):
    """(batch, time, features) -> projection of shape (batch, heads, time, size)."""
    _, heads, size = einsum.kernel.shape
    y = dense_of(einsum, einsum.kernel, einsum.bias, name)(x)
    return ops.transpose(ops.reshape(y, (-1, x.shape[1], heads, size)), (0, 2, 1, 3))


def _mask(scores, mask):
    """Replaces the scores where the mask, a constant or a tensor, is 0."""
    # As in Keras, the axis of the heads is the first one to be missing.
    while len(mask.shape) < len(scores.shape):
        mask = mask[None] if len(mask.shape) == 2 else mask[:, None]
    return ops.add(ops.multiply(scores, mask), (1.0 - mask) * _MASKED)


def is_matrix_einsum(layer) -> bool:
    """Whether an EinsumDense contracts only the last axes of its input, in order."""
    if type(layer) is not layers.EinsumDense:
        return False
    x, kernel, out = (letters.replace("...", "") for letters in equation_of(layer))
    shared = "".join(axis for axis in x if axis in kernel)
    free = "".join(axis for axis in kernel if axis not in x)
    kept = x.removesuffix(shared)
    plain = bool(shared) and x.endswith(shared) and kernel == shared + free and out == kept + free
    width = math.prod(layer.kernel.shape[len(shared) :])
    per_unit = layer.bias is None or math.prod(layer.bias.shape) == width
    return plain and per_unit and (bool(kept) or "..." in layer.equation)


def open_einsum(layer, x):
    """EinsumDense that is a matrix product -> reshape, Dense, reshape, activation."""
    inputs, kernel, _ = equation_of(layer)
    count = sum(axis in kernel for axis in inputs.replace(".", ""))
    kept = tuple(x.shape[1 : len(x.shape) - count])
    free = tuple(layer.kernel.shape[count:])
    if None in kept and (count > 1 or len(free) != 1):
        return layer(x)
    size = math.prod(layer.kernel.shape[:count])
    flat = x if count == 1 else ops.reshape(x, (-1, *kept, size))
    y = dense_of(layer, layer.kernel, layer.bias, layer.name, count)(flat)
    y = y if len(free) == 1 else ops.reshape(y, (-1, *kept, *free))
    return activate(layer.activation, y, f"{layer.name}_activation", layer.dtype_policy)


def is_other_einsum(layer) -> bool:
    """Whether an EinsumDense is no product with a matrix, but maybe with several."""
    plain = type(layer) is layers.EinsumDense and layer.quantization_mode is None
    return plain and not is_matrix_einsum(layer)


def open_other_einsum(layer, x):
    """EinsumDense -> transpose, reshape, matmul, reshape, transpose, add, activation."""
    policy = layer.dtype_policy
    trains = {"trainable": layer.trainable, "dtype": policy}
    y = product(layer.equation, x, constant(layer.kernel, x, f"{layer.name}_kernel", **trains))
    if y is None:
        return layer(x)
    if layer.bias is not None:
        y = ops.add(y, constant(layer.bias, y, f"{layer.name}_bias", **trains))
    return activate(layer.activation, y, f"{layer.name}_activation", policy)
