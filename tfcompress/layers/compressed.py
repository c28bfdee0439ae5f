"""The layers that compression adds to a model: Compressed, FakeQuant and two smaller ones.

A layer that is `scheduled` has `advance(step)`, called by `UpdateCompression` at the steps that
its `next_step(step)` tells, and keeps the step it was last told in its weight `last_step`.
"""

from __future__ import annotations

import dataclasses
import warnings
import weakref
from typing import Any

import keras
from keras import ops

from tfcompress.backend import as_tensor
from tfcompress.graph.layers import Parameter
from tfcompress.kinds import KERNELS, is_kernel, is_known
from tfcompress.layers.batch_norm import FusedBatchNorm
from tfcompress.layers.fake_quant import (
    FakeQuant,
    add_last_step,
    call_with,
    constant,
    never_advanced,
    require_callback,
    stateful_layers,
)
from tfcompress.techniques.regularize import Penalty
from tfcompress.techniques.technique import Technique, first_step, is_due

_register = keras.saving.register_keras_serializable("tfcompress")


@dataclasses.dataclass(frozen=True)
class Target:
    """A weight of a wrapped layer, with the techniques that apply to it and their states."""

    owner: keras.Layer
    variable: Any
    techniques: list[Technique]
    states: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def target_variables(layer, names=KERNELS) -> list[tuple[keras.Layer, Any]]:
    """The weights of a layer, and of layers inside it, that bear one of some names or are declared.

    Returns (owner, variable) pairs; the order depends on the layer's structure alone.
    """
    return [
        (part, variable)
        for part in layer._flatten_layers()
        for variable in (*part._trainable_variables, *part._non_trainable_variables)
        if variable.name in names or is_kernel(part, variable)
    ]


def undeclared_weights(layer) -> list[str]:
    """The matrices of a user's own layer that no technique takes, as nothing tells of them.

    A lone weight of a flat model comes from a user's layer, too.
    """
    if is_known(layer) and not isinstance(layer, Parameter):
        return []
    return [
        f"{layer.name}/{variable.name}"
        for variable in layer._trainable_variables
        if sum(size > 1 for size in variable.shape) > 1 and not is_kernel(layer, variable)
    ]


def warn_undeclared(names: list[str], technique: Technique) -> None:
    """Warns of weights that a technique leaves as they are, as it does not know them."""
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        warnings.warn(
            f"{type(technique).__name__} leaves weights of your own layers as they are: "
            f"{', '.join(names[:5])}{more}. If they are kernels, put @tfcompress.register_kernel"
            f"({names[0].rpartition('/')[2]!r}) above the class that adds them.",
            stacklevel=5,
        )


def weight_name(layer, owner, variable) -> str:
    """The name of a layer's weight, with the layers inside it on the way to its owner."""
    inner = variable.name if owner is layer else variable.path.removeprefix(f"{layer.name}/")
    return f"{layer.name}/{inner}"


