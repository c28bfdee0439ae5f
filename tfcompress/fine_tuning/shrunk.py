"""What is told about surgery: before a training, and of a file without one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from tfcompress.surgery.report import SurgeryReport
from tfcompress.tflite.tables import as_text, print_table

if TYPE_CHECKING:
    from rich.console import Console

    from tfcompress.tflite.check import Check


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


@dataclasses.dataclass(frozen=True)
class ShrunkFile:
    """A file that comes from surgery alone.

    Attributes:
        model, output: the files.
        precision: of a .tflite file; None of a .keras file.
        report: what was changed and what not; MACs and parameters before and after.
        before_bytes, before_zipped: size of the original in the same format, in float32.
        bytes, zipped: size of the output, as it is and deflated.
        seconds: wall time.
        check: what the target says of the file; None without a target.
    """

    model: str
    output: str
    precision: str | None
    report: SurgeryReport
    before_bytes: int
    before_zipped: int
    bytes: int
    zipped: int
    seconds: float
    check: Check | None = None

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-ready data."""
        plain = dataclasses.asdict(dataclasses.replace(self, check=None))
        return {**plain, "check": None if self.check is None else self.check.to_dict()}

    def render(self, console: Console | None = None) -> None:
        """Prints the result as tables.

        Args:
            console: a rich console; standard output if None.
        """
        from rich.console import Console

        console = console or Console()
        print_changes(console, self.report)
        rows = [
            *costs_of(self.report),
            ("bytes", self.before_bytes, self.bytes),
            ("bytes, zipped", self.before_zipped, self.zipped),
        ]
        kind = f", {self.precision}" if self.precision else ""
        print_table(console, f"{self.output}{kind}", "what,before >,after >", rows)
        line = f"{self.model}: {left_in(self.report)} Not trained; {self.seconds:.0f} seconds."
        console.print(line, highlight=False, markup=False, soft_wrap=True)
        if self.check is not None:
            self.check.render(console)

    def __str__(self) -> str:
        return as_text(self.render)


def costs_of(report: SurgeryReport) -> list[tuple[Any, ...]]:
    """Rows of a table: MACs and parameters before and after surgery."""
    return [("MACs", *report.macs), ("parameters", *report.params)]


def left_in(report: SurgeryReport) -> str:
    """What surgery left, in words."""
    left = [after / before if before else 1.0 for before, after in (report.macs, report.params)]
    return f"{report.operation} left {left[0]:.1%} of the MACs and {left[1]:.1%} of the parameters."


def print_changes(console: Console, report: SurgeryReport) -> None:
    """Prints what became of each layer.

    Args:
        console: a rich console.
        report: of the surgery.
    """
    rows = [(change.layer, change.detail) for change in report.changes]
    rows += [(change.layer, f"kept: {change.detail}") for change in report.kept]
    print_table(console, report.operation, "layer,change", rows)
