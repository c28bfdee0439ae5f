"""Functions of `keras.ops` opened into those that LiteRT has integer kernels for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.graph.nodes import Graph, Node, tensors_in
from tfcompress.layers.extremes import MASK
from tfcompress.quantization import transforms
from tfcompress.quantization.pieces import Rsqrt

_ARITHMETIC: dict[str, Callable] = {
    "Add": np.add,
    "Subtract": np.subtract,
    "Multiply": np.multiply,
    "Divide": np.divide,
    "TrueDivide": np.divide,
    "Maximum": np.maximum,
    "Minimum": np.minimum,
}

# Of selu (Klambauer et al. 2017, arXiv:1706.02515).
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def opener_of(operation, args: tuple = ()) -> Callable | None:
    """The function that opens an operation, `f(operation, *args, **kwargs)`; None if none does.

    Args:
        args: what it is called with.
    """
    if isinstance(operation, keras.Layer):
        return None
    name = type(operation).__name__
    if name in ("Add", "Subtract"):
        return _sum_with_masks if any(map(_has_masks, args)) else None
    return _OPENERS.get(name) or transforms.opener_of(operation)


def _has_masks(x) -> bool:
    """Whether there are masks among the values of a constant."""
    if isinstance(x, keras.KerasTensor) or np.ndim(x) < 2:
        return False
    masks = np.abs(np.asarray(x)) >= MASK
    return bool(masks.any() and np.asarray(x)[~masks].any())


def _sum_with_masks(operation, a, b):
    """Adds the values of a constant, then its masks: on one grid no values would be left."""
    constant = np.asarray(a if _has_masks(a) else b)
    masks = np.abs(constant) >= MASK
    parts = [np.where(masks, 0, constant), np.where(masks, constant, 0)]
    values, masks = (ops.convert_to_tensor(part, constant.dtype) for part in parts)
    if _has_masks(a):
        return ops.add(operation(values, b), masks)
    return operation(operation(a, values), masks)


def numbers_of(graph: Graph) -> dict[int, float]:
    """What gives a tensor of one number, as ones_like(x) * -1e9 does, where the number itself does.

    Returns id of a node -> the number.
    """
    found: dict[int, float] = {}
    held: dict[int, float] = {}  # by tensor
    for node in graph.nodes:
        if (number := _number_of(node, held)) is not None and not graph.is_output(node.outputs[0]):
            found[id(node)] = held[id(node.outputs[0])] = number
    for node in reversed(graph.nodes):  # what a tensor is made of that has to stay one stays, too
        readers = graph.consumers(node.outputs[0])
        if id(node) in found and not all(id(r) in found or _fills_up(r, held) for r in readers):
            del found[id(node)], held[id(node.outputs[0])]
    return found


def _number_of(node: Node, held: dict[int, float]) -> float | None:
    name = type(node.operation).__name__
    if isinstance(node.operation, keras.Layer) or "float" not in str(node.outputs[0].dtype):
        return None
    if name in ("ZerosLike", "OnesLike"):
        return float(name == "OnesLike")
    if name == "FullLike":
        value: Any = node.kwargs["fill_value"] if len(node.args) < 2 else node.args[1]
        return None if isinstance(value, keras.KerasTensor) else float(value)
    values: Any = [held.get(id(x)) if isinstance(x, keras.KerasTensor) else x for x in node.args]
    if name not in _ARITHMETIC or any(x is None or np.size(x) != 1 for x in values):
        return None
    return float(_ARITHMETIC[name](*(float(x) for x in values)))


def _fills_up(node: Node, held: dict[int, float]) -> bool:
    """Whether an operation gives the same for a number in the place of a tensor of it."""
    name = type(node.operation).__name__
    if isinstance(node.operation, keras.Layer) or name not in {*_ARITHMETIC, "Where"}:
        return False
    tensors = tensors_in(node.args[1:] if name == "Where" else node.args)
    whole = [t for t in tensors if id(t) not in held]
    return any(tuple(t.shape) == tuple(node.outputs[0].shape) for t in whole)


def _square(operation, x):
    return ops.multiply(x, x)


def _negative(operation, x):
    return ops.multiply(x, -1.0)


def _sum(operation, x):
    # LiteRT's reference kernel of SUM is wrong in int8.
    axes = _axes(operation, x)
    sizes = [x.shape[axis] for axis in axes]
    if None in sizes:
        return operation(x)
    mean = ops.mean(x, axis=axes, keepdims=operation.keepdims)
    return ops.multiply(mean, float(math.prod(sizes)))


def _axes(operation, x) -> list[int]:
    axes = operation.axis if operation.axis is not None else range(len(x.shape))
    axes = [axes] if isinstance(axes, int) else list(axes)
    return sorted(axis % len(x.shape) for axis in axes)


def _var(operation, x):
    axes = _axes(operation, x)
    centered = ops.subtract(x, ops.mean(x, axis=axes, keepdims=True))
    return ops.mean(ops.multiply(centered, centered), axis=axes, keepdims=operation.keepdims)


def _std(operation, x):
    return ops.sqrt(_var(operation, x))


def _normalize(operation, x):
    axes = _axes(operation, x)
    sizes = [x.shape[axis] for axis in axes]
    if operation.order != 2 or None in sizes:
        return operation(x)
    epsilon = operation.epsilon or keras.config.epsilon()
    mean = ops.mean(ops.multiply(x, x), axis=axes, keepdims=True)
    scaled = ops.multiply(x, 1.0 / math.sqrt(math.prod(sizes)))
    return ops.multiply(scaled, Rsqrt()(ops.add(mean, epsilon**2)))


def _rms_norm(operation, x, scale=None):
    axes = _axes(operation, x)
    mean = ops.mean(ops.multiply(x, x), axis=axes, keepdims=True)
    y = ops.multiply(x, Rsqrt()(ops.add(mean, operation.epsilon or keras.config.epsilon())))
    return y if scale is None else ops.multiply(y, scale)


def _power(operation, x, exponent):
    known = {0.5: ops.sqrt, 1.0: lambda x: x, -0.5: lambda x: Rsqrt()(x)}
    if isinstance(exponent, keras.KerasTensor) or np.size(exponent) != 1:
        return operation(x, exponent)
    value = float(np.ravel(exponent)[0])
    if value in known:
        return known[value](x)
    if value not in (2.0, 3.0, 4.0):
        return operation(x, exponent)
    square = ops.multiply(x, x)
    return square if value == 2.0 else ops.multiply(square, x if value == 3.0 else square)


def _clip(operation, x):
    y = x if operation.x_min is None else ops.maximum(x, operation.x_min)
    return y if operation.x_max is None else ops.minimum(y, operation.x_max)


def _hard_tanh(operation, x):
    return ops.minimum(ops.maximum(x, -1.0), 1.0)


def _reciprocal(operation, x):
    return ops.divide(1.0, x)


def _hard_shrink(operation, x):
    return ops.where(ops.abs(x) > operation.threshold, x, 0.0)


def _soft_shrink(operation, x):
    limit = float(operation.threshold)
    return ops.subtract(ops.relu(ops.subtract(x, limit)), ops.relu(ops.subtract(-limit, x)))


def _threshold(operation, x):
    return ops.where(x > operation.threshold, x, float(operation.default_value))


def _sparse_sigmoid(operation, x):
    return ops.minimum(ops.maximum(ops.multiply(ops.add(x, 1.0), 0.5), 0.0), 1.0)


def _softsign(operation, x):
    return ops.divide(x, ops.add(ops.abs(x), 1.0))


def relu(layer, x):
    """A ReLU with a maximum -> ReLU, minimum."""
    if layer.threshold or layer.max_value is None:
        return layer(x)
    plain = keras.layers.ReLU(negative_slope=layer.negative_slope, name=layer.name)
    return ops.minimum(plain(x), float(layer.max_value))


def _silu(operation, x):
    return ops.multiply(x, ops.sigmoid(x))


def _hard_sigmoid(operation, x):
    return ops.multiply(ops.relu6(ops.add(x, 3.0)), 1.0 / 6.0)


def _tanh_shrink(operation, x):
    return ops.subtract(x, ops.tanh(x))


def _log_of_rest(x):
    """log(1 + exp(-|x|)): what softplus has over relu."""
    return ops.log(ops.add(ops.exp(ops.multiply(ops.abs(x), -1.0)), 1.0))


def _softplus(operation, x):
    return ops.add(ops.relu(x), _log_of_rest(x))


def _log_sigmoid(operation, x):
    return ops.subtract(ops.minimum(x, 0.0), _log_of_rest(x))


def _squareplus(operation, x):
    root = ops.sqrt(ops.add(ops.multiply(x, x), float(operation.b)))
    return ops.multiply(ops.add(x, root), 0.5)


def _expm1(operation, x):
    return ops.subtract(ops.exp(x), 1.0)


def _log1p(operation, x):
    return ops.log(ops.add(x, 1.0))


def _parted_elu(x, over: float, below: float, inner: float = 1.0):
    """over * x above 0, below * elu(x / inner) under it: LiteRT's ELU has no factor."""
    above = ops.relu(x) if over == 1.0 else ops.multiply(ops.relu(x), over)
    under = ops.minimum(x, 0.0)
    under = under if inner == 1.0 else ops.multiply(under, 1.0 / inner)
    return ops.add(above, ops.multiply(ops.elu(under), below))


