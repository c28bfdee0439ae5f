"""verify: does a .tflite file compute what its Keras model computes?"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tfcompress import data as samples_of
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.differences import Difference, Tally
from tfcompress.tflite.layer_errors import layer_errors
from tfcompress.tflite.reference import Reference, is_simulated
from tfcompress.tflite.runner import Port, Runner, port
from tfcompress.tflite.verification import (
    GOOD_AGREEMENT,
    GOOD_MEAN_LSB,
    GOOD_SQNR_DB,
    LEAST_AGREEMENT,
    LEAST_SQNR_DB,
    OutputCheck,
    Verification,
)

DEFAULT_TOLERANCE = 1.0
# Dequantized codes differ by whole steps, but for the rounding of float32.
_SLACK = 0.01
_CHUNK = 32
LAYER_SAMPLES = 16

Progress = Callable[[str, int, int | None], Any]


def verify(
    model: Any,
    path: str | os.PathLike[str],
    data: Any,
    *,
    layers: bool = False,
    tolerance: float | None = None,
    samples: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Compares a .tflite file with its Keras model, on the same samples.

    The file runs twice: on LiteRT's reference kernels, whose integers are the same on every
    machine, and on the default kernels (XNNPACK). Where the reference lacks an operator, LiteRT's
    optimized kernels stand in for it, which `Verification.notes` tells. Values for integer inputs
    are quantized by the file's own scales, and integer outputs dequantized.

    Args:
        model: the `keras.Model` that was converted, from `quantize_aware` or plain, or the path
            of a .keras, .h5 or SavedModel.
        path: the .tflite file.
        data: samples of the inputs, as real values: a NumPy array, a list or dict of arrays, a
            generator or a `tf.data.Dataset`, as for `convert`.
        layers: also find the error of each layer, over at most 16 samples.
        tolerance: how many LSB an output may differ from Keras (the kernels may differ from one
            another by as much, and by 1). None asks for 1 LSB, or a mean of 0.5 LSB with an SQNR
            of 30 dB and an argmax agreement of 99%, if the model simulates the file's quantization
            or the file is float; of a file quantized after training, where the difference is the
            price of quantization, it asks for 10 dB and 90%. Outputs of whole numbers are judged
            by 90% in both cases.
        samples: at most so many samples; all by default.
        progress: called as `progress("verify", done, total)`.

    Returns:
        A `Verification`; `.passed` tells the verdict.

    Raises:
        ValueError: the file or the data cannot be read, do not belong to the model, the data is
            empty, or Keras itself gives NaN.

    Example:
        >>> verify(qat, "model.tflite", x_test).passed  # doctest: +SKIP
        True
    """
    if tolerance is not None and not (isinstance(tolerance, int | float) and tolerance >= 0):
        raise ValueError(f"tolerance must be 0 LSB or more; received {tolerance!r}. Try 1.")
    where, content = flatbuffer.describe(path), flatbuffer.load(path)
    file = flatbuffer.read(content, name=where)
    reference = Reference(model)
    runners = [Runner(file, content, where, reference=kind) for kind in (True, False)]
    match = _Match(reference, runners[0], where)
    tallies = [(Tally(), Tally()) for _ in match.outputs]
    first: list[dict[str, np.ndarray]] = []
    done = 0
    batches = samples_of.batches(data, reference.inputs, limit=samples)
    for count, chunk in _chunks(batches, match.batch_size):
        parts = match.split(chunk, count)
        first += parts[: max(0, math.ceil(LAYER_SAMPLES / match.batch_size) - len(first))]
        _compare(reference(chunk), runners, match, parts, count, tallies)
        done += count
        if progress is not None:
            progress("verify", done, samples)
    rule = _Rule.of(tolerance, reference, file)
    checks = tuple(
        _check(file, entry, pair, rule) for entry, pair in zip(match.outputs, tallies, strict=True)
    )
    errors = layer_errors(reference.model, file, content, first) if layers else ()
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else where
    notes = tuple(runner.note for runner in runners if runner.note)
    return Verification(name, done, rule.tolerance, rule.strict, checks, errors, notes)


@dataclasses.dataclass(frozen=True)
class _Rule:
    """What is asked: a tolerance in LSB, or (None) a least SQNR and agreement."""

    tolerance: float | None
    strict: bool

    @classmethod
    def of(cls, tolerance: float | None, reference: Reference, file: Any) -> _Rule:
        if tolerance is not None:
            return cls(tolerance, True)
        return cls(DEFAULT_TOLERANCE if is_simulated(reference.model, file) else None, False)

    def holds(self, found: Difference, least: float, whole: bool) -> bool:
        """Whether a difference is small enough; `least` is a tolerance that is always granted."""
        agreement = 1.0 if found.agreement is None else found.agreement
        if whole and not self.strict:
            return agreement >= LEAST_AGREEMENT
        if self.tolerance is None:
            return found.sqnr_db >= LEAST_SQNR_DB and agreement >= LEAST_AGREEMENT
        if found.max_lsb <= max(self.tolerance, least) + _SLACK:
            return True
        good = found.sqnr_db >= GOOD_SQNR_DB and agreement >= GOOD_AGREEMENT
        return good and found.mean_lsb <= GOOD_MEAN_LSB and not self.strict


