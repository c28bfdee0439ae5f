"""The layers that compression adds to a model: Compressed, FakeQuant and two smaller ones.

A layer that is `scheduled` has `advance(step)`, called by `UpdateCompression` at the steps that
its `next_step(step)` tells, and keeps the step it was last told in its weight `last_step`.
"""

from typing import Any

import keras
from keras import ops

from tfcompress.fake_quant import FakeQuant
from tfcompress.techniques.quantize import as_tensor
from tfcompress.techniques.technique import first_step

__all__ = ["TARGETS", "Compressed", "FakeQuant", "FusedBatchNorm", "Parameter"]

_register = keras.saving.register_keras_serializable("tfcompress")

# The names under which Keras keeps the weights that compression is meant for.
TARGETS = ("kernel", "depthwise_kernel", "pointwise_kernel", "embeddings")


@_register
class Parameter(keras.layers.Layer):
    """A lone weight as a layer: what an opened layer added for itself by `add_weight`.

    It ignores the value of its input, which only gives it a place in the graph.
    """

    def __init__(self, shape, **kwargs):
        super().__init__(**kwargs)
        self.shape = tuple(shape)

    def build(self, input_shape):
        make = {"dtype": self.dtype_policy.variable_dtype, "initializer": "zeros"}
        self.value = self.add_weight(shape=self.shape, name="value", **make)

    def call(self, anchor):
        return as_tensor(self.value)

    def compute_output_spec(self, anchor):
        return keras.KerasTensor(self.shape, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "shape": self.shape}


@_register
class Compressed(keras.layers.Layer):
    """A layer that computes with its effective weights: techniques applied one after the other.

    Args:
        layer: the wrapped `keras.Layer`; any type, it is called through `stateless_call`.
        techniques: list of bound `Technique`s, applied in order to each target weight.
        targets: names of the layer's weights that they apply to; by default its kernels.

    Raises:
        ValueError: at build, if the layer has none of the targets.

    Example:
        >>> dense = Compressed(keras.layers.Dense(3), [Quantize(bits=8)])  # doctest: +SKIP
    """

    def __init__(self, layer, techniques, targets=TARGETS, **kwargs):
        kwargs.setdefault("name", layer.name)
        kwargs.setdefault("trainable", layer.trainable)
        # Casts are the wrapped layer's own business; techniques see weights in full precision.
        kwargs.setdefault("dtype", "float32")
        super().__init__(autocast=False, **kwargs)
        self.layer = layer
        self.techniques = list(techniques)
        self.targets = tuple(targets)
        self.supports_masking = layer.supports_masking

    def build(self, input_shape=None):
        if not self.layer.built:
            self.layer.build(input_shape)
        if not self._variables:
            names = ", ".join(v.name for v in self.layer.variables) or "none"
            raise ValueError(
                f"layer '{self.layer.name}' ({type(self.layer).__name__}) must have one of the "
                f"weights {', '.join(self.targets)}; it has: {names}. Leave it out of the recipe."
            )
        self._states = {v.name: self._make_states(v) for v in self._variables}
        if self.scheduled:
            self.last_step = _add_last_step(self)

    @property
    def _variables(self) -> list[Any]:
        """The weights of the wrapped layer that the techniques apply to."""
        # Not an attribute: Keras would make them weights of this layer too, frozen layer or not.
        return [v for v in self.layer.variables if v.name in self.targets]

    def _make_states(self, variable) -> list[dict[str, Any]]:
        """The state of each technique as weights of this layer."""
        states, weight = [], as_tensor(variable)
        for technique in self.techniques:
            initial = technique.init(weight)
            states.append(
                {
                    name: self.add_weight(
                        name=f"{variable.name}_{type(technique).__name__.lower()}_{name}",
                        shape=value.shape,
                        initializer=_constant(value),
                        trainable=False,
                    )
                    for name, value in initial.items()
                }
            )
            weight = technique.apply(weight, initial)
        return states

    @property
    def scheduled(self) -> bool:
        """Whether `UpdateCompression` must advance this layer during `fit`."""
        return any(technique.scheduled for technique in self.techniques)

    def next_step(self, step: int) -> int | None:
        """The first optimizer step after `step` at which `advance` changes something."""
        return first_step(technique.next_step(step) for technique in self.techniques)

    def effective(self, variable, stop: type | None = None):
        """The effective value of one target variable; techniques from type `stop` on left out."""
        weight = as_tensor(variable)
        for technique, state in zip(self.techniques, self._states[variable.name], strict=True):
            if stop is not None and isinstance(technique, stop):
                break
            weight = technique.apply(weight, _tensors(state))
        return weight

    def advance(self, step) -> None:
        """Updates the state of every technique to the optimizer step `step`."""
        if not self.scheduled:
            return
        self.last_step.assign(ops.cast(step, "int32"))
        for variable in self._variables:
            weight = as_tensor(variable)
            for technique, state in zip(self.techniques, self._states[variable.name], strict=True):
                new = technique.update(weight, _tensors(state), step)
                for name, holder in state.items():
                    holder.assign(new[name])
                weight = technique.apply(weight, new)

    def call(self, inputs, **kwargs):
        effective = {id(v): self.effective(v) for v in self._variables}
        outputs, updates, losses = _call_with(self.layer, effective, inputs, **kwargs)
        for variable, value in updates:
            variable.assign(value)
        for loss in losses:
            self.add_loss(loss)
        return outputs

    def compute_output_spec(self, inputs, **kwargs):
        return self.layer.compute_output_spec(inputs, **kwargs)

    def compute_mask(self, inputs, previous_mask=None):
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self):
        return {
            **super().get_config(),
            "layer": keras.saving.serialize_keras_object(self.layer),
            "techniques": [keras.saving.serialize_keras_object(t) for t in self.techniques],
            "targets": list(self.targets),
        }

    @classmethod
    def from_config(cls, config):
        load = keras.saving.deserialize_keras_object
        config = dict(config)
        layer = load(config.pop("layer"))
        return cls(layer, [load(t) for t in config.pop("techniques")], **config)

    def get_build_config(self):
        return self.layer.get_build_config()

    def build_from_config(self, config):
        if not self.layer.built:
            self.layer.build_from_config(config)
        self.build()


