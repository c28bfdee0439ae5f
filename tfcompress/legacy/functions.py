"""TensorFlow functions that a file of tf_keras may call, each with its meaning in Keras 3.

A file that names another one is not loaded: tf_keras would call it while the model is made.
"""

from collections.abc import Callable
from typing import Any

from keras import ops


def _unary(function):
    return lambda x: function(x)


def _binary(function):
    return lambda x, y: function(x, y)


def _reducing(function):
    return lambda x, axis=None, keepdims=False: function(x, axis, keepdims)


def _softmax(function):
    return lambda logits, axis=None: function(logits, -1 if axis is None else axis)


def _matmul(a, b, transpose_a=False, transpose_b=False):
    a = ops.swapaxes(a, -1, -2) if transpose_a else a
    return ops.matmul(a, ops.swapaxes(b, -1, -2) if transpose_b else b)


_UNARY = (
    "abs ceil cos erf exp floor log log1p logical_not negative rsqrt sigmoid sign sin softplus "
    "sqrt square tanh"
)
_BINARY = (
    "add equal greater greater_equal less less_equal logical_and logical_or maximum minimum "
    "multiply not_equal subtract"
)

# By TensorFlow's names for them and for their arguments; a tensor comes first, without its name.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"math.{name}": _unary(getattr(ops, name)) for name in _UNARY.split()},
    **{f"nn.{name}": _unary(getattr(ops, name)) for name in ("elu", "relu", "relu6", "selu")},
    "nn.gelu": lambda features, approximate=False: ops.gelu(features, approximate),
    "nn.leaky_relu": lambda features, alpha=0.2: ops.leaky_relu(features, alpha),
    "nn.silu": lambda features, beta=1.0: features * ops.sigmoid(beta * features),
    **{f"nn.{name}": _softmax(getattr(ops, name)) for name in ("log_softmax", "softmax")},
    **{f"math.{name}": _binary(getattr(ops, name)) for name in _BINARY.split()},
    **{f"math.{name}": _binary(ops.true_divide) for name in ("divide", "truediv")},
    "math.pow": _binary(ops.power),
    "math.squared_difference": lambda x, y: ops.square(x - y),
    **{
        f"math.reduce_{name}": _reducing(getattr(ops, name))
        for name in ("max", "mean", "min", "prod", "std", "sum")
    },
    "linalg.matmul": _matmul,
    "__operators__.add": _binary(ops.add),
    "__operators__.getitem": lambda x, slice_spec: x[slice_spec],
    "cast": lambda x, dtype: ops.cast(x, dtype),
    "clip_by_value": lambda t, clip_value_min, clip_value_max: ops.clip(
        t, clip_value_min, clip_value_max
    ),
    "concat": lambda values, axis: ops.concatenate(values, axis),
    "expand_dims": lambda input, axis: ops.expand_dims(input, axis),
    "reshape": lambda tensor, shape: ops.reshape(tensor, shape),
    "squeeze": lambda input, axis=None: ops.squeeze(input, axis),
    "stack": lambda values, axis=0: ops.stack(values, axis),
    "tile": lambda input, multiples: ops.tile(input, multiples),
    "transpose": lambda a, perm=None: ops.transpose(a, perm),
    "where": lambda condition, x, y: ops.where(condition, x, y),
}
