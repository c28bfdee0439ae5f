"""What `convert` tells about the file it wrote."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from tfcompress.tflite.check.result import Check


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
        format: "tflite", or what was made of the .tflite file, of which the above tells.
        exchanged: what the conversion to that format found; None for "tflite".
        check: what the target says, a `Check`; None if there was no target.
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
    format: str = "tflite"
    exchanged: dict[str, Any] | None = None
    check: Check | None = None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        plain = dataclasses.asdict(dataclasses.replace(self, check=None))
        return plain | {"check": None if self.check is None else self.check.to_dict()}

    def render(self, console: Console | None = None) -> None:
        """Prints the report as a table."""
        console = console or Console()
        table = Table(title=escape(f"{self.path}: {self.precision}, {self.io_dtype} in and out"))
        table.add_column("what")
        table.add_column("value")
        size = "size" if self.exchanged is None else "size as .tflite"
        table.add_row(size, f"{self.file_bytes:,} bytes, {self.zipped_bytes:,} zipped")
        for op, dtype, count in self.ops:
            table.add_row(f"{count} x {op}", dtype)
        for entry in self.float_ops:
            table.add_row(
                f"[yellow]float: {entry.op}[/]", escape(f"{entry.tensor[:60]}: {entry.reason}")
            )
        for note in self.notes:
            table.add_row("[yellow]note[/]", escape(note))
        stages = ", ".join(f"{name} {value:.1f}" for name, value in self.seconds.items())
        if self.exchanged is not None:
            for what, value in _exchanged(self.exchanged):
                table.add_row(escape(what), escape(value))
        table.add_row("seconds", stages)
        console.print(table)
        if self.check is not None:
            self.check.render(console)


def _exchanged(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What is told of a file in another format: its files, and how far it is from LiteRT."""
    rows = [(Path(name).name, f"{size:,} bytes") for name, size in found["files"].items()]
    figures = ", ".join(f"{name} {value}" for name, value in found["compared"].items())
    rows.append(("against LiteRT", f"{figures}. {found['remark']}".rstrip(". ")))
    return [*rows, ("weights", f"{found['weights']}, in {found['ops']} operations")]
