"""The report on one .tflite file and the Keras model that it came from."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tfcompress.files import models, temporary
from tfcompress.report.layer_data import task_entry
from tfcompress.report.layers import (
    EXACT_DB,
    FloatFiles,
    float_files,
    layer_figures,
    layer_names,
)
from tfcompress.report.page import MISSING, number, require_extra, significant, write_page
from tfcompress.targets.check import check
from tfcompress.targets.result import Check, OperatorCheck, caution, verdict_on
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.benchmark import FileBenchmark, benchmark
from tfcompress.tflite.inspect import inspect
from tfcompress.tflite.inspection import Inspection
from tfcompress.tflite.machine import describe
from tfcompress.tflite.plain_weights import has_codes, plain_twin
from tfcompress.verification.differences import Difference
from tfcompress.verification.verify import OutputCheck, Verification, verify

Progress = Callable[[str, int, int | None], Any]
RUNS, ROUNDS = 20, 5
FILE = "this file"


def write_model_report(
    model: Any,
    tflite_path: str | os.PathLike[str],
    path: str | os.PathLike[str],
    data: Any,
    target: Any = None,
    *,
    samples: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Writes the HTML report on a .tflite file and its Keras model: one file without network.

    Sizes, how far the outputs are from the model's, latency beside the float32 file of the same
    model, what a target says, and every layer: bytes, sparsity, SQNR, ranges, weights.
    """
    require_extra()
    parsed = flatbuffer.read(tflite_path)
    if has_codes(parsed):
        with temporary.folder() as folder:
            twin = Path(folder, Path(tflite_path).name)
            twin.write_bytes(flatbuffer.write(plain_twin(parsed)))
            return _write(model, tflite_path, twin, path, data, target, samples, progress)
    return _write(model, tflite_path, tflite_path, path, data, target, samples, progress)


def _write(
    model: Any,
    tflite_path: str | os.PathLike[str],
    runs: str | os.PathLike[str],
    path: str | os.PathLike[str],
    data: Any,
    target: Any,
    samples: int | None,
    progress: Progress | None,
) -> int:
    """Writes the report; `runs` is what LiteRT can run of the file, which mostly is the file."""
    found = inspect(tflite_path)
    name = Path(tflite_path).name
    say = progress or (lambda stage, done, total: None)
    # Where a file lies is nobody else's business.
    checked = None if target is None else dataclasses.replace(check(tflite_path, target), path=name)
    if isinstance(model, (str, os.PathLike)):
        model = models.load_model(model)
    if hasattr(data, "__next__"):
        data = _Replay(data)
    verified = verify(model, runs, data, samples=samples, progress=progress)
    say("layers", 0, None)
    # The layers of a SavedModel are not known.
    plain = None if isinstance(model, models.SavedModel) else float_files(model, runs)
    entry = _layers(model, tflite_path, data, plain)
    times = _latency(runs, plain, say)
    titles = (FILE, plain.title) if plain else (FILE,)
    values = {
        "title": name,
        "model": getattr(model, "name", "") or "the model",
        "cards": _cards(found, verified, times),
        "verified": verified,
        "outputs": [row for output in verified.outputs for row in _outputs(output)],
        "times": [_time_row(*pair) for pair in zip(times, titles, strict=True)],
        "rounds": f"{ROUNDS} rounds of {RUNS} runs",
        "found": found,
        "codes": _code_rows(found, model),
        "dtypes": sorted(found.dtype_bytes.items(), key=lambda item: -item[1]),
        "ports": [("input", t) for t in found.inputs] + [("output", t) for t in found.outputs],
        "operators": sorted(found.op_counts, key=lambda c: -c.count),
        "check": None if checked is None else check_rows(checked, _names(found, model)),
        "layers": [entry],
        "before": plain.weights if plain else "",
        "machine": describe(),
    }
    return write_page(path, "model.html", values, {"figures": {}, "layers": [entry]})


class _Replay:
    """An iterator that can be gone through again; no more is taken from it than is asked for."""

    def __init__(self, source: Iterator[Any]):
        self.source, self.kept = source, list[Any]()

    def __iter__(self) -> Iterator[Any]:
        yield from self.kept
        for element in self.source:
            self.kept.append(element)
            yield element


def _layers(
    model: Any, tflite_path: str | os.PathLike[str], data: Any, plain: FloatFiles | None
) -> dict[str, Any]:
    """The layers of the file, beside those of the float model where they are known."""
    name = Path(tflite_path).name
    if plain is None:
        return task_entry(name, [(name, "", layer_figures(tflite_path))], None)
    layers = layer_figures(tflite_path, model, data, plain.twin)
    return task_entry(name, [(name, "", layers)], layer_figures(plain.before, model))


def _code_rows(found: Inspection, model: Any) -> list[dict[str, Any]]:
    """Layers whose weights are in codes, and what these take."""
    coded = [layer for layer in found.layer_bytes if layer.code]
    known = None if isinstance(model, models.SavedModel) else model
    names = layer_names([layer.layer for layer in coded], known)
    return [
        {
            "name": name,
            "code": layer.code,
            "weights": layer.weights,
            "unique": layer.unique,
            "bytes": layer.bytes,
            "decoded": layer.decoded_bytes,
        }
        for layer, name in zip(coded, names, strict=True)
    ]


def _names(found: Inspection, model: Any) -> dict[tuple[int, int], str]:
    """The names of layers by (subgraph, index) of operators."""
    known = None if isinstance(model, models.SavedModel) else model
    names = layer_names([op.layer for op in found.operators], known)
    return {(op.subgraph, op.index): name for op, name in zip(found.operators, names, strict=True)}


