"""What is asked of an output: by what it is, and by whether its quantization was simulated."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from tfcompress.tflite import flatbuffer
from tfcompress.tflite.makers import STORED_ANEW, maker_of
from tfcompress.tflite.run import Port
from tfcompress.verification.differences import WHOLE, Difference, Part

# What is asked of a file whose quantization the Keras model did not simulate.
LEAST_SQNR_DB, LEAST_AGREEMENT = 10.0, 0.9

# Logits are told from boxes and other numbers by nothing but their use: either will do.
SURE_SQNR_DB = 20.0

# Enough where it did, even if single values are off by more than the default tolerance: roundings
# that fall to the other side add up in deep models, and softmax makes several LSB of one.
GOOD_SQNR_DB, GOOD_AGREEMENT = 30.0, 0.99

# Of what moves, which may be little beside the range: a constant has 0 dB.
MOVING_SQNR_DB = 6.0

# By so much a file may be farther from Keras than LiteRT's kernels are from one another.
_SLACK_DB, _SLACK_AGREEMENT = 3.0, 0.03

# Dequantized codes differ by whole steps, but for the rounding of float32.
_SLACK = 0.01

WHOLE_NUMBERS, SCORES, LOGITS, VALUES = "whole numbers", "scores", "logits", "values"
_RATIO = "SQNR of what moves, dB"
_SOFTMAX, _SIGMOID = "SOFTMAX", "LOGISTIC"


@dataclasses.dataclass(frozen=True)
class Kind:
    """What an output is.

    Attributes:
        name: "whole numbers"; "scores" of classes, from a softmax, or from a sigmoid of one number
            or of labels side by side; "logits", as they may be if a sample has a row of them; and
            "values": images, sequences, boxes, regressions.
        halves: whether decisions are which side of 0.5 a value is on.
        parts: where the parts lie that a concatenation puts together, behind the axis of the
            samples.
    """

    name: str
    halves: bool = False
    parts: tuple[Part, ...] = (WHOLE,)


def kind_of(file: Any, entry: Port) -> Kind:
    """Tell what an output of a file is."""
    if entry.scale is None and entry.dtype[:1] in "iub":
        return Kind(WHOLE_NUMBERS)
    op = maker_of(file, entry.index)
    name = "" if op is None else flatbuffer.op_name(file, op)
    width = entry.shape[-1] if len(entry.shape) > 1 else 1
    if name == _SOFTMAX and width > 1:
        made = file.subgraphs[0].tensors[op.outputs[0]]
        return Kind(SCORES if made.shape[-1] == width else VALUES)
    if name == _SIGMOID and len(entry.shape) <= 2:
        return Kind(SCORES, halves=True)
    parts = _parts(file, entry)
    if len(parts) == 1 and len(entry.shape) == 2 and width > 1:
        return Kind(LOGITS)
    return Kind(VALUES, parts=parts)


def _parts(file: Any, entry: Port) -> tuple[Part, ...]:
    """Where the inputs of the last concatenation lie in an output."""
    op = maker_of(file, entry.index, STORED_ANEW)
    if op is None or flatbuffer.op_name(file, op) != "CONCATENATION" or op.builtinOptions is None:
        return (WHOLE,)
    axis, rank = op.builtinOptions.axis, len(entry.shape)
    axis = axis % rank if rank else 0
    if axis == 0:
        return (WHOLE,)
    found, start = [], 0
    for index in op.inputs:
        size = int(file.subgraphs[0].tensors[index].shape[axis])
        found.append((*(slice(None),) * (axis - 1), slice(start, start + size)))
        start += size
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Judgement:
    """By what an output passed or failed.

    Attributes:
        criterion: in words.
        value, limit: what was found, and how much was asked for.
        passed: whether that was enough.
    """

    criterion: str
    value: float
    limit: float
    passed: bool


def judge(
    kind: Kind, keras: Difference, kernels: Difference, tolerance: float | None, strict: bool
) -> Judgement:
    """Judge an output.

    Args:
        keras: Keras against LiteRT's reference kernels.
        kernels: these against its default kernels.
        tolerance: in LSB; None if the Keras model did not simulate the file's quantization.
        strict: whether the tolerance alone decides.
    """
    if strict and tolerance is not None:
        return _steps(keras, kernels, tolerance)
    if kind.name == WHOLE_NUMBERS:
        return _worst(_share(d, LEAST_AGREEMENT, "equal values") for d in (keras, kernels))
    if tolerance is None:
        return _after_training(kind, keras, kernels)
    found = _simulated(kind, keras, kernels, tolerance)
    if not found.passed or kernels.max_lsb <= max(tolerance, 1.0) + _SLACK:
        return found
    between = _enough(kind, kernels, LEAST_SQNR_DB, LEAST_AGREEMENT, "between LiteRT's kernels")
    return found if between.passed else between


def _steps(keras: Difference, kernels: Difference, tolerance: float) -> Judgement:
    pairs = ((keras, tolerance), (kernels, max(tolerance, 1.0)))
    return _worst(
        Judgement("largest difference, LSB", d.max_lsb, limit, d.max_lsb <= limit + _SLACK)
        for d, limit in pairs
    )


def _simulated(kind: Kind, keras: Difference, kernels: Difference, tolerance: float) -> Judgement:
    near = Judgement(
        "largest difference, LSB", keras.max_lsb, tolerance, keras.max_lsb <= tolerance + _SLACK
    )
    if near.passed:
        return near
    good = _enough(kind, keras, GOOD_SQNR_DB, GOOD_AGREEMENT)
    if good.passed or not math.isfinite(kernels.sqnr_db):
        return good
    # No file can be nearer to Keras than the kernels that compute it are to one another.
    least = min(max(LEAST_SQNR_DB, kernels.sqnr_db - _SLACK_DB), GOOD_SQNR_DB)
    decisions = GOOD_AGREEMENT
    if kernels.agreement is not None and kernels.agreement < GOOD_AGREEMENT:
        decisions = max(LEAST_AGREEMENT, kernels.agreement - _SLACK_AGREEMENT)
    return _enough(kind, keras, least, decisions, "as LiteRT's kernels differ")


def _after_training(kind: Kind, keras: Difference, kernels: Difference) -> Judgement:
    found = _worst(
        _enough(kind, d, LEAST_SQNR_DB, LEAST_AGREEMENT, simulated=False) for d in (keras, kernels)
    )
    if found.passed:
        return found
    sure = _worst(
        Judgement(_RATIO, d.moving_db, SURE_SQNR_DB, d.moving_db >= SURE_SQNR_DB)
        for d in (keras, kernels)
    )
    return sure if kind.name == LOGITS and sure.passed else found


def _enough(
    kind: Kind,
    found: Difference,
    least: float,
    decisions: float,
    where: str = "",
    *,
    simulated: bool = True,
) -> Judgement:
    """By the SQNR, and of scores and logits by the decisions, too."""
    moving = min(least, MOVING_SQNR_DB) if simulated else least
    ratio = Judgement(_RATIO, found.moving_db, moving, found.moving_db >= moving)
    if simulated and ratio.passed:
        words = f"SQNR dB, {where}" if where else "SQNR dB"
        ratio = Judgement(words, found.sqnr_db, least, found.sqnr_db >= least)
    if kind.name not in (SCORES, LOGITS) or found.agreement is None or not ratio.passed:
        return ratio
    share = _share(found, decisions, f"equal decisions{', ' if where else ''}{where}")
    return ratio if share.passed else share


def _share(found: Difference, least: float, words: str) -> Judgement:
    value = 1.0 if found.agreement is None else found.agreement
    return Judgement(words, value, least, value >= least)


def _worst(found: Any) -> Judgement:
    """The first that failed, else the first."""
    several = list(found)
    return next((each for each in several if not each.passed), several[0])
