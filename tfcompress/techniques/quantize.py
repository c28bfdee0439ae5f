"""Quantization of weights and activations while training: pure functions and the technique.

The scheme is LiteRT's (https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec):
weights symmetric with a narrow range, activations asymmetric with zero exactly representable.
Gradients pass straight through inside of the range (Bengio et al. 2013, arXiv:1308.3432) and
ranges are moving averages (Jacob et al. 2018, arXiv:1712.05877).
"""

import dataclasses
from typing import Any, ClassVar, Literal

import keras
from keras import ops

from tfcompress import schedules
from tfcompress.backend import as_tensor
from tfcompress.errors import check, is_whole
from tfcompress.kinds import channel_axes
from tfcompress.schedules import Schedule, whole
from tfcompress.techniques.cluster import Cluster
from tfcompress.techniques.codebook import Codebook
from tfcompress.techniques.learned import quantize_learned, step_of
from tfcompress.techniques.scales import weight_scale
from tfcompress.techniques.technique import Technique, first_step

Granularity = Literal["per_tensor", "per_channel"]
Step = Literal["max", "learned"]


def quantize_weight(weight, bits: int = 8, channel_axes: tuple[int, ...] = ()):
    """The weight on a symmetric, narrow-range integer grid; its gradient passes straight through.

    Args:
        weight: float tensor of any shape.

    Returns a tensor of the shape and dtype of `weight`, on the grid. All zeros stay zeros.
    """
    weight = as_tensor(weight)
    axes = [axis for axis in range(len(weight.shape)) if axis not in channel_axes]

    def on_grid(weight):
        full = ops.cast(weight, "float32")
        largest = ops.max(ops.abs(full), axis=axes, keepdims=True)
        scale = ops.where(largest > 0.0, largest, 1.0) / (2.0 ** (bits - 1) - 1.0)
        return ops.cast(ops.round(full / scale) * scale, weight.dtype)

    if keras.backend.backend() != "tensorflow":
        # The bracket is exactly 0 and carries the gradient.
        return on_grid(ops.stop_gradient(weight)) + (weight - ops.stop_gradient(weight))
    # Without the two passes over the weight that the bracket takes.
    return ops.custom_gradient(lambda w: (on_grid(w), lambda upstream: upstream))(weight)


def quantize_activation(x, minimum, maximum, bits: int = 8):
    """The activation rounded to an asymmetric integer grid that holds zero exactly.

    Args:
        x: float tensor of any shape.
    """
    full = ops.cast(x, "float32")
    if keras.backend.backend() == "tensorflow":
        return ops.cast(_fake_quant_tensorflow(full, minimum, maximum, bits), x.dtype)
    constant = ops.stop_gradient(full)
    above = full > minimum if _is_zero(minimum) else full >= minimum
    passing = ops.where(ops.logical_and(above, full <= maximum), full, constant)
    rounded = round_activation(constant, minimum, maximum, bits)
    # The bracket is exactly 0 and carries the gradient.
    return ops.cast(rounded + (passing - constant), x.dtype)


def _fake_quant_tensorflow(x, minimum, maximum, bits: int):
    """TensorFlow's own kernel with a cheaper gradient, which is what QAT's time is spent on.

    The kernel's gradient also sums gradients of both limits, and comparing and selecting takes
    five passes. Relu6Grad is a select fused with its comparisons: moved to (0, 6), the range costs
    two passes if it starts at 0 and three if not.
    """
    import tensorflow as tf

    low, high = (tf.stop_gradient(tf.cast(limit, "float32")) for limit in (minimum, maximum))

    width = tf.maximum(high - low, 1e-12)
    # Relu6Grad leaves its limits out; a margin of a millionth takes them in.
    margin = 1e-6 * width

    @tf.custom_gradient
    def fake_quant(x):
        y = tf.raw_ops.FakeQuantWithMinMaxVars(inputs=x, min=low, max=high, num_bits=bits)
        # Not in the backward pass: here x is in the cache still, and being read for the last time
        # its memory can be taken.
        with tf.control_dependencies([y]):
            moved = x if _is_zero(minimum) else x - (low - margin)
            features = moved * (6.0 / (width + 2.0 * margin))
        return y, lambda upstream: tf.raw_ops.Relu6Grad(gradients=upstream, features=features)

    return fake_quant(x)


