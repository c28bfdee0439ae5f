"""The page on a search: what was tried, what keeps the budgets, what each step was worth."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfcompress.files.quantities import as_time
from tfcompress.pilot.budget import COSTS, QUALITY
from tfcompress.pilot.result import AutoResult, Tried, Worth
from tfcompress.report.axes import MARKERS, Figure, layout_of, log_range, plain
from tfcompress.report.page import number, write_page

_TITLES = {
    "flash": ("Flash", "KiB", 1 / 1024),
    "ram": ("RAM", "KiB", 1 / 1024),
    "latency": ("Latency", "of the float file", 1.0),
    "cycles": ("Cycles", "millions", 1e-6),
    "macs": ("MACs, which energy goes with", "millions", 1e-6),
}
# Of the quality: what a plot shows below the worst that keeps up, in parts of the range above.
_BELOW = 0.5


def write_search_report(found: AutoResult, path: str) -> int:
    """Writes the HTML page on a search: one file without network."""
    costs = [name for name in COSTS if name in found.best.costs]
    done = [t for t in found.tried if t.quality is not None]
    figures = {name: _plot(found, done, name) for name in costs}
    turns = sorted({t.epochs for t in done})
    values = {
        "title": Path(found.output).name,
        "found": found,
        "cards": [*_cards(found, costs)],
        "plots": [(name, f"Quality against {_TITLES[name][0].split(',')[0]}") for name in costs],
        "turns": [(_marker(turns, n), _epochs(n)) for n in turns],
        "columns": [_TITLES[name][:2] for name in costs],
        "rows": [_row(t, costs) for t in found.tried],
        "worth": [_worth(found, w, costs) for w in found.worth],
        "share": _factor(found) != 1,
        "recipe": Path(found.recipe).read_text(encoding="utf-8"),
        "time": as_time(found.seconds),
    }
    return write_page(path, "search.html", values, {"figures": figures})


def _factor(found: AutoResult) -> int:
    """100 if the quality is a share, which is told in percent."""
    return 100 if found.up and 0 <= found.float_file[QUALITY] <= 1 else 1


def _epochs(count: int) -> str:
    return "not trained" if not count else f"{count} epoch{'s' * (count != 1)}"


def _marker(turns: Sequence[int], epochs: int) -> int:
    return min(turns.index(epochs), len(MARKERS) - 1)


def _cards(found: AutoResult, costs: Sequence[str]) -> list[tuple[str, str, str]]:
    """(what, the figure, what it is beside): of the file that was written."""
    quality = found.best.quality or 0.0
    beside = f"float {found.float_file[QUALITY]:.4f}"
    if QUALITY in found.bounds:
        beside += f", asked for {found.bounds[QUALITY]:.4f}"
    cards = [(found.measure, f"{quality:.4f}", beside)]
    for name in costs:
        title, unit, scale = _TITLES[name]
        value = found.best.costs[name] * scale
        told = []
        if (whole := found.float_file.get(name)) and name != "latency":
            told.append(f"float {_amount(whole * scale)}")
        if name in found.bounds:
            told.append(f"at most {_amount(found.bounds[name] * scale)}")
        cards.append((title.split(",")[0], f"{_amount(value)} {unit}", ", ".join(told)))
    return cards


def _amount(value: float) -> str:
    return number(value, 0 if value >= 100 else 1 if value >= 10 else 2)


def _plot(found: AutoResult, done: Sequence[Tried], name: str) -> Figure:
    """Quality against one cost: trials by the length of their training, the front, the budgets."""
    title, unit, scale = _TITLES[name]
    factor = _factor(found)
    points = [(t, t.costs[name] * scale, factor * (t.quality or 0.0)) for t in done]
    points = [p for p in points if p[1] > 0]
    left, right = log_range([x for _, x, _ in points])
    turns = sorted({t.epochs for t in done})
    traces = [_front([(x, y) for _, x, y in points], right, found.up)]
    for epochs in turns:
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": _epochs(epochs),
                "meta": {"role": "maker", "number": _marker(turns, epochs)},
                "marker": {"symbol": MARKERS[_marker(turns, epochs)], "size": 9},
                "x": [x for t, x, _ in points if t.epochs == epochs],
                "y": [y for t, _, y in points if t.epochs == epochs],
                "hovertext": [_hover(t) for t, _, _ in points if t.epochs == epochs],
                "hoverinfo": "text",
            }
        )
    best = found.best.costs[name] * scale, factor * (found.best.quality or 0.0)
    traces.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "the file",
            "meta": {"role": "float"},
            "marker": {"symbol": "star", "size": 15, "line": {"width": 1}},
            "x": [best[0]],
            "y": [best[1]],
            "hovertext": [_hover(found.best)],
            "hoverinfo": "text",
        }
    )
    heads = f"{title}, {unit}", found.measure + (", %" if factor == 100 else "")
    layout = layout_of(*heads, (left, right), _shown(found, [y for _, _, y in points]))
    layout["shapes"] = _budgets(found, name, scale)
    return {"data": traces, "layout": layout}


def _shown(found: AutoResult, values: list[float]) -> tuple[float, float]:
    """The ends of the axis of quality: files that fail must not press all others together."""
    factor = _factor(found)
    ends = [factor * found.float_file[QUALITY], factor * (found.best.quality or 0.0)]
    ends += [factor * found.bounds[QUALITY]] if QUALITY in found.bounds else []
    ends.append(statistics.median(values))
    low, high = min(ends), max([*ends, max(values)] if found.up else ends)
    room = max((high - low) * _BELOW, 1e-3 * abs(high), 1e-9)
    return low - room, high + room / 4


def _front(points: Sequence[tuple[float, float]], right: float, up: bool) -> Figure:
    """The line that nothing is beyond."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1] if up else p[1])):
        if not best or (y > best[-1][1] if up else y < best[-1][1]):
            best.append((x, y))
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "Pareto front",
        "meta": {"role": "front"},
        "x": [*(x for x, _ in best), right],
        "y": [*(y for _, y in best), best[-1][1]],
        "line": {"shape": "hv", "width": 1.5},
        "hoverinfo": "skip",
    }


