"""The figures that are measured, and what lines of results say of them for each method."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from tfcompress.bench.methods import METHODS
from tfcompress.bench.tasks import TASKS
from tfcompress.report.page import MISSING, spread
from tfcompress.results import is_number

Row = dict[str, Any]
FLOAT = "float32"


@dataclasses.dataclass(frozen=True)
class Mean:
    """Of a figure over `count` seeds, with the sample standard deviation, 0 of a single one."""

    mean: float
    std: float
    count: int


@dataclasses.dataclass(frozen=True)
class Column:
    """A figure that is measured, and how tables and plots show it.

    Attributes:
        figure: its name in `Summary`, and in lines of results.
        title, unit: for the heading.
        about: what it is.
        scale: what a value is multiplied by.
        digits: behind the point.
        more: whether more of it is better.
        sign: whether a plus is written, too.
        path: where lines of results have it, if not by its name.
    """

    figure: str
    title: str
    unit: str
    about: str
    scale: float = 1
    digits: int = 2
    more: bool = False
    sign: bool = False
    path: tuple[str, ...] = ()

    def text(self, found: Mean | None) -> str:
        """A mean with its standard deviation, without the unit."""
        if found is None:
            return MISSING
        mean, std = found.mean * self.scale, found.std * self.scale
        return spread(mean, std, found.count, self.digits, self.sign)

    def said(self, found: Mean | None) -> str:
        """A mean with its standard deviation and the unit."""
        return MISSING if found is None else f"{self.text(found)} {self.unit}".rstrip()


QUALITY = Column(
    "quality",
    "Quality",
    "%",
    "Accuracy, or area under the ROC curve, of the .tflite file on the whole test set, on LiteRT.",
    scale=100,
    more=True,
)
ZIPPED = Column(
    "zipped",
    "Zipped",
    "KiB",
    "The file in a zip archive (deflate), as apps ship it.",
    scale=1 / 1024,
    digits=1,
)
LATENCY = Column(
    "ms",
    "Latency",
    "ms",
    "Median of one sample on one thread, LiteRT with XNNPACK; all files of a task take turns.",
    digits=4,
)

# All figures, in the order of the tables.
COLUMNS = (
    QUALITY,
    Column(
        "loss",
        "Against float32",
        "points",
        "The quality minus that of the float32 file of the same seed.",
        scale=100,
        more=True,
        sign=True,
    ),
    ZIPPED,
    Column("bytes", "File", "KiB", "The .tflite file as it is.", scale=1 / 1024, digits=1),
    Column(
        "flash",
        "Flash",
        "KiB",
        "The file whose weights TFLite Micro decodes as it runs, equal to the other bit for bit.",
        scale=1 / 1024,
        digits=1,
    ),
    LATENCY,
    Column(
        "ratio",
        "Latency",
        "× float32",
        "The median of paired ratios to the latency of the float32 file.",
    ),
    Column(
        "no_amx_ratio",
        "Latency without AMX",
        "× float32",
        "The same with AMX refused, which the processors of phones lack.",
        path=("no_amx", "ratio"),
    ),
    Column(
        "threads_ratio",
        "Latency on all cores",
        "× float32",
        "The same on all cores.",
        path=("threads", "ratio"),
    ),
    Column(
        "step_cpu_ratio",
        "Training step",
        "× plain",
        "CPU time of a fine-tuning step, paired with steps of the plain float model in the same "
        "kit.",
    ),
    Column(
        "keras_step_cpu_ratio",
        "Training step",
        "× Keras",
        "The same, to steps of the plain float model in Keras 3: what training costs beside it.",
    ),
    Column(
        "step_cpu_ms",
        "Training step",
        "ms CPU",
        "CPU time of a fine-tuning step, all threads.",
        digits=1,
    ),
    Column("quality_keras", "In Keras", "%", "Quality of the Keras model.", scale=100, more=True),
    Column("params", "Parameters", "", "Of the Keras model.", digits=0),
    Column(
        "macs",
        "MACs",
        "million",
        "Multiplications with addition, of the Keras model.",
        scale=1e-6,
    ),
    Column("convert_s", "Conversion", "s", "Time to write the file."),
    Column(
        "peak_mb",
        "Peak memory",
        "MiB",
        "Added by the method, its conversion, and plain models beside it.",
        digits=0,
    ),
    Column(
        "cycles",
        "Vela",
        "k cycles",
        "By Arm's Vela compiler for an Ethos-U55-128.",
        scale=1e-3,
        digits=0,
        path=("vela", "cycles"),
    ),
    Column("sram_kib", "Vela SRAM", "KiB", "As above.", digits=1, path=("vela", "sram_kib")),
    Column("flash_kib", "Vela flash", "KiB", "As above.", digits=1, path=("vela", "flash_kib")),
    Column(
        "cpu_ops",
        "Vela, left to the CPU",
        "operators",
        "If any, nothing else is shown.",
        digits=0,
        path=("vela", "cpu_ops"),
    ),
    Column("seconds", "All in all", "s", "Training, conversion and scoring of one seed.", digits=1),
)
BY_FIGURE = {column.figure: column for column in COLUMNS}


@dataclasses.dataclass(frozen=True)
class Summary:
    """One method on one task.

    Attributes:
        task, method, who, family, title, measure: see the lines of results.
        values: figure -> {seed: value}; see `mean`.
        errors: of the seeds that failed.
    """

    task: str
    method: str
    who: str
    family: str
    title: str
    measure: str
    values: dict[str, dict[int, float]]
    errors: tuple[str, ...] = ()

    def mean(self, figure: str) -> Mean | None:
        """Of a figure over the seeds that have it; None if none has."""
        return mean_of(self.values.get(figure, {}).values())


def mean_of(values: Iterable[float]) -> Mean | None:
    """The mean of numbers, None of none."""
    numbers = list(values)
    if not numbers:
        return None
    std = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    return Mean(statistics.fmean(numbers), std, len(numbers))


def summarize(rows: Sequence[Row]) -> list[Summary]:
    """Brings together the seeds of each method."""
    found: dict[tuple[str, str], Summary] = {}
    for row in map(_of_npu, rows):
        if row["kind"] not in ("run", "latency", "vela"):
            continue
        key = row["task"], row["method"]
        if row["kind"] == "run":
            summary = found.setdefault(key, _empty(row))
            if row["status"] != "ok":
                told = (*summary.errors, str(row.get("error")))
                found[key] = dataclasses.replace(summary, errors=told)
                continue
        for column in COLUMNS:
            value: Any = row
            for step in column.path or (column.figure,):
                value = value.get(step) if isinstance(value, dict) else None
            if is_number(value) and key in found:
                found[key].values.setdefault(column.figure, {})[row["seed"]] = float(value)
    return sorted(found.values(), key=_place)


def with_loss(each: Summary, others: list[Summary]) -> Summary:
    """With its quality minus that of float32, seed by seed."""
    plain = next((s for s in others if (s.task, s.method) == (each.task, FLOAT)), None)
    base = plain.values.get("quality", {}) if plain else {}
    own = each.values.get("quality", {})
    lost = {seed: own[seed] - base[seed] for seed in own if seed in base}
    return dataclasses.replace(each, values={**each.values, "loss": lost})


def _of_npu(row: Row) -> Row:
    """Without what Vela counts where an NPU runs but a part of a file: it tells too little."""
    vela = row.get("vela")
    left = vela.get("cpu_ops") if isinstance(vela, dict) else None
    return {**row, "vela": {"cpu_ops": left}} if left else row


def _place(one: Summary) -> tuple[int, int]:
    tasks, methods = list(TASKS), list(METHODS)
    return (
        tasks.index(one.task) if one.task in TASKS else len(tasks),
        methods.index(one.method) if one.method in METHODS else len(methods),
    )


def _empty(row: Row) -> Summary:
    names = ("task", "method", "who", "family", "title")
    about = {name: row[name] for name in names}
    return Summary(**about, measure=row.get("measure") or "accuracy", values={})


def known(columns: Sequence[Column], summaries: Sequence[Summary]) -> list[Column]:
    """The columns that have a value in any of the rows."""
    return [c for c in columns if any(s.mean(c.figure) is not None for s in summaries)]