def _is_zero(limit) -> bool:
    """Whether a limit is the number 0, known while tracing."""
    return isinstance(limit, float) and limit == 0.0


def round_activation(x, minimum, maximum, bits: int = 8):
    """The forward half of `quantize_activation`."""
    full = ops.cast(x, "float32")
    rounded = keras.quantizers.fake_quant_with_min_max_vars(full, minimum, maximum, num_bits=bits)
    return ops.cast(rounded, x.dtype)


def straight_through(x, rounded, minimum, maximum):
    """The rounded activation, with the gradient of `quantize_activation`."""
    if keras.backend.backend() == "tensorflow":

        def forward(x):
            full = ops.cast(x, "float32")

            def inside(upstream):
                passes = ops.logical_and(full >= minimum, full <= maximum)
                return ops.where(passes, upstream, ops.zeros_like(upstream))

            return rounded, inside

        return ops.custom_gradient(forward)(x)
    constant = ops.stop_gradient(x)
    inside = ops.logical_and(constant >= minimum, constant <= maximum)
    return rounded + (ops.where(inside, x, constant) - constant)


def ties_away(x, minimum, maximum, bits: int = 8):
    """Moves values that lie halfway between two codes off code 0, so that they are rounded so.

    LiteRT averages codes in integers and rounds halves away from code 0; pooling gives many halves.

    Args:
        x: float tensor of any shape.
    """
    scale = (ops.cast(maximum, "float32") - minimum) / (2.0**bits - 1.0)
    scale = ops.where(scale > 0.0, scale, 1.0)
    middle = (ops.round(minimum / scale) + 2.0 ** (bits - 1)) * scale
    shift = 1e-3 * scale * ops.sign(ops.cast(x, "float32") - middle)
    return x + ops.cast(ops.stop_gradient(shift), x.dtype)


# The upper limit that a range of zeros alone has, to be told from one that was never seen.
ONLY_ZEROS = 2.0**-100


def moving_range(old, batch, momentum: float):
    """An exponential moving average of ranges whose first batch counts whole.

    A limit that the batch exceeds moves by a tenth of the way at least: values outside get no
    gradient, so that a model whose outputs grow would wait for a slow range to follow.

    Args:
        old: float tensor (..., 2) of (minimum, maximum); (0, 0) means that none was seen yet,
            (0, ONLY_ZEROS) that no other value was.
    """
    seen = ops.any(ops.abs(old) > ONLY_ZEROS, axis=-1, keepdims=True)
    keep = ops.where(ops.abs(batch) > ops.abs(old), min(momentum, 0.9), momentum)
    keep = ops.where(seen, ops.cast(keep, old.dtype), 0.0)
    return batch + keep * (old - batch)


# Settings of weights that are on codes already.
_HELD: dict[str, Any] = {"step": "max", "damping": 0.0, "bits_schedule": None}