class _Match:
    """Which input and output of the file is which of the model's.

    By name where the file has the model's names, else by position.
    """

    def __init__(self, reference: Reference, runner: Runner, where: str):
        self.inputs = _pair([e.name for e in reference.inputs], runner.inputs, "input", where)
        self.outputs = _pair(reference.outputs, runner.outputs, "output", where)
        self.order = [runner.outputs.index(entry) for entry in self.outputs]
        for wanted, entry in zip(reference.inputs, self.inputs, strict=True):
            fits = len(wanted.shape) == len(entry.shape) and all(
                a in (None, b) for a, b in zip(wanted.shape[1:], entry.shape[1:], strict=True)
            )
            if not fits or not entry.shape:
                raise ValueError(
                    f"input '{entry.name}' of {where} has shape {entry.shape}, the model's "
                    f"{tuple(wanted.shape)}; expected a file that was made from this model. "
                    "Convert the model again, or name the model that the file came from."
                )
        self.names = [e.name for e in reference.inputs]
        self.batch_size = self.inputs[0].shape[0]

    def split(self, chunk: dict[str, np.ndarray], count: int) -> list[dict[str, np.ndarray]]:
        """A chunk as batches for the file, by the file's input names."""
        pairs = list(zip(self.names, self.inputs, strict=True))
        return [
            {entry.name: chunk[name][i : i + self.batch_size] for name, entry in pairs}
            for i in range(0, count, self.batch_size)
        ]


def _pair(names: list[str], entries: list[Port], what: str, where: str) -> list[Port]:
    if len(names) != len(entries):
        raise ValueError(
            f"{where} has {len(entries)} {what}(s), the model {len(names)}; expected a file that "
            "was made from this model. Convert the model again, or name the model that the file "
            "came from."
        )
    by_name = {entry.name: entry for entry in entries}
    return [by_name[n] for n in names] if set(names) == set(by_name) else entries


def _chunks(
    samples: Iterator[dict[str, np.ndarray]], batch_size: int
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yields (samples, arrays by name), filled up by the last sample to a whole number of batches.

    All chunks have one size, so that the Keras model is traced once.
    """
    size = batch_size * max(1, _CHUNK // batch_size)
    while rows := list(itertools.islice(samples, size)):
        count = len(rows)
        rows += [rows[-1]] * (size - count)
        yield count, {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _compare(
    expected: list[np.ndarray],
    runners: list[Runner],
    match: _Match,
    parts: list[dict[str, np.ndarray]],
    count: int,
    tallies: list[tuple[Tally, Tally]],
) -> None:
    found = [list(zip(*(runner.run(part) for part in parts), strict=True)) for runner in runners]
    for position, wanted, tally in zip(match.order, expected, tallies, strict=True):
        golden, fast = (np.concatenate(outputs[position])[:count] for outputs in found)
        if golden.shape != wanted[:count].shape:
            name = match.outputs[tallies.index(tally)].name
            raise ValueError(
                f"output '{name}' of the file has shape {golden.shape[1:]} for a sample, the "
                f"model's {wanted.shape[1:]}; expected a file that was made from this model. "
                "Convert the model again, or name the model that the file came from."
            )
        tally[0].add(wanted[:count], golden)
        tally[1].add(golden, fast)


def _check(file: Any, entry: Port, tallies: tuple[Tally, Tally], rule: _Rule) -> OutputCheck:
    scale, whole = _scale(file, entry), entry.scale is None and entry.dtype[:1] in "iub"
    width = tallies[0].high - tallies[0].low
    lsb = scale or (1.0 if whole else width / 255 if width > 0 else 1 / 255)
    keras, xnnpack = (tally.result(lsb) for tally in tallies)
    passed = rule.holds(keras, 0.0, whole) and rule.holds(xnnpack, 1.0, whole)
    return OutputCheck(entry.name, entry.dtype, lsb, scale is not None, keras, xnnpack, passed)


def _scale(file: Any, entry: Port) -> float | None:
    """The scale of an output's integers: its own, or that of what the last op dequantizes."""
    if entry.scale is not None:
        return entry.scale
    for op in file.subgraphs[0].operators:
        if entry.index in op.outputs and flatbuffer.op_name(file, op) == "DEQUANTIZE":
            return port(file, op.inputs[0]).scale
    return None