def _latency(
    tflite_path: str | os.PathLike[str], plain: FloatFiles | None, say: Progress
) -> list[FileBenchmark]:
    """Of the file, and of the float32 file where there is one; ratios are to the latter."""

    def tell(done: int, total: int) -> None:
        say("benchmark", done, total)

    if plain is None:
        return list(benchmark(tflite_path, runs=RUNS, rounds=ROUNDS, progress=tell).files)
    with temporary.folder() as folder:
        other = Path(folder, "float32.tflite")
        other.write_bytes(plain.float32)
        paths = [other, tflite_path]
        return list(benchmark(paths, runs=RUNS, rounds=ROUNDS, progress=tell).files)[::-1]


def _cards(
    found: Inspection, verified: Verification, times: list[FileBenchmark]
) -> list[tuple[str, str, str]]:
    """What matters most: a name, a figure and its unit."""
    differences = [output.keras for output in verified.outputs]
    agreements = [d.agreement for d in differences if d.agreement is not None]
    cards = [
        ("File", number(found.file_bytes / 1024, 1), "KiB"),
        ("Zipped", number(found.zipped_bytes / 1024, 1), "KiB"),
        ("Latency, one thread", significant(times[0].median_ms), "ms"),
    ]
    if len(times) > 1:
        cards.append(("Beside float32", number(times[0].ratio, 2), "× latency"))
    if agreements:
        cards.append(("Argmax as in Keras", number(100 * min(agreements), 1), "%"))
    ratios = [d.sqnr_db for d in differences]
    # `min` alone would keep or drop NaN by where it stands.
    worst = math.nan if any(map(math.isnan, ratios)) else min(ratios)
    cards.append(("Outputs’ SQNR", *_decibels(worst)))
    if found.sparsity is not None:
        cards.append(("Sparsity", number(100 * found.sparsity, 1), "%"))
        cards.append(("Weights", number(found.weights), ""))
    return cards


def _decibels(value: float) -> tuple[str, str]:
    if math.isnan(value):
        return MISSING, ""
    return ("equal", "") if value >= EXACT_DB else (number(value, 1), "dB")


def _outputs(output: OutputCheck) -> list[dict[str, Any]]:
    pairs = (
        ("Keras and LiteRT’s reference kernels", output.keras),
        ("reference kernels and XNNPACK", output.xnnpack),
    )
    return [
        {"output": output, "what": what, "cells": _cells(difference)} for what, difference in pairs
    ]


def _cells(found: Difference) -> list[tuple[str, Any]]:
    agreement = None if found.agreement is None else 100 * found.agreement
    ratio = found.sqnr_db
    # Infinite ones have a place in the order, too.
    place = ratio if math.isnan(ratio) else max(-EXACT_DB, min(ratio, EXACT_DB))
    return [
        (number(found.max_lsb, 2), _known(found.max_lsb)),
        (number(found.mean_lsb, 4), _known(found.mean_lsb)),
        (significant(found.max_abs), _known(found.max_abs)),
        (number(agreement, 2), _known(agreement)),
        (_decibels(ratio)[0], _known(place)),
    ]


def _known(value: float | None) -> float | str:
    return "" if value is None or not math.isfinite(value) else value


def _time_row(found: FileBenchmark, which: str) -> dict[str, Any]:
    return {
        "which": which,
        "cells": [
            significant(found.median_ms),
            significant(found.p90_ms),
            significant(found.min_ms),
            number(found.ratio, 2),
            number(found.file_bytes / 1024, 1),
            number(found.zipped_bytes / 1024, 1),
            number(found.activation_bytes / 1024, 1),
        ],
    }


_LAYERS = 3


def check_rows(found: Check, names: dict[tuple[int, int], str]) -> dict[str, Any]:
    """A check with its operators grouped by what was said of them."""
    groups: dict[tuple[Any, ...], list[OperatorCheck]] = {}
    for op in found.operators:
        key = (op.mapped, op.name, op.dtype, op.status, op.reason)
        groups.setdefault(key, []).append(op)
    # What is not mapped comes first: it is what is to be mended.
    ordered = sorted(groups.values(), key=lambda ops: (ops[0].mapped, -len(ops)))
    return {
        "target": found.target,
        "title": found.title,
        "verdict": verdict_on(found),
        "passed": found.passed,
        "runs_in_parts": found.runs_in_parts,
        "mapped": found.mapped,
        "count": len(found.operators),
        "caution": caution(found),
        "mends": found.mends,
        "fatal": [finding.text for finding in found.findings if finding.fatal],
        "notes": [finding.text for finding in found.findings if not finding.fatal],
        "activation_bytes": found.activation_bytes,
        "constant_bytes": found.constant_bytes,
        "groups": [_group(ops, names) for ops in ordered],
    }


def _group(ops: list[OperatorCheck], names: dict[tuple[int, int], str]) -> dict[str, Any]:
    first = ops[0]
    layers = [names.get((op.subgraph, op.index)) or f"operator {op.index}" for op in ops]
    more = f" and {len(layers) - _LAYERS} more" if len(layers) > _LAYERS else ""
    return {
        "name": first.name,
        "dtype": first.dtype,
        "mapped": first.mapped,
        "count": len(ops),
        "status": first.status,
        "reason": first.reason or "",
        "mend": first.mend or "",
        "source": first.source or "",
        "layers": ", ".join(layers[:_LAYERS]) + more,
    }
