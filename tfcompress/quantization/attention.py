"""MultiHeadAttention and EinsumDense opened into Dense layers and matrix products."""

import functools
import math

import keras
import numpy as np
from keras import KerasTensor, layers, ops

from tfcompress.graph.inputs import mask_of
from tfcompress.kinds import equation_of
from tfcompress.quantization.functions import product
from tfcompress.quantization.pieces import activate, constant, dense_of


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


def open_attention(layer, query, value, key=None, return_attention_scores=False, **kwargs):
    """MultiHeadAttention -> Dense projections, matmul, softmax, matmul, Dense."""
    tensors = (query, value, value if key is None else key)
    if return_attention_scores or any(None in x.shape[1:] for x in tensors):
        scores = {"return_attention_scores": return_attention_scores}
        return layer(query, value, key=key, **scores, **kwargs)
    grouped = type(layer) is layers.GroupQueryAttention
    before = "_" if grouped else ""
    parts = [getattr(layer, f"{before}{x}_dense") for x in ("query", "key", "value", "output")]
    names = [f"{layer.name}_{x}" for x in ("query", "key", "value")]
    q, k, v = map(_heads, parts[:3], (query, tensors[2], value), names)
    if grouped:
        k, v = (_repeated(x, layer.num_repeats) for x in (k, v))
    scores = ops.matmul(q, ops.transpose(k, (0, 1, 3, 2)))
    scores = ops.multiply(scores, 1.0 / math.sqrt(q.shape[-1]))
    mask = _all_of(_given_masks(query, value, key, **kwargs))
    weights = _weights(layer, masked(scores, mask))
    if layer.dropout and isinstance(mask, KerasTensor):  # of a row where all is masked, too
        weights = ops.where(ops.cast(_of_rank(mask, 4), "bool"), weights, 0.0)
    mixed = ops.transpose(ops.matmul(weights, v), (0, 2, 1, 3))
    mixed = ops.reshape(mixed, (-1, query.shape[1], q.shape[1] * v.shape[-1]))
    output = parts[3]
    y = dense_of(output, output.kernel, output.bias, f"{layer.name}_output", inputs=2)(mixed)
    free = tuple(output.kernel.shape[2:])
    return y if len(free) == 1 else ops.reshape(y, (-1, query.shape[1], *free))


def _given_masks(query, value, key, attention_mask=None, use_causal_mask=False, **kwargs) -> list:
    """The masks that an attention is called with, for (batch, query, key)."""
    found = []
    named = {"query_mask": (query, -1), "value_mask": (value, -2), "key_mask": (key, -2)}
    for name, (tensor, axis) in named.items():
        given = kwargs.get(name)
        mask = mask_of(tensor) if given is None else given
        if mask is not None:
            found.append(ops.expand_dims(ops.cast(mask, "bool"), axis))
    if use_causal_mask:
        found.append(_causal(query, value))
    return found if attention_mask is None else [*found, attention_mask]


def _all_of(masks: list):
    """What all masks let through; None if there are none."""
    if len(masks) < 2:
        return masks[0] if masks else None
    return functools.reduce(ops.logical_and, [ops.cast(mask, "bool") for mask in masks])


def is_dot_product(operation) -> bool:
    """Whether an operation is `ops.dot_product_attention`, as TensorFlow computes it."""
    return type(operation).__name__ == "DotProductAttention"


