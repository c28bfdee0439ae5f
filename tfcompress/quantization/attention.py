"""MultiHeadAttention and EinsumDense opened into Dense layers and matrix products."""

import math

import numpy as np
from keras import layers, ops

from tfcompress.graph.inputs import mask_of
from tfcompress.kinds import equation_of
from tfcompress.quantization.pieces import activate, dense_of

# What a masked score becomes: e-30 of it is left, and the other scores keep their int8 steps.
_MASKED = -30.0

# Arguments of a call for which an attention is left as it is.
_CLOSED = ("query_mask", "value_mask", "key_mask", "return_attention_scores")


def is_plain_attention(layer) -> bool:
    """Whether a MultiHeadAttention is one over the time axis of 3-D inputs, without a gate."""
    return (
        type(layer) is layers.MultiHeadAttention
        and len(layer.query_dense.kernel.shape) == 3
        and len(layer.query_dense.equation.split(",")[0]) == 3
        and tuple(layer._attention_axes or (1,)) == (1,)
        and not getattr(layer, "_use_gate", False)
        and not getattr(layer, "_sliding_window", None)
        and layer.quantization_mode is None
    )


def open_attention(layer, query, value, key=None, attention_mask=None, **kwargs):
    """MultiHeadAttention -> Dense projections, matmul, softmax, matmul, Dense."""
    key = value if key is None else key
    tensors = (query, value, key)
    masked = any(mask_of(x) is not None for x in tensors)
    closed = any(kwargs.get(name) is not None and kwargs[name] is not False for name in _CLOSED)
    if masked or closed or any(None in x.shape[1:] for x in tensors):
        return layer(query, value, key=key, attention_mask=attention_mask, **kwargs)
    q = _heads(layer.query_dense, query, f"{layer.name}_query")
    k = _heads(layer.key_dense, key, f"{layer.name}_key")
    v = _heads(layer.value_dense, value, f"{layer.name}_value")
    scores = ops.matmul(q, ops.transpose(k, (0, 1, 3, 2)))
    scores = ops.multiply(scores, 1.0 / math.sqrt(layer.key_dim))
    if kwargs.get("use_causal_mask"):
        lower = np.tril(np.ones((query.shape[1], value.shape[1]), "float32"))
        scores = _mask(scores, ops.convert_to_tensor(lower, scores.dtype))
    if attention_mask is not None:
        scores = _mask(scores, ops.cast(attention_mask, scores.dtype))
    policy = layer.dtype_policy
    weights = layers.Softmax(name=f"{layer.name}_softmax", dtype=policy)(scores)
    if layer.dropout:
        name = f"{layer.name}_dropout"
        weights = layers.Dropout(layer.dropout, seed=layer.seed, name=name, dtype=policy)(weights)
    mixed = ops.transpose(ops.matmul(weights, v), (0, 2, 1, 3))
    mixed = ops.reshape(mixed, (-1, query.shape[1], layer.num_heads * v.shape[-1]))
    output = layer.output_dense
    y = dense_of(output, output.kernel, output.bias, f"{layer.name}_output", inputs=2)(mixed)
    free = tuple(output.kernel.shape[2:])
    return y if len(free) == 1 else ops.reshape(y, (-1, query.shape[1], *free))


def _heads(einsum, x, name: str):
    """(batch, time, features) -> projection of shape (batch, heads, time, size)."""
    _, heads, size = einsum.kernel.shape
    y = dense_of(einsum, einsum.kernel, einsum.bias, name)(x)
    return ops.transpose(ops.reshape(y, (-1, x.shape[1], heads, size)), (0, 2, 1, 3))


def _mask(scores, mask):
    """Replaces the scores where the mask, a constant or a tensor, is 0."""
    while len(mask.shape) < 4:  # as in Keras, the axis of the heads is the first one to be missing
        mask = mask[None] if len(mask.shape) == 2 else mask[:, None]
    return ops.add(ops.multiply(scores, mask), (1.0 - mask) * _MASKED)


def is_matrix_einsum(layer) -> bool:
    """Whether an EinsumDense contracts only the last axes of its input, in order."""
    if type(layer) is not layers.EinsumDense or layer.quantization_mode is not None:
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
