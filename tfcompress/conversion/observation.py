"""The ranges of activations that calibration samples show."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Set
from typing import Any

import numpy as np
from litert_quantizer import calibrator, qtyping, recipe_manager
from litert_quantizer.utils import qsv_utils

from tfcompress.conversion import lstm
from tfcompress.conversion.quantize import hushed
from tfcompress.conversion.ranges import SAME_SCALE, floats_of, is_constant
from tfcompress.kinds import FIXED_RANGES
from tfcompress.post_training.observers import Histogram, activation_range
from tfcompress.tflite import flatbuffer, run
from tfcompress.tflite.flatbuffer import op_name

Limits = dict[int, tuple[float, float]]

# Five times as fast as keeping all tensors, and it bears tensors that nobody reads.
_PROFILER = calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED

# Looks at the ranges, in all samples, and samples before which they are not taken for settled.
_LOOKS = 20
_FEWEST = 200

# By which part a range may grow over the second half of the samples and count as settled: a bit of
# the signal is worth 6 dB, this 0.4.
_SETTLED = 0.05

# What reads a tensor to tell which of its values are the greatest.
_RANKING = ("SOFTMAX", "LOG_SOFTMAX", "ARG_MAX", "ARG_MIN")


@dataclasses.dataclass
class Observed:
    """What was seen of the activations of a float file.

    Attributes:
        limits: least and greatest value by tensor index.
        ranges: what the observer makes of them.
        batches: how many were used.
        growth: by which part each range grew over the second half of them; empty where they were
            too few to tell.
    """

    limits: Limits
    ranges: Limits
    batches: int
    growth: np.ndarray

    @property
    def settling(self) -> str:
        """What is to be told of the growth."""
        if not self.growth.size:
            return ""
        most, growing = self.growth.max(), np.count_nonzero(self.growth > _SETTLED)
        if not growing:
            return f"ranges had settled: over the second half of them none grew by over {most:.1%}"
        return (
            f"ranges had not settled: over the second half of them {growing} of {self.growth.size} "
            f"grew by more than {_SETTLED:.0%}, one by {most:.0%}"
        )


def observe(
    model: Any,
    content: bytes,
    batches: list[dict[str, np.ndarray]],
    method: str,
    early: bool,
    wide: Set[int] = frozenset(),
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Observed:
    """Runs a float file on calibration samples.

    Args:
        model: its `ModelT`.
        content: its bytes.
        batches: arrays by input name, shaped as the file's inputs.
        method: one of `OBSERVERS`.
        early: whether to stop where the ranges have settled.
        wide: tensors of 16 bits, whose steps are small without clipping.
        progress: called as `progress(done, total)`, in batches.
    """
    found = _limits(model, content, batches, method, early, progress)
    mine = (_clipped(model) - wide) & found.limits.keys()
    if method == "moving_average":
        clipped = {i: found.ranges[i] for i in mine}
    elif method != "min_max":
        some = {i: found.limits[i] for i in mine}
        seen = _histograms(model, content, batches[: found.batches], some)
        clipped = {i: activation_range(histogram, method) for i, histogram in seen.items()}
    else:
        clipped = {}
    return dataclasses.replace(found, ranges=_moved(model, found.limits | clipped, clipped))


def _limits(model, content: bytes, batches, method: str, early: bool, progress) -> Observed:
    """Least and greatest values, and as `ranges` moving averages of those of batches."""
    recipe = recipe_manager.RecipeManager()
    recipe.add_static_config(".*", qtyping.TFLOperationName.ALL_SUPPORTED, 8, 8)
    observer = calibrator.Calibrator(
        content, num_threads=2, mode=_PROFILER, qsv_update_func=_update
    )
    key = flatbuffer.text(model.signatureDefs[0].signatureKey)
    # Between looks operators forget the states that they keep from run to run.
    step = len(batches) if lstm.keeps_states(model) else math.ceil(len(batches) / _LOOKS)
    widths: list[np.ndarray] = []
    size = len(next(iter(batches[0].values())))
    for start in range(0, len(batches), step):
        progress(start, len(batches))
        some = batches[start : start + step]
        with hushed():
            observer.calibrate({key: some}, recipe)
        entries = observer.get_model_qsvs()
        seen = {name: limits for name, e in entries.items() if (limits := _least_greatest(e))}
        widths.append(np.array([max(high, 0.0) - min(low, 0.0) for low, high in seen.values()]))
        growth = _growth(widths)
        enough = (start + len(some)) * size >= _FEWEST
        if early and enough and growth.size and growth.max() <= _SETTLED:
            break
    average = {name: (entries[name]["min"].item(), entries[name]["max"].item()) for name in seen}
    index = {
        tensor.name.decode(): i
        for i, tensor in enumerate(model.subgraphs[0].tensors)
        if tensor.type == 0 and not is_constant(model, i)
    }
    return Observed(
        {index[name]: limits for name, limits in seen.items() if name in index},
        {index[name]: limits for name, limits in average.items() if name in index},
        start + len(some),
        growth,
    )


def _update(before: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """litert-quantizer's moving average, and beside it the least and the greatest of all."""
    ends = {"least": before.get("least", before["min"]), "most": before.get("most", before["max"])}
    low, high = np.minimum(ends["least"], new["min"]), np.maximum(ends["most"], new["max"])
    return {**qsv_utils.moving_average_update(before, new), "least": low, "most": high}


