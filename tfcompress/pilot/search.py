"""The search itself: which trial comes next, until time is over or nothing is left to try.

Candidates get a short training first; the best third goes on for longer, and of these again the
best third (successive halving, begun anew whenever one is due: Li et al. 2018, arXiv:1810.05934).
Going on takes up the training where it stopped.
"""

from __future__ import annotations

import math
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfcompress.pilot.budget import QUALITY, Goal
from tfcompress.pilot.job import CODED, FILE, LOG, MODEL, OUTPUTS, RECIPE, Job
from tfcompress.pilot.ledger import DONE, RUNNING, Ledger, Record
from tfcompress.pilot.space import Candidate, Space
from tfcompress.pilot.workers import Workers

# Of the candidates of a turn this share goes on.
_THIRD = 3
# So many of a turn go on when it is late, however few it has.
_LAST = 3
# From this part of the time, or of the trials, on what is there goes on, and nothing new begins.
_LATE = 0.6
# What a turn of training is hoped to add to the quality, as a part of the float file's.
_HOPED = 0.01
# A cost that is missed by more than this is no matter of training.
_HOPELESS = 0.02
# How often a sampler is asked for something that was not tried.
_ASKED = 30
# And how many are drawn at random after that.
_DRAWN = 500
# Seconds kept for what comes after the search, and the part of its time.
_END_SECONDS, _END_PART = 2.0, 0.01
# Seconds that the float model and the first trial may take, whatever time there is.
_FIRST = 3600.0
FLOAT = "float"


class Deadline:
    """How much of a search is left.

    Args:
        seconds: of the search; None: until the trials are done.
        trials: beside the float model; None: until the time is over.
        start: when it began, by `time.monotonic`.
    """

    def __init__(self, seconds: float | None, trials: int | None, start: float):
        self._start = start
        self.seconds, self.trials = seconds, trials

    @property
    def left(self) -> float:
        """Seconds for trials."""
        if self.seconds is None:
            return math.inf
        end = self.seconds - max(_END_SECONDS, _END_PART * self.seconds)
        return end - (time.monotonic() - self._start)

    def is_over(self, done: int) -> bool:
        """Whether no trial may begin, after so many."""
        return self.left <= 0 or (self.trials is not None and done >= self.trials)

    def is_late(self, done: int) -> bool:
        """Whether it is time to finish what is there."""
        parts = [0.0]
        if self.seconds is not None:
            parts.append((time.monotonic() - self._start) / self.seconds)
        if self.trials is not None:
            parts.append(done / self.trials)
        return max(parts) >= _LATE


