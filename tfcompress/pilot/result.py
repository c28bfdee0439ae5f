"""What a search found."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tfcompress.files.quantities import as_time
from tfcompress.pilot.budget import COSTS, QUALITY, Goal
from tfcompress.results import Result, print_line, print_table

if TYPE_CHECKING:
    from rich.console import Console

# Of the costs these are always measured.
ALWAYS = ("flash", "ram", "macs")


@dataclasses.dataclass(frozen=True)
class Tried:
    """One recipe that was tried.

    Attributes:
        number: of the trial.
        picks: the option of each part of the space.
        epochs: of training.
        quality: of the file.
        costs: "flash" (bytes), "ram" (bytes), "macs", and where asked for "latency" (parts of the
            float file's) and "cycles".
        seconds: that the trial took.
        front: whether nothing else is at least as good in all and better in something.
        met: whether it keeps all budgets.
        error: why it failed; None if it did not.
        files: the folder of its files in that of the search; None where they were not kept.
    """

    number: int
    picks: dict[str, str]
    epochs: int
    quality: float | None
    costs: dict[str, float]
    seconds: float | None
    front: bool
    met: bool
    error: str | None = None
    files: str | None = None

    @property
    def words(self) -> str:
        """The picks in a line, without those that are none."""
        told = [f"{part} {option}" for part, option in self.picks.items() if option != "none"]
        return "; ".join(told)


@dataclasses.dataclass(frozen=True)
class Worth:
    """What one step of the best recipe is worth: the figures without it.

    Attributes:
        part, option: the step.
        without: what stands in its place in the nearest trial without it.
        quality: what the step added to the quality; below 0 it took some.
        costs: what is left of each cost by the step, as parts.
    """

    part: str
    option: str
    without: str
    quality: float
    costs: dict[str, float]


@dataclasses.dataclass(frozen=True)
class AutoResult(Result):
    """The best file that a search found, and all that it tried.

    Attributes:
        model, output: the files.
        keras, recipe, report: what was written beside the file.
        commands: those that make the file again.
        target: that the file is for; None for no certain one.
        budget: as it was given.
        bounds: the numbers that were to be kept.
        measure: the name of the quality, such as "accuracy".
        up: whether a higher quality is better.
        judged_on: samples that quality was measured on.
        error: standard error of how far the quality is from the float file's, by parts of the
            samples; None of few samples, or a function of one's own.
        float_file: the figures of the model as it is.
        best: the trial whose file was written.
        tried: all trials, in the order in which they began.
        worth: what each step of the best recipe was worth, where a trial without it tells.
        seconds: of the search.
        folder: where the search is kept, to go on with.
    """

    model: str
    output: str
    keras: str
    recipe: str
    report: str | None
    commands: tuple[str, ...]
    target: str | None
    budget: str
    bounds: dict[str, float]
    measure: str
    up: bool
    judged_on: int
    error: float | None
    float_file: dict[str, float]
    best: Tried
    tried: tuple[Tried, ...]
    worth: tuple[Worth, ...]
    seconds: float
    folder: str

    @property
    def front(self) -> list[Tried]:
        """Those than which nothing that was tried is better in all, by flash."""
        return sorted((t for t in self.tried if t.front), key=lambda t: t.costs["flash"])

    def _print(self, console: Console) -> None:
        costs = list(self.best.costs)
        heads = ",".join(["what", f"{self.measure} >", *(f"{name} >" for name in costs)])
        float_costs = {name: self.float_file.get(name) for name in costs}
        rows: list[tuple[Any, ...]] = [("float", *_told(self.float_file[QUALITY], float_costs))]
        if self.bounds:
            bounds = {name: self.bounds.get(name) for name in costs}
            rows.append(("budget", *_told(self.bounds.get(QUALITY), bounds)))
        rows.append((self.output, *_told(self.best.quality, self.best.costs)))
        print_table(console, f"{self.model}, {self.budget}", heads, rows)
        others = [(t.words, *_told(t.quality, t.costs)) for t in self.front]
        print_table(console, f"Best of {len(self.tried)} trials", heads, others)
        for line in self._lines():
            print_line(console, line)

    def _lines(self) -> list[str]:
        beside = (self.best.quality or 0.0) - self.float_file[QUALITY]
        spread = "" if self.error is None else f" ± {self.error:.4f}"
        failed = sum(t.error is not None for t in self.tried)
        lines = [
            f"Taken: {self.best.words}; {self.best.epochs} epochs.",
            f"{self.measure} {beside:+.4f}{spread} beside the float file, on {self.judged_on:,} "
            "samples that were not trained on.",
            *(f"  {w.part} {w.option}: {_worth(w)}" for w in self.worth),
            f"{len(self.tried)} trials in {as_time(self.seconds)}"
            + (f", {failed} of them failed." if failed else "."),
            "Made again by:",
            *(f"  {command}" for command in self.commands),
        ]
        return lines + ([] if self.report is None else [f"Report: {self.report}"])


def _worth(worth: Worth) -> str:
    costs = ", ".join(f"{name} x{part:.2f}" for name, part in worth.costs.items() if part != 1)
    told = f"{worth.quality:+.4f}" + (f", {costs}" if costs else "")
    return f"{told} beside {worth.without}"


def _told(quality: float | None, costs: Mapping[str, float | None]) -> list[str]:
    first = "-" if quality is None else f"{quality:.4f}"
    return [first, *(_cost(name, value) for name, value in costs.items())]


def _cost(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}x" if COSTS[name][2] is None else f"{value:,.0f}"


def front_of(figures: Sequence[Mapping[str, float] | None], up: bool) -> list[bool]:
    """Whether each is on the front: none is at least as good in all, and better in something."""

    def row(each: Mapping[str, float]) -> list[float]:
        sign = -1.0 if up else 1.0
        return [sign * each[QUALITY], *(v for k, v in sorted(each.items()) if k != QUALITY)]

    rows = [None if each is None else row(each) for each in figures]
    known = [r for r in rows if r is not None]

    def beaten(mine: list[float]) -> bool:
        return any(
            other != mine and all(a <= b for a, b in zip(other, mine, strict=True))
            for other in known
        )

    return [r is not None and not beaten(r) for r in rows]


def worth_of(best: Tried, tried: Sequence[Tried], first: Mapping[str, str]) -> list[Worth]:
    """What each step of a recipe is worth, by trials that differ from it in this step alone.

    Args:
        first: the mildest option of each part, which is no step.
    """
    found = []
    for part, option in best.picks.items():
        if option == first.get(part):
            continue
        alike = [
            other
            for other in tried
            if other.error is None
            and other.quality is not None
            and other.picks.get(part) != option
            and all(other.picks.get(p) == o for p, o in best.picks.items() if p != part)
        ]
        if not alike:
            continue
        # Trained as long, if there is one.
        other = min(alike, key=lambda t: (abs(t.epochs - best.epochs), t.number))
        assert best.quality is not None
        assert other.quality is not None
        costs = {n: best.costs[n] / v for n, v in other.costs.items() if v and n in best.costs}
        found.append(
            Worth(part, option, other.picks.get(part, "none"), best.quality - other.quality, costs)
        )
    return found


def missed_words(goal: Goal, tried: Sequence[Tried]) -> str:
    """How near the trials came to the budgets, in words."""
    done = [t for t in tried if t.quality is not None]
    if not done:
        errors = [t.error for t in tried if t.error]
        return f"no trial ended well ({errors[0]})" if errors else "no trial ended"
    nearest = min(done, key=lambda t: (goal({QUALITY: t.quality or 0.0, **t.costs}), t.number))
    figures = {QUALITY: nearest.quality or 0.0, **nearest.costs}
    parts = []
    for name, bound in goal.bounds.items():
        value = figures[name]
        kept = "kept" if name not in goal.missed(figures) else "missed"
        shown = f"{value:.4f}" if name == QUALITY else _cost(name, value)
        wanted = f"{bound:.4f}" if name == QUALITY else _cost(name, bound)
        parts.append(f"{name} {shown} of {wanted} ({kept})")
    return f"the nearest found has {', '.join(parts)}: {nearest.words}"
