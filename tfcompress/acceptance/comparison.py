"""Outputs of another tool against those of LiteRT's reference kernels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from tfcompress.acceptance.driving import Answer
from tfcompress.acceptance.operators import operators_alone
from tfcompress.acceptance.outcome import Figure, Outcome, Refused
from tfcompress.acceptance.subject import Subject, with_other_kernels

# Of outputs as a whole where single steps do not count, in dB; a wrong import is far below it.
SQNR = 20.0


@dataclasses.dataclass(frozen=True)
class Difference:
    """The largest differences over all samples and outputs.

    Attributes:
        lsb: in steps of the integer grids of the outputs; None if none has a grid.
        relative: of outputs computed in float, to the largest value that is expected of an
            output; None if all have a grid.
        sqnr: signal to noise of all outputs with a grid, in dB; infinite if they are equal.
    """

    lsb: float | None
    relative: float | None
    sqnr: float


def compare(
    file: Subject,
    run: Callable[[Subject], Answer],
    *,
    lsb: int,
    figures: Sequence[str] = (),
) -> Outcome:
    """Run a tool and judge its outputs.

    It passes if outputs on an integer grid differ by at most `lsb` steps, and outputs computed in
    float as `file.relative` lets them, from LiteRT's reference kernels, or else from its XNNPACK
    or its optimized ones: these three round differently, and most tools round as one of them does.
    Where steps of single operators have added up to more, it also passes if each operator alone,
    fed with what LiteRT feeds it, differs by at most 1 step, and the outputs have an SQNR of 20 dB.

    Args:
        file: with the outputs that are expected.
        run: runs the tool on a file.
        lsb: see above.
        figures: names of what the tool measured that is to be told.

    Returns:
        An `Outcome`, passed or failed.
    """
    answer = run(file)
    measured = {name: answer.figures[name] for name in figures}
    found = difference(file, answer.outputs)
    if isinstance(found, str):
        return Outcome("failed", found, measured)
    told = {**figures_of(found), **measured}
    if not _near(found.relative, file.relative):
        return Outcome(
            "failed",
            f"float outputs differ from LiteRT's by {found.relative:.1e} of the largest; expected "
            f"at most {file.relative:g}",
            told,
        )
    if _near(found.lsb, lsb * file.step):
        return Outcome("passed", "", told)
    reason = (
        f"outputs differ from LiteRT's by {found.lsb:g} LSB; expected at most {lsb * file.step}"
    )
    kernels, other = _nearest(file, answer)
    if other is not None and _near(other.lsb, lsb * file.step):
        apart = {"kernels": kernels, "LSB to reference": told["max LSB"]}
        return Outcome("passed", "", {**figures_of(other), **apart, **measured})
    alone = operators_alone(file)
    if alone is None:
        return Outcome("failed", reason, told)
    try:
        return _judge_operators(alone, run(alone), found, reason, told)
    except Refused as refusal:
        return Outcome("failed", f"{reason}; its operators alone: {refusal}", told)


def _nearest(file: Subject, answer: Answer) -> tuple[str, Difference | None]:
    """Which of LiteRT's other kernels the outputs are nearest to, and how far from them."""
    best: tuple[str, Difference | None] = ("", None)
    for name, subject in with_other_kernels(file).items():
        found = difference(subject, answer.outputs)
        if isinstance(found, str) or found.lsb is None or not _near(found.relative, file.relative):
            continue
        if best[1] is None or found.lsb < (best[1].lsb or 0):
            best = (name, found)
    return best


def _judge_operators(
    alone: Subject, answer: Answer, whole: Difference, reason: str, told: dict[str, Figure]
) -> Outcome:
    found = difference(alone, answer.outputs)
    if isinstance(found, str) or found.lsb is None:
        return Outcome("failed", reason, told)
    step = figures_of(found)["max LSB"]
    told = {"max LSB": told["max LSB"], "max LSB of an op": step, **told}
    if not (_near(found.lsb, alone.step) and _near(found.relative, alone.relative)):
        return Outcome("failed", f"{reason}. Operators alone differ by up to {step} LSB", told)
    if whole.sqnr < SQNR:
        return Outcome(
            "failed",
            f"{reason}. Operators alone are within {alone.step} LSB, but the outputs have an SQNR "
            f"of {whole.sqnr:.0f} dB; expected at least {SQNR:g}",
            told,
        )
    remark = (
        f"its operators alone differ from LiteRT's by at most {step} LSB, which adds up to "
        f"{whole.lsb:g} LSB at the outputs (SQNR {whole.sqnr:.0f} dB)"
    )
    return Outcome("passed", remark, told)


def _near(value: float | None, limit: float) -> bool:
    return value is None or value <= limit


def figures_of(found: Difference) -> dict[str, Figure]:
    """A difference as figures to show."""
    told: dict[str, Figure] = {}
    if found.lsb is not None:
        told["max LSB"] = int(found.lsb) if found.lsb == int(found.lsb) else found.lsb
    if found.relative is not None:
        told["max relative"] = float(f"{found.relative:.1e}")
    return told


def difference(file: Subject, outputs: Sequence[Sequence[np.ndarray]]) -> Difference | str:
    """Measure how far outputs are from what is expected.

    Args:
        file: with the outputs that are expected.
        outputs: for each sample, in the order of the file's outputs.

    Returns:
        A `Difference`, or in words why they cannot be compared.
    """
    if len(outputs) != len(file.expected):
        return f"gave outputs for {len(outputs)} samples; expected {len(file.expected)}"
    for expected, given in zip(file.expected, outputs, strict=True):
        if len(given) != len(expected):
            return f"gave {len(given)} outputs; expected {len(expected)}"
        for (name, wanted), value in zip(expected.items(), given, strict=True):
            if np.size(value) != wanted.size:
                return f"output '{name}' has shape {np.shape(value)}; expected {wanted.shape}"
    steps: list[float] = []
    relatives: list[float] = []
    signal = noise = 0.0
    for place, (name, unit) in enumerate(file.units.items()):
        wanted = np.concatenate([_flat(expected[name]) for expected in file.expected])
        value = np.concatenate([_flat(sample[place]) for sample in outputs])
        gap = _gap(wanted, value)
        if unit is None:
            largest = float(np.max(np.abs(wanted), initial=0.0))
            relatives.append(gap / max(largest, float(np.finfo(np.float32).tiny)))
            continue
        # Real numbers on a grid are off by rounding of floats, not by parts of a step.
        steps.append(float(np.round(gap / unit, 3)))
        signal += float(np.sum((wanted - file.zeros[name]) ** 2)) / unit**2
        noise += float(np.sum((wanted - value) ** 2)) / unit**2
    sqnr = 10 * math.log10(max(signal, 1e-300) / noise) if noise else math.inf
    return Difference(max(steps, default=None), max(relatives, default=None), sqnr)


def _flat(values: np.ndarray) -> np.ndarray:
    return np.asarray(values).ravel().astype(np.float64)


def _gap(wanted: np.ndarray, value: np.ndarray) -> float:
    same = (wanted == value) | (np.isnan(wanted) & np.isnan(value))
    gaps = np.where(same, 0.0, np.abs(wanted - value))
    return float(np.max(np.where(np.isnan(gaps), np.inf, gaps), initial=0.0))
