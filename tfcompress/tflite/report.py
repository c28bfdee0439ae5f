"""What `convert` tells about the file it wrote."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


@dataclasses.dataclass(frozen=True)
class FloatOp:
    """An operation that stayed float: its name in LiteRT, its output tensor, and why."""

    op: str
    tensor: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What came out of a conversion.

    Attributes:
        path: where the file lies.
        precision, io_dtype: what was asked for.
        file_bytes, zipped_bytes: size of the file, plain and deflated.
        ops: (op, dtype, count) of all operations.
        float_ops: operations that stayed float although integers were asked for, and why.
        notes: other things worth knowing.
        seconds: wall time by stage.
    """

    path: str
    precision: str
    io_dtype: str
    file_bytes: int
    zipped_bytes: int
    ops: Sequence[tuple[str, str, int]]
    float_ops: Sequence[FloatOp]
    notes: Sequence[str]
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return dataclasses.asdict(self)

    def render(self, console: Console | None = None) -> None:
        """Prints the report as a table."""
        console = console or Console()
        table = Table(title=escape(f"{self.path}: {self.precision}, {self.io_dtype} in and out"))
        table.add_column("what")
        table.add_column("value")
        table.add_row("size", f"{self.file_bytes:,} bytes, {self.zipped_bytes:,} zipped")
        for op, dtype, count in self.ops:
            table.add_row(f"{count} x {op}", dtype)
        for entry in self.float_ops:
            table.add_row(
                f"[yellow]float: {entry.op}[/]", escape(f"{entry.tensor[:60]}: {entry.reason}")
            )
        for note in self.notes:
            table.add_row("[yellow]note[/]", escape(note))
        stages = ", ".join(f"{name} {value:.1f}" for name, value in self.seconds.items())
        table.add_row("seconds", stages)
        console.print(table)
