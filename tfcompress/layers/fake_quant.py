"""FakeQuant: the layer that rounds activations while a model trains."""

from __future__ import annotations

import sys
from typing import Any

import keras
from keras import ops, tree

from tfcompress.backend import as_tensor
from tfcompress.layers.extremes import cut, least_seen
from tfcompress.layers.kernel_rounding import grid_step, kernel_codes, sum_of, values_of
from tfcompress.schedules import is_share
from tfcompress.techniques.learned import quantize_between, scaled
from tfcompress.techniques.quantize import (
    ONLY_ZEROS,
    Quantize,
    moving_range,
    quantize_activation,
    round_activation,
    straight_through,
    ties_away,
)
from tfcompress.techniques.technique import first_step

# Masks may be of the lowest float, or infinite; differences of ranges must not.
_LOWEST, _HIGHEST = -1e36, 1e36

# How many steps a divisor must have: 0 has no quotient, and LiteRT ends a run there.
_DIVISOR_STEPS = 2.0

# Activations that a range starting at zero carries out, with where they clip from above.
_CLIPS = {"relu": _HIGHEST, "relu6": 6.0}


@keras.saving.register_keras_serializable("tfcompress")
class FakeQuant(keras.layers.Layer):
    """Rounds activations to the integer grid that the converted model will use.

    The range is a moving average in training and frozen in inference; until the first batch has
    been seen, inference passes through. Tensors that must share one scale on the device (the
    inputs of a Concatenate, say) share one layer, each with a row of its own in `range`, and are
    quantized by the union of the rows.

    Args:
        bits: 8 or 16.
        momentum: of the moving average, in [0, 1).
        activation: name of an activation ("relu", "relu6") that comes before rounding, as LiteRT
            fuses it; None for none.
        sources: how many tensors share the range; an average of them on the way (called with
            source=None) is rounded by it too, halves away from code 0 as LiteRT does.
        fixed: (minimum, maximum) where the device fixes the range (softmax, sigmoid, tanh).
        delay, freeze: see `Quantize`.
        float_source: which of the sources come from operations that are to stay float: a list of
            rows, or True for all of them.
        symmetric: whether the range is that of weights, as far below 0 as above.
        extremes: of each source, the size of the least mask in it (0 for none), which its readers
            tell from no value far below; None where they tell all values apart. The range ends
            where readers do. None if there are no masks.
        divides: whether something is divided by it. It stays float, as what is divided, if a value
            ever came so near to 0 that it may be rounded there.
        observes: whether it gives what it gets, as only operations that stay float read it.
        learned: whether both limits are multiplied by factors that are trained.
    """

    def __init__(
        self,
        bits=8,
        momentum=0.99,
        activation=None,
        sources=1,
        fixed=None,
        delay=0,
        freeze=None,
        float_source=False,
        observes=False,
        symmetric=False,
        extremes=None,
        divides=False,
        learned=False,
        **kwargs,
    ):
        kwargs.setdefault("dtype", "float32")
        super().__init__(autocast=False, **kwargs)  # gives the dtype that it is given
        self.bits, self.momentum, self.activation = bits, momentum, activation
        self.sources, self.delay, self.freeze = sources, delay, freeze
        self.fixed = tuple(fixed) if fixed is not None else None
        self.float_source, self.observes, self.symmetric = float_source, observes, symmetric
        self.extremes, self.divides, self.learned = extremes, divides, learned
        self.before = None  # the range before a batch that is observed in several calls
        self.supports_masking = True

    @property
    def scheduled(self) -> bool:
        """Whether `UpdateCompression` must advance this layer during `fit`."""
        return self.fixed is None and (self.delay != 0 or self.freeze is not None)

    @property
    def has_shares(self) -> bool:
        """Whether steps are shares of a training that has not begun."""
        return is_share(self.delay) or is_share(self.freeze)

    def begin_training(self, first: int, steps: int) -> None:
        """Makes steps of shares, as those of `Quantize`."""
        quantize = Quantize(delay=self.delay, freeze=self.freeze).over(first, steps)
        self.delay, self.freeze = quantize.delay, quantize.freeze

    def build(self, input_shape=None):
        if self.fixed is None:
            self.range = self.add_weight(
                name="range",
                shape=(self.sources, 2),
                dtype="float32",
                initializer="zeros",
                trainable=False,
                autocast=False,
                aggregation="mean",
            )
            if self.divides:
                self.least = self.add_weight(
                    name="least",
                    shape=(),
                    dtype="float32",
                    initializer=constant(_HIGHEST),
                    trainable=False,
                    autocast=False,
                    aggregation="mean",
                )
        if self.learned:
            self.factors = self.add_weight(
                name="factors", shape=(2,), dtype="float32", initializer="ones", autocast=False
            )
        if self.scheduled:
            # phase 0: observe only; 1: observe and quantize; 2: quantize by frozen ranges
            self.phase = _add_integer(self, "phase", 0 if self.delay else 1)
            self.last_step = add_last_step(self)

    def next_step(self, step: int) -> int | None:
        """The first optimizer step after `step` at which `advance` changes something."""
        return first_step(at for at in (self.delay, self.freeze) if at is not None and at > step)

    def advance(self, step) -> None:
        """Enters the phase that belongs to the optimizer step `step`."""
        if not self.scheduled:
            return
        frozen = self.freeze is not None and step >= self.freeze
        if frozen and self.learned and int(as_tensor(self.phase)) < 2:
            self.range.assign(as_tensor(self.range) * self._factors())  # which count no more
        self.phase.assign(2 if frozen else int(step >= self.delay))
        self.last_step.assign(step)

    def call(self, x, source=0, training=False):
        y = self._quantize(x, source, training)
        # Keras computes losses of probabilities from what a softmax or sigmoid was given.
        logits = getattr(x, "_keras_logits", None)
        if logits is not None and not self.activation:
            y._keras_logits = logits
        return y

    def _quantize(self, x, source, training):
        if self.fixed is not None and training:
            y = self._activate(x)
            y = y if source is not None else ties_away(y, *self.fixed, self.bits)
            return quantize_activation(y, *self.fixed, self.bits)
        require_callback(self)
        if not training:
            return self._infer(x, source)
        clips = self.activation in _CLIPS and self.sources == 1 and self.bits <= 8
        y = x if clips else self._activate(x)
        low, high = self._cut(*self.union(self._observe(y, source, clips)))
        if self.observes:
            return y
        if clips:  # a range from 0 clips as the activation would: one op instead of two
            low = 0.0
        if source is None:
            y = ties_away(y, low, high, self.bits)

        def rounded():
            if self.learned:
                return quantize_between(y, low, high, self._factors(), self.bits)
            if self.extremes is None and not self.divides:
                return quantize_activation(y, low, high, self.bits)
            # Not until its readers have ranges.
            known = ops.logical_and(high > low, self.is_far(low, high))
            z = quantize_activation(y, low, ops.where(known, high, 1.0), self.bits)
            return ops.where(known, z, self._activate(x))

        if self.delay == 0:
            return rounded()
        return ops.cond(as_tensor(self.phase) > 0, rounded, lambda: self._activate(x))

    def _infer(self, x, source):
        if self.observes:
            return self._activate(x)
        low, high = self.limits()
        rounds = ops.logical_and(high > low, self.is_far(low, high))
        top = ops.where(rounds, high, 1.0)
        if self.delay and self.fixed is None:
            rounds = ops.logical_and(rounds, as_tensor(self.phase) > 0)
        y = self._activate(x)
        if source is None or self.bits != 8:
            tied = y if source is not None else ties_away(y, low, top, self.bits)
            rounded = round_activation(tied, low, top, self.bits)
        else:
            step = grid_step(low, top)
            codes = kernel_codes(ops.stop_gradient(x), step, sum_of(self, source))
            values = self._activate(values_of(codes, low, step))
            rounded = straight_through(y, ops.cast(values, x.dtype), low, top)
        return ops.where(rounds, rounded, y)

    def _observe(self, x, source, clips: bool):
        """Moves the range towards that of `x`, if it is a source; returns the range."""
        now = as_tensor(self.range)
        if source is None:
            return now
        old = now if self.before is None else self.before
        x = ops.stop_gradient(x)
        high = ops.max(x)
        low = ops.zeros_like(high) if clips else ops.min(x)
        if self.extremes is not None and not clips:
            low = least_seen(self, source, x, low, high)
        batch = ops.cast(ops.stack([low, high]), "float32")
        top = _CLIPS[self.activation] if clips else _HIGHEST
        batch = ops.clip(batch, ops.array([_LOWEST, 0.0]), ops.array([0.0, top]))
        if self.symmetric:  # of the narrow range of codes, from -127 on
            lowest = -(2.0 ** (self.bits - 1))
            batch = ops.max(ops.abs(batch)) * ops.array([lowest / (-lowest - 1.0), 1.0])
        batch = ops.where(ops.all(batch == 0.0), ops.array([0.0, ONLY_ZEROS]), batch)
        moved = moving_range(old, batch[None], self.momentum)
        if self.before is not None:  # of all steps of a loop
            low, high = ops.minimum(moved, now)[:, 0], ops.maximum(moved, now)[:, 1]
            moved = ops.stack([low, high], axis=1)
        new = moved
        if self.sources > 1:
            new = ops.where(ops.arange(self.sources)[:, None] == source, moved, now)
        if self.divides:
            nearest = ops.maximum(ops.maximum(ops.min(x), -ops.max(x)), 0.0)
            self.least.assign(ops.minimum(as_tensor(self.least), ops.cast(nearest, "float32")))
        if self.freeze is not None:
            new = ops.where(as_tensor(self.phase) < 2, new, old)
        self.range.assign(new)
        return new

    @staticmethod
    def unseen(rows):
        """Ranges of the shape of `rows` that any other is wider than."""
        return ops.zeros_like(rows) + ops.array([_HIGHEST, _LOWEST])

    @property
    def only_zeros(self) -> bool:
        """Whether every value was 0 while training."""
        return self.fixed is None and 0.0 < float(ops.max(ops.abs(self.range))) <= ONLY_ZEROS

    def limits(self):
        """The range in use: scalars (minimum, maximum), the union over all sources."""
        if self.fixed is not None:
            return self.fixed
        low, high = self._cut(*self.union())
        if self.learned:
            low, high = scaled(low, high, self._factors())
        return low, high

    def _factors(self):
        """What the limits are multiplied by, which is in the range once that is frozen."""
        factors = as_tensor(self.factors)
        if self.freeze is None:
            return factors
        return ops.where(as_tensor(self.phase) < 2, factors, ops.ones_like(factors))

    def is_far(self, low, high):
        """Whether a divisor never came so near to 0 that a range would round it there."""
        if not self.divides or self.fixed is not None:
            return True
        return as_tensor(self.least) * (2.0**self.bits - 1.0) >= _DIVISOR_STEPS * (high - low)

    def _cut(self, low, high):
        low, high = (low, high) if self.extremes is None else cut(self, low, high)
        if self.bits <= 8:
            return low, high
        # LiteRT has no zero points of 16 bits; the greatest value is on its grid.
        levels = 2.0 ** (self.bits - 1) - 1.0
        most = ops.maximum(-low, high)
        return -most * ((levels + 1.0) / levels), most

    def union(self, rows=None):
        """What was observed of all sources, by default of those so far: (minimum, maximum)."""
        if self.fixed is not None:
            return self.fixed
        rows = as_tensor(self.range) if rows is None else rows
        single = self.sources == 1
        low = rows[0, 0] if single else ops.min(rows[:, 0])
        high = rows[0, 1] if single else ops.max(rows[:, 1])
        zeros = ops.logical_and(high > low, high - low <= ONLY_ZEROS)
        return low, ops.where(zeros, 1.0, high)

    def _activate(self, x):
        return keras.activations.get(self.activation)(x) if self.activation else x

    def compute_output_spec(self, x, *args, **kwargs):
        return keras.KerasTensor(x.shape, x.dtype)

    def get_config(self):
        names = (
            "bits momentum activation sources fixed delay freeze float_source observes symmetric "
            "extremes divides learned"
        )
        return {**super().get_config(), **{name: getattr(self, name) for name in names.split()}}