@_register
class FusedBatchNorm(keras.layers.Layer):
    """BatchNormalization as quantization-aware training uses it: fast, and able to stop moving.

    On TensorFlow it trains with the fused kernel, which Keras's layer does not use: equal up to
    rounding, in about half of the time. `finalize` gives the Keras layer back.

    Args:
        layer: a `keras.layers.BatchNormalization`.
        freeze: optimizer step from which it normalizes by its moving statistics; None for never.
    """

    def __init__(self, layer, freeze=None, **kwargs):
        kwargs.setdefault("name", layer.name)
        kwargs.setdefault("trainable", layer.trainable)
        kwargs.setdefault("dtype", "float32")
        super().__init__(autocast=False, **kwargs)
        self.layer, self.freeze = layer, freeze
        self.supports_masking = True

    @property
    def scheduled(self) -> bool:
        """Whether `UpdateCompression` must advance this layer during `fit`."""
        return self.freeze is not None

    def build(self, input_shape):
        if not self.layer.built:
            self.layer.build(input_shape)
        if self.scheduled:
            self.last_step = _add_last_step(self)

    def next_step(self, step: int) -> int | None:
        """The first optimizer step after `step` at which `advance` changes something."""
        return self.freeze if self.scheduled and step < self.freeze else None

    def advance(self, step) -> None:
        """Tells the layer the optimizer step."""
        if self.scheduled:
            self.last_step.assign(step)

    def call(self, x, training=False, mask=None):
        if not training or not self.layer.trainable:
            return self.layer(x, training=False, mask=mask)
        moving = self.layer.moving_mean, self.layer.moving_variance
        if self.freeze is None:
            y, *statistics = self._train(x, mask)
        else:  # nothing is assigned inside of the branches, which MirroredStrategy would not allow
            y, *statistics = ops.cond(
                as_tensor(self.last_step) >= self.freeze,
                lambda: (self.layer(x, training=False, mask=mask), *map(as_tensor, moving)),
                lambda: self._train(x, mask),
            )
        for variable, value in zip(moving, statistics, strict=True):
            variable.assign(value)
        return y

    def _train(self, x, mask):
        """The normalized batch, and the moving mean and variance after it."""
        layer = self.layer
        if mask is None and _is_fusable(layer, x):
            return _fused_batch_norm(layer, x)
        y, updates, _ = _call_with(layer, {}, x, training=True, mask=mask)
        new = {id(variable): value for variable, value in updates}
        return y, new[id(layer.moving_mean)], new[id(layer.moving_variance)]

    def compute_output_spec(self, x, *args, **kwargs):
        return self.layer.compute_output_spec(x)

    def get_config(self):
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer, "freeze": self.freeze}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        layer = keras.saving.deserialize_keras_object(config.pop("layer"))
        return cls(layer, **config)


def _is_fusable(layer, x) -> bool:
    """Whether TensorFlow's fused kernel computes what a BatchNormalization does."""
    return (
        keras.backend.backend() == "tensorflow"
        and len(x.shape) == 4
        and layer.axis in (-1, 3)
        and layer.variable_dtype == "float32"
        and layer.epsilon > 1e-5  # the least that cuDNN takes
        and not layer.synchronized
    )


def _fused_batch_norm(layer, x):
    import tensorflow as tf

    size = x.shape[-1]
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=tf.cast(x, "float32"),
        scale=as_tensor(layer.gamma) if layer.scale else tf.ones([size]),
        offset=as_tensor(layer.beta) if layer.center else tf.zeros([size]),
        mean=[],
        variance=[],
        epsilon=layer.epsilon,
    )
    count = tf.cast(tf.size(x) // size, "float32")
    # The kernel gives the unbiased variance; Keras averages the biased one.
    batch = mean, variance * ((count - 1.0) / count)
    old = as_tensor(layer.moving_mean), as_tensor(layer.moving_variance)
    keep = layer.momentum
    new = (a * keep + tf.stop_gradient(b) * (1.0 - keep) for a, b in zip(old, batch, strict=True))
    return tf.cast(y, layer.compute_dtype), *new


def _call_with(layer, values: dict[int, Any], *args, **kwargs):
    """Calls a layer with other values in some of its variables.

    Args:
        layer: a built layer.
        values: id of a variable -> tensor.

    Returns:
        The outputs, (variable, new value) of what the layer assigned, and the losses it added.
    """
    mapping = [(v, values[id(v)] if id(v) in values else as_tensor(v)) for v in layer.variables]
    with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
        before = [scope.get_current_value(v) for v, _ in mapping]
        outputs = layer(*args, **kwargs)
    after = [scope.get_current_value(v) for v, _ in mapping]
    updates = [
        (v, new) for (v, _), old, new in zip(mapping, before, after, strict=True) if new is not old
    ]
    return outputs, updates, scope.losses


def _add_last_step(layer):
    make = {"shape": (), "dtype": "int32", "initializer": _constant(-1), "trainable": False}
    return layer.add_weight(name="last_step", **make)


def _tensors(state: dict[str, Any]) -> dict[str, Any]:
    return {name: as_tensor(value) for name, value in state.items()}


def _constant(value):
    """An initializer that gives one value, which may be a tensor."""
    return lambda shape, dtype=None: ops.broadcast_to(ops.cast(value, dtype or "float32"), shape)