def _selu(operation, x):
    return _parted_elu(x, _SELU_SCALE, _SELU_SCALE * _SELU_ALPHA)


def elu(operation, x):
    """An ELU, operation or layer, whose factor is not 1."""
    alpha = float(operation.alpha)
    return operation(x) if alpha == 1.0 else _parted_elu(x, 1.0, alpha)


def _celu(operation, x):
    alpha = float(operation.alpha)
    return _parted_elu(x, 1.0, alpha, alpha)


def _glu(operation, x):
    value, gate = ops.split(x, 2, axis=operation.axis)
    return ops.multiply(value, ops.sigmoid(gate))


def _einsum(operation, *operands):
    y = product(operation.subscripts, *operands) if len(operands) == 2 else None
    return operation(*operands) if y is None else y


def product(equation: str, a, b):
    """An einsum of two tensors as a matrix product; None if it is none.

    Args:
        equation: such as "bqhd,bkhd->bhqk".
    """
    left, _, out = equation.replace(" ", "").partition("->")
    one, two = left.split(",")
    letters = {*one, *two}
    plain = all(len(set(x)) == len(x) for x in (one, two, out)) and letters >= set(out)
    summed = [x for x in letters if x not in out and not (x in one and x in two)]
    if "." in equation or not out or not plain or summed:
        return None
    size = {**dict(zip(two, b.shape, strict=True)), **dict(zip(one, a.shape, strict=True))}
    batch = [x for x in out if x in one and x in two]
    rows = [x for x in out if x in one and x not in two]
    columns = [x for x in out if x in two and x not in one]
    inner = [x for x in one if x in two and x not in out]
    if sum(size[x] is None for x in letters) > 1:
        return None

    def shape(*groups):
        known = [[size[x] for x in group] for group in groups]
        return tuple(-1 if None in sizes else math.prod(sizes) for sizes in known)

    each = [[x] for x in batch]
    if not batch:  # rows stay apart, so that a matrix multiplies as that of a Dense layer does
        each, rows_of = [[x] for x in rows[:-1]], rows[-1:]
    else:
        rows_of = rows
    a = _arranged(a, one, batch + rows + inner, shape(*each, rows_of, inner))
    b = _arranged(b, two, batch + inner + columns, shape(*[[x] for x in batch], inner, columns))
    made = batch + rows + columns
    y = _reshaped(ops.matmul(a, b), shape(*[[x] for x in made]))
    order = [made.index(x) for x in out]
    return y if order == sorted(order) else ops.transpose(y, order)


