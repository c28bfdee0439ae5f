"""Small layers that a flat model needs to keep what the code of a subclassed model does."""

from __future__ import annotations

import keras
import numpy as np
from keras import KerasTensor, layers, ops

from tfcompress.backend import as_tensor

_register = keras.saving.register_keras_serializable("tfcompress")


@_register
class RepeatBatch(layers.Layer):
    """A tensor (a class token, say) repeated for every element of a batch.

    Args:
        shape: shape of the result without the batch axis.
    """

    def __init__(self, shape, **kwargs):
        super().__init__(**kwargs)
        self.shape = tuple(shape)

    def call(self, x, anchor):
        return ops.broadcast_to(x, (ops.shape(anchor)[0], *self.shape))

    def compute_output_spec(self, x, anchor):
        return KerasTensor((anchor.shape[0], *self.shape), x.dtype)

    def get_config(self):
        return {**super().get_config(), "shape": self.shape}


@_register
class SetMask(layers.Layer):
    """A tensor with the mask that an opened layer gave it, or handed on to it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, x, mask=None):
        return ops.copy(x)  # the tensor itself may have another mask elsewhere

    def compute_output_spec(self, x, mask=None):
        return KerasTensor(x.shape, x.dtype)

    def get_config(self):  # Keras writes one of its own only where dtype is a string
        return {**super().get_config()}


@_register
class AddLoss(layers.Layer):
    """A tensor whose model has the losses that the code of an opened layer added.

    Its activity regularizer is that of the opened layer.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, x, losses=()):
        for loss in losses:
            self.add_loss(loss)
        return x

    def compute_output_spec(self, x, losses=()):
        return KerasTensor(x.shape, x.dtype)

    def get_config(self):
        return {**super().get_config()}


@_register
class Constant(layers.Layer):
    """Values that the code of an opened layer looks up in a weight, as positions.

    Args:
        values: an array, or nested lists.

    It ignores the value of its input, which only gives it a place in the graph.
    """

    def __init__(self, values, **kwargs):
        values = np.asarray(values, dtype=kwargs.get("dtype"))
        super().__init__(**{**kwargs, "dtype": str(values.dtype)})
        self.values = values

    def call(self, anchor):
        return ops.convert_to_tensor(self.values)

    def compute_output_spec(self, anchor):
        return KerasTensor(self.values.shape, str(self.values.dtype))

    def get_config(self):
        config = {**super().get_config(), "values": self.values.tolist()}
        return {**config, "dtype": str(self.values.dtype)}


@_register
class FrozenBatchNormalization(layers.BatchNormalization):
    """BatchNormalization called with training=False by the model around it."""

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=False, mask=mask)


@_register
class FixedTraining(layers.Layer):
    """A layer that the model around it always calls with the same `training`.

    Args:
        layer: any `keras.Layer` whose `call` takes `training`.
        training: True or False.
    """

    def __init__(self, layer, training, **kwargs):
        kwargs.setdefault("name", layer.name)
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(**kwargs)
        self.layer, self.training = layer, training
        self.supports_masking = layer.supports_masking

    def build(self, input_shape=None):
        """The layer is built by its first call, which knows the shapes of all arguments."""

    def call(self, *args, training=None, **kwargs):
        return self.layer(*args, training=self.training, **kwargs)

    def compute_output_spec(self, *args, training=None, **kwargs):
        call = self.layer.compute_output_spec if self.layer.built else self.layer
        return call(*args, training=self.training, **kwargs)

    def compute_mask(self, inputs, previous_mask=None):
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self):
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer, "training": self.training}

    @classmethod
    def from_config(cls, config):
        layer = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**{**config, "layer": layer})


def fix_training(layer, training: bool):
    """A layer that behaves as if called with this `training` always."""
    if training is False:
        if type(layer) is layers.BatchNormalization:
            return FrozenBatchNormalization.from_config({**layer.get_config(), "name": layer.name})
        if isinstance(layer, layers.RNN | layers.MultiHeadAttention):
            names = ("dropout", "recurrent_dropout")
            none = {name: 0.0 for name in names if name in layer.get_config()}
            return type(layer).from_config({**layer.get_config(), **none, "name": layer.name})
    return FixedTraining(layer, training)


@_register
class KeepMask(layers.Layer):
    """A tensor with the mask of another, which it was computed from by operations that lose it.

    Called with a list: the tensor, and the one that has the mask.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True

    def call(self, inputs):
        return inputs[0]

    def compute_output_spec(self, inputs):
        return KerasTensor(inputs[0].shape, inputs[0].dtype)

    def compute_mask(self, inputs, previous_mask):
        return previous_mask[1]

    def get_config(self):  # Keras writes one of its own only where dtype is a string
        return {**super().get_config()}


@_register
class Parameter(keras.layers.Layer):
    """A lone weight as a layer: what an opened layer added for itself by `add_weight`.

    It ignores the value of its input, which only gives it a place in the graph.

    Args:
        shape: of the weight.
        weight: its name, by which techniques know what it is.
        regularizer, constraint: of the weight.
    """

    def __init__(self, shape, weight="value", regularizer=None, constraint=None, **kwargs):
        super().__init__(**kwargs)
        self.shape, self.weight = tuple(shape), weight
        self.regularizer = keras.regularizers.get(regularizer)
        self.constraint = keras.constraints.get(constraint)

    def build(self, input_shape):
        self.value = self.add_weight(
            shape=self.shape,
            name=self.weight,
            dtype=self.dtype_policy.variable_dtype,
            initializer="zeros",
            regularizer=self.regularizer,
            constraint=self.constraint,
        )

    def call(self, anchor):
        return as_tensor(self.value)

    def compute_output_spec(self, anchor):
        return keras.KerasTensor(self.shape, self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "shape": self.shape,
            "weight": self.weight,
            "regularizer": keras.regularizers.serialize(self.regularizer),
            "constraint": keras.constraints.serialize(self.constraint),
        }
