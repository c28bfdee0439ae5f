"""What fine-tuning and surgery tell about the model that they wrote."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from tfcompress.compression.logger import Weight
from tfcompress.results import Result, print_table
from tfcompress.surgery.base import SurgeryReport

if TYPE_CHECKING:
    from rich.console import Console

    from tfcompress.targets.result import Check


@dataclasses.dataclass(frozen=True)
class Taught:
    """What a model learned from.

    Attributes:
        teacher: its file; None if the model learned from itself as it was before.
        alpha: see `Distillation`.
        losses: names and weights of what was learned.
        temperature: of its soft labels; None if there are none, or several with different ones.
        dropout: whether its own dropout was on.
        started: fraction of the weights that began as the teacher's; None if it was not asked for.
        scores: loss and metrics of the teacher, where there are labels and it gives what its
            student gives; empty if the teacher is the model itself.
        bytes, zipped: size of the teacher in the format of the output, in float32; None if it is
            the model itself, or cannot be converted.
    """

    teacher: str | None
    alpha: float
    losses: dict[str, float]
    temperature: float | None
    started: float | None
    scores: dict[str, float]
    bytes: int | None = None
    zipped: int | None = None
    dropout: bool = True


@dataclasses.dataclass(frozen=True)
class Shrunk:
    """Surgery before a training.

    Attributes:
        report: what was changed and what not; MACs and parameters before and after.
        epochs: of training in float between surgery and the techniques.
        scores: loss and metrics right after surgery.
    """

    report: SurgeryReport
    epochs: int
    scores: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written(Result):
    """A model that was written, and the one that it was made from; base of what is told of both.

    Attributes:
        model, output: the files.
        precision: of a .tflite file; None of a .keras file.
        before_bytes, before_zipped: size of the original in the same format, in float32.
        bytes, zipped: size of the output, as it is and deflated.
        seconds: wall time.
        check: what the target says of the file; None without a target.
    """

    model: str
    output: str
    precision: str | None
    before_bytes: int
    before_zipped: int
    bytes: int
    zipped: int
    seconds: float
    check: Check | None = None

    def _print(self, console: Console) -> None:
        surgery = self._surgery()
        if surgery is not None:
            rows = [(change.layer, change.detail) for change in surgery.changes]
            rows += [(change.layer, f"kept: {change.detail}") for change in surgery.kept]
            print_table(console, surgery.operation, "layer,change", rows)
        columns = self._columns()
        names = columns["before"]
        rows = [(_words(n), *(found.get(n, "-") for found in columns.values())) for n in names]
        kind = f", {self.precision}" if self.precision else ""
        headings = ",".join(["what", *(f"{column} >" for column in columns)])
        print_table(console, f"{self.output}{kind}", headings, rows)
        for line in self._lines():
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        if self.check is not None:
            self.check.render(console)

    def _surgery(self) -> SurgeryReport | None:
        """What surgery did; None without one."""
        raise NotImplementedError

    def _lines(self) -> list[str]:
        """What is said below the table."""
        raise NotImplementedError

    def _columns(self) -> dict[str, dict[str, Any]]:
        """The table by columns: heading -> row -> value; "before" has all rows."""
        before = {"bytes": self.before_bytes, "bytes, zipped": self.before_zipped}
        after = {"bytes": self.bytes, "bytes, zipped": self.zipped}
        surgery = self._surgery()
        if surgery is not None:
            before, after = _costs(surgery, 0) | before, _costs(surgery, 1) | after
        return {"before": before, "after": after}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShrunkFile(Written):
    """A file that comes from surgery and precisions by layer, without training; see `Written`.

    Attributes:
        report: what was changed and what not; MACs and parameters before and after; None without
            surgery.
    """

    report: SurgeryReport | None

    def _surgery(self) -> SurgeryReport | None:
        return self.report

    def _lines(self) -> list[str]:
        left = "" if self.report is None else f" {_left_in(self.report)}"
        return [f"{self.model}:{left} Not trained; {self.seconds:.0f} seconds."]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuned(Written):
    """What came out of a fine-tuning; see `Written`.

    Attributes:
        recipe: its file, or the name of a ready recipe, or None.
        epochs, steps: of the whole training; steps are batches.
        resumed: epochs that an interrupted training had done.
        judged_on: which samples `before` and `after` were measured on.
        before, after: loss and metrics; without labels "distillation_loss", and "agreement": the
            fraction of samples that the teacher puts into the same class.
        weights: one entry for each kernel.
        taught: what it learned from; None without a teacher.
        shrunk: the surgery before the training; None without one.
    """

    recipe: str | None
    epochs: int
    steps: int
    resumed: int
    judged_on: str
    before: dict[str, float]
    after: dict[str, float]
    weights: tuple[Weight, ...]
    taught: Taught | None = None
    shrunk: Shrunk | None = None

    @property
    def sparsity(self) -> float:
        """Fraction of zeros in all kernels."""
        total = sum(w.count for w in self.weights)
        return sum(w.sparsity * w.count for w in self.weights) / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "sparsity": self.sparsity}

    def _surgery(self) -> SurgeryReport | None:
        return None if self.shrunk is None else self.shrunk.report

    def _columns(self) -> dict[str, dict[str, Any]]:
        sizes = super()._columns()
        before = _shown(self.before) | sizes["before"]
        columns = {"before": before, "after": _shown(self.after) | sizes["after"]}
        if self.shrunk is not None:
            shrunk = _shown(self.shrunk.scores) | _costs(self.shrunk.report, 1)
            columns = {"before": before, "shrunk": shrunk, "after": columns["after"]}
        if self.taught is None or self.taught.teacher is None:
            return columns
        teacher: dict[str, Any] = _shown(self.taught.scores)
        if self.taught.bytes and self.taught.zipped:
            teacher |= {"bytes": self.taught.bytes, "bytes, zipped": self.taught.zipped}
        return {"teacher": teacher, **columns}

    def _learned(self) -> list[str]:
        """What was learned from whom, in words."""
        taught = self.taught
        if taught is None:
            return []
        whom = taught.teacher or "itself as it was before"
        named = [n if w == 1 else f"{n} x{w:g}" for n, w in taught.losses.items()]
        line = f"Taught by {whom}: {', '.join(named)}; alpha {taught.alpha:g}"
        line += "" if taught.temperature is None else f", temperature {taught.temperature:g}"
        line += ", its dropout on." if taught.dropout else "."
        if taught.started is not None:
            line += f" {taught.started:.1%} of its weights began as the teacher's."
        return [line]

    def _lines(self) -> list[str]:
        pruned = [w for w in self.weights if "Prune" in w.techniques]
        clustered = [w for w in self.weights if {"Cluster", "Codebook"} & {*w.techniques}]
        under = f" under the recipe {self.recipe}" if self.recipe else ""
        lines = [f"{self.model}{under}, measured on {self.judged_on}."]
        lines += [] if self.shrunk is None else [_left_in(self.shrunk.report)]
        lines += self._learned()
        if pruned:
            count = sum(w.count for w in pruned)
            zeros = sum(round(w.sparsity * w.count) for w in pruned)
            lines.append(
                f"{zeros / count:.1%} of {count:,} weights in {len(pruned)} pruned kernels are "
                f"zero; {self.sparsity:.1%} of all."
            )
        if clustered:
            most = max(w.unique for w in clustered)
            lines.append(f"{len(clustered)} kernels of few values have {most} values each at most.")
        resumed = f", {self.resumed} of them before it was resumed" if self.resumed else ""
        if self.shrunk is not None and self.shrunk.epochs:
            resumed = f", the first {self.shrunk.epochs} in float before the techniques{resumed}"
        trained = f"{_counted(self.epochs, 'epoch')}{resumed} ({_counted(self.steps, 'step')})"
        return [*lines, f"Trained {trained}; {self.seconds:.0f} seconds."]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _words(name: str) -> str:
    return name.replace("agreement", "agreement with the teacher")


def _shown(scores: dict[str, float]) -> dict[str, Any]:
    """Loss and metrics as they stand in a table."""
    return {
        name: f"{value:.1%}" if name.endswith("agreement") else f"{value:.4f}"
        for name, value in scores.items()
    }


def _costs(report: SurgeryReport, which: int) -> dict[str, int]:
    """MACs and parameters before (0) or after surgery (1)."""
    return {"MACs": report.macs[which], "parameters": report.params[which]}


def _left_in(report: SurgeryReport) -> str:
    """What surgery left, in words."""
    left = [after / before if before else 1.0 for before, after in (report.macs, report.params)]
    return f"{report.operation} left {left[0]:.1%} of the MACs and {left[1]:.1%} of the parameters."
