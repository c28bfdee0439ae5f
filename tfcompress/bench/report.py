"""The report on results of the benchmark."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from tfcompress.bench import comparison, plots
from tfcompress.bench.comparison import Difference, Pair
from tfcompress.bench.methods.run import OURS
from tfcompress.bench.plots import Maker, makers
from tfcompress.bench.running.results import latest, machines, of_form
from tfcompress.bench.summaries import (
    BY_FIGURE,
    COLUMNS,
    FLOAT,
    LATENCY,
    ZIPPED,
    Column,
    Summary,
    known,
    summarize,
    with_loss,
)
from tfcompress.report.layer_data import task_entry
from tfcompress.report.page import MISSING, number, require_extra, write_page

Row = dict[str, Any]


def write_results_report(
    rows: Sequence[Row], path: str | os.PathLike[str], form: str | None = None
) -> int:
    """Writes the HTML report on results of `tfcompress bench`: one file that needs no network."""
    require_extra()
    rows = of_form(latest(rows), form)
    summaries = summarize(rows)
    if not summaries:
        asked = f" of the {form} form" if form else ""
        raise ValueError(
            f"received {len(rows)} lines and no run of a method{asked}; expected the results of "
            "`tfcompress bench`. Let it finish at least one method."
        )
    by = makers(each.who for each in summaries)
    summaries = [with_loss(each, summaries) for each in summaries]
    names = list(dict.fromkeys(each.task for each in summaries))
    tasks = [
        _task(i, [s for s in summaries if s.task == name], rows, by) for i, name in enumerate(names)
    ]
    layers = [{**each, "title": said(each["title"])} for each in layer_data(rows, summaries)]
    values = {
        "title": "Compression benchmark",
        "form": next(row["form"] for row in rows if row["kind"] == "run"),
        "tasks": tasks,
        "makers": list(by.values()),
        "ours": OURS,
        "standing": _standing(summaries, by),
        "equal": f"{100 * comparison.EQUAL:g}",
        "machines": machines(rows),
        "about": known(COLUMNS, summaries),
        "layers": layers,
    }
    drawn = {p["id"]: p["figure"] for task in tasks for p in task["plots"]}
    return write_page(path, "results.html", values, {"figures": drawn, "layers": layers})


def said(name: str) -> str:
    """A name of a task for people."""
    text = name.replace("_", " ").strip()
    return text[:1].upper() + text[1:]


def _task(position: int, here: list[Summary], rows: list[Row], by: dict[str, Maker]) -> dict:
    name = here[0].task
    shown = [each for each in here if "quality" in each.values]
    drawings = []
    for column in (ZIPPED, LATENCY):
        drawn = plots.pareto(shown, column, by) if shown else None
        if drawn is not None:
            drawings.append(_plot(f"plot-{position}-{column.figure}", column, drawn))
    pairs = [pair for pair in comparison.pairs(here) if pair.task == name]
    return {
        "id": f"task-{position}",
        "name": name,
        "title": said(name),
        "measure": here[0].measure,
        # Where every method ran once, nothing tells how much runs scatter.
        "scatters": any(len(each.values.get("quality", {})) > 1 for each in here),
        "facts": _facts([row for row in rows if row.get("task") == name]),
        "plots": drawings,
        **_table(here, by),
        "pairs": [_pair(pair, by) for pair in pairs],
        "failures": [(each, error) for each in here for error in each.errors],
    }


def _plot(id_: str, column: Column, drawn: plots.Pareto) -> dict[str, Any]:
    return {
        "id": id_,
        "figure": drawn.figure,
        "title": f"Quality against {_in_words(column)}",
        "front": [(p.summary, column.said(p.summary.mean(column.figure))) for p in drawn.front],
        "below": [(p.summary, f"{number(p.y, 1)} %") for p in drawn.below],
        "missing": drawn.missing,
    }


def _in_words(column: Column) -> str:
    return {"zipped": "zipped size", "ms": "latency"}[column.figure]


def _facts(rows: list[Row]) -> list[tuple[str, str]]:
    runs = [row for row in rows if row["kind"] == "run"]
    first = runs[0]
    seeds = sorted({row["seed"] for row in runs})
    data = first["data"] if isinstance(first.get("data"), dict) else {}
    facts = [
        ("Data", f"{data.get('source', MISSING)}, SHA-256 {str(data.get('digest'))[:12]}…"),
        ("Seeds", ", ".join(map(str, seeds))),
    ]
    # The float model has none.
    tuning = next((t for row in runs if isinstance(t := row.get("tuning"), dict)), {})
    if isinstance(tuning.get("steps"), (int, float)):
        said_ = f"{number(tuning['steps'])} steps of {tuning.get('batch', MISSING)} samples"
        facts.append(("Fine-tuning", f"{said_}, Adam from {tuning.get('rate', MISSING)}"))
    return facts


def _table(here: list[Summary], by: dict[str, Maker]) -> dict[str, Any]:
    shown = known(COLUMNS, here)
    return {
        "columns": shown,
        "rows": [
            {
                "summary": each,
                "maker": by[each.who],
                "cells": [
                    (c.text(found), found.mean) if (found := each.mean(c.figure)) else (MISSING, "")
                    for c in shown
                ],
            }
            for each in here
        ],
    }


def _pair(pair: Pair, by: dict[str, Maker]) -> dict[str, Any]:
    return {
        "pair": pair,
        "maker": by[pair.who],
        "cells": [
            _difference(pair.quality, by, 100, sign=True),
            *(_difference(found, by, 1) for found in (pair.zipped, pair.ratio, pair.step)),
        ],
    }


def _difference(
    found: Difference | None, by: dict[str, Maker], scale: float, sign: bool = False
) -> dict[str, Any]:
    if found is None:
        return {"text": MISSING, "value": "", "winner": None}
    return {
        "text": Column("", "", "", "", scale, sign=sign).text(found.value),
        "value": found.value.mean * scale,
        "winner": by.get(found.winner),
    }


def _standing(summaries: list[Summary], by: dict[str, Maker]) -> dict[str, Any]:
    """Who is ahead in which respect; no rows where there are no peers or no float32 file."""
    titles = {(each.task, each.method): each.title for each in summaries}
    has_both = len(by) > 1 and OURS in by and any(each.family == FLOAT for each in summaries)
    contests = comparison.contests(summaries) if has_both else []
    rows = []
    for contest in contests:
        column = BY_FIGURE[contest.figure]
        rows.append(
            {
                "contest": contest,
                "task": said(contest.task),
                "ours": titles.get((contest.task, contest.ours or "")),
                "our_value": column.said(contest.our_value),
                "peer": titles.get((contest.task, contest.peer or "")),
                "peer_value": column.said(contest.peer_value),
                "maker": by.get(contest.who or ""),
                "winner": by.get(contest.winner),
            }
        )
    neither = (OURS, comparison.EVEN, comparison.NOBODY)
    return {
        "rows": rows,
        "ahead": sum(contest.winner == OURS for contest in contests),
        "even": sum(contest.winner == comparison.EVEN for contest in contests),
        "behind": sum(contest.winner not in neither for contest in contests),
        "nobody": sum(contest.winner == comparison.NOBODY for contest in contests),
        "count": len(contests),
    }


def layer_data(rows: Sequence[Row], summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """The layers of all files of a benchmark."""
    found: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        if row["kind"] == "layers":
            found.setdefault((row["task"], row["method"]), row["layers"])
    tasks = []
    for task in dict.fromkeys(each.task for each in summaries):
        here = [s for s in summaries if s.task == task and (task, s.method) in found]
        files = [(s.title, s.who, found[task, s.method]) for s in here]
        plain = next((i for i, s in enumerate(here) if s.method == FLOAT), None)
        if files:
            before = files[plain][2] if plain is not None else None
            # The float file itself has nothing before it to be seen beside.
            first = next((i for i in range(len(files)) if i != plain), 0)
            tasks.append(task_entry(task, files, before, first))
    return tasks
