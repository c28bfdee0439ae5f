"""Learned steps of quantization: LSQ for weights, LSQ+ for activations.

A step is `base`, found from data, times `factor`, which is trained from 1 on: an optimizer that
moves all it trains by equal amounts, as Adam does, moves steps of any size by equal shares.
"""

import math

import keras
from keras import ops

from tfcompress.backend import as_tensor

# A factor that training drove below it would turn the signs of weights.
_LEAST = 0.01


def step_of(base, factor):
    """The step in use."""
    return base * ops.maximum(factor, _LEAST)


def quantize_learned(weight, base, factor, levels, damping: float = 0.0):
    """The weight on a symmetric grid whose step is learned (Esser et al. 2020, arXiv:1902.08153).

    Weights beyond the greatest code are clipped and get no gradient. That of the factor makes the
    step move, relative to its size, as the paper's does with its gradient scale 1 / sqrt(n *
    levels), where n weights have one step.

    Args:
        weight: float tensor of any shape.
        base, factor: float tensors of the rank of `weight`, 1 along the axes that share a step.
        levels: the greatest code, a number or a scalar tensor.
        damping: share of a weight's distance to its code that is added to its gradient, twice
            (Nagel et al. 2022, arXiv:2203.11086).

    Returns a tensor of the shape and dtype of `weight`, on the grid.
    """
    shared = tuple(axis for axis, size in enumerate(base.shape) if size == 1)
    count = math.prod(weight.shape) / math.prod(base.shape)

    # JAX wants all that it traces as arguments.
    @ops.custom_gradient
    def quantize(weight, factor, base, levels):
        step = step_of(base, factor)
        position = ops.cast(weight, "float32") * (1.0 / step)
        clipped = ops.clip(position, -levels, levels)
        codes = ops.round(clipped)
        away = codes - clipped  # 0 for clipped ones

        def gradient(*upstreams, upstream=None):
            upstream = ops.cast(upstreams[0] if upstreams else upstream, "float32")
            passed = _inside(upstream, position, -levels, levels)
            products = upstream * away + (upstream - passed) * clipped
            slopes = ops.sum(products, axis=shared, keepdims=True)
            slopes = slopes / (base * ops.sqrt(count * levels))
            if damping:
                passed = passed - (2.0 * damping) * step * away
            none = ops.zeros_like(base), ops.zeros_like(levels)
            return ops.cast(passed, weight.dtype), slopes, *none

        return ops.cast(codes * step, weight.dtype), gradient

    return quantize(as_tensor(weight), factor, base, ops.cast(levels, "float32"))


def scaled(low, high, factors):
    """The limits in use: those observed, times factors of the two."""
    factors = ops.maximum(factors, _LEAST)
    return low * factors[0], high * factors[1]


def quantize_between(x, low, high, factors, bits: int = 8):
    """The activation on a grid between learned limits (Bhalgat et al. 2020, arXiv:2004.09576).

    Limits are what scale and offset of the paper are made of, and their gradients follow from its:
    values beyond a limit move it, and those inside both by what rounding adds to them.

    Args:
        x: float tensor of any shape; its first axis is the batch.
        low, high: scalars, 0 between them.
        factors: float tensor (2,), which is trained.
    """
    levels = 2.0**bits - 1.0
    from_zero = isinstance(low, float) and low == 0.0  # known while tracing: half of the passes

    @ops.custom_gradient
    def quantize(x, factors, low, high):
        full = ops.cast(x, "float32")
        least, most = scaled(low, high, factors)
        y = keras.quantizers.fake_quant_with_min_max_vars(full, least, most, num_bits=bits)

        def gradient(*upstreams, upstream=None):
            upstream = ops.cast(upstreams[0] if upstreams else upstream, "float32")
            passed = _inside(upstream, full, 0.0 if from_zero else least, most)
            width = ops.maximum(most - least, 1e-12)
            # Of values inside times what rounding adds to them, and of those above.
            if from_zero:
                of_high = ops.sum(upstream * y - passed * full) / width
                of_low = ops.zeros_like(of_high)
            else:
                of_high = ops.sum(upstream * (y - least) - passed * (full - least)) / width
                of_low = ops.sum(upstream - passed) - of_high
            slopes = ops.stack([of_low, of_high])
            count = ops.cast(ops.size(x) / ops.shape(x)[0], "float32")
            share = levels**1.5 / (ops.maximum(high - low, 1e-12) * ops.sqrt(count))
            moves = ops.stack([low < 0.0, high > 0.0])
            slopes, none = ops.where(moves, slopes * share, 0.0), ops.zeros_like(low)
            return ops.cast(passed, x.dtype), slopes, none, none

        return ops.cast(y, x.dtype), gradient

    limits = (ops.cast(limit, "float32") for limit in (low, high))
    return quantize(as_tensor(x), factors, *limits)


def _inside(upstream, x, low, high):
    """The gradients of values between two limits, 0 for others."""
    if keras.backend.backend() != "tensorflow":
        return ops.where(ops.logical_or(x < low, x > high), 0.0, upstream)
    import tensorflow as tf

    # A select fused with its comparisons, see `quantize_activation`.
    width = tf.maximum(high - low, 1e-12)
    margin = 1e-6 * width
    moved = x if isinstance(low, float) and low == 0.0 else x - (low - margin)
    features = moved * (6.0 / (width + 2.0 * margin))
    return tf.raw_ops.Relu6Grad(gradients=upstream, features=features)
