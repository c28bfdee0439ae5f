"""The Keras layers that the factors of a kernel become."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from tfcompress.graph.copying import copy_operation, copy_weights
from tfcompress.graph.nodes import Graph, Node, exchanged
from tfcompress.kinds import SEPARABLE, is_of
from tfcompress.quantization.pieces import fill, parts_of_separable

CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)


@dataclasses.dataclass(frozen=True)
class Part:
    """One of the steps that take the place of a layer.

    Attributes:
        call: a new layer, or a function of `keras.ops` that has no weights.
        weights: name of an attribute of the layer -> its value, an array or the old variable.
        added: name of one of these -> what is added to it.
    """

    call: Callable[[Any], Any]
    weights: dict[str, Any] = dataclasses.field(default_factory=dict)
    added: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def fill(self, trainable: bool) -> None:
        """Gives the layer its weights, once it is built; new ones train only if told so."""
        for name, value in self.weights.items():
            fill(self.call, name, value)
            if not isinstance(value, keras.Variable) and not trainable:
                getattr(self.call, name).trainable = False
        for name, value in self.added.items():
            variable = getattr(self.call, name)
            variable.assign_add(np.reshape(value, variable.shape))


def with_parts(graph: Graph, parts: Mapping[int, Sequence[Part]]) -> keras.Model:
    """A new model in which parts take the place of layers, by the identity of these."""
    filled: set[int] = set()

    def call(node: Node, *args, **kwargs):
        operation = node.operation
        if id(operation) not in parts:
            return operation(*args, **kwargs)
        x = args[0] if args else kwargs["inputs"]
        for part in parts[id(operation)]:
            x = part.call(x)
            if id(operation) not in filled:
                part.fill(bool(kernel_of(operation).trainable))
        filled.add(id(operation))
        return x

    return exchanged(graph, call)


def separated(graph: Graph, separable: Iterable[Any]) -> keras.Model:
    """A new model in which separable convolutions are a depthwise and a pointwise one.

    The pointwise one has the name, bias and activation.
    """
    parts = {}
    for layer in separable:
        first, last = parts_of_separable(layer, layer.name, **ending(layer))
        parts[id(layer)] = [
            Part(first, {"kernel": layer.depthwise_kernel}),
            Part(last, {"kernel": layer.pointwise_kernel, **bias_of(layer)}),
        ]
    return with_parts(graph, parts)


def dense(layer, units: int, name: str, **settings) -> layers.Dense:
    """A Dense with the settings of a layer's kernel."""
    return layers.Dense(units, name=name, **_kernel_settings(layer), **settings)


def convolution(
    layer, filters: int, name: str, kernel_size, like: Iterable[int] = (), **settings
) -> Any:
    """A convolution of a layer's kind and data format."""
    along = set(like)
    return type(layer)(
        filters,
        kernel_size,
        strides=tuple(s if i in along else 1 for i, s in enumerate(layer.strides)),
        dilation_rate=tuple(d if i in along else 1 for i, d in enumerate(layer.dilation_rate)),
        padding=layer.padding if along else "valid",
        data_format=layer.data_format,
        name=name,
        **_kernel_settings(layer),
        **settings,
    )


def last_convolution(layer, kernel, kernel_size=1, like: Iterable[int] = ()) -> Part:
    """The last of the convolutions that take a layer's place: it gives what the layer gave."""
    last = convolution(layer, layer.filters, layer.name, kernel_size, like, **ending(layer))
    return Part(last, {"kernel": kernel, **bias_of(layer)})


def depthwise(layer, name: str) -> Any:
    """A depthwise convolution with the kernel size, strides and padding of a layer."""
    kind = layers.DepthwiseConv1D if layer.rank == 1 else layers.DepthwiseConv2D
    settings = _kernel_settings(layer)
    return kind(
        layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
        depthwise_initializer=settings.pop("kernel_initializer"),
        depthwise_regularizer=settings.pop("kernel_regularizer"),
        use_bias=False,
        name=name,
        **settings,
    )


def ending(layer) -> dict[str, Any]:
    """The settings of the last part: bias and activation of the layer."""
    settings = {
        "activity_regularizer": layer.activity_regularizer,
        "bias_initializer": layer.bias_initializer,
        "bias_regularizer": layer.bias_regularizer,
        "bias_constraint": layer.bias_constraint,
        "activation": _activation(layer),
    }
    if isinstance(layer, layers.EinsumDense):
        return settings
    return {**settings, "use_bias": layer.use_bias}


def bias_of(layer) -> dict[str, Any]:
    """The weights of the last part beside its kernel."""
    return {} if layer.bias is None else {"bias": layer.bias}


def bare(layer) -> Any:
    """A layer without its activation, a copy without its weights where it has one."""
    plain = getattr(layer, "activation", None) in (None, keras.activations.linear)
    if plain and layer.activity_regularizer is None:
        return layer
    return copy_operation(layer, {"activation": None, "activity_regularizer": None})


def closing(layer, name: str) -> layers.Layer:
    """The activation of a layer, as the last part where its bias is added elsewhere."""
    return layers.Activation(
        _activation(layer) or "linear",
        activity_regularizer=layer.activity_regularizer,
        name=name,
        dtype=layer.dtype_policy,
    )


def einsum(layer, equation: str, output_shape, name: str, **settings) -> layers.EinsumDense:
    """An EinsumDense with the settings of a layer's kernel."""
    return layers.EinsumDense(
        equation, output_shape, name=name, **_kernel_settings(layer), **settings
    )


def embedding(layer, units: int, name: str) -> layers.Embedding:
    """An Embedding of the same tokens with fewer units."""
    return layers.Embedding(
        layer.input_dim,
        units,
        embeddings_initializer=_initializer(layer.embeddings_initializer),
        embeddings_regularizer=layer.embeddings_regularizer,
        mask_zero=layer.mask_zero,
        name=name,
        dtype=layer.dtype_policy,
        trainable=layer.trainable,
    )


def kernel_of(layer) -> keras.Variable:
    """The variable of a layer that is taken apart."""
    if isinstance(layer, layers.Embedding):
        return layer.embeddings
    return layer.pointwise_kernel if is_of(layer, SEPARABLE) else layer.kernel


def array_of(layer) -> np.ndarray:
    """The kernel of a layer in float64."""
    return np.asarray(keras.ops.convert_to_numpy(kernel_of(layer))).astype("float64")


def _kernel_settings(layer) -> dict[str, Any]:
    """What new kernels take over; a constraint on the old one means nothing for its factors."""
    is_embedding = isinstance(layer, layers.Embedding)
    name = "embeddings" if is_embedding else "kernel"
    return {
        "kernel_initializer": _initializer(getattr(layer, f"{name}_initializer")),
        "kernel_regularizer": getattr(layer, f"{name}_regularizer"),
        "dtype": layer.dtype_policy,
        "trainable": layer.trainable,
    }


def _initializer(initializer) -> Any:
    """The same one if it takes any shape."""
    is_random = "random_initializers" in type(initializer).__module__
    return initializer if is_random else "glorot_uniform"


def _activation(layer) -> Any:
    """The activation of a layer; if it is a layer itself, a copy with weights of its own."""
    if not isinstance(layer.activation, keras.Layer):
        return layer.activation
    twin = copy_operation(layer.activation)
    if layer.activation.built:
        twin.build(layer.activation.get_build_config()["input_shape"])
    copy_weights([(layer.activation, twin)])
    return twin
