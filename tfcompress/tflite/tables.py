"""Tables for the terminal."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Rows = list[tuple[Any, ...]]


def print_table(console: Console, title: str, columns: str, rows: Rows) -> None:
    """Print a table.

    Args:
        console: a rich console.
        title: shown above.
        columns: headings with commas between; one that ends in '>' is right-aligned.
        rows: lists of values; integers get thousands separators.
    """
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
