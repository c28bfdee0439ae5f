"""What results share: the version, tables for the terminal, plain numbers."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

VERSION = "0.1.0"
Rows = list[tuple[Any, ...]]

# Where people are told things, while `sys.stderr` is kept from the libraries.
stream: Any = None


def say(line: str) -> None:
    """Tells a person something on standard error."""
    print(line, file=stream or sys.stderr, flush=True)


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


def as_text(render: Callable[[Console], None]) -> str:
    """Return what a function prints to the rich console that it is given."""
    from rich.console import Console

    target = io.StringIO()
    render(Console(file=target, width=120, color_system=None))
    return target.getvalue()


# Far beyond all that is measured; squares of it are finite.
_LARGEST = 1e100


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number to count with: JSON has no largest one."""
    is_any = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_any and -_LARGEST < value < _LARGEST