def _arranged(x, letters: str, wanted: list[str], shape: tuple):
    order = [letters.index(letter) for letter in wanted]
    return _reshaped(x if order == sorted(order) else ops.transpose(x, order), shape)


def _reshaped(x, shape: tuple):
    given = tuple(-1 if size is None else size for size in x.shape)
    return x if given == shape else ops.reshape(x, shape)


def _extract_patches(operation, x):
    """Patches as slices: Keras makes them by a convolution, which LiteRT cannot fold."""
    shape, size = tuple(x.shape), operation.size
    steps, gaps = _pair(operation.strides), _pair(operation.dilation_rate)
    plain = len(shape) == 4 and len(size) == 2 and None not in shape[1:]
    whole = operation.padding.lower() == "valid" or (
        plain and steps == size and all(n % p == 0 for n, p in zip(shape[1:3], size, strict=True))
    )
    if not plain or not whole or operation.data_format != "channels_last":
        return operation(x)
    spans = [(p - 1) * gap + 1 for p, gap in zip(size, gaps, strict=True)]
    counts = [(n - s) // t + 1 for n, s, t in zip(shape[1:3], spans, steps, strict=True)]
    if steps == size and gaps == (1, 1):
        (h, w), (p, q), c = counts, size, shape[3]
        if (h * p, w * q) != shape[1:3]:
            x = x[:, : h * p, : w * q]
        x = ops.transpose(ops.reshape(x, (-1, h, p, w, q, c)), (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (-1, h, w, p * q * c))
    ends = [(n - 1) * t + 1 for n, t in zip(counts, steps, strict=True)]
    parts = [
        x[:, i * gaps[0] : i * gaps[0] + ends[0] : steps[0],
          j * gaps[1] : j * gaps[1] + ends[1] : steps[1]]
        for i in range(size[0]) for j in range(size[1])
    ]  # fmt: skip
    return ops.concatenate(parts, axis=-1)


def _pair(value) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


_OPENERS: dict[str, Callable] = {
    "Square": _square,
    "Negative": _negative,
    "Sum": _sum,
    "Var": _var,
    "Std": _std,
    "Normalize": _normalize,
    "RMSNorm": _rms_norm,
    "Power": _power,
    "Clip": _clip,
    "HardTanh": _hard_tanh,
    "Silu": _silu,
    "HardSigmoid": _hard_sigmoid,
    "TanhShrink": _tanh_shrink,
    "Softplus": _softplus,
    "Softsign": _softsign,
    "Reciprocal": _reciprocal,
    "HardShrink": _hard_shrink,
    "SoftShrink": _soft_shrink,
    "Threshold": _threshold,
    "SparseSigmoid": _sparse_sigmoid,
    "LogSigmoid": _log_sigmoid,
    "Squareplus": _squareplus,
    "Expm1": _expm1,
    "Log1p": _log1p,
    "Selu": _selu,
    "Elu": elu,
    "Celu": _celu,
    "Glu": _glu,
    "Einsum": _einsum,
    "ExtractPatches": _extract_patches,
}
