"""The tables of the benchmark, for the terminal and for the README."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfcompress.bench.comparison import EVEN, NOBODY, Contest, Difference, Pair, contests, pairs
from tfcompress.bench.methods.run import OURS
from tfcompress.bench.running.results import latest, machines, of_form, read_rows
from tfcompress.bench.summaries import COLUMNS, FLOAT, Mean, Summary, summarize, with_loss
from tfcompress.files import writing
from tfcompress.results import print_table

if TYPE_CHECKING:
    from rich.console import Console

Row = dict[str, Any]
Cell = Callable[[Mean], str]
_UNKNOWN = "–"
_SIGNS = {OURS: "▲", EVEN: "="}  # Of others: ▼.


@dataclasses.dataclass(frozen=True)
class Table:
    """Text in rows; a heading that ends in " >" is of a column of numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def render(self, console: Console) -> None:
        """Prints it on a rich console."""
        print_table(console, self.title, ",".join(self.columns), list(self.rows))

    def markdown(self) -> str:
        """As GitHub shows it."""
        names = [column.removesuffix(" >") for column in self.columns]
        lines = ["---:" if column.endswith(" >") else "---" for column in self.columns]
        rows = [" | ".join(row) for row in (names, lines, *self.rows)]
        return "\n".join([f"{self.title}:", "", *(f"| {row} |" for row in rows)])


def _spread(mean: Mean, form: Callable[[float], str]) -> str:
    return f"{form(mean.mean)} ± {form(mean.std)}" if mean.count > 1 else form(mean.mean)


def _points(mean: Mean) -> str:
    points = f"{100 * mean.mean:+.2f}"
    return f"{points} ± {100 * mean.std:.2f}" if mean.count > 1 else points


def _percent(mean: Mean) -> str:
    return _spread(mean, lambda value: f"{100 * value:.2f}")


def _times(mean: Mean) -> str:
    return _spread(mean, lambda value: f"{value:.2f}") + "x"


def _whole(mean: Mean) -> str:
    return f"{mean.mean:,.0f}"


def _tenths(mean: Mean) -> str:
    return f"{mean.mean:.1f}"


# figure -> heading, where {} is the measure of quality, and how it is written
_COLUMNS: dict[str, tuple[str, Cell]] = {
    "quality": ("{} % >", _percent),
    "quality_keras": ("in Keras >", _percent),
    "zipped": ("zipped >", _whole),
    "ratio": ("latency >", _times),
    "no_amx_ratio": ("no AMX >", _times),
    "step_cpu_ratio": ("step CPU >", _times),
    "convert_s": ("convert s >", _tenths),
    "peak_mb": ("peak MiB >", _whole),
    "cycles": ("U55 cycles >", _whole),
}

# Of a narrow terminal, where times go without their scatter; the report has all.
_NARROW = ("quality", "zipped", "ratio", "no_amx_ratio", "step_cpu_ratio")
_WIDE = 150

# Of the best beside the best peer's.
_CONTESTED: dict[str, Cell] = {
    "quality": _percent,
    "zipped": lambda mean: f"{_whole(mean)} bytes",
}


def task_tables(summaries: Sequence[Summary], width: int = _WIDE) -> list[Table]:
    """A table for each task, with a row for each method: means ± standard deviations over seeds."""
    tables, wide = [], width >= _WIDE
    for task in dict.fromkeys(each.task for each in summaries):
        here = [each for each in summaries if each.task == task]
        kept = [
            figure
            for figure in (_COLUMNS if wide else _NARROW)
            if any(each.mean(figure) for each in here)
        ]
        headings = (_COLUMNS[figure][0].format(here[0].measure) for figure in kept)
        rows = tuple(_method_row(each, kept, wide) for each in here)
        tables.append(Table(f"{task}{_seeds(here)}", ("method", *headings), rows))
    return tables


def _method_row(one: Summary, figures: Sequence[str], wide: bool) -> tuple[str, ...]:
    cells = []
    for figure in figures:
        mean, written = one.mean(figure), _COLUMNS[figure][1]
        if mean and written is _times and not wide:
            mean = dataclasses.replace(mean, count=1)
        cells.append(_cell(mean, written))
    if one.errors and not one.values:
        cells[0] = "failed"
    return (one.method, *cells)


def _cell(mean: Mean | None, written: Cell) -> str:
    return _UNKNOWN if mean is None else written(mean)


def _seeds(here: Sequence[Summary]) -> str:
    count = _count(here)
    return f" ({count} seeds)" if count > 1 else " (1 seed: how much seeds scatter is not known)"


def _count(here: Sequence[Summary]) -> int:
    return max((len(each.values.get("quality", {})) for each in here), default=0)