def _budgets(found: AutoResult, name: str, scale: float) -> list[Figure]:
    """Lines where the budgets are."""
    line = {"color": "#cc5500", "width": 1, "dash": "dash"}
    shapes: list[Figure] = []
    if QUALITY in found.bounds:
        y = _factor(found) * found.bounds[QUALITY]
        shapes.append({"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y,
                       "line": line})  # fmt: skip
    if name in found.bounds and math.isfinite(found.bounds[name]):
        x = found.bounds[name] * scale
        shapes.append({"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": x, "x1": x,
                       "line": line})  # fmt: skip
    return shapes


def _hover(tried: Tried) -> str:
    lines = [f"<b>trial {tried.number}</b>, {_epochs(tried.epochs)}"]
    lines += [plain(f"{p}: {o}") for p, o in tried.picks.items() if o != "none"]
    lines.append(f"quality: {tried.quality:.4f}")
    for name, value in tried.costs.items():
        title, unit, scale = _TITLES[name]
        lines.append(f"{title.split(',')[0]}: {_amount(value * scale)} {unit}")
    return "<br>".join(lines)


def _row(tried: Tried, costs: Sequence[str]) -> dict[str, Any]:
    """A line of the table of all trials."""
    cells = []
    for name in costs:
        value = tried.costs.get(name)
        scaled = None if value is None else value * _TITLES[name][2]
        cells.append((number(None) if scaled is None else _amount(scaled), scaled))
    return {"tried": tried, "cells": cells, "epochs": _epochs(tried.epochs)}


def _worth(found: AutoResult, worth: Worth, costs: Sequence[str]) -> dict[str, Any]:
    """A line of the table of what steps were worth."""
    return {
        "worth": worth,
        "quality": f"{_factor(found) * worth.quality:+.2f}",
        "costs": [f"×{worth.costs[n]:.2f}" if n in worth.costs else number(None) for n in costs],
    }
