"""What openers are made of: weights as tensors, activations, projections."""

import math

import keras
from keras import layers, ops

from tfcompress.graph.copying import copy_operation, copy_weights
from tfcompress.graph.layers import Parameter
from tfcompress.quantization.kernels import has_kernel
from tfcompress.quantization.views import ViewConstraint, ViewRegularizer, is_by_value

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

    def get_config(self):  # Keras writes one of its own only where dtype is a string
        return {**super().get_config()}


def with_weights(layer, x, **weights):
    """Calls a new layer on `x` and gives it weights."""
    y = layer(x)
    for name, value in weights.items():
        if value is not None:
            fill(layer, name, value)
    return y


def fill(layer, name: str, value) -> None:
    """Gives a layer a weight, which may have another shape of the same size, and its rules."""
    variable = getattr(layer, name)
    variable.assign(ops.reshape(value, variable.shape))
    if isinstance(value, keras.Variable):
        hand_on(layer, name, value)


def hand_on(layer, name: str, source: keras.Variable) -> None:
    """Lets a weight of a layer train as another does: whether, regularized and constrained."""
    variable = getattr(layer, name)
    variable.trainable = bool(source.trainable)
    rules = {"regularizer": source.regularizer, "constraint": source.constraint}
    for kind, rule in rules.items():
        if rule is None:
            continue
        if tuple(variable.shape) != tuple(source.shape) and not is_by_value(rule):
            view = ViewRegularizer if kind == "regularizer" else ViewConstraint
            rule = view(rule, source.shape)
        setattr(variable, kind, rule)
        # The layer saves its own.
        names = (f"{name}_{kind}", f"depthwise_{kind}", kind)
        setattr(layer, next(x for x in names if hasattr(layer, x)), rule)


def constant(value, anchor, name: str, trainable: bool = True, shape=None, dtype=None):
    """A weight as a tensor of the graph.

    Args:
        shape: another shape of the same size.
        dtype: dtype or policy of the layer.
    """
    layer = Parameter(tuple(shape or value.shape), trainable=trainable, name=name, dtype=dtype)
    return with_weights(layer, anchor, value=value)


def activate(activation, x, name: str, dtype=None):
    """An activation function, or an activation that is a layer, applied by primitiv"""
    if activation is None or activation is keras.activations.linear:
        return x
    if isinstance(activation, keras.Layer):
        twin = copy_operation(activation)
        y = twin(x)
        copy_weights([(activation, twin)])
        return y
    layer = layers.Activation(activation, name=name, dtype=dtype)
    if has_kernel(layer):
        return layer(x)
    if activation is keras.activations.mish:  # which takes no symbolic tensors
        return ops.multiply(x, ops.tanh(ops.softplus(x)))
    try:
        return activation(x)
    except Exception:  # written with other functions than those of Keras
        return layer(x)


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
    fill(dense, "kernel", kernel)
    if bias is not None:
        fill(dense, "bias", bias)
    return dense


def parts_of_separable(layer, name: str, **settings):
    """New layers without weights: the depthwise and the pointwise part of a SeparableConv.

    Args:
        name: of the pointwise part.
        **settings: further ones of that.
    """
    config = layer.get_config()
    shared = {key: config[key] for key in ("data_format", "trainable", "dtype")}
    depthwise = (layers.DepthwiseConv1D if layer.rank == 1 else layers.DepthwiseConv2D)(
        layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        depth_multiplier=layer.depth_multiplier,
        dilation_rate=layer.dilation_rate,
        use_bias=False,
        name=f"{layer.name}_depthwise",
        **shared,
    )
    settings = {"use_bias": layer.use_bias, **settings}
    kind = layers.Conv1D if layer.rank == 1 else layers.Conv2D
    return depthwise, kind(layer.filters, 1, name=name, **shared, **settings)
