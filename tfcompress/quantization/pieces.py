"""What openers are made of: weights as tensors, activations, projections."""

import math

import keras
from keras import layers, ops

from tfcompress.graph.copying import copy_operation, copy_weights
from tfcompress.graph.layers import Parameter


def with_weights(layer, x, **weights):
    """Calls a new layer on `x` and gives it weights."""
    y = layer(x)
    for name, value in weights.items():
        if value is not None:
            fill(getattr(layer, name), value)
    return y


def fill(variable, value) -> None:
    """Assigns a value, which may have another shape of the same size; see `with_weights`."""
    variable.assign(ops.reshape(value, variable.shape))
    if isinstance(value, keras.Variable):
        variable.regularizer = value.regularizer
        variable.constraint = value.constraint if variable.shape == value.shape else None
        variable.trainable = bool(value.trainable)


def constant(value, anchor, name: str, trainable: bool = True, shape=None, dtype=None):
    """A weight as a tensor of the graph.

    Args:
        shape: another shape of the same size.
        dtype: dtype or policy of the layer.
    """
    layer = Parameter(tuple(shape or value.shape), trainable=trainable, name=name, dtype=dtype)
    return with_weights(layer, anchor, value=value)


def activate(activation, x, name: str, dtype=None):
    """An activation function, or an activation that is a layer, applied by primitives.

    silu becomes sigmoid and multiply, hard_sigmoid add, relu6 and multiply.
    """
    known = keras.activations
    if activation is None or activation is known.linear:
        return x
    if isinstance(activation, keras.Layer):
        twin = copy_operation(activation)
        y = twin(x)
        copy_weights([(activation, twin)])
        return y
    if activation is known.silu:
        gate = layers.Activation("sigmoid", name=name, dtype=dtype)(x)
        return layers.Multiply(name=f"{name}_mul", dtype=dtype)([x, gate])
    if activation is known.hard_sigmoid:
        clipped = layers.ReLU(6.0, name=f"{name}_relu6", dtype=dtype)(ops.add(x, 3.0))
        return ops.multiply(clipped, 1.0 / 6.0)
    return layers.Activation(activation, name=name, dtype=dtype)(x)


def dense_of(layer, kernel, bias, name: str, inputs: int = 1):
    """A built Dense for a product of a layer, with the kernel and the bias (or None) of it.

    Args:
        inputs: how many axes of the kernel, the first ones, are contracted.
    """
    dense = layers.Dense(
        math.prod(kernel.shape[inputs:]),
        use_bias=bias is not None,
        name=name,
        trainable=layer.trainable,
        dtype=layer.dtype_policy,
    )
    dense.build((None, math.prod(kernel.shape[:inputs])))
    fill(dense.kernel, kernel)
    if bias is not None:
        fill(dense.bias, bias)
    return dense
