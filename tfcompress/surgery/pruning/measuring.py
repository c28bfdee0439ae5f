"""Choices of channels by the latency that is measured of what they leave."""

from __future__ import annotations

import functools
import operator
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from keras import tree

from tfcompress.errors import check, require_share
from tfcompress.files import temporary
from tfcompress.surgery.pruning.groups import Choice, Structure
from tfcompress.surgery.pruning.limits import Target
from tfcompress.surgery.pruning.resizing import resized

# Multiples that are tried, and by how much of the latency they must differ to be told apart: the
# finer ones leave a better choice of channels.
ROUNDINGS = (4, 8, 16, 32)
_APART = 0.03
# How often a target is lowered for a latency.
_TRIES = 8


def latencies(
    structure: Structure,
    choices: Sequence[Choice],
    calibration: Any,
    tell: Callable[[], Any] = lambda: None,
) -> list[float]:
    """The shares of the latency of the whole model, as an int8 file, that choices leave.

    Args:
        calibration: inputs, see `tfcompress.convert`.
        tell: called once each choice is a file.
    """
    from tfcompress.conversion.convert import convert
    from tfcompress.tflite.benchmark import benchmark

    with temporary.folder() as folder:
        paths = [os.path.join(folder, f"{i}.tflite") for i in range(1 + len(choices))]
        convert(structure.model, paths[0], precision="int8", calibration=calibration)
        for choice, path in zip(choices, paths[1:], strict=True):
            small = resized(structure, choice)
            convert(small, path, precision="int8", calibration=calibration)
            tell()
        return [file.ratio for file in benchmark(paths, runs=20, rounds=5).files[1:]]


def check_measured(latency: Any, round_to: Any, target: Target, data: Any) -> None:
    """Raises a ValueError unless latency can be measured, where it is asked for."""
    if latency is None and round_to != "latency":
        return
    if data is None:
        raise ValueError(
            "latency is measured of int8 files, which need data; received none. Pass data=x."
        )
    if latency is not None:
        require_share("latency", latency)
        mend = "Pass macs beside it, or latency alone."
        check(target.per_layer is None, "the target", "macs, params or sparsity", "per_layer", mend)


def measured_choice(
    structure: Structure,
    choose: Callable[[Target, int], Choice],
    target: Target,
    round_to: int | str,
    latency: float | None,
    batches: Sequence[Sequence[Any]],
) -> Choice:
    """A choice for a target, and for a latency if there is one.

    Args:
        choose: (target, multiple of channels) -> choice.
        round_to: the multiple; "latency" for the one that is fastest.
        latency: the share that may be left.
        batches: of inputs.
    """
    names = [t.name for t in tree.flatten(structure.graph.inputs)]
    calibration = [dict(zip(names, each, strict=True)) for each in batches]
    if isinstance(round_to, str):
        round_to = fastest_rounding(structure, functools.partial(choose, target), calibration)
    if latency is None:
        return choose(target, round_to)
    step = round_to
    return within_latency(
        structure, target, latency, lambda asked: choose(asked, step), calibration
    )


def fastest_rounding(
    structure: Structure, choose: Callable[[int], Choice], calibration: Any
) -> int:
    """The multiple of channels with which a choice leaves the least latency."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of multiples that cannot be had
        choices = [choose(step) for step in ROUNDINGS]
    found = latencies(structure, choices, calibration)
    limit = min(found) * (1 + _APART)
    return next(n for n, left in zip(ROUNDINGS, found, strict=True) if left <= limit)


def within_latency(
    structure: Structure,
    target: Target,
    latency: float,
    choose: Callable[[Target], Choice],
    calibration: Any,
) -> Choice:
    """A choice that meets a target and leaves no more than a share of the latency.

    The target is lowered until it does.

    Raises:
        ValueError: no choice does.
    """
    found: list[float] = []
    asked = target
    for _ in range(_TRIES):
        try:
            choice = choose(asked)
        except ValueError as error:
            if not found:
                raise
            raise _out_of_reach(latency, min(found)) from error
        found += latencies(structure, [choice], calibration)
        if found[-1] <= latency:
            return choice
        asked = asked.changed(functools.partial(operator.mul, _fall(latency / found[-1])))
    raise _out_of_reach(latency, min(found))


def _fall(wanted: float) -> float:
    """By what the target is multiplied next, for a latency of so many times the one found."""
    return min(0.95, max(0.5, wanted))


def _out_of_reach(latency: float, best: float) -> ValueError:
    return ValueError(
        f"latency={latency:g} is out of reach: with fewer and fewer channels {best:.3f} of it was "
        "left at least, as measured here. Want more, raise max_sparsity, or keep fewer layers."
    )
