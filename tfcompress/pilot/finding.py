"""The end of a search: the best of what was tried, written and told."""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfcompress.files import writing
from tfcompress.files.quantities import as_time
from tfcompress.fine_tuning.options import Options
from tfcompress.pilot.asked import TRAINING, Asked
from tfcompress.pilot.budget import COSTS, QUALITY, Goal
from tfcompress.pilot.job import CODED, FILE, MODEL, Job
from tfcompress.pilot.judging import Judge
from tfcompress.pilot.ledger import DONE, FAILED, Record
from tfcompress.pilot.page import write_search_report
from tfcompress.pilot.result import AutoResult, Tried, front_of, missed_words, worth_of
from tfcompress.pilot.search import FLOAT, Search
from tfcompress.pilot.space import Space
from tfcompress.search.layer_latency import Clock

# Two measurements of one latency differ by as much.
_NOISE = 0.02
# By how much a search may be longer than it was asked to be.
_LONGER = 1.05


@dataclasses.dataclass(frozen=True)
class Finding:
    """A search that has ended.

    Attributes:
        asked: what it was asked for.
        search, space: what was done.
        model, data: the files.
        judge: of outputs.
        job: makes the job of a record.
    """

    asked: Asked
    search: Search
    space: Space
    model: str
    data: str
    judge: Judge
    job: Callable[..., Job]

    def written(self, start: float, keep_files: bool, report: bool) -> AutoResult:
        """Writes the best file and what belongs to it.

        Args:
            start: of the search, by `time.monotonic`.

        Raises:
            ValueError: if nothing keeps the budgets, or there was no time for one trial.
        """
        goal, base = self.search.goal, self.search.base()
        assert goal is not None
        assert base is not None
        records = [r for r in self.search.ledger.records() if r.key != FLOAT]
        tried = self._tried(records, goal)
        self._check_time(records, base, start)
        best = self._best(records, tried, goal, base)
        if best is None:
            raise ValueError(
                f"nothing that was tried keeps the budget {self.asked.budget.text}: "
                f"{missed_words(goal, tried)}. Raise what is missed, or go on with --resume and "
                "more --time."
            )
        record, chosen = best
        commands = [self._command(record)]
        self._write(record, commands)
        if not keep_files:
            self._tidy(records, tried, goal)
        measure, up = self.judge.chosen(base.figures["measures"])
        found = AutoResult(
            model=self.model,
            output=self.asked.written[0],
            keras=self.asked.written[1],
            recipe=self.asked.written[2],
            report=self.asked.written[3] if report else None,
            commands=tuple(commands),
            target=self.asked.target,
            budget=self.asked.budget.text,
            bounds=dict(goal.bounds),
            measure=measure,
            up=up,
            judged_on=len(self.judge.data),
            error=_error(record, base),
            float_file={QUALITY: base.figures[QUALITY], **_costs(base.figures)},
            best=chosen,
            tried=tuple(tried),
            worth=tuple(worth_of(chosen, tried, self.space.mildest)),
            seconds=round(time.monotonic() - start, 1),
            folder=os.fspath(self.asked.folder),
        )
        if report:
            write_search_report(found, self.asked.written[3])
        return found

    def _write(self, record: Record, commands: Sequence[str]) -> None:
        """Writes the file, the model and the recipe."""
        place = self.asked.folder / record.place
        file, keras, recipe, _ = self.asked.written
        head = ["Found by tfcompress auto; made again by", *commands]
        contents = {
            file: (place / (CODED if record.figures["coded"] else FILE)).read_bytes(),
            keras: (place / MODEL).read_bytes(),
            recipe: ("".join(f"# {line}\n" for line in head) + record.recipe).encode(),
        }
        for path, content in contents.items():
            writing.atomic_write(path, content)

    def _check_time(self, records: Sequence[Record], base: Record, start: float) -> None:
        """Raises if there was no time for one trial."""
        given, took = self.asked.seconds, time.monotonic() - start
        ended = [r for r in records if r.status in (DONE, FAILED)]
        if given is None or len(ended) > 1 or took <= given * _LONGER:
            return
        raise ValueError(
            f"time must be enough for one trial; received {as_time(given)}. After the float model, "
            f"which took {as_time(base.figures['seconds'])}, the first trial ended at "
            f"{as_time(took)}. Give some times as much, --time {math.ceil(took / 15)}m, or go on "
            "from here with --resume."
        )

    def _tried(self, records: Sequence[Record], goal: Goal) -> list[Tried]:
        """What is told of each trial."""
        rows = [_figures(r, goal) if r.status == DONE else None for r in records]
        fronts = front_of(rows, goal.up)
        found = []
        for record, row, front in zip(records, rows, fronts, strict=True):
            kept = (self.asked.folder / record.place / MODEL).exists()
            found.append(
                Tried(
                    number=record.number,
                    picks=record.picks,
                    epochs=sum(self.search.turns[: record.turn]),
                    quality=record.figures.get(QUALITY),
                    costs=_costs(record.figures),
                    seconds=record.figures.get("seconds"),
                    front=front,
                    met=row is not None and not goal.missed(record.figures),
                    error=record.error if record.status == FAILED else None,
                    files=record.place if kept else None,
                )
            )
        return found

    def _best(
        self, records: Sequence[Record], tried: Sequence[Tried], goal: Goal, base: Record
    ) -> tuple[Record, Tried] | None:
        """The best trial that keeps all budgets, also when its latency is measured alone.

        The best of many is flattered by the samples that it was chosen on: one is taken that keeps
        its quality by more than the standard error, if there is any.
        """
        pairs = [(r, t) for r, t in zip(records, tried, strict=True) if t.met and t.files]

        def order(pair: tuple[Record, Tried]) -> tuple[bool, float, int]:
            figures = pair[0].figures
            error = _error(pair[0], base) or 0.0
            surely = {**figures, QUALITY: figures[QUALITY] + (-error if goal.up else error)}
            return bool(goal.missed(surely)), goal(figures), pair[0].number

        for record, each in sorted(pairs, key=order):
            if "latency" not in goal.bounds or self._is_fast(record, goal.bounds["latency"]):
                return record, each
        return None

    def _is_fast(self, record: Record, bound: float) -> bool:
        """Whether a file keeps its latency while nothing else runs."""
        folder = self.asked.folder
        paths = folder / "trials" / FLOAT / "0" / FILE, folder / record.place / FILE
        _, (ratio,) = Clock().measured(folder, [path.read_bytes() for path in paths], whole=True)
        return ratio <= bound * (1 + _NOISE)

    def _tidy(self, records: Sequence[Record], tried: Sequence[Tried], goal: Goal) -> None:
        """Removes files of trials that no budgets would ask for; recipes and figures stay."""
        rows = [{QUALITY: t.quality, **t.costs} if t.quality is not None else None for t in tried]
        for record, best in zip(records, front_of(rows, goal.up), strict=True):
            if not best:
                shutil.rmtree(self.asked.folder / record.place, ignore_errors=True)

    def _command(self, record: Record) -> str:
        """The command that makes the file again."""
        turns = self.search.turns[: record.turn]
        job = self.job(record, Path(), turns, False)
        told: dict[str, Any] = {
            "recipe": self.asked.written[2],
            "data": self.data,
            "epochs": "+".join(map(str, turns)) or "0",
            "output": self.asked.written[0],
        }
        usual = usual_training()
        told |= {k: v for k, v in job.training.items() if v not in (None, usual[k])}
        told |= {"target": job.target, "io_dtype": job.io_dtype}
        if record.figures["coded"]:
            told |= {"compressed_weights": True, "ram": job.ram}
        words = ["tfcompress", "compress", self.model]
        for name, value in told.items():
            if value is not None:
                words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        return shlex.join(words)


def usual_training() -> dict[str, Any]:
    """What trainings are by default, as `fine_tune` has it."""
    return {f.name: f.default for f in dataclasses.fields(Options) if f.name in TRAINING}


def _error(record: Record, base: Record) -> float | None:
    """Standard error of how far the quality is from the float file's; None if that is not known."""
    pairs = list(zip(record.figures["parts"], base.figures["parts"], strict=True))
    if not pairs:
        return None
    return statistics.stdev(a - b for a, b in pairs) / math.sqrt(len(pairs))


def _costs(figures: Mapping[str, Any]) -> dict[str, float]:
    return {name: figures[name] for name in COSTS if name in figures}


def _figures(record: Record, goal: Goal) -> dict[str, float]:
    """What decides of the front: the quality, and costs that have budgets, or flash, RAM, MACs."""
    costs = [n for n in goal.bounds if n != QUALITY] or ["flash", "ram", "macs"]
    return {name: record.figures[name] for name in (QUALITY, *costs)}
