"""Ranges that LiteRT's kernels refuse, or compute wrong numbers for, made such as they take."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from tfcompress.conversion.ranges import (
    Range,
    constant,
    ends,
    is_constant,
    same_scale,
    step_of,
    wide_step,
    width,
)
from tfcompress.tflite.flatbuffer import op_name

# What reads a kernel as its second operand.
_WITH_KERNEL = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")

# The operands whose products an operator gives, or sums of them.
_FACTORS = {
    "FULLY_CONNECTED": (0, 1),
    "CONV_2D": (0, 1),
    "DEPTHWISE_CONV_2D": (0, 1),
    "TRANSPOSE_CONV": (2, 1),
    "BATCH_MATMUL": (0, 1),
    "MUL": (0, 1),
}

# How many steps of 8 bits a divisor must have at least.
_DIVISOR_STEPS = 8.0

# LiteRT ends the process at steps of a sum below so many of its widest summand's.
_SUM_STEP = {8: 1.001 * 2.0**-19, 16: 1.001 * 2.0**-14}

# So near a logarithm must be to a whole number.
_POWER = 1.1e-3

# LiteRT's softmax ends the process at scales below, which it takes for multipliers of 1 and more.
_SOFTMAX_SCALE = 1.001 * 2.0**-26


def widen(model, ranges: dict[int, Range]) -> None:
    """Widens all ranges that are too narrow for kernels. Changes `ranges`."""
    _widen_softmax_inputs(model, ranges)
    widen_products(model, ranges)
    widen_sums(model, ranges)
    _make_kernels_symmetric(model, ranges)


def _widen_softmax_inputs(model, ranges: dict[int, Range]) -> None:
    """Widens ranges that are too narrow for LiteRT, of logits that vanish. Changes `ranges`."""
    wide: set[int] = set()
    for op in reversed(model.subgraphs[0].operators):
        if op_name(model, op) in ("SOFTMAX", "LOG_SOFTMAX"):
            wide.add(op.inputs[0])
        elif wide.intersection(op.outputs):
            wide.update(same_scale(model, op))
    for index in wide.intersection(ranges):
        found = ranges[index]
        least = found.minimum + 255 * _SOFTMAX_SCALE
        if found.bits == 8 and found.maximum < least:
            ranges[index] = Range(found.minimum, least)


def widen_products(model, ranges: dict[int, Range]) -> None:
    """Widens ranges of products that are too narrow for XNNPACK. Changes `ranges`.

    It runs no file where the product of the operands' steps is 256 steps of what comes out.
    """
    least: dict[int, float] = {}
    for op in model.subgraphs[0].operators:
        (source, made), name = ends(op), op_name(model, op)
        if name in _FACTORS:
            least[made] = math.prod(_coarsest(model, op.inputs[i], ranges) for i in _FACTORS[name])
        elif source in least and (name in ("RELU", "RELU6") or made in same_scale(model, op)):
            least[made] = least[source]
        known = ranges.get(made)
        if known is not None and known.bits == 8 and width(known) < least.get(made, 0.0):
            ranges[made] = Range(known.minimum, known.minimum + least[made])


def _coarsest(model, index: int, ranges: dict[int, Range]) -> float:
    """The step of an activation, the greatest that it may have of a constant, 0 if not known."""
    if index in ranges:
        return step_of(ranges[index])
    return float(np.abs(constant(model, index)).max()) if is_constant(model, index) else 0.0


def widen_sums(model, ranges: dict[int, Range]) -> None:
    """Widens ranges of sums and differences that are too narrow for LiteRT. Changes `ranges`.

    It aborts where a step is less than some 2**-19 of a summand's, as of a difference that is
    always 0; and of 16 bits it takes scales near powers of two for them, and sums of few.
    """
    widened: dict[int, Range] = {}
    for op in model.subgraphs[0].operators:
        source, made = ends(op)
        if op_name(model, op) in ("ADD", "SUB") and made in ranges:
            known, widths, steps = ranges[made], [0.0], []
            for index in op.inputs:
                if index in ranges:  # constants, too, of which not all matters
                    widths.append(width(ranges[index]))
                    steps.append(wide_step(ranges[index]))
                elif is_constant(model, index):
                    values = constant(model, index)
                    widths.append(max(values.max(), 0) - min(values.min(), 0) or 1.0)
                    steps.append(wide_step(Range(float(values.min()), float(values.max()))))
            least = _SUM_STEP[known.bits] * max(widths)
            if width(known) < least:
                known = widened[made] = Range(known.minimum, known.minimum + least, known.bits)
            if known.bits == 16 and _are_powers([*steps, wide_step(known)]):
                by = 2.0 ** (2 * _POWER)
                widened[made] = Range(by * known.minimum, by * known.maximum, 16)
        elif source in widened and made in same_scale(model, op):
            widened[made] = widened[source]
        if made in widened:
            ranges[made] = widened[made]


def _are_powers(steps: list[float]) -> bool:
    """Whether LiteRT takes all steps for powers of two, of a sum that it refuses then.

    Args:
        steps: of what is added, and of the sum.
    """
    if not all(steps):
        return False
    powers = [math.log2(step) for step in steps]
    if any(abs(power - round(power)) > _POWER for power in powers):
        return False
    *given, made = map(round, powers)
    return max(given) != made


def _make_kernels_symmetric(model, ranges: dict[int, Range]) -> None:
    """Widens ranges of computed kernels, in which LiteRT takes no zero point. Changes `ranges`."""
    kernels: set[int] = set()
    for op in reversed(model.subgraphs[0].operators):
        if op_name(model, op) in _WITH_KERNEL:
            kernels.add(op.inputs[1])
        elif kernels.intersection(op.outputs):
            kernels.update(same_scale(model, op))
    for index in kernels.intersection(ranges):
        found = ranges[index]
        most = max(-found.minimum * 127 / 128, found.maximum)
        if found.bits == 8 and not is_constant(model, index):
            ranges[index] = Range(-most * 128 / 127, most)


def drop_small_divisors(model, ranges: dict[int, Range], found: dict[int, tuple]) -> set[int]:
    """Takes out the ranges of divisors that integers would round to 0, or far. Changes `ranges`.

    Args:
        found: least and greatest values seen, by tensor index.

    Returns the tensors that were taken out.
    """
    dropped = set()
    for op in model.subgraphs[0].operators:
        divisor = op.inputs[1] if op_name(model, op) == "DIV" else -1
        if divisor not in found or divisor not in ranges:
            continue
        low, high = found[divisor]
        least = 0.0 if low <= 0.0 <= high else min(abs(low), abs(high))
        if least < _DIVISOR_STEPS * (ranges[divisor].maximum - ranges[divisor].minimum) / 255:
            dropped.add(divisor)
            del ranges[divisor]
    return dropped


def unknown_divisors(model, ranges: dict[int, Range], floats: set[int]) -> set[int]:
    """The divisors of a trained model that have no range, as they came too near to 0.

    Args:
        floats: tensors of operations that were left out.
    """
    graph = model.subgraphs[0]
    divisions = [op for op in graph.operators if op_name(model, op) == "DIV"]
    asked = [op.inputs[1] for op in divisions if op.outputs[0] in ranges.keys() - floats]
    return {int(i) for i in asked if i not in ranges and not is_constant(model, i)}


def wrong_quotients(model, ranges: dict[int, Range]) -> set[int]:
    """The outputs of divisions for which LiteRT's integer kernel would give any numbers.

    It scales a quotient by a shift to the right, which ends the number's bits where a small code is
    divided by a large one: what should be rounded to 0 becomes anything.
    """
    found = set()
    for op in model.subgraphs[0].operators:
        if op_name(model, op) != "DIV" or op.outputs[0] not in ranges:
            continue
        above, below = (_codes(model, i, ranges) for i in op.inputs)
        made = ranges[op.outputs[0]]
        if above is None or below is None or made.bits != 8:
            continue
        _, shift = math.frexp(above.step / (below.step * width(made) / 255))
        # The bits of a numerator's sign; one more of -1 than of 1.
        free = 32 - (2 * above.least - 1 if above.negative else 2 * above.least).bit_length()
        if free + below.greatest.bit_length() - 1 - shift > 31:
            found.add(int(op.outputs[0]))
    return found


class _Codes(NamedTuple):
    """The codes of an operand: their step, the least and greatest that is not 0, and the signs."""

    step: float
    least: int
    greatest: int
    negative: bool


def _codes(model, index: int, ranges: dict[int, Range]) -> _Codes | None:
    if is_constant(model, index):
        values = constant(model, index)
        low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
        step = (high - low or 1.0) / 255
        sizes = np.rint(np.abs(values[values != 0]) / step).clip(1).astype(int).tolist() or [1]
        return _Codes(step, min(sizes), max(sizes), low < 0)
    known = ranges.get(index)
    if known is None or known.bits != 8:
        return None
    step = width(known) / 255
    greatest = round(max(-known.minimum, known.maximum) / step)
    return _Codes(step, 1, greatest, known.minimum < 0)
