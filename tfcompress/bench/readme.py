"""Writes the benchmark's tables in README.md, from the results that are kept beside this module.

    python -m tfcompress.bench.readme [--check]

With `--check` nothing is written; exit status 1 tells that the README says something else.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tfcompress import files
from tfcompress.bench import tables
from tfcompress.bench.comparison import contests
from tfcompress.bench.running.results import latest, of_form, read_rows
from tfcompress.bench.summaries import summarize

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
RESULTS = Path(__file__).with_name("results.jsonl")
README = Path(__file__).parents[2] / "README.md"


def written(text: str, results: Path) -> str:
    """A README with the tables of the full form between its two markers.

    Args:
        text: of the README.
        results: the results file.

    Returns:
        Its new text.

    Raises:
        ValueError: the markers are not there, or there are no results.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the README lacks the lines {BEGIN} and {END}; add them, in this order.")
    rows = of_form(latest(read_rows(results)), "full")
    if not rows:
        raise ValueError(f"'{results}' has no results of the full form. Run `tfcompress bench`.")
    summaries = summarize(rows)
    best = contests(summaries)
    found = [tables.contest_table(best), tables.overview(summaries)]
    told = f"{tables.tally(best)} Measured on {tables.machine_line(rows)}."
    parts = [BEGIN, *(table.markdown() for table in found), told, END]
    return before + "\n\n".join(parts) + after


def main(arguments: list[str] | None = None) -> int:
    """Writes or checks; see this module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    try:
        text = given.readme.read_text()
        new = written(text, given.results)
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    if given.check and new != text:
        print(
            f"'{given.readme}' does not say what '{given.results}' holds. Run this without "
            "--check.",
            file=sys.stderr,
        )
        return 1
    if not given.check:
        files.atomic_write(given.readme, new.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
