"""The layers that compression adds to a model: Compressed, FakeQuant and two smaller ones.

A layer that is `scheduled` has `advance(step)`, called by `UpdateCompression` at the steps that
its `next_step(step)` tells, and keeps the step it was last told in its weight `last_step`.
"""

from typing import Any

import keras
from keras import ops

from tfcompress.batch_norm import FusedBatchNorm
from tfcompress.fake_quant import FakeQuant
from tfcompress.techniques.quantize import as_tensor
from tfcompress.techniques.technique import first_step
from tfcompress.wrapping import add_last_step, call_with, constant

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
            self.last_step = add_last_step(self)

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
                        initializer=constant(value),
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
        outputs, updates, losses = call_with(self.layer, effective, inputs, **kwargs)
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


def _tensors(state: dict[str, Any]) -> dict[str, Any]:
    return {name: as_tensor(value) for name, value in state.items()}
