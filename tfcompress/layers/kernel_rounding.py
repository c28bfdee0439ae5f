"""What LiteRT's integer kernels round on the way to their output, besides the output itself.

A kernel adds up whole numbers, whose unit is a product of scales, and takes the sum times a factor
in fixed point: times its mantissa, rounded, then times a power of two, rounded again, halves away
from 0 (gemmlowp's MultiplyByQuantizedMultiplier, which the reference kernels have). Where the
factor is near 1, as in a mean, every tenth value is another than if it were rounded once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from tfcompress.backend import as_tensor
from tfcompress.kinds import FOLDING, KEEPING, channel_axes, is_exactly, is_of
from tfcompress.techniques.quantize import Quantize

_KEEPING = KEEPING | {"Cast", "UpSampling1D", "UpSampling2D"}
# Takes halves away from 0, and nothing else that kernels come to, in double precision.
_AWAY = 1.0 + 2.0**-40
_NORMS = ("BatchNormalization", "FusedBatchNorm", "FrozenBatchNormalization")


@dataclasses.dataclass(frozen=True)
class Sum:
    """What an integer kernel adds up.

    Attributes:
        unit: gives the real value of 1, a number or one for each channel; None where it is
            so small that only the output is rounded.
        bias: gives what is added to the sum as a whole number, too; None if nothing is.
        count: how many values the sum is divided by.
        slope: by which negative sums are multiplied.
        once: whether the kernel rounds but once, so that the bias alone makes a difference.
        down: whether the kernel, which adds up nothing, leaves off what is behind the point.
    """

    unit: Callable[[], Any] | None
    bias: Callable[[], Any] | None = None
    count: int = 1
    slope: float = 1.0
    once: bool = False
    down: bool = False


def sum_of(quantizer, source: int) -> Sum | None:
    """What the kernel adds up whose output a FakeQuant rounds; None if it adds up no codes.

    It is found in the Functional model that the layer is part of.
    """
    for node in quantizer._inbound_nodes:
        arguments = node.arguments
        if arguments.kwargs.get("source", (*arguments.args, 0, 0)[1]) == source:
            return _sum_behind(arguments.args[0])
    return None


def kernel_codes(y, step, added: Sum | None):
    """The codes that a kernel gives for values, 0 for 0, not clipped to its range, as float32.

    Args:
        step: of the grid of the codes.
        added: what the kernel adds up; None if it divides floats by the step, as those that
            quantize or look up in a table do.
    """
    if added is None:
        return _half_away(ops.cast(y, "float32") / step)
    if added.down:
        return ops.floor(ops.cast(y, "float32") / step)
    if added.unit is None:
        return _nearest(_wide(y), 1.0 / _wide(step))
    unit, step, y = _wide(added.unit()), _wide(step), _wide(y)
    if added.slope != 1.0:
        below = Sum(functools.partial(ops.multiply, unit, added.slope))
        return ops.where(
            y < 0, kernel_codes(y, step, below), kernel_codes(y, step, Sum(added.unit))
        )
    unit = ops.where(unit > 0, unit, step)
    mantissa, power = _fixed_point(unit / step, added.count)
    up, down = 2.0 ** ops.maximum(power, 0.0), 2.0 ** ops.minimum(power, 0.0)
    by = mantissa * (up * down if added.once else up)
    # Few passes over what is large: numbers and channels are multiplied first.
    whole, rest = y * (added.count / unit), 0.5
    if added.bias is not None:
        bias = _wide(added.bias()) / unit
        whole, rest = whole - bias, ops.round(bias) * by + 0.5
    shifted = ops.floor(ops.round(whole) * by + rest)
    return ops.cast(shifted, "float32") if added.once else _nearest(shifted, down)


def rescaled(whole, factor):
    """Whole numbers times a factor, in fixed point and rounded twice."""
    mantissa, power = _fixed_point(factor, 1)
    up, down = 2.0 ** ops.maximum(power, 0.0), 2.0 ** ops.minimum(power, 0.0)
    return _wide(_nearest(ops.floor(whole * (mantissa * up) + 0.5), down))


def scale_before(operation):
    """A function that gives the scale of what a layer that is called once reads; None if none."""
    if len(operation._inbound_nodes) != 1:  # each call may read another
        return None
    first = operation._inbound_nodes[0].arguments.args[:1]
    return _scale_of(first[0]) if first and _is_symbolic(first[0]) else None


def values_of(codes, low, step):
    """The values of codes that are clipped to a range."""
    lowest = ops.round(low / step)
    return ops.clip(codes, lowest, lowest + 255.0) * step


def grid_step(low, high):
    """The step of the 8-bit grid over a range, as the file holds it."""
    return ops.cast((_wide(high) - _wide(low)) / 255.0, "float32")


def table_step(layer):
    """The step of the symmetric grid of a table under techniques; None if it has no such."""
    for target in layer.bound:
        bits = [t.bits for t in target.techniques if isinstance(t, Quantize)]
        if bits and bits[-1] <= 8 and not target.techniques[-1].axes:
            return ops.max(layer.step_of(target))
    return None


def _fixed_point(factor, count: int):
    """A factor, divided by a count, as mantissa (of 31 bits) and power of two."""
    power = ops.floor(ops.log(factor) / math.log(2.0) + 1e-12) + 1.0
    mantissa = ops.round(factor / 2.0**power * 2.0**31)
    if count > 1:
        digits = math.floor(math.log2(count))
        mantissa, power = ops.floor(mantissa * 2.0**digits / count), power - digits
    return mantissa / 2.0**31, power


def _nearest(x, by):
    """A product rounded to float32, halves away from 0."""
    if keras.backend.backend() != "tensorflow":
        return _half_away(x * by)
    return ops.cast(ops.round(x * (by * _AWAY)), "float32")


def _half_away(x):
    """Rounded, halves away from 0."""
    return ops.sign(x) * ops.floor(ops.abs(x) + 0.5)


def _wide(x):
    """A number as precise as the backend has it."""
    return ops.cast(x, "float64" if keras.backend.backend() == "tensorflow" else "float32")


def _producer(tensor):
    history = tensor._keras_history
    node = history.operation._inbound_nodes[history.node_index]
    return history.operation, node.arguments


def _sum_behind(tensor) -> Sum | None:
    operation, given = _producer(tensor)
    kind, inputs = type(operation).__name__, tree.flatten(given.args)
    if kind in ("Add", "Subtract"):
        return Sum(None)
    if not inputs or (not _is_symbolic(inputs[0]) and kind not in ("Multiply", "Where")):
        return None
    if kind in ("ReLU", "Activation", "Relu", "Relu6") and _is_relu(operation):
        return _fused(inputs[0])
    if kind == "Where":
        before = _selected_from(given)
        return None if before is None or _quantizes(before) else _sum_behind(before)
    if kind in _NORMS:
        return _normalized(operation, inputs[0])
    if hasattr(operation, "bound"):
        return _convolved(operation, inputs[0])
    if kind == "Multiply":
        return _product(inputs)
    if kind == "Rsqrt" and (scale := _scale_of(inputs[0])):
        return Sum(lambda: 2.0**-20 / ops.sqrt(_wide(scale())))
    if kind == "Sqrt" and _scale_of(inputs[0]):
        return Sum(None, down=True)
    if kind in ("Matmul", "Dot"):
        symbolic = len(inputs) == 2 and all(map(_is_symbolic, inputs))
        return _product(inputs) if symbolic and not any(map(_is_weight, inputs)) else None
    if kind == "Mean" or kind.startswith("GlobalAveragePooling"):
        return _mean(inputs[0], tensor)
    if kind in ("LeakyReLU", "LeakyRelu"):
        slope = float(getattr(operation, "negative_slope", 1.0))
        unit = _scale_of(inputs[0])
        return Sum(unit, slope=slope) if unit and slope > 0 else None
    return None


def _selected_from(given):
    """The tensor among the values of a Where, if the other is a constant."""
    tensors = [x for x in tree.flatten((given.args, given.kwargs))[1:] if _is_symbolic(x)]
    return tensors[0] if len(tensors) == 1 else None


def _quantizes(tensor) -> bool:
    return hasattr(_producer(tensor)[0], "limits")


def _is_symbolic(x) -> bool:
    return isinstance(x, keras.KerasTensor)


def _is_relu(operation) -> bool:
    activation = getattr(operation, "activation", None)
    if activation is not None:
        return activation in (keras.activations.relu, keras.activations.relu6)
    plain = getattr(operation, "negative_slope", 0) == getattr(operation, "threshold", 0) == 0
    return plain and getattr(operation, "max_value", None) in (None, 6.0)


def _fused(tensor) -> Sum | None:
    """A layer with weights whose ReLU is part of its kernel."""
    operation, _ = _producer(tensor)
    convolves = hasattr(operation, "bound") or type(operation).__name__ in _NORMS
    return _sum_behind(tensor) if convolves else None


def _convolved(operation, x, norm=None) -> Sum | None:
    layer = operation.layer
    if not is_of(layer, FOLDING) or len(operation.bound) != 1:
        return None
    target, scale = operation.bound[0], _scale_of(x)
    bits = [t.bits for t in target.techniques if isinstance(t, Quantize)]
    if scale is None or not bits or keras.config.image_data_format() != "channels_last":
        return None
    axes = channel_axes(layer)

    def unit():
        step = ops.reshape(operation.step_of(target), (-1,))
        if norm is not None:  # channels of zeros have a scale of their own in the file
            kernel = operation.effective(target.variable)
            others = [axis for axis in range(len(kernel.shape)) if axis not in axes]
            lives = ops.reshape(ops.any(kernel != 0.0, axis=others), (-1,))
            step = ops.where(lives, step * ops.abs(_affine(norm)[0]), 0.0)
        return _wide(scale()) * _wide(step)

    def bias():
        own = as_tensor(layer.bias) if layer.use_bias else 0.0
        if norm is None:
            return own
        factor, offset = _affine(norm)
        return own * factor + offset

    added = bias if layer.use_bias or norm is not None else None
    return Sum(unit, added, once=is_of(layer, ("Dense",)) or as_dense(operation))


def as_dense(operation) -> bool:
    """Whether a layer under techniques is a pointwise convolution that is FULLY_CONNECTED in files.

    As those with weights of few bits are, unless a target or the user asks for something else: a
    layer has an attribute `as_dense` then.
    """
    return is_few_pointwise(operation) and getattr(operation, "as_dense", True)


def is_few_pointwise(operation) -> bool:
    """Whether a layer is a convolution of 1 x 1 with weights of 4 bits or fewer."""
    layer: Any = getattr(operation, "layer", None)
    bound = getattr(operation, "bound", ())
    if not is_exactly(layer, ("Conv1D", "Conv2D")) or layer.groups != 1:
        return False
    steps = {*layer.kernel_size, *layer.strides}
    few = [t.code_bits <= 4 for target in bound for t in target.techniques if hasattr(t, "held")]
    return steps == {1} and any(few)


def _normalized(operation, x) -> Sum | None:
    """A BatchNormalization: part of the convolution before it, or one of its own."""
    norm = getattr(operation, "layer", operation)
    rank = len(x.shape)
    before, given = _producer(x)
    if hasattr(before, "bound"):
        last = norm.axis in (-1, rank - 1)
        return _convolved(before, given.args[0], norm) if last else None
    scale, axis = _scale_of(x), norm.axis % rank
    if scale is None:
        return None

    def along(values):
        return ops.reshape(values, [-1 if i == axis else 1 for i in range(rank)])

    return Sum(
        lambda: _wide(scale()) * along(_wide(ops.abs(_affine(norm)[0]) / 127.0)),
        lambda: along(_affine(norm)[1]),
    )


def _affine(norm):
    """What a BatchNormalization multiplies each channel with, and adds to it."""
    factor = ops.rsqrt(as_tensor(norm.moving_variance) + norm.epsilon)
    if norm.scale:
        factor = factor * as_tensor(norm.gamma)
    offset = -as_tensor(norm.moving_mean) * factor
    return factor, offset + as_tensor(norm.beta) if norm.center else offset


def _product(values) -> Sum | None:
    units = [_scale_of(x) if _is_symbolic(x) else _step_of(x) for x in values]
    if len(units) != 2 or None in units:
        return None
    first, second = units
    return Sum(lambda: _wide(first()) * _wide(second()))


def _step_of(value):
    """The step of the grid that a constant is rounded to."""
    values = np.asarray(value, "float32")
    step = np.float32((float(values.max(initial=0.0)) - float(values.min(initial=0.0))) / 255.0)
    return (lambda: step) if step else None


def _mean(x, y) -> Sum | None:
    sizes = [tuple(t.shape)[1:] for t in (x, y)]
    scale = _scale_of(x)
    if scale is None or None in sizes[0] or not y.shape or x.shape[0] is not y.shape[0]:
        return None
    return Sum(scale, count=math.prod(sizes[0]) // math.prod(sizes[1]))


def _is_weight(tensor) -> bool:
    """Whether a tensor is a lone weight, with which a kernel multiplies as with that of Dense."""
    operation, given = _producer(tensor)
    if getattr(operation, "symmetric", False):
        return True
    keeps = type(operation).__name__ in _KEEPING and given.args and _is_symbolic(given.args[0])
    return bool(keeps) and _is_weight(given.args[0])


def _scale_of(tensor):
    """A function that gives the scale of a tensor's grid; None if it has none of 8 bits."""
    operation, given = _producer(tensor)
    if hasattr(operation, "given_by"):  # an input of the step of a loop
        outer = operation.given_by()
        return None if outer is None else _scale_of(outer)
    if hasattr(operation, "limits"):
        quantizer = operation
        if quantizer.bits != 8 or quantizer.observes:
            return None

        def scale():
            return grid_step(*quantizer.limits())

        return scale
    if type(operation).__name__ == "Where":  # of a tensor and 0, or a state that may stay as it was
        tensors = [x for x in tree.flatten((given.args, given.kwargs))[1:] if _is_symbolic(x)]
        return _scale_of(tensors[0]) if tensors else None
    if is_of(getattr(operation, "layer", operation), ("Embedding",)):
        return (lambda: table_step(operation)) if hasattr(operation, "bound") else None
    inner = getattr(operation, "layer", operation)
    if is_of(inner, ("IntegerLSTM",)):
        return lambda: grid_step(*inner.hidden.limits())
    if type(operation).__name__ not in _KEEPING or not given.args:
        return None
    # All have one scale, but states of a stream come in without a range of their own.
    known = (_scale_of(x) for x in tree.flatten(given.args[0]) if _is_symbolic(x))
    return next((scale for scale in known if scale is not None), None)