def call_with(layer, values: dict[int, Any], *args, **kwargs):
    """Calls a layer with other values in some of its variables."""
    states = [x for part in stateful_layers(layer) for x in tree.flatten(part.states)]
    variables = [*layer.variables, *states]  # Keras counts no states among them
    mapping = [(v, values[id(v)] if id(v) in values else as_tensor(v)) for v in variables]
    with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
        before = [scope.get_current_value(v) for v, _ in mapping]
        outputs = layer(*args, **kwargs)
    after = [scope.get_current_value(v) for v, _ in mapping]
    updates = [
        (v, new) for (v, _), old, new in zip(mapping, before, after, strict=True) if new is not old
    ]
    return outputs, updates, scope.losses


def stateful_layers(layer) -> list[Any]:
    """The recurrent layers, a layer or inside of it, that keep states from batch to batch."""
    return [part for part in layer._flatten_layers() if getattr(part, "stateful", False)]


def add_last_step(layer):
    """Adds the weight that keeps the optimizer step a scheduled layer was last told."""
    return _add_integer(layer, "last_step", -1)


def require_callback(layer) -> None:
    """Raises in the first step of a `fit` in which nothing advances a scheduled layer.

    Called by the layer in its `call`; in a compiled step that is once, while it is traced.
    """
    if not layer.scheduled or vars(layer).get("_advances"):
        return
    model = _fitted_model(layer)
    if model is None:
        return
    if _known_step(layer) < 0:
        model.train_function = None  # TensorFlow does not go on with one that failed
        raise never_advanced(layer)
    layer._advances = True


