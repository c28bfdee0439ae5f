"""What lines of results say of each method: figures by seed, and their means."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from tfcompress.bench.methods import METHODS
from tfcompress.bench.tasks import TASKS
from tfcompress.results import is_number

Row = dict[str, Any]
FLOAT = "float32"

# name -> where a line of results has it
_FIGURES: dict[str, tuple[str, ...]] = {
    **{
        name: (name,)
        for name in "quality quality_keras bytes zipped params macs convert_s step_cpu_ms "
        "step_cpu_ratio keras_step_cpu_ratio peak_mb ms ratio seconds".split()
    },
    "threads_ratio": ("threads", "ratio"),
    "no_amx_ratio": ("no_amx", "ratio"),
    "cycles": ("vela", "cycles"),
    "sram_kib": ("vela", "sram_kib"),
    "flash_kib": ("vela", "flash_kib"),
    "cpu_ops": ("vela", "cpu_ops"),
}


@dataclasses.dataclass(frozen=True)
class Mean:
    """Of a figure over `count` seeds, with the sample standard deviation, 0 of a single one."""

    mean: float
    std: float
    count: int


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
        for name, path in _FIGURES.items():
            value: Any = row
            for step in path:
                value = value.get(step) if isinstance(value, dict) else None
            if is_number(value) and key in found:
                found[key].values.setdefault(name, {})[row["seed"]] = float(value)
    return sorted(found.values(), key=_place)


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
