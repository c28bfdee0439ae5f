"""The report on one .tflite file and the Keras model that it came from."""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfcompress import files
from tfcompress.bench.running.machine import describe
from tfcompress.report.check_rows import check_rows
from tfcompress.report.layer_data import task_entry
from tfcompress.report.layers import EXACT_DB, layer_figures
from tfcompress.report.numbers import MISSING, number, significant
from tfcompress.report.page import require_extra, write_page
from tfcompress.report.tensor_names import layer_names
from tfcompress.tflite.benchmark import FileBenchmark, benchmark
from tfcompress.tflite.check import check
from tfcompress.tflite.differences import Difference
from tfcompress.tflite.inspect import Inspection, inspect
from tfcompress.tflite.verification import OutputCheck, Verification

if TYPE_CHECKING:
    from tfcompress.report.float_model import FloatFiles

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

    Args:
        model: the `keras.Model` that was converted, or the path of a .keras, .h5 or SavedModel.
        tflite_path: the file that was made of it.
        path: of the report.
        data: samples of the inputs in real values, as for `tfcompress.verify`.
        target: a name, a target file or a loaded target, see `tfcompress.check`; None leaves it
            out.
        samples: at most so many samples; all by default.
        progress: called as `progress(stage, done, total)`.

    Returns:
        The bytes of the report.

    Raises:
        ValueError: a file or the data cannot be read, or do not belong together.
        ImportError: Jinja2 or plotly is missing.
        OSError: the report cannot be written.

    Example:
        >>> write_model_report("qat.keras", "model.tflite", "report.html", x)  # doctest: +SKIP
        5001202
    """
    require_extra()
    say = progress or (lambda stage, done, total: None)
    found = inspect(tflite_path)
    name = Path(tflite_path).name
    # Where a file lies is nobody else's business.
    checked = None if target is None else dataclasses.replace(check(tflite_path, target), path=name)
    from tfcompress.report.float_model import float_files
    from tfcompress.tflite.verify import verify

    if isinstance(model, (str, os.PathLike)):
        model = files.load_model(model)
    if hasattr(data, "__next__"):
        data = _Replay(data)
    verified = verify(model, tflite_path, data, samples=samples, progress=progress)
    say("layers", 0, None)
    # The layers of a SavedModel are not known.
    plain = None if isinstance(model, files.SavedModel) else float_files(model, tflite_path)
    entry = _layers(model, tflite_path, data, plain)
    times = _latency(tflite_path, plain, say)
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


def _names(found: Inspection, model: Any) -> dict[tuple[int, int], str]:
    """The names of layers by (subgraph, index) of operators."""
    known = None if isinstance(model, files.SavedModel) else model
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
    with tempfile.TemporaryDirectory() as folder:
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
