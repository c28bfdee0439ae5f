"""The figures of a method: what they are called, and how they are written."""

from __future__ import annotations

import dataclasses

from tfcompress.bench.summaries import Mean, Summary
from tfcompress.report.numbers import MISSING, spread


@dataclasses.dataclass(frozen=True)
class Column:
    """A figure in the tables and the plots.

    Attributes:
        figure: its name in `summaries.Summary`.
        title, unit: for the heading.
        scale: what a value is multiplied by.
        digits: behind the point.
        about: what it is.
        more: whether more of it is better.
        sign: whether a plus is written, too.
    """

    figure: str
    title: str
    unit: str
    scale: float
    digits: int
    about: str
    more: bool = False
    sign: bool = False

    def text(self, found: Mean | None) -> str:
        """A mean with its standard deviation, without the unit."""
        if found is None:
            return MISSING
        mean, std = found.mean * self.scale, found.std * self.scale
        return spread(mean, std, found.count, self.digits, self.sign)

    def said(self, found: Mean | None) -> str:
        """A mean with its standard deviation and the unit."""
        return MISSING if found is None else f"{self.text(found)} {self.unit}".rstrip()


_KIB, _MIB = 1 / 1024, 1 / 1024**2

QUALITY = Column(
    "quality",
    "Quality",
    "%",
    100,
    2,
    "Accuracy, or area under the ROC curve, of the .tflite file on the whole test set, on LiteRT.",
    more=True,
)
LOSS = Column(
    "loss",
    "Against float32",
    "points",
    100,
    2,
    "The quality minus that of the float32 file of the same seed.",
    more=True,
    sign=True,
)
ZIPPED = Column(
    "zipped", "Zipped", "KiB", _KIB, 1, "The file in a zip archive (deflate), as apps ship it."
)
LATENCY = Column(
    "ms",
    "Latency",
    "ms",
    1,
    4,
    "Median of one sample on one thread, LiteRT with XNNPACK; all files of a task take turns.",
)
RATIO = Column(
    "ratio",
    "Latency",
    "× float32",
    1,
    2,
    "The median of paired ratios to the latency of the float32 file.",
)
STEP = Column(
    "step_cpu_ratio",
    "Training step",
    "× plain",
    1,
    2,
    "CPU time of a fine-tuning step, paired with steps of the plain float model in the same kit.",
)
KERAS_STEP = Column(
    "keras_step_cpu_ratio",
    "Training step",
    "× Keras",
    1,
    2,
    "The same, to steps of the plain float model in Keras 3: what training costs beside it.",
)
STEP_MS = Column(
    "step_cpu_ms",
    "Training step",
    "ms CPU",
    1,
    1,
    "CPU time of a fine-tuning step, all threads.",
)
NO_AMX = Column(
    "no_amx_ratio",
    "Latency without AMX",
    "× float32",
    1,
    2,
    "The same with AMX refused, which the processors of phones lack.",
)

COLUMNS = (
    QUALITY,
    LOSS,
    ZIPPED,
    Column("bytes", "File", "KiB", _KIB, 1, "The .tflite file as it is."),
    LATENCY,
    RATIO,
    NO_AMX,
    Column("threads_ratio", "Latency on all cores", "× float32", 1, 2, "The same on all cores."),
    STEP,
    KERAS_STEP,
    STEP_MS,
    Column("quality_keras", "In Keras", "%", 100, 2, "Quality of the Keras model.", more=True),
    Column("params", "Parameters", "", 1, 0, "Of the Keras model."),
    Column(
        "macs", "MACs", "million", 1e-6, 2, "Multiplications with addition, of the Keras model."
    ),
    Column("convert_s", "Conversion", "s", 1, 2, "Time to write the file."),
    Column(
        "peak_mb",
        "Peak memory",
        "MiB",
        1,
        0,
        "Added by the method, its conversion, and plain models beside it.",
    ),
    Column("cycles", "Vela", "k cycles", 1e-3, 0, "By Arm's Vela compiler for an Ethos-U55-128."),
    Column("sram_kib", "Vela SRAM", "KiB", 1, 1, "As above."),
    Column("flash_kib", "Vela flash", "KiB", 1, 1, "As above."),
    Column("cpu_ops", "Vela, left to the CPU", "operators", 1, 0, "If any, nothing else is shown."),
    Column("seconds", "All in all", "s", 1, 1, "Training, conversion and scoring of one seed."),
)


def known(columns: tuple[Column, ...], summaries: list[Summary]) -> list[Column]:
    """The columns that have a value in any of the rows."""
    return [c for c in columns if any(s.mean(c.figure) is not None for s in summaries)]