@keras.saving.register_keras_serializable("tfcompress")
@dataclasses.dataclass(frozen=True)
class Quantize(Technique):
    """Quantization-aware training of a layer: its weights, and the activations it gives.

    Args:
        bits: width of the weights, 2 to 16. LiteRT runs 8; 4 in Dense and convolutions, also
            depthwise ones; 2 in Dense and pointwise convolutions.
        activation_bits: width of the activations, 8 or 16; None quantizes weights only.
        dense: "per_tensor" (what every accelerator takes) or "per_channel" scales of Dense.
        convolution: "per_channel" or "per_tensor" scales of convolutions. Weights that `Cluster`
            gave few values per tensor take one scale, so that the file holds as few, and those of
            `Codebook` its scales.
        momentum: of the moving average of activation ranges, in [0, 1); a range that is exceeded
            grows with 0.9 at most.
        delay: optimizer steps before quantization sets in, or a share of the training such as
            "10%"; ranges are observed from the start.
        freeze: optimizer step, or share, from which ranges and BatchNormalization statistics stay
            as they are; None never freezes.
        axes: output channel axes of the kernel, filled in by `compress`, as is `held`, the
            greatest code of weights that `Codebook` put on codes already; else 0.
        step: of the grid of weights. "max" spreads the codes up to the largest weight; "learned"
            begins with the step of the least squared error and trains it (LSQ, Esser et al. 2020,
            arXiv:1902.08153), which clips what is worth it: for 4 bits and fewer.
        activation_step: "max" spreads the codes over the range that was seen; "learned" trains both
            of its limits (LSQ+, Bhalgat et al. 2020, arXiv:2004.09576) where activations have 8
            bits and a range of their own.
        damping: how strongly weights are drawn to their codes while they train, so that they do not
            swing between two (Nagel et al. 2022, arXiv:2203.11086); with step="learned".
        bits_schedule: widths on the way to `bits`, falling ones, as `schedules.points([(0, 8),
            (200, 4), (400, 2)])`; None has `bits` from the start.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> recipe = tfcompress.Recipe([tfcompress.Rule("*", [Quantize(bits=8)])])  # doctest: +SKIP
        >>> falling = tfcompress.schedules.points([(0, 4), (900, 2)])  # doctest: +SKIP
        >>> few = Quantize(bits=2, step="learned", bits_schedule=falling)  # doctest: +SKIP
    """

    bits: int = 8
    activation_bits: int | None = 8
    dense: Granularity = "per_tensor"
    convolution: Granularity = "per_channel"
    momentum: float = 0.99
    delay: schedules.Step = 0
    freeze: schedules.Step | None = None
    axes: tuple[int, ...] = ()
    held: int = 0
    step: Step = "max"
    activation_step: Step = "max"
    damping: float = 0.0
    bits_schedule: Schedule | None = None

    order: ClassVar[int] = 3

    def __post_init__(self):
        object.__setattr__(self, "axes", tuple(self.axes))
        known = is_whole(self.bits, 2) and self.bits <= 16
        check(known, "bits", "2 to 16", self.bits, "LiteRT runs 8, 4 and 2.")
        known = self.activation_bits in (8, 16, None)
        check(known, "activation_bits", "8, 16 or None", self.activation_bits, "8 is usual.")
        known = self.dense in ("per_tensor", "per_channel")
        check(known, "dense", "'per_tensor' or 'per_channel'", self.dense)
        known = self.convolution in ("per_tensor", "per_channel")
        check(known, "convolution", "'per_tensor' or 'per_channel'", self.convolution)
        check(0 <= self.momentum < 1, "momentum", "[0, 1)", self.momentum, "0.99 is usual.")
        object.__setattr__(self, "delay", schedules.step_of("delay", self.delay, 0))
        if self.freeze is not None:
            object.__setattr__(self, "freeze", schedules.step_of("freeze", self.freeze, 0))
        late = self.freeze != self.delay and not schedules.comes_before(self.freeze, self.delay)
        check(late, "freeze", f"None or more than delay={self.delay}", self.freeze)
        for name in ("step", "activation_step"):
            known = getattr(self, name) in ("max", "learned")
            check(known, name, "'max' or 'learned'", getattr(self, name))
        learned = self.step == "learned"
        mend = "Leave step out, or train 8 bits or fewer."
        check(not learned or self.bits <= 8, "bits with step='learned'", "2 to 8", self.bits, mend)
        damps = self.damping == 0 or (learned and self.damping > 0)
        mend = "Pass step='learned' with it." if self.damping > 0 else "0.001 is usual."
        check(damps, "damping", "0 or, with step='learned', more", self.damping, mend)
        self._check_schedule()

    def _check_schedule(self) -> None:
        schedule = self.bits_schedule
        if schedule is None:
            return
        widths = [value for _, value in getattr(schedule, "points", ())]
        falls = bool(widths) and widths == sorted(set(widths), reverse=True)
        whole = falls and widths[-1] == self.bits and widths[0] <= 16
        check(
            whole and all(width == int(width) for width in widths),
            "bits_schedule",
            f"points of falling widths, the last of which is bits={self.bits}",
            widths or schedule,
            f"Such as schedules.points([(0, 8), (100, {self.bits})]).",
        )

    @property
    def code_bits(self) -> int:
        """The bits that hold the codes: fewer than there are where `Codebook` chose them."""
        return min(self.bits, self.held.bit_length() + 1) if self.held else self.bits

    @property
    def scheduled(self) -> bool:
        return self.delay != 0 or self.freeze is not None or self.bits_schedule is not None

    def next_step(self, step: int) -> int | None:
        falls = self.bits_schedule.next_update(step) if self.bits_schedule else None
        return first_step([whole(self.delay) if step < whole(self.delay) else None, falls])

    def begins(self) -> int:
        last = self.bits_schedule.end if self.bits_schedule else None
        return max(whole(self.delay), whole(last or 0))

    def bind(self, layer, weight: str, before=()) -> "Quantize":
        dense = isinstance(layer, keras.layers.Dense)
        granularity = self.dense if dense else self.convolution
        few = [t for t in before if isinstance(t, Cluster | Codebook)]
        held = max((t.greatest for t in few if isinstance(t, Codebook)), default=self.held)
        axes = () if granularity == "per_tensor" else channel_axes(layer)
        if few and (held or axes):
            axes = channel_axes(layer) if all(t.channels for t in few) else ()
        if held:  # nothing is left to learn
            return dataclasses.replace(self, axes=axes, held=held, **_HELD)
        return dataclasses.replace(self, axes=axes)

    @property
    def trainable_states(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("factor",) if self.step == "learned" else ()

    def initial_state(self, weight) -> dict[str, Any]:
        state = {"enabled": ops.zeros(())} if self.delay else {}
        if self.bits_schedule:
            state["bits"] = ops.cast(self._bits_at(0), "float32")
        return {**state, **self._first_step(weight, 0)}

    def _bits_at(self, step: int) -> int:
        schedule = self.bits_schedule
        if schedule is None:
            return self.bits
        begun = not schedule.has_shares
        return int(schedule.at(max(step, schedule.begin)) if begun else schedule.initial)

    def _first_step(self, weight, step: int) -> dict[str, Any]:
        """The step of the least squared error, from which training goes on."""
        if self.step == "max":
            return {}
        values = ops.convert_to_numpy(ops.cast(weight, "float32"))
        shared = tuple(axis for axis in range(values.ndim) if axis not in self.axes)
        base = ops.convert_to_tensor(weight_scale(values, shared, self._bits_at(step), "mse"))
        base = ops.where(base > 0.0, base, 1.0)
        return {"base": base, "factor": ops.ones_like(base)}

    def update(self, weight, state, step) -> dict[str, Any]:
        new, begins = dict(state), False
        if self.delay:
            new["enabled"] = ops.cast(step >= whole(self.delay), "float32")
            begins = float(new["enabled"]) > float(state["enabled"])
        if self.bits_schedule:
            new["bits"] = ops.cast(self._bits_at(step), "float32")
            begins = begins or float(new["bits"]) != float(state["bits"])
        # Weights may have changed much until now.
        return {**new, **self._first_step(weight, step)} if begins else new

    def apply(self, weight, state):
        if self.held:
            return weight
        bits = state.get("bits", self.bits)
        if self.step == "max":
            quantized = quantize_weight(weight, bits, self.axes)
        else:
            most = 2.0 ** (bits - 1) - 1.0
            quantized = quantize_learned(weight, state["base"], state["factor"], most, self.damping)
        if not self.delay:
            return quantized
        return ops.where(state["enabled"] > 0, quantized, weight)

    def step_of(self, quantized, state):
        """The step of the grid of a quantized weight, of its rank; 0 for channels of zeros."""
        axes = [axis for axis in range(len(quantized.shape)) if axis not in self.axes]
        greatest = ops.max(ops.abs(quantized), axis=axes, keepdims=True)
        if self.step == "max":
            return greatest / (self.held or 2.0 ** (state.get("bits", self.bits) - 1) - 1.0)
        return ops.where(greatest > 0.0, step_of(state["base"], state["factor"]), 0.0)
