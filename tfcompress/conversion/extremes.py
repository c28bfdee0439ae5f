"""Ranges narrowed to what the readers of a tensor can tell apart.

A mask of -1e9, a padding by the lowest float or an upper limit of 1e12 would stretch a range until
all other values were one code. What reads such tensors does not look beyond some value: a softmax
gives 0 for scores far below the greatest of their row, a maximum is never one of its lowest inputs.
An integer tensor saturates there just as well. So what matters of a tensor goes from operation to
operation back to front, and ranges, those of constants too, end where it ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from tfcompress.conversion.ranges import SAME_SCALE, Range, constant, is_constant
from tfcompress.layers.extremes import CURVES, DEPTH, MASKED, PLAIN_WIDTH, SOFTMAX_DEPTH
from tfcompress.tflite import flatbuffer, run
from tfcompress.tflite.flatbuffer import changed, op_name


class Span(NamedTuple):
    """From where to where the values of a tensor matter."""

    low: float = -math.inf
    high: float = math.inf

    def within(self, other: Span) -> Span:
        return Span(max(self.low, other.low), min(self.high, other.high))

    def joined(self, other: Span) -> Span:
        return Span(min(self.low, other.low), max(self.high, other.high))


# How many times as wide as what matters a range must be to be narrowed: a bit is worth it.
_WORTH = 2.0

# How far below its greatest value a row's end must be for an ARG_MAX, as a part of the range.
_APART = 0.1

# A constant that is multiplied may be so many times as large as what the product saturates at.
_FACTOR = 100.0

_CURVES = {
    "LOGISTIC": CURVES["sigmoid"],
    "TANH": CURVES["tanh"],
    "GELU": CURVES["gelu"],
    "ELU": CURVES["elu"],
    "HARD_SWISH": CURVES["hardsilu"],
    "RELU": CURVES["relu"],
    "RELU6": CURVES["relu6"],
    "RELU_N1_TO_1": lambda depth: (-1.0, 1.0),
}


def narrow(model, ranges: dict[int, Range], batches: Iterable[dict[str, Any]], bits: int) -> None:
    """Narrows calibrated ranges, and gives ranges to constants beyond them. Changes `ranges`.

    Args:
        model: a float `ModelT`.
        ranges: least and greatest values of all activations by tensor index. Those that are
            infinite, and matter, are taken out.
        batches: calibration samples, arrays by input name.
        bits: of the activations, 8 or 16.
    """
    _Narrowing(model, ranges, _least_scores(model, ranges, batches), bits).run()


def narrow_constants(model, ranges: dict[int, Range]) -> dict[int, Range]:
    """Ranges of the constants of a trained model that are beyond what matters.

    Args:
        ranges: trained ones, of activations, which end where readers do.
    """
    known = {i: r for i, r in ranges.items() if not is_constant(model, i)}
    trained = dict(known)
    bits = max((r.bits for r in known.values()), default=8)
    _Narrowing(model, known, {}, bits).run()
    return {i: r for i, r in known.items() if i not in trained}


def lost_scores(model, ranges: dict[int, Range]) -> list[str]:
    """What is to be said of trained ranges in which masks leave a softmax no steps."""
    told = []
    for op in model.subgraphs[0].operators:
        known = ranges.get(op.inputs[0]) if op_name(model, op) == "SOFTMAX" else None
        if known is not None and known.bits == 8 and known.maximum - known.minimum > MASKED:
            name = flatbuffer.text(model.subgraphs[0].tensors[op.outputs[0]].name)
            told.append(
                f"the scores that softmax '{name}' reads go from {known.minimum:.3g} to "
                f"{known.maximum:.3g} in 256 steps: a mask takes all of them. Mask by adding -30 "
                "before quantize_aware, or convert the model that is not trained for quantization"
            )
    return told


class _Narrowing:
    """Goes through a graph from its end. `matters` has what its readers see of a tensor."""

    def __init__(self, model, ranges: dict[int, Range], scores: dict[int, float], bits: int):
        self.model, self.graph, self.ranges = model, model.subgraphs[0], ranges
        self.scores, self.bits = scores, bits
        self.matters: dict[int, Span] = dict.fromkeys(self.graph.outputs, Span())

    def run(self) -> None:
        for op in reversed(self.graph.operators):
            for index in op.outputs:
                self._narrow(index)
            spans = [self._known(i).within(self.matters.get(i, Span())) for i in op.outputs]
            out = spans[0] if spans else Span()
            for span in spans[1:]:
                out = out.joined(span)
            for operand, index in enumerate(op.inputs):
                if index >= 0 and self.graph.tensors[index].type == 0:
                    self._add(index, self._wanted(op, operand, out))
        for index in self.graph.inputs:
            self._narrow(index)
        for index in list(self.matters):
            if is_constant(self.model, index):
                self._narrow_constant(index)

    def _add(self, index: int, span: Span) -> None:
        self.matters[index] = self.matters[index].joined(span) if index in self.matters else span

    def _narrow(self, index: int) -> None:
        if index not in self.ranges:
            return
        known, span = self._known(index), self._known(index).within(self.matters.get(index, Span()))
        low, high = min(span.low, 0.0), max(span.high, 0.0)
        if not math.isfinite(high - low):
            del self.ranges[index]
        elif known.high - known.low > _WORTH * (high - low) > 0:
            self.ranges[index] = Range(low, high, self.ranges[index].bits)

    def _narrow_constant(self, index: int) -> None:
        values, span = self._values(index), self.matters[index]
        if index in self.ranges or not values.size:
            return
        known = Span(min(float(values.min()), 0.0), max(float(values.max()), 0.0))
        low, high = min(span.within(known).low, 0.0), max(span.within(known).high, 0.0)
        if math.isfinite(high - low) and known.high - known.low > _WORTH * (high - low) > 0:
            self.ranges[index] = Range(low, high)

    def _values(self, index: int) -> np.ndarray:
        return constant(self.model, index)

    def _known(self, index: int) -> Span:
        """Least and greatest value of a tensor, what matters alone where it was narrowed."""
        if is_constant(self.model, index):
            values = self._values(index)
            return Span(float(values.min()), float(values.max())) if values.size else Span(0, 0)
        known = self.ranges.get(index)
        return Span() if known is None else Span(known.minimum, known.maximum)

    def _wanted(self, op, operand: int, out: Span) -> Span:
        """What matters of an operand if `out` is what matters of the output."""
        name, depth = op_name(self.model, op), DEPTH[self.bits]
        index = op.inputs[operand]
        if name in _CURVES:
            return Span(*_CURVES[name](depth))
        if name in SAME_SCALE and name not in _MIXING:
            return out
        if name == "SOFTMAX":
            return Span(low=self.scores.get(index, -math.inf) - SOFTMAX_DEPTH[self.bits])
        if name == "ARG_MAX":  # what is below must not come up to the greatest of any row
            least = self.scores.get(index, -math.inf)
            return Span(low=least - _APART * (self._known(index).high - least))
        if name == "EXP":
            return Span(low=math.log(out.high) - depth) if 0 < out.high < math.inf else Span()
        if name in ("ADD", "SUB"):
            return self._of_sum(name, operand, self._known(op.inputs[1 - operand]), out)
        if name == "MUL":
            return self._of_product(index, op.inputs[1 - operand], out)
        return Span()

    @staticmethod
    def _of_sum(name: str, operand: int, other: Span, out: Span) -> Span:
        """What matters of a in a + b, or in a - b, or of b in it."""
        if name == "ADD":
            return _span(out.low - other.high, out.high - other.low)
        if operand == 0:
            return _span(out.low + other.low, out.high + other.high)
        return _span(other.low - out.high, other.high - out.low)

    def _of_product(self, index: int, other: int, out: Span) -> Span:
        """What matters of a factor, if one of the two is constant."""
        limit = max(abs(out.low), abs(out.high))
        if is_constant(self.model, index):
            return _span(-_FACTOR * limit / self._most(other), _FACTOR * limit / self._most(other))
        if not is_constant(self.model, other):
            return Span()
        factors = np.abs(self._values(other).astype(np.float64))
        factors = np.minimum(factors[factors != 0], _FACTOR * limit / self._most(index))
        return _span(-limit / factors.min(), limit / factors.min()) if factors.size else Span(0, 0)

    def _most(self, index: int) -> float:
        known = self._known(index)
        return max(abs(known.low), abs(known.high), 1e-30)


def _span(low: float, high: float) -> Span:
    """A span that is open where a bound could not be computed."""
    return Span(low if math.isfinite(low) else -math.inf, high if math.isfinite(high) else math.inf)


# Of those with one scale, what gives values that are in no input.
_MIXING = {"CUMSUM", "AVERAGE_POOL_2D", "RESIZE_BILINEAR"}


def _least_scores(model, ranges: dict[int, Range], batches) -> dict[int, float]:
    """For wide inputs of SOFTMAX or ARG_MAX: the greatest score of the row where it is least."""
    graph = model.subgraphs[0]
    wide: dict[int, int] = {}
    for op in graph.operators:
        name = op_name(model, op)
        if name in ("SOFTMAX", "ARG_MAX") and op.inputs[0] in ranges:
            known = ranges[op.inputs[0]]
            if not known.maximum - known.minimum <= PLAIN_WIDTH:
                axis = constant(model, op.inputs[1]).item() if name == "ARG_MAX" else -1
                wide[int(op.inputs[0])] = axis
    if not wide:
        return {}
    opened = changed(model, subgraphs=list(model.subgraphs))
    opened.subgraphs[0] = changed(graph, outputs=[*graph.outputs, *wide])
    runner = run.Runner(model, flatbuffer.write(opened), "the float file", reference=False)
    greatest: dict[int, list[np.ndarray]] = {index: [] for index in wide}
    for batch in batches:
        runner.run(batch)
        for index, axis in wide.items():
            scores = runner.tensor(run.port(model, index))
            greatest[index].append(scores.max(axis=axis).ravel())
    found = {}
    for index, rows in greatest.items():
        tops = np.concatenate(rows)
        found[index] = float(tops[tops > tops.max() - MASKED].min())
    return found
