"""Quantization of weights and activations while training: pure functions and the technique.

The scheme is LiteRT's (https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec):
weights symmetric with a narrow range, activations asymmetric with zero exactly representable.
Gradients pass straight through inside of the range (Bengio et al. 2013, arXiv:1308.3432) and
ranges are moving averages (Jacob et al. 2018, arXiv:1712.05877).
"""

import dataclasses
from typing import Any, Literal

import keras
from keras import ops

from tfcompress.techniques.technique import Technique

Granularity = Literal["per_tensor", "per_channel"]

# Which axes of a kernel are its output channels.
_CHANNEL_AXES: dict[str, tuple[int, ...]] = {
    "Conv1D": (2,),
    "Conv2D": (3,),
    "Conv3D": (4,),
    "Conv1DTranspose": (1,),
    "Conv2DTranspose": (2,),
    "Conv3DTranspose": (3,),
    "DepthwiseConv1D": (1, 2),
    "DepthwiseConv2D": (2, 3),
    "Dense": (1,),
}


def quantize_weight(weight, bits: int = 8, channel_axes: tuple[int, ...] = ()):
    """The weight rounded to a symmetric, narrow-range integer grid, with a straight-through gradient.

    Args:
        weight: float tensor of any shape.
        bits: 2 to 16; codes run from -(2**(bits-1) - 1) to 2**(bits-1) - 1.
        channel_axes: axes that keep a scale of their own each; () gives one scale per tensor.

    Returns:
        A tensor of the shape and dtype of `weight`, on the grid.

    Example:
        >>> quantize_weight(keras.ops.array([[-1.0, 0.5], [0.3, -0.2]]), 8, (1,))  # doctest: +SKIP
        [[-1.0, 0.5], [0.2992126, -0.2007874]]
    """

    full = ops.stop_gradient(ops.cast(weight, "float32"))
    axes = [axis for axis in range(len(weight.shape)) if axis not in channel_axes]
    largest = ops.max(ops.abs(full), axis=axes, keepdims=True)
    scale = ops.where(largest > 0.0, largest, 1.0) / (2.0 ** (bits - 1) - 1.0)
    rounded = ops.cast(ops.round(full / scale) * scale, weight.dtype)
    # The bracket is exactly 0 and carries the gradient.
    return rounded + (weight - ops.stop_gradient(weight))


def quantize_activation(x, minimum, maximum, bits: int = 8):
    """The activation rounded to an asymmetric integer grid that holds zero exactly.

    Args:
        x: float tensor of any shape.
        minimum, maximum: scalars, minimum <= 0 <= maximum; moved slightly so that zero is a code.
        bits: 2 to 16.

    Returns:
        A tensor like `x`. The gradient is 1 inside of [minimum, maximum] and 0 outside.

    Example:
        >>> quantize_activation(keras.ops.array([-1.0, 0.25, 1.0]), -1.0, 1.0)  # doctest: +SKIP
        [-0.9960785, 0.2509804, 1.0039216]
    """

    @ops.custom_gradient
    def fake_quant(x, low, high):
        def grad(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            inside = ops.logical_and(x >= ops.cast(low, x.dtype), x <= ops.cast(high, x.dtype))
            dx = ops.where(inside, upstream, ops.zeros_like(upstream))
            return dx, ops.zeros_like(low), ops.zeros_like(high)

        return round_activation(x, low, high, bits), grad

    return fake_quant(x, ops.convert_to_tensor(minimum), ops.convert_to_tensor(maximum))


def round_activation(x, minimum, maximum, bits: int = 8):
    """The forward half of `quantize_activation`."""
    full = ops.cast(x, "float32")
    rounded = keras.quantizers.fake_quant_with_min_max_vars(full, minimum, maximum, num_bits=bits)
    return ops.cast(rounded, x.dtype)


def moving_range(old, batch, momentum: float):
    """An exponential moving average of ranges whose first batch counts whole.

    Args:
        old: float tensor (..., 2) of (minimum, maximum); (0, 0) means that none was seen yet.
        batch: float tensor (..., 2), the range of this batch.
        momentum: weight of the old range, in [0, 1).

    Returns:
        The new range, a tensor (..., 2).
    """
    unseen = ops.all(ops.equal(old, 0.0), axis=-1, keepdims=True)
    keep = ops.where(unseen, 0.0, ops.cast(momentum, old.dtype))
    return old * keep + batch * (1.0 - keep)


def channel_axes(layer) -> tuple[int, ...]:
    """The axes of a layer's kernel that count its output channels; () if it has none."""
    for cls in type(layer).__mro__:
        if cls.__name__ in _CHANNEL_AXES:
            return _CHANNEL_AXES[cls.__name__]
    return ()


@keras.saving.register_keras_serializable("tfcompress")
@dataclasses.dataclass(frozen=True)
class Quantize(Technique):
    """Quantization-aware training of a layer: its weights, and the activations it gives.

    Args:
        bits: width of the weights, 2 to 16. LiteRT runs 8 and, in Conv2D and Dense, 4.
        activation_bits: width of the activations, 8 or 16; None quantizes weights only.
        dense: "per_tensor" (what every accelerator takes) or "per_channel" scales of Dense.
        momentum: of the moving average of activation ranges, in [0, 1).
        delay: optimizer steps before quantization sets in; ranges are observed from the start.
        freeze: optimizer step from which ranges and BatchNormalization statistics stay as they
            are; None never freezes.
        axes: output channel axes of the kernel, filled in by `compress`.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> recipe = tfcompress.Recipe([tfcompress.Rule("*", [Quantize(bits=8)])])  # doctest: +SKIP
    """

    bits: int = 8
    activation_bits: int | None = 8
    dense: Granularity = "per_tensor"
    momentum: float = 0.99
    delay: int = 0
    freeze: int | None = None
    axes: tuple[int, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "axes", tuple(self.axes))
        _check(2 <= self.bits <= 16, "bits", "2 to 16", self.bits, "LiteRT runs 8 and 4.")
        known = self.activation_bits in (8, 16, None)
        _check(known, "activation_bits", "8, 16 or None", self.activation_bits, "8 is usual.")
        known = self.dense in ("per_tensor", "per_channel")
        _check(known, "dense", "'per_tensor' or 'per_channel'", self.dense, "")
        _check(0 <= self.momentum < 1, "momentum", "[0, 1)", self.momentum, "0.99 is usual.")
        _check(self.delay >= 0, "delay", "0 or more steps", self.delay, "")
        late = self.freeze is None or self.freeze > self.delay
        _check(late, "freeze", f"None or more than delay={self.delay}", self.freeze, "")

    @property
    def scheduled(self) -> bool:
        return self.delay > 0 or self.freeze is not None

    def bind(self, layer, weight: str) -> "Quantize":
        axes = channel_axes(layer)
        if isinstance(layer, keras.layers.Dense) and self.dense == "per_tensor":
            axes = ()
        return dataclasses.replace(self, axes=axes)

    def init(self, weight) -> dict[str, Any]:
        return {"enabled": ops.zeros(())} if self.delay else {}

    def update(self, weight, state, step) -> dict[str, Any]:
        return {"enabled": ops.cast(step >= self.delay, "float32")} if self.delay else state

    def apply(self, weight, state):
        quantized = quantize_weight(weight, self.bits, self.axes)
        if not self.delay:
            return quantized
        return ops.where(state["enabled"] > 0, quantized, weight)


def _check(holds: bool, name: str, expected: str, received, mend: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {expected}; received {received!r}. {mend}".strip())
