"""Functions of TensorFlow that a user's code calls on symbolic tensors, as operations of Keras.

TensorFlow asks its dispatchers where a function cannot take an argument, as it cannot take
symbolic tensors. What is not in the tables goes on to fail as it does without them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.graph.nodes import tensors_in


@contextlib.contextmanager
def taken(is_active: Callable[[], bool]):
    """Lets functions of TensorFlow take symbolic tensors, as long as a recording is active."""
    if keras.backend.backend() != "tensorflow":
        yield
        return
    dispatcher = _dispatcher()
    before, dispatcher.is_active = dispatcher.is_active, is_active
    try:
        yield
    finally:
        dispatcher.is_active = before


@functools.cache
def _dispatcher() -> Any:
    """Ours, registered once: TensorFlow forgets none."""
    import tensorflow as tf

    any_, of_floats = (
        {_key(functools.reduce(getattr, name.split("."), tf)): f for name, f in table.items()}
        for table in (_ANY, _OF_FLOATS)
    )

    class Dispatcher(tf.__internal__.dispatch.GlobalOpDispatcher):
        def __init__(self):
            self.is_active: Callable[[], bool] = lambda: False

        def handle(self, op, args, kwargs):
            tensors = tensors_in((args, kwargs)) if self.is_active() else []
            known = any_.get(_key(op)) if tensors else None
            if tensors and all("float" in str(x.dtype) for x in tensors):
                known = known or of_floats.get(_key(op))
            if known is None:
                return self.NOT_SUPPORTED
            found = known(*args, **{k: v for k, v in kwargs.items() if k != "name"})
            return self.NOT_SUPPORTED if found is None else found

    dispatcher = Dispatcher()
    dispatcher.register()
    return dispatcher


def _key(function) -> tuple:
    """What a function and its wrappers share."""
    return function.__module__, function.__name__


def _ints(x):
    """A shape, axes or sizes, which may be arrays, as numbers."""
    return x if x is None or isinstance(x, int) else tuple(map(int, x)) if np.ndim(x) else int(x)


def _gather(params, indices, validate_indices=None, axis=None, batch_dims=0):
    axis = batch_dims if axis is None else axis
    if not batch_dims:
        return ops.take(params, indices, axis=axis)
    rank = len(params.shape)
    if axis % rank != batch_dims or len(indices.shape) != batch_dims + 1:
        return None
    for _ in range(batch_dims + 1, rank):
        indices = ops.expand_dims(indices, -1)
    return ops.take_along_axis(params, indices, axis=batch_dims)


def _matmul(a, b, transpose_a=False, transpose_b=False):
    return ops.matmul(*(ops.swapaxes(x, -1, -2) if t else x
                        for x, t in ((a, transpose_a), (b, transpose_b))))  # fmt: skip


def _split(value, num_or_size_splits, axis=0):
    sizes = _ints(num_or_size_splits)
    if isinstance(sizes, tuple):
        if -1 in sizes:
            return None
        sizes = np.cumsum(sizes)[:-1].tolist()
    return list(ops.split(value, sizes, axis=axis))


def _pad(tensor, paddings, mode="CONSTANT", constant_values=0):
    widths = tuple(map(_ints, paddings))
    given = {"constant_values": constant_values} if mode.upper() == "CONSTANT" else {}
    return ops.pad(tensor, widths, mode=mode.lower(), **given)


def _where(condition, x=None, y=None):
    return None if x is None or y is None else ops.where(condition, x, y)


def _reduction(function: Callable) -> Callable:
    def reduce(input_tensor, axis=None, keepdims=False):
        return function(input_tensor, axis=_ints(axis), keepdims=keepdims)

    return reduce


# By the names of TensorFlow: what takes tensors of any type, ...
_ANY: dict[str, Callable] = {
    "gather": _gather,
    "reshape": lambda tensor, shape: ops.reshape(tensor, _ints(shape)),
    "transpose": lambda a, perm=None: ops.transpose(a, _ints(perm)),
    "concat": lambda values, axis: ops.concatenate(values, axis=_ints(axis)),
    "stack": lambda values, axis=0: ops.stack(values, axis=axis),
    "split": _split,
    "expand_dims": lambda input, axis: ops.expand_dims(input, _ints(axis)),
    "squeeze": lambda input, axis=None: ops.squeeze(input, _ints(axis)),
    "tile": lambda input, multiples: ops.tile(input, _ints(multiples)),
    "broadcast_to": lambda input, shape: ops.broadcast_to(input, _ints(shape)),
    "pad": _pad,
    "cast": lambda x, dtype: ops.cast(x, keras.backend.standardize_dtype(dtype)),
    "identity": lambda input: input,
    "shape": lambda input: ops.shape(input),
    "where": _where,
}
# ... and what is the same as in Keras for floats, which differ in what they make of whole numbers.
_OF_FLOATS: dict[str, Callable] = {
    "matmul": _matmul,
    "einsum": lambda equation, *inputs: ops.einsum(equation, *inputs),
    "reduce_mean": _reduction(ops.mean),
    "reduce_sum": _reduction(ops.sum),
    "reduce_max": _reduction(ops.max),
    "reduce_min": _reduction(ops.min),
    "add": lambda x, y: ops.add(x, y),
    "subtract": lambda x, y: ops.subtract(x, y),
    "multiply": lambda x, y: ops.multiply(x, y),
    "divide": lambda x, y: ops.divide(x, y),
    "maximum": lambda x, y: ops.maximum(x, y),
    "minimum": lambda x, y: ops.minimum(x, y),
    "clip_by_value": lambda t, clip_value_min, clip_value_max: ops.clip(
        t, clip_value_min, clip_value_max
    ),
    "abs": lambda x: ops.abs(x),
    "exp": lambda x: ops.exp(x),
    "sqrt": lambda x: ops.sqrt(x),
    "square": lambda x: ops.square(x),
    "tanh": lambda x: ops.tanh(x),
    "sigmoid": lambda x: ops.sigmoid(x),
    "math.log": lambda x: ops.log(x),
    "math.rsqrt": lambda x: ops.rsqrt(x),
    "nn.elu": lambda features: ops.elu(features),
    "nn.gelu": lambda features, approximate=False: ops.gelu(features, approximate),
    "nn.leaky_relu": lambda features, alpha=0.2: ops.leaky_relu(features, alpha),
    "nn.relu": lambda features: ops.relu(features),
    "nn.relu6": lambda features: ops.relu6(features),
    "nn.silu": lambda features, beta=1.0: ops.silu(features) if beta == 1.0 else None,
    "nn.softmax": lambda logits, axis=-1: ops.softmax(logits, axis=-1 if axis is None else axis),
    "nn.softplus": lambda features: ops.softplus(features),
}
