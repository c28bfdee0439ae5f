"""The benchmark: every method on every task with every seed, and what came of it."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfcompress.bench import tables
from tfcompress.bench.comparison import contests, pairs
from tfcompress.bench.report import write_results_report
from tfcompress.bench.running.results import ResultsFile, Row, latest, machines, of_form, read_rows
from tfcompress.bench.running.turns import Progress, Running, Work, check_data_dir, make_plan
from tfcompress.bench.summaries import summarize
from tfcompress.files import writing
from tfcompress.report.page import require_extra
from tfcompress.results import Result, plain, print_line

if TYPE_CHECKING:
    from rich.console import Console

PathLike = str | os.PathLike[str]
RESULTS = "tfcompress-bench.jsonl"


@dataclasses.dataclass(frozen=True)
class BenchResult(Result):
    """What a benchmark found; prints as tables.

    Attributes:
        rows: lines of results of one form, the last of each method.
        results, report: the files; `report` is None if there is none.
        failed: how many methods failed in this run of the command.
    """

    rows: tuple[Row, ...]
    results: str
    report: str | None = None
    failed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        summaries = summarize(self.rows)
        return {
            "results": self.results,
            "report": self.report,
            "machines": machines(self.rows),
            "methods": plain(summaries),
            "contests": plain(contests(summaries)),
            "pairs": plain(pairs(summaries)),
        }

    def _print(self, console: Console) -> None:
        for table in tables.all_tables(self.rows, console.width):
            table.render(console)
        found = contests(summarize(self.rows))
        if any(each.peer for each in found):
            print_line(console, tables.tally(found))
        for row in self.rows:
            if row["kind"] == "run" and row["status"] != "ok":
                line = f"{row['task']}, seed {row['seed']}, {row['method']} failed: {row['error']}"
                print_line(console, line)
        where = f"Measured on {tables.machine_line(self.rows)}"
        print_line(console, where)
        where = f"Results: {self.results}" + (f"; report: {self.report}" if self.report else "")
        print_line(console, where)


def bench(
    tasks: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    *,
    seeds: int = 1,
    form: str = "full",
    data_dir: PathLike | None = None,
    results: PathLike = RESULTS,
    report: PathLike | None = None,
    vela: bool = False,
    progress: Progress | None = None,
    work: Work | None = None,
) -> BenchResult:
    """Trains, converts and runs each method on each task, beside one another.

    What the results file has already, with the same versions, data and trainings, is not run
    again; if you change how a method works, remove its lines. Each method runs in a process of its
    own; one that fails is a line of the results and a warning.

    Args:
        tasks, methods: their names; all if None. float32 is always among the methods.
        form: "full", "short" or "long"; see `Task.trainings`.
        progress: called as `progress(stage, done, total)`.
    """
    plan = make_plan(tasks, methods, seeds, form)
    page = _page(results, report)
    folder = None if data_dir is None else Path(data_dir)
    check_data_dir(folder)
    with ResultsFile(results) as file:
        running = Running(plan, file, progress or (lambda *told: None), work or Work())
        running.run(folder, vela)
        rows = of_form(latest(file.rows), plan.form)
    return _drawn(rows, results, page, failed=running.failed)


def report_only(
    results: PathLike = RESULTS, report: PathLike | None = None, form: str | None = None
) -> BenchResult:
    """Draws table and report anew from a results file."""
    rows = of_form(latest(read_rows(results)), form)
    if not any(row["kind"] == "run" for row in rows):
        what = f" of the {form} form" if form else ""
        raise ValueError(f"'{results}' has no results{what}. Run `tfcompress bench` first.")
    return _drawn(rows, results, _page(results, report))


def _page(results: PathLike, report: PathLike | None) -> Path | None:
    """Where the report goes; None if it cannot be drawn and was not asked for."""
    try:
        require_extra()
    except ImportError as error:
        if report is not None:
            raise
        warnings.warn(f"only the table is made: {error}", stacklevel=3)
        return None
    page = Path(results).with_suffix(".html") if report is None else Path(report)
    if writing.is_same(page, results):
        raise ValueError(
            f"the report would take the place of the results, '{results}'. Name another file with "
            "--report."
        )
    writing.check_writable(page)
    return page


def _drawn(rows: list[Row], results: PathLike, page: Path | None, failed: int = 0) -> BenchResult:
    if page is not None:
        write_results_report(rows, page)
    return BenchResult(tuple(rows), os.fspath(results), str(page) if page else None, failed)