class Search:
    """A search in progress.

    Args:
        ledger: what was tried.
        space: of candidates.
        turns: epochs of each turn of a training.
        job: what all trials share; folder, recipe and epochs are those of each.
        workers: which carry trials out.
        deadline: when to end.
        judge: gives figures of the outputs in a folder, "quality" among them.
        goal_of: makes the goal, once the figures of the float model are known.
        objectives: what the engine is told of figures.
        rate: of the optimizer, which `rate` of a training multiplies.
        tell: called as `tell(stage, done, total)`.
    """

    def __init__(
        self,
        ledger: Ledger,
        space: Space,
        turns: Sequence[int],
        job: Callable[..., Job],
        workers: Workers,
        deadline: Deadline,
        judge: Callable[[Path], dict[str, Any]],
        goal_of: Callable[[Record], Goal],
        objectives: Callable[[Goal, Mapping[str, Any]], Sequence[float]],
        tell: Callable[[str, int, int | None], Any],
    ):
        self.ledger, self.space, self.turns, self._job = ledger, space, tuple(turns), job
        self.workers, self.deadline, self._judge = workers, deadline, judge
        self._goal_of, self._objectives, self.tell = goal_of, objectives, tell
        self.goal: Goal | None = None
        self._again: list[Record] = []
        self._begun = 0
        made = map(self._made, space.first)
        self._listed = [candidate for candidate in made if candidate is not None]

    def run(self) -> None:
        """Carries out trials until the deadline, or until nothing is left to try."""
        with self.ledger.alone():
            left = self.ledger.left_behind()
        self._again = [record for record in left if record.key != FLOAT]
        self._float()
        self._teach()
        while True:
            while self.workers.busy < self.workers.count and self._begin_next():
                pass
            if not self.workers.busy:
                return
            for outcome in self.workers.ended():
                self._end(*outcome)
            if self._is_hopeless():
                break
        while self.workers.busy:
            for outcome in self.workers.ended():
                self._end(*outcome)

    def _teach(self) -> None:
        """Tells a sampler that is new to these budgets what was tried under others."""
        assert self.goal is not None
        if not self.ledger.known():
            for record in self.done():
                if record.turn <= 1:
                    self.ledger.add(record.picks, self._objectives(self.goal, record.figures))

    def done(self) -> list[Record]:
        """Trials that ended well, the float model aside."""
        return [r for r in self.ledger.records() if r.status == DONE and r.key != FLOAT]

    def base(self) -> Record | None:
        """The float model, once it was measured."""
        every = self.ledger.records()
        return next((r for r in every if r.key == FLOAT and r.status == DONE), None)

    def _float(self) -> None:
        """Measures the float model, which all else is compared with."""
        base = self.base()
        if base is None:
            self.workers.begin(*self._started(self.ledger.begin(FLOAT, 0)), _FIRST)
            for record, figures, error in self.workers.ended():
                base = self._written(record, figures, error)
                if base.status != DONE:
                    raise ValueError(
                        f"the float model cannot be converted and measured: {base.error}"
                    )
        assert base is not None
        self.goal = self._goal_of(base)

    def _begin_next(self) -> bool:
        """Begins the next trial; whether there is one."""
        with self.ledger.alone():
            records = self.ledger.records()
            # What one trial takes is to be known at the end, also where there is no time for it.
            is_first = all(r.key == FLOAT for r in records)
            if not is_first and self.deadline.is_over(self._begun):
                return False
            found = self._next(records)
            if found is None:
                return False
            candidate, turn, asked = found
            if not is_first and self._expected(records, turn) > self.deadline.left:
                return False
            record = self.ledger.begin(candidate.key, turn, candidate, asked)
        self._begun += 1
        what = f"{record.words}, " + (f"turn {turn} of {len(self.turns)}" if turn else "untrained")
        self.tell(f"trial {len(records)} ({what})", self._begun, self.deadline.trials)
        self.workers.begin(*self._started(record), _FIRST if is_first else self.deadline.left)
        return True

    def _next(self, records: Sequence[Record]) -> tuple[Candidate, int, int | None] | None:
        """(candidate, turn, number of the sampler) of what comes next; None: nothing."""
        if self._again:
            cut = self._again.pop(0)
            return Candidate(cut.picks, cut.recipe, cut.training), cut.turn, cut.asked
        begun = {(r.key, r.turn) for r in records}
        for candidate in self._listed:
            if (candidate.key, self._first(candidate)) not in begun:
                return candidate, self._first(candidate), None
        late = self.deadline.is_late(self._begun)
        record = self._due(records, late)
        if record is None:
            found = self._asked(begun)
            # Where all was tried, what is there goes on.
            record = self._due(records, late=True) if found is None else None
            if record is None:
                return found
        return Candidate(record.picks, record.recipe, record.training), record.turn + 1, None

    def _first(self, candidate: Candidate) -> int:
        """The first turn of a candidate: none where nothing is trained."""
        return 1 if candidate.trains else 0

    def _made(self, picks: Mapping[str, str]) -> Candidate | None:
        """The candidate of some picks; None where options do not go together."""
        try:
            return self.space.candidate(picks)
        except ValueError:
            return None

    def _asked(self, begun: set[tuple[str, int]]) -> tuple[Candidate, int, int | None] | None:
        """A candidate that was not tried, of the sampler as long as it finds any."""
        for _ in range(min(_ASKED, 4 * len(self.space))):
            number, picks = self.ledger.ask()
            candidate = self._made(picks)
            if candidate is None:
                self.ledger.tell(number, None)
            elif (candidate.key, self._first(candidate)) in begun:
                self._tell_known(number, candidate)
            else:
                return candidate, self._first(candidate), number
        return self._any(begun)

    def _any(self, begun: set[tuple[str, int]]) -> tuple[Candidate, int, int | None] | None:
        """A candidate at random that was not tried; None if hardly any is left."""
        random = np.random.default_rng([self.ledger.seed, len(begun)])
        for _ in range(_DRAWN):
            picks = {
                part: str(random.choice(list(each))) for part, each in self.space.parts.items()
            }
            candidate = self._made(picks)
            if candidate is not None and (candidate.key, self._first(candidate)) not in begun:
                return candidate, self._first(candidate), None
        return None

    def _tell_known(self, number: int, candidate: Candidate) -> None:
        """Tells the sampler what is known of a candidate already."""
        known = [r for r in self.ledger.records() if r.key == candidate.key and r.turn <= 1]
        done = [r for r in known if r.status == DONE]
        assert self.goal is not None
        values = self._objectives(self.goal, done[-1].figures) if done else None
        self.ledger.tell(number, values)

    def _due(self, records: Sequence[Record], late: bool) -> Record | None:
        """The trial that goes on next: of the best third of its turn, or when it is late the best.

        A third is counted whenever one more has ended, so that nothing waits for a whole round.
        """
        for turn in range(len(self.turns) - 1, 0, -1):
            ended = [r for r in records if r.turn == turn and r.status == DONE]
            further = {r.key for r in records if r.turn > turn}
            gain = self._gain(records, turn)
            ranked = sorted(ended, key=lambda r: (self._score(r, gain), r.number))
            for record in ranked[: _LAST if late else len(ranked) // _THIRD]:
                if record.key not in further and self._may_go_on(record):
                    return record
        return None

    def _may_go_on(self, record: Record) -> bool:
        """Whether training can help: what costs too much will do so after it, too."""
        assert self.goal is not None
        missed = self.goal.missed(record.figures)
        return all(part <= _HOPELESS for name, part in missed.items() if name != QUALITY)

    def _gain(self, records: Sequence[Record], turn: int) -> float:
        """What one more turn is expected to add to the quality: the mean of what it added so far,
        which begins with a hope, as else nothing that falls short would ever go on.
        """
        assert self.goal is not None
        hoped = _HOPED * abs(self.goal.base[QUALITY]) * (1 if self.goal.up else -1)
        later = {r.key: r for r in records if r.turn == turn + 1 and r.status == DONE}
        gains = [
            later[r.key].figures[QUALITY] - r.figures[QUALITY]
            for r in records
            if r.turn == turn and r.status == DONE and r.key in later
        ]
        return statistics.fmean([hoped, *gains])

    def _score(self, record: Record, gain: float) -> float:
        assert self.goal is not None
        return self.goal(record.figures, gain)

    def _expected(self, records: Sequence[Record], turn: int) -> float:
        """Seconds that a trial is expected to take, by those that were."""
        seconds: dict[int, list[float]] = {r.turn: [] for r in records}
        for record in records:
            if record.status == DONE and record.key != FLOAT:
                seconds[record.turn].append(record.figures["seconds"])
        if seconds.get(turn):
            return statistics.median(seconds[turn])
        shorter = [t for t in range(1, turn) if seconds.get(t)]
        if not shorter:
            return 0.0
        last = shorter[-1]
        return statistics.median(seconds[last]) * self.turns[turn - 1] / self.turns[last - 1]

    def _started(self, record: Record) -> tuple[Record, Job]:
        """A record with the job that it stands for."""
        folder = self.ledger.folder / "trials" / record.key / "work"
        epochs = self.turns[: record.turn]
        kept = (folder / f"{FILE}.checkpoint").is_dir()
        return record, self._job(record, folder, epochs, kept)

    def _end(self, record: Record, figures: dict[str, Any] | None, error: str | None) -> None:
        """Writes down what came out of a trial, and tells the sampler."""
        record = self._written(record, figures, error)
        assert self.goal is not None
        if record.turn <= 1:
            done = record.status == DONE
            values = self._objectives(self.goal, record.figures) if done else None
            if record.asked is not None:
                self.ledger.tell(record.asked, values)
            elif values is not None:
                self.ledger.add(record.picks, values)

    def _written(self, record: Record, figures: dict[str, Any] | None, error: str | None) -> Record:
        work = self.ledger.folder / "trials" / record.key / "work"
        if figures is not None:
            try:
                figures = figures | self._judge(work)
            except ValueError as failed:
                figures, error = None, str(failed)
        if figures is not None:
            place = self.ledger.folder / record.place
            place.mkdir(parents=True, exist_ok=True)
            for name in (MODEL, FILE, CODED, RECIPE, LOG):
                if (work / name).exists():
                    shutil.move(work / name, place / name)
        (work / OUTPUTS).unlink(missing_ok=True)
        return self.ledger.end(record, figures, error)

    def _is_hopeless(self) -> bool:
        """Whether the smallest of what is tried first costs too much, as nothing costs less; or
        whether all of it failed.
        """
        assert self.goal is not None
        records = self.ledger.records()
        begun = {r.key: r.status for r in records}
        if any(begun.get(c.key, RUNNING) == RUNNING for c in self._listed) or not self._listed:
            return False
        done = self.done()
        costs = [name for name in self.goal.bounds if name != QUALITY]
        return not done or any(
            min(r.figures.get(name, math.inf) for r in done) > self.goal.bounds[name]
            for name in costs
        )