def never_advanced(layer) -> ValueError:
    """The error for a scheduled layer whose schedule did not begin."""
    return ValueError(
        f"layer '{layer.name}' follows a schedule that never advanced: its techniques are as "
        "before the first step. Train with fit(..., callbacks=[tfcompress.UpdateCompression()]); "
        "the docstring of UpdateCompression tells how to use it in a loop of your own."
    )


def _fitted_model(layer) -> keras.Model | None:
    """The model whose `fit` is calling a layer in a training step; None if there is none."""
    if not getattr(layer._get_call_context(), "training", None):
        return None
    frame: Any = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, keras.callbacks.Callback):
            return None
        if frame.f_code.co_name == "fit" and isinstance(owner, keras.Model):
            return owner
        frame = frame.f_back
    return None


def _known_step(layer) -> int:
    """The step a layer was last told; 0 where that cannot be known while a step is compiled."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.init_scope():
            return int(as_tensor(layer.last_step)) if tf.executing_eagerly() else 0
    return 0 if keras.backend.backend() == "jax" else int(as_tensor(layer.last_step))


def _add_integer(layer, name: str, value: int):
    make = {"shape": (), "dtype": "int32", "initializer": constant(value), "trainable": False}
    return layer.add_weight(name=name, **make)


def constant(value):
    """An initializer that gives one value, which may be a tensor."""
    return lambda shape, dtype=None: ops.broadcast_to(ops.cast(value, dtype or "float32"), shape)