def overview(summaries: Sequence[Summary]) -> Table:
    """Of each method and task quality in percent, and zipped KiB."""
    title = (
        "Quality in percent (accuracy; AUC of wake_word and anomaly), and KiB of the zipped file"
    )
    return _crossed(summaries, title, _in_short)


def without_training(summaries: Sequence[Summary]) -> list[Table]:
    """Of each method and task what quality is lost, KiB of the file, and seconds."""
    title = "Points of quality to float32, KiB of the file, seconds to make it"
    return [_crossed(summaries, title, _lost("bytes", "convert_s"))]


def few_bits(summaries: Sequence[Summary]) -> list[Table]:
    """Of each method and task what quality is lost, KiB of the file, and of it in TFLite Micro."""
    title = "Points of quality to float32, KiB of the file, KiB of flash in TFLite Micro"
    return [_crossed(summaries, title, _lost("bytes", "flash"))]


def long_form(summaries: Sequence[Summary]) -> list[Table]:
    """Of each method and task what quality is lost, and KiB zipped; then the smallest files."""
    title = (
        "Quality of float32 in percent, of all else in points to that of the same seed, and KiB of "
        "the zipped file"
    )
    lost = _lost("zipped")

    def cell(one: Summary | None) -> str:
        return _in_short(one) if one and one.family == FLOAT else lost(one)

    return [_crossed(summaries, title, cell), smallest(contests(summaries))]


def smallest(found: Sequence[Contest]) -> Table:
    """The smallest file of ours and of peers that is as good as float32, on each task."""
    rows = []
    for each in found:
        if each.figure != "zipped":
            continue
        mine, theirs = each.our_value, each.peer_value
        times = f"{theirs.mean / mine.mean:.2f}x" if mine and theirs else _UNKNOWN
        sides = ((each.ours, mine), (each.peer, theirs))
        rows.append((each.task, *(_side(*side, each.figure) for side in sides), times))
    title = "The smallest zipped file whose quality is at most half a point below float32"
    return Table(title, ("task", OURS, "best peer", "times smaller >"), tuple(rows))


def _crossed(
    summaries: Sequence[Summary], title: str, cell: Callable[[Summary | None], str]
) -> Table:
    """A row for each method, a column for each task."""
    tasks = list(dict.fromkeys(each.task for each in summaries))
    found = {(each.method, each.task): each for each in summaries}
    rows = []
    for method in dict.fromkeys(each.method for each in summaries):
        cells = [cell(found.get((method, task))) for task in tasks]
        rows.append((method, *cells))
    counts = {task: _count([each for each in summaries if each.task == task]) for task in tasks}
    headings = (f"{task}, {n} seed{'s' if n > 1 else ''} >" for task, n in counts.items())
    return Table(title, ("method", *headings), tuple(rows))


def _in_short(one: Summary | None) -> str:
    quality, zipped = (one.mean("quality"), one.mean("zipped")) if one else (None, None)
    if quality is None or zipped is None:
        return "failed" if one and one.errors else _UNKNOWN
    return f"{_percent(quality)}, {zipped.mean / 1024:.1f}"


def _lost(*figures: str) -> Callable[[Summary | None], str]:
    """A cell of the quality that is lost and of figures as far as they are known."""

    def cell(one: Summary | None) -> str:
        loss = one.mean("loss") if one else None
        if one is None or loss is None:
            return "failed" if one and one.errors else _UNKNOWN
        found = ((one.mean(figure), _SCALES.get(figure, 1.0)) for figure in figures)
        told = [f"{mean.mean * scale:.1f}" for mean, scale in found if mean is not None]
        return ", ".join([_points(loss), *told])

    return cell


_SCALES = {column.figure: column.scale for column in COLUMNS}


def contest_table(found: Sequence[Contest]) -> Table:
    """Ours beside the best peer in each respect."""
    rows = []
    for each in found:
        mine = _side(each.ours, each.our_value, each.figure)
        theirs = _side(each.peer, each.peer_value, each.figure)
        rows.append((each.task, each.what, mine, theirs, each.winner))
    columns = ("task", "what", OURS, "best peer", "wins")
    return Table("tfcompress beside the best peer", columns, tuple(rows))


def _side(method: str | None, value: Mean | None, figure: str) -> str:
    if method is None or value is None:
        return "none"
    return f"{method}: {_CONTESTED.get(figure, _times)(value)}"


