"""Measurements of parts, `make bench-parts`, and what they share.

Each is a function that takes a command line:

    PYTHONPATH=tests python -m measurements NAME [--json ...]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from tfcompress.bench.summaries import mean_of
from tfcompress.report import page
from tfcompress.results import print_table

Found = TypeVar("Found")


def parser_of(
    measurement: Callable[..., int], counts: Mapping[str, tuple[int, str]], with_json: bool = True
) -> argparse.ArgumentParser:
    """The command line of a measurement.

    Args:
        counts: whole numbers of at least 1 that it takes: name -> default, and what it is.
        with_json: with the option that `show` reads.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m measurements {measurement.__name__}",
        description=(measurement.__doc__ or "").splitlines()[0],
    )
    for name, (default, text) in counts.items():
        help_ = f"{text} ({default})"
        parser.add_argument(f"--{name}", type=_count, default=default, metavar="N", help=help_)
    if with_json:
        parser.add_argument("--json", action="store_true", help="one line of JSON")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1; received {text}")
    return int(text)


def show(
    options: argparse.Namespace,
    plain: Any,
    title: str,
    columns: Mapping[str, str],
    rows: Iterable[Sequence[Any]],
) -> None:
    """Prints what was found: plain data as one line of JSON, or a table.

    Args:
        columns: heading -> how `format` writes a number; "" of texts.
    """
    if options.json:
        print(json.dumps(plain))
    else:
        show_table(title, columns, rows)


def show_table(title: str, columns: Mapping[str, str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints a table, see `show`; without a terminal its lines are whole."""
    from rich.console import Console

    console = Console()
    console.width = max(console.width, 160)
    headings = ",".join(f"{name} >" if form else name for name, form in columns.items())
    cells = [
        tuple(
            page.MISSING if value is None else format(value, form)
            for value, form in zip(row, columns.values(), strict=True)
        )
        for row in rows
    ]
    print_table(console, title, headings, cells)


def tell(line: str) -> None:
    """Says how far a measurement is, on standard error."""
    print(line, file=sys.stderr, flush=True)


def interleaved(jobs: Mapping[str, Callable[[], Found]], rounds: int) -> dict[str, list[Found]]:
    """What jobs return that take turns, so that a slow spell of the machine hits all of them."""
    found: dict[str, list[Found]] = {name: [] for name in jobs}
    names = list(jobs)
    for number in range(rounds):
        # The order is turned, so that no job always follows the same one.
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(jobs[name]())
        tell(f"round {number + 1} of {rounds}, load {os.getloadavg()[0]:.1f}")
    return found


def seconds_of(job: Callable[[], Any]) -> Callable[[], float]:
    """A job that returns how long another one takes."""

    def timed() -> float:
        start = time.perf_counter()
        job()
        return time.perf_counter() - start

    return timed


def spread(values: Iterable[float], digits: int = 2) -> str:
    """The mean of some values and their standard deviation, in words."""
    found = mean_of(values)
    if found is None:
        return page.MISSING
    return page.spread(found.mean, found.std, found.count, digits)