@_register
class Compressed(keras.layers.Layer):
    """A layer that computes with its effective weights: techniques applied one after the other.

    Args:
        layer: the wrapped `keras.Layer`; any type, it is called through `stateless_call`.
        techniques: list of `Technique`s, applied in order to each target weight that they are
            meant for.
        targets: names of the layer's weights that they apply to; by default its kernels.
    """

    def __init__(self, layer, techniques, targets=KERNELS, **kwargs):
        kwargs.setdefault("name", layer.name)
        kwargs.setdefault("trainable", layer.trainable)
        # Casts are the wrapped layer's own business; techniques see weights in full precision.
        kwargs.setdefault("dtype", "float32")
        super().__init__(autocast=False, **kwargs)
        self.layer = layer
        self.techniques = list(techniques)
        self.targets = tuple(targets)
        self.supports_masking = layer.supports_masking
        if hasattr(layer, "wrapped_by"):
            layer.wrapped_by = weakref.ref(self)  # not tracked, nor saved
        self._bound: tuple[Target, ...] = ()

    def build(self, input_shape=None):
        if not self.layer.built:
            self.layer.build(input_shape)
        found = target_variables(self.layer, self.targets)
        if not found:
            names = ", ".join(v.name for v in self.layer.variables) or "none"
            raise ValueError(
                f"layer '{self.layer.name}' ({type(self.layer).__name__}) must have one of the "
                f"weights {', '.join(self.targets)}; it has: {names}. Leave it out of the recipe."
            )
        for owner, _ in found:
            require_merged(owner)
        bound = [Target(o, v, bind(self.techniques, o, v)) for o, v in found]
        for target in bound:
            same = [t for t in bound if t.variable.name == target.variable.name]
            prefix = f"{target.owner.name}_" if len(same) > 1 else ""
            target.states.extend(self._make_states(target, prefix + target.variable.name))
            _add_penalties(target)
        self._bound = tuple(bound)
        every = (state for target in bound for each in target.states for state in each.values())
        for number, state in enumerate(every):  # where tf.train.Checkpoint looks for them
            setattr(self, f"state_{number}", state)
        if self.scheduled:
            self.last_step = add_last_step(self)

    @property
    def bound(self) -> tuple[Target, ...]:
        """The target weights, once the layer is built."""
        return self._bound

    def _make_states(self, target: Target, name: str) -> list[dict[str, Any]]:
        """The state of each technique as weights of this layer."""
        states, weight = [], as_tensor(target.variable)
        for technique in target.techniques:
            initial = technique.initial_state(weight)
            prefix = f"{name}_{type(technique).__name__.lower()}"
            states.append(
                {key: self._add_state(prefix, key, v, technique) for key, v in initial.items()}
            )
            weight = technique.apply(weight, initial)
        return states

    def _add_state(self, prefix: str, key: str, value, technique: Technique):
        overwritten = key in technique.overwritten_states
        state = self.add_weight(
            name=f"{prefix}_{key}",
            shape=value.shape,
            initializer=constant(value),
            dtype=keras.backend.standardize_dtype(value.dtype),
            trainable=key in technique.trainable_states,
            # Each replica overwrites it with what its share of the batch gives.
            aggregation="mean" if overwritten else None,
        )
        if overwritten:
            state.overwrite_with_gradient = True
        return state

    @property
    def scheduled(self) -> bool:
        """Whether `UpdateCompression` must advance this layer during `fit`."""
        return any(technique.scheduled for technique in self.techniques)

    @property
    def has_shares(self) -> bool:
        """Whether schedules name shares of a training that has not begun."""
        return any(technique.has_shares for technique in self.techniques)

    def begin_training(self, first: int, steps: int) -> None:
        """Makes steps of shares: `first` is the first of so many; what is saved has them."""
        lists = [self.techniques, *(target.techniques for target in self._bound)]
        for techniques in lists:
            techniques[:] = [technique.over(first, steps) for technique in techniques]

    def next_step(self, step: int) -> int | None:
        """The first optimizer step after `step` at which `advance` changes something."""
        bound = (technique for target in self._bound for technique in target.techniques)
        return first_step(technique.next_step(step) for technique in bound)

    def effective(self, variable, stop: type | None = None):
        """The effective value of one target variable; techniques from type `stop` on left out."""
        target = next(target for target in self._bound if target.variable is variable)
        return effective_weight(target, stop)

    def step_of(self, target: Target):
        """The step of the grid of a target weight whose last technique is `Quantize`."""
        technique: Any = target.techniques[-1]
        return technique.step_of(effective_weight(target), tensors(target.states[-1]))

    def advance(self, step: int) -> None:
        """Updates the states of its techniques to the optimizer step `step`.

        A state that layers share is left to `UpdateCompression`, which sees all of them.
        """
        if not self.scheduled:
            return
        last = int(as_tensor(self.last_step))
        for target in self._bound:
            weight, changed = as_tensor(target.variable), False
            waiting: list[Any] = []  # applied only if a later technique is updated
            for technique, state in zip(target.techniques, target.states, strict=True):
                changed = changed or is_due(technique, last, step)
                if changed and technique.scheduled and not technique.together:
                    for before, held in waiting:
                        weight = before.apply(weight, tensors(held))
                    waiting = []
                    assign(state, technique.update(weight, tensors(state), step))
                waiting.append((technique, state))
        self.last_step.assign(ops.cast(step, "int32"))

    def call(self, inputs, *args, **kwargs):
        require_callback(self)
        effective = {id(t.variable): effective_weight(t) for t in self._bound}
        outputs, updates, losses = call_with(self.layer, effective, inputs, *args, **kwargs)
        for variable, value in updates:
            variable.assign(value)
        for loss in losses:
            self.add_loss(loss)
        return outputs

    @property
    def stateful(self) -> bool:
        """Whether the layer keeps states from batch to batch, as a recurrent one may."""
        return bool(stateful_layers(self.layer))

    def reset_states(self) -> None:
        """Sets the states of recurrent layers to zero."""
        for part in stateful_layers(self.layer):
            part.reset_states()

    reset_state = reset_states  # Keras has both names

    def compute_output_spec(self, inputs, *args, **kwargs):
        return self.layer.compute_output_spec(inputs, *args, **kwargs)

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