def pair_table(found: Sequence[Pair]) -> Table:
    """Ours beside each peer of the same family: what differs, and a sign of who is ahead."""
    rows = []
    for each in found:
        points = _sign(each.quality, _points)
        shares = (_sign(one, _times) for one in (each.zipped, each.ratio, each.step))
        rows.append((each.task, each.ours, each.peer, points, *shares))
    columns = ("task", "ours", "peer", "points >", "zipped >", "latency >", "step CPU >")
    title = "Ours minus or divided by the peer's: ▲ ours is ahead, ▼ the peer, = within the noise"
    return Table(title, columns, tuple(rows))


def _sign(one: Difference | None, written: Cell) -> str:
    if one is None:
        return _UNKNOWN
    return f"{written(one.value)} {_SIGNS.get(one.winner, '▼')}"


def tally(found: Sequence[Contest]) -> str:
    """Who wins how often, in words."""
    counts: dict[str, int] = {}
    for each in found:
        counts[each.winner] = counts.get(each.winner, 0) + 1
    peers = {who: n for who, n in counts.items() if who not in (OURS, EVEN, NOBODY)}
    said = [f"tfcompress wins {counts.get(OURS, 0)} of {len(found)}"]
    said += [f"{who} {n}" for who, n in sorted(peers.items())]
    said += [f"{counts[EVEN]} even"] if EVEN in counts else []
    return ", ".join(said) + "."


def machine_line(rows: Sequence[Row]) -> str:
    """The machines that results come from, in words; of several, which tasks each measured."""
    found = machines(rows)
    told: dict[str, list[str]] = {}
    for row in found:
        tasks = ", ".join(row["tasks"])
        software = f"{row['system']}, Python {row['python']}, " + ", ".join(
            f"{name} {version}" for name, version in row["versions"].items()
        )
        told.setdefault(software, []).append(
            f"{row['cpu']}, {row.get('cores')} cores, {row.get('memory_gb')} GiB"
            f"{', AMX' if row.get('amx') else ''}" + (f" ({tasks})" if len(found) > 1 else "")
        )
    # Machines of equal software are told together.
    return "; ".join(f"{'; '.join(each)}, {software}" for software, each in told.items())


def all_tables(rows: Sequence[Row], width: int = _WIDE) -> list[Table]:
    """Of results of one form: each task, ours beside the best peer, ours beside each peer."""
    summaries = summarize(rows)
    tables = task_tables(summaries, width)
    if any(each.who != OURS for each in summaries) and any(e.family == FLOAT for e in summaries):
        tables += [contest_table(contests(summaries)), pair_table(pairs(summaries))]
    return tables


BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
# Tables of runs of their own: what each begins with in the README, and the form, by the name of its
# results.
_OWN: dict[str, tuple[str, str, Callable[[Sequence[Summary]], list[Table]]]] = {
    "post_training.jsonl": ("post-training", "full", without_training),
    "few_bits.jsonl": ("few-bits", "full", few_bits),
    "long_form.jsonl": ("long-form", "long", long_form),
}
RESULTS = Path(__file__).with_name("results.jsonl")
README = Path(__file__).parents[2] / "README.md"


def written(text: str, results: Path) -> str:
    """A README with the tables of the full form between its two markers."""
    rows = _of(results, "full")
    summaries = summarize(rows)
    best = contests(summaries)
    found = [contest_table(best), overview(summaries)]
    told = f"{tally(best)} Measured on {machine_line(rows)}."
    return _between(text, BEGIN, END, [*(table.markdown() for table in found), told])


def written_own(text: str, results: Path) -> str:
    """A README with the tables of results that have their own, by the name of their file."""
    name, form, tables = _OWN[results.name]
    rows = _of(results, form)
    told = f"Measured on {machine_line(rows)}."
    summaries = summarize(rows)
    found = tables([with_loss(each, summaries) for each in summaries])
    parts = [*(table.markdown() for table in found), told]
    return _between(text, f"<!-- {name}: begin -->", f"<!-- {name}: end -->", parts)


def _of(results: Path, form: str) -> list[Row]:
    rows = of_form(latest(read_rows(results)), form)
    if not rows:
        raise ValueError(f"'{results}' has no results of the {form} form. Run `tfcompress bench`.")
    return rows


def _between(text: str, first: str, last: str, parts: Sequence[str]) -> str:
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not (begin and end):
        raise ValueError(f"the README lacks the lines {first} and {last}; add them, in this order.")
    return before + "\n\n".join([first, *parts, last]) + after


def main(arguments: list[str] | None = None) -> int:
    """Writes the tables into the README, or says with --check whether they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    try:
        text = given.readme.read_text()
        new = written(text, given.results)
        for own in filter(Path.exists, map(given.results.with_name, _OWN)):
            new = written_own(new, own)
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
        writing.atomic_write(given.readme, new.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