def _least_greatest(entry: dict[str, np.ndarray]) -> tuple[float, float] | None:
    if "min" not in entry or not np.size(entry["min"]):
        return None
    low, high = entry.get("least", entry["min"]), entry.get("most", entry["max"])
    return float(np.min(low)), float(np.max(high))


def _growth(widths: list[np.ndarray]) -> np.ndarray:
    """By which part each range grew over the second half of what was seen."""
    half = widths[len(widths) // 2 - 1]
    if len(widths) < 2 or len(half) != len(widths[-1]):
        return np.zeros(0)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(widths[-1] / np.where(half > 0, half, widths[-1]) - 1)


def _clipped(model) -> set[int]:
    """The tensors that may lose their greatest values for smaller steps.

    Not inputs: who fills them in relies on their scale, and of pixels the ends of the range are
    the most frequent values. Not outputs, which are read as they are, nor what is ranked: clipped
    scores are all the same. Nor what a kernel gives a fixed range, or what has that of an input.
    """
    graph = model.subgraphs[0]
    kept = {int(i) for i in graph.outputs}
    found: set[int] = set()
    for op in reversed(graph.operators):
        name, floats = op_name(model, op), set(floats_of(model, op))
        if name in _RANKING or (name in SAME_SCALE and kept.intersection(op.outputs)):
            kept |= floats
        elif name not in FIXED_RANGES and name != "CAST" and _source(model, op) is None:
            found |= {int(i) for i in op.outputs} & floats
    return found - kept


def _source(model, op) -> int | None:
    """The float tensor whose scale an operator keeps, if it is one alone."""
    if op_name(model, op) not in SAME_SCALE:
        return None
    given = set(floats_of(model, op)) - set(op.outputs)
    return next(iter(given)) if len(given) == 1 else None


def _moved(model, ranges: Limits, clipped: Limits) -> Limits:
    """Ranges of which those of values that are only moved are the ones of where they come from."""
    changed = set(clipped)
    for op in model.subgraphs[0].operators:
        source = _source(model, op)
        if source in changed and source in ranges:
            for index in op.outputs:
                ranges[index] = ranges[source]
                changed.add(int(index))
    return ranges


def _histograms(model, content: bytes, batches, limits: Limits) -> dict[int, Histogram]:
    """How often tensors had which values, of limits that are known."""
    finite = {i: (min(low, 0.0), max(high, 0.0)) for i, (low, high) in limits.items()}
    seen = {i: Histogram(*found) for i, found in finite.items() if math.isfinite(sum(found))}
    with run.quiet():  # here, as the quantizer has just run it here
        file, _ = run.load(content, run.DEFAULT, keep=True)
    inputs = run.ports(model)[0]
    for batch in batches if seen else ():
        for entry in inputs:
            file.set_tensor(entry.index, batch[entry.name])
        file.invoke()
        seen = {i: each.add(file.get_tensor(i)) for i, each in seen.items()}
    return seen