def require_merged(layer) -> None:
    """Raises if low-rank weights are added to a layer's kernel, which techniques do not see."""
    if getattr(layer, "lora_enabled", False):
        raise ValueError(
            f"layer '{layer.name}' must have plain weights; received one with LoRA enabled, whose "
            "sum with the kernel would be neither pruned nor clustered. Merge it first: "
            "model.save_weights('merged.weights.h5') writes merged weights; load them into the "
            "same model built anew, without enable_lora."
        )


def bind(techniques, owner, variable) -> list[Technique]:
    """The techniques that a weight takes, each with what it must know of it."""
    bound: list[Technique] = []
    for technique in techniques:
        if technique.refuses(owner, variable) is None:
            bound.append(technique.bind(owner, variable.name, bound))
    return bound


def _add_penalties(target: Target) -> None:
    """Makes penalties regularizers of the weight: counted once, however often it is used."""
    weight, own = as_tensor(target.variable), target.variable.regularizer
    found = [t.penalty for t in target.techniques if t.penalty(weight) is not None]
    if found:
        every = [own, *found] if own is not None else found
        target.variable.regularizer = Penalty(lambda weight: sum(each(weight) for each in every))


def effective_weight(target: Target, stop: type | None = None):
    """The effective value of a target weight; techniques from type `stop` on left out."""
    weight = as_tensor(target.variable)
    for technique, state in zip(target.techniques, target.states, strict=True):
        if stop is not None and isinstance(technique, stop):
            break
        weight = technique.apply(weight, tensors(state))
    return weight


def baked_weight(target: Target, stop: type | None = None):
    """The effective value as it is stored: without -0.0, which masks make of negative weights."""
    return effective_weight(target, stop) + 0.0


def tensors(state: dict[str, Any]) -> dict[str, Any]:
    """The values of a state that is kept in weights."""
    return {name: as_tensor(value) for name, value in state.items()}


def assign(state: dict[str, Any], new: dict[str, Any]) -> None:
    """Writes a new state into the weights that keep it."""
    for name, holder in state.items():
        holder.assign(new[name])


def require_advanced(model: keras.Model) -> None:
    """Raises if a technique has not begun, warns if its schedule has not ended."""
    short = []
    for layer in model._flatten_layers():
        if not getattr(layer, "scheduled", False):
            continue
        last = int(as_tensor(layer.last_step))
        if last < 0:
            raise never_advanced(layer)
        for technique in (t for target in getattr(layer, "bound", ()) for t in target.techniques):
            kind = type(technique).__name__
            if last < technique.begins():
                raise ValueError(
                    f"{kind} of layer '{layer.name}' begins at step {technique.begins()}; received "
                    f"a model trained for {last} steps. Train it longer, or let it begin earlier."
                )
            rest = technique.unfinished(last)
            short += [f"{kind} of '{layer.name}': {rest}"] if rest else []
    if short:
        more = f" and {len(short) - 3} more" if len(short) > 3 else ""
        warnings.warn(
            f"training ended before its schedules did: {'; '.join(short[:3])}{more}. Train longer; "
            "if EarlyStopping restored an earlier epoch, let it start_from_epoch after their end.",
            stacklevel=3,
        )


def require_plain(model: keras.Model) -> None:
    """Raises a ValueError for a model of `compress`, whose layers are wrapped."""
    if is_compressed(model):
        raise ValueError(
            "model must be a plain one, whose layers can be exchanged; received "
            f"'{model.name}', whose layers are wrapped by compress or quantize_aware. Finalize it "
            "first with tfcompress.finalize, or do this before compress."
        )


def is_compressed(model: keras.Model) -> bool:
    """Whether a model comes from `compress`, trained or not."""
    kinds = (Compressed, FakeQuant, FusedBatchNorm)
    is_keras = isinstance(model, keras.Model)
    return is_keras and any(isinstance(layer, kinds) for layer in model._flatten_layers())