def open_dot_product(operation, query, key, value, bias=None, mask=None, scale=None):
    """dot_product_attention -> transpose, matmul, multiply, softmax, matmul, transpose."""
    heads, held = query.shape[2], key.shape[2]
    unknown = operation.is_causal and None in (query.shape[1], key.shape[1])
    if unknown or heads % held or operation.attn_logits_soft_cap is not None:
        return operation(query, key, value, bias=bias, mask=mask, scale=scale)
    q, k, v = (ops.transpose(x, (0, 2, 1, 3)) for x in (query, key, value))
    k, v = (_repeated(x, heads // held) for x in (k, v))
    scores = ops.matmul(q, ops.transpose(k, (0, 1, 3, 2)))
    scores = ops.multiply(scores, 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if bias is not None:
        scores = ops.add(scores, bias)
    causal = [_causal(query, key)] if operation.is_causal else []
    scores = masked(scores, _all_of(causal if mask is None else [mask, *causal]))
    return ops.transpose(ops.matmul(ops.softmax(scores), v), (0, 2, 1, 3))


def is_dot_attention(layer) -> bool:
    """Whether a layer is an Attention of one head whose scores are products."""
    return type(layer) is layers.Attention and layer.score_mode == "dot"


def open_dot_attention(layer, inputs, mask=None, return_attention_scores=False, **kwargs):
    """Attention -> matmul, softmax, matmul."""
    query, value, key = (*inputs, inputs[1])[:3]
    if return_attention_scores or any(None in x.shape[1:] or len(x.shape) != 3 for x in inputs):
        scores = {"return_attention_scores": return_attention_scores}
        return layer(inputs, mask=mask, **scores, **kwargs)
    scores = ops.matmul(query, ops.transpose(key, (0, 2, 1)))
    if layer.scale is not None:
        name = f"{layer.name}_scale"
        factor = constant(layer.scale, scores, name, shape=(1, 1, 1), dtype=layer.dtype_policy)
        scores = ops.multiply(scores, factor)
    of_query, of_value = (mask or [mask_of(x) for x in inputs])[:2]
    masks = [] if of_value is None else [ops.expand_dims(of_value, -2)]
    if kwargs.get("use_causal_mask"):
        masks.append(_causal(query, value))
    y = ops.matmul(_weights(layer, masked(scores, _all_of(masks))), value)
    return y if of_query is None else ops.where(ops.expand_dims(of_query, -1), y, 0.0)


def open_softmax(layer, x, mask=None):
    """Softmax with a mask -> where, softmax, where."""
    axis = layer.axis if isinstance(layer.axis, int) else tuple(layer.axis)
    if mask is None or (not isinstance(axis, int) and len(axis) > 1):
        return layer(x, mask=mask)
    if mask.dtype != "bool":  # as Keras, for whole numbers, too
        mask = ops.greater(mask, ops.cast(0.5, mask.dtype))
    plain = layers.Softmax(axis, name=layer.name, dtype=layer.dtype_policy)
    y = plain(masked(x, mask))
    return ops.where(mask, y, 0.0) if isinstance(mask, KerasTensor) else y


def _weights(layer, scores):
    """The softmax of scores, and the layer's dropout."""
    policy = layer.dtype_policy
    weights = layers.Softmax(name=f"{layer.name}_softmax", dtype=policy)(scores)
    if not layer.dropout:
        return weights
    name = f"{layer.name}_dropout"
    return layers.Dropout(layer.dropout, seed=layer.seed, name=name, dtype=policy)(weights)


def _causal(query, value):
    """Where a position may look, as a constant."""
    return np.tril(np.ones((1, query.shape[1], value.shape[1]), bool))


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


def masked(scores, mask):
    """The scores, far below all others where a mask, a constant or a tensor, is 0 or False."""
    if mask is None:
        return scores
    lowest = -3e4 if scores.dtype == "float16" else -1e9  # as Keras
    mask = _of_rank(mask, len(scores.shape))
    if not isinstance(mask, KerasTensor):
        hidden = np.where(ops.convert_to_numpy(mask), 0.0, lowest)
        return ops.add(scores, ops.convert_to_tensor(hidden, scores.dtype))
    if keras.backend.is_float_dtype(mask.dtype):
        return ops.add(scores, ops.multiply(ops.subtract(1.0, mask), lowest))
    return ops.where(ops.cast(mask, "bool"), scores, lowest)


def _of_rank(mask, rank: int):
    """A mask for scores of more axes: as in Keras, that of the heads is the first to be missing."""
    while len(mask.shape) < rank:
        mask = mask[None] if len(mask.shape) == 2 else mask[:, None]
    return mask


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
