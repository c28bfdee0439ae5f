"""The report on one .tflite file and the Keras model that it came from."""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfcompress import files
from tfcompress.bench.running.machine import describe
from tfcompress.report.check_rows import check_rows
from tfcompress.report.layer_data import task_entry
from tfcompress.report.layers import EXACT_DB, layer_figures
from tfcompress.report.numbers import MISSING, number, significant
from tfcompress.report.page import require_extra, write_page
from tfcompress.report.tensor_names import layer_names
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.benchmark import FileBenchmark, benchmark
from tfcompress.tflite.check import check
from tfcompress.tflite.differences import Difference
from tfcompress.tflite.inspect import Inspection, inspect
from tfcompress.tflite.verification import OutputCheck, Verification

Progress = Callable[[str, int, int | None], Any]
RUNS, ROUNDS = 20, 5
FILE, FLOAT = "this file", "float32 file of the same model"


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
    from tfcompress.tflite.verify import verify

    if isinstance(model, (str, os.PathLike)):
        model = files.load_model(model)
    if hasattr(data, "__next__"):  # It can be gone through but once.
        data = list(data)
    verified = verify(model, tflite_path, data, samples=samples, progress=progress)
    say("layers", 0, None)
    twin = _float_file(model, tflite_path)
    entry = _layers(model, tflite_path, data, twin)
    times = _latency(tflite_path, twin, say)
    values = {
        "title": name,
        "model": getattr(model, "name", "") or "the model",
        "cards": _cards(found, verified, times),
        "verified": verified,
        "outputs": [row for output in verified.outputs for row in _outputs(output)],
        "times": [_time_row(*pair) for pair in zip(times, (FILE, FLOAT), strict=False)],
        "rounds": f"{ROUNDS} rounds of {RUNS} runs",
        "found": found,
        "dtypes": sorted(found.dtype_bytes.items(), key=lambda item: -item[1]),
        "ports": [("input", t) for t in found.inputs] + [("output", t) for t in found.outputs],
        "operators": sorted(found.op_counts, key=lambda c: -c.count),
        "check": None if checked is None else check_rows(checked, _names(found, model)),
        "layers": [entry],
        "machine": describe(),
    }
    return write_page(path, "model.html", values, {"figures": {}, "layers": [entry]})


def _layers(
    model: Any, tflite_path: str | os.PathLike[str], data: Any, twin: bytes | None
) -> dict[str, Any]:
    """The layers of the file, beside those of the float file where there is one."""
    name = Path(tflite_path).name
    if twin is None:
        return task_entry(name, [(name, "", layer_figures(tflite_path))], None)
    layers = layer_figures(tflite_path, model, data, twin)
    return task_entry(name, [(name, "", layers)], layer_figures(twin, model))


def _names(found: Inspection, model: Any) -> dict[tuple[int, int], str]:
    """The names of layers by (subgraph, index) of operators."""
    known = None if isinstance(model, files.SavedModel) else model
    names = layer_names([op.layer for op in found.operators], known)
    return {(op.subgraph, op.index): name for op, name in zip(found.operators, names, strict=True)}


def _float_file(model: Any, tflite_path: str | os.PathLike[str]) -> bytes | None:
    """The float32 file of a model; None of a SavedModel, whose layers are not known."""
    if isinstance(model, files.SavedModel):
        return None
    from tfcompress.tflite.layer_errors import float_twin

    return flatbuffer.write(float_twin(model, flatbuffer.read(tflite_path)))


def _latency(
    tflite_path: str | os.PathLike[str], twin: bytes | None, say: Progress
) -> list[FileBenchmark]:
    """Of the file, and of the float file where there is one; ratios are to the latter."""

    def tell(done: int, total: int) -> None:
        say("benchmark", done, total)

    if twin is None:
        return list(benchmark(tflite_path, runs=RUNS, rounds=ROUNDS, progress=tell).files)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "float32.tflite")
        plain.write_bytes(twin)
        paths = [plain, tflite_path]
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
    cards.append(("Outputs’ SQNR", *_decibels(min(d.sqnr_db for d in differences))))
    if found.sparsity is not None:
        cards.append(("Sparsity", number(100 * found.sparsity, 1), "%"))
        cards.append(("Weights", number(found.weights), ""))
    return cards


def _decibels(value: float) -> tuple[str, str]:
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
    return [
        (number(found.max_lsb, 2), _known(found.max_lsb)),
        (number(found.mean_lsb, 4), _known(found.mean_lsb)),
        (significant(found.max_abs), _known(found.max_abs)),
        (number(agreement, 2), _known(agreement)),
        (MISSING if math.isnan(ratio) else _decibels(ratio)[0], _known(ratio)),
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
