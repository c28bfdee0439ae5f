"""What results share: plain data for JSON, tables for the terminal."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Rows = list[tuple[Any, ...]]

# Where people are told things, while `sys.stderr` is kept from the libraries.
stream: Any = None


def say(line: str) -> None:
    """Tells a person something on standard error."""
    taken = stream or sys.stderr
    try:
        print(line, file=taken, flush=True)
    except BrokenPipeError:  # Nobody listens, also when it is closed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), taken.fileno())


def print_table(console: Console, title: str, columns: str, rows: Rows) -> None:
    """Print a table."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns.split(","):
        right = column.endswith(">")
        table.add_column(column.rstrip(" >"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        # Tensor names may hold brackets, which rich would take for markup.
        table.add_row(*(f"{v:,}" if isinstance(v, int) else escape(str(v)) for v in row))
    console.print(table)


def print_line(console: Console, line: str) -> None:
    """Print a line as it is: what stands in brackets is no markup."""
    console.print(line, markup=False, highlight=False)


def as_text(render: Callable[[Console], None]) -> str:
    """Return what a function prints to the rich console that it is given."""
    from rich.console import Console

    target = io.StringIO()
    render(Console(file=target, width=120, color_system=None))
    return target.getvalue()


@dataclasses.dataclass(frozen=True)
class Change:
    """What became of one layer or group of channels, or why nothing did.

    Attributes:
        layer: its name in the flat model, see `tfcompress.flatten`.
        detail: "64 -> 32 channels", "rank 12 of 64", or the reason why it stays.
    """

    layer: str
    detail: str


def change_lines(changes: Iterable[Change], kept: Iterable[Change]) -> list[str]:
    """Lines that name what was changed, and what was not and why."""
    rows = [*changes, *(Change(x.layer, f"kept: {x.detail}") for x in kept)]
    width = max((len(row.layer) for row in rows), default=0)
    return [f"{row.layer.ljust(width)}  {row.detail}" for row in rows]


class Result:
    """What a function found: a dataclass that is plain data, and can print itself."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, dicts and numbers, ready for `json.dumps`."""
        return plain_fields(self)

    def render(self, console: Console | None = None) -> None:
        """Print it.

        Args:
            console: a rich console; standard output if None.
        """
        from rich.console import Console

        self._print(console or Console())

    def _print(self, console: Console) -> None:
        raise NotImplementedError

    def __str__(self) -> str:
        return as_text(self.render)


def plain(value: Any) -> Any:
    """What JSON knows of a value: lists, dicts, texts, numbers; None for NaN and infinities."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if dataclasses.is_dataclass(value):
        return plain_fields(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # of NumPy
        return plain(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain_fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass, see `plain`."""
    return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}


# Far beyond all that is measured; squares of it are finite.
_LARGEST = 1e100


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number to count with: JSON has no largest one."""
    is_any = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_any and -_LARGEST < value < _LARGEST
