"""Plots as plain data for plotly.js; colours are put in by the page, which knows its theme."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence

from tfcompress.bench.methods.run import AEQ, CONVERTER, OURS, TFMOT
from tfcompress.bench.summaries import COLUMNS, FLOAT, QUALITY, Column, Summary
from tfcompress.report.axes import MARKERS, PADDING, Figure, layout_of, log_range, plain

# Of the quality in percent: what a plot shows below the best file at the least, and at most
# unless half of the methods lie there.
_LEAST, _MOST = 2.0, 10.0


@dataclasses.dataclass(frozen=True)
class Point:
    """A method in a plot: x in the unit of its column, y in percent."""

    summary: Summary
    x: float
    y: float
    x_std: float
    y_std: float


@dataclasses.dataclass(frozen=True)
class Pareto:
    """A plot and what is said below it.

    Attributes:
        figure: {"data", "layout"} for plotly.js.
        front: the points on the Pareto front, from left to right.
        below: those that lie below what the plot shows at first.
        missing: methods without one of the two figures.
    """

    figure: Figure
    front: tuple[Point, ...]
    below: tuple[Point, ...]
    missing: tuple[Summary, ...]


def pareto(summaries: Sequence[Summary], column: Column, by: dict[str, Maker]) -> Pareto | None:
    """Quality against a cost, with the Pareto front.

    Returns a `Pareto`; None if no method has both figures.
    """
    points = [point for each in summaries if (point := _point(each, column)) is not None]
    if not points:
        return None
    best = front(points)
    low, high = _shown(points)
    left, right = log_range([p.x for p in points])
    plain = next((p for p in points if p.summary.method == FLOAT), None)
    rest = [p for p in points if p is not plain]
    traces = [_front_trace(best, right)]
    traces += [
        _trace([p for p in rest if p.summary.who == name], maker)
        for name, maker in by.items()
        if any(p.summary.who == name for p in rest)
    ]
    if plain:
        traces += _reference(plain, left, right)
    titles = f"{column.title}, {column.unit}", f"{measure_of(summaries[0])}, %"
    layout = layout_of(*titles, (left, right), (low, high))
    shown = {id(p.summary) for p in points}
    return Pareto(
        {"data": traces, "layout": layout},
        tuple(best),
        tuple(sorted((p for p in points if p.y < low), key=lambda p: -p.y)),
        tuple(each for each in summaries if id(each) not in shown),
    )


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats: none is as cheap and better, from cheap to dear."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        if not best or point.y > best[-1].y:
            best.append(point)
    return best


def _point(each: Summary, column: Column) -> Point | None:
    x, y = each.mean(column.figure), each.mean("quality")
    if x is None or y is None or x.mean <= 0:
        return None
    scale = column.scale
    return Point(each, x.mean * scale, 100 * y.mean, x.std * scale, 100 * y.std)


def _shown(points: list[Point]) -> tuple[float, float]:
    """The ends of the axis of quality: files that fail must not press all others together."""
    values = [p.y for p in points]
    best, middle = max(values), statistics.median(values)
    floor = best - max(_MOST, 3 * (best - middle))
    inside = [p for p in points if p.y >= floor]
    low = min(min(p.y - p.y_std for p in inside), best - _LEAST)
    high = max(p.y + p.y_std for p in inside)
    padding = PADDING * (high - low)
    return low - padding, high + padding


def _front_trace(best: list[Point], right: float) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "Pareto front",
        "meta": {"role": "front"},
        "x": [*(p.x for p in best), right],
        "y": [*(p.y for p in best), best[-1].y],
        "line": {"shape": "hv", "width": 1.5},
        "hoverinfo": "skip",
    }


def _trace(points: list[Point], maker: Maker) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(maker.name),
        "meta": {"role": "maker", "number": maker.number},
        "marker": {"symbol": maker.marker, "size": maker.size, "line": {"width": 1}},
        **_places(points),
    }


def _reference(point: Point, left: float, right: float) -> list[Figure]:
    line = {
        "type": "scatter",
        "mode": "lines",
        "name": "float32",
        "meta": {"role": "float"},
        "x": [left, right],
        "y": [point.y, point.y],
        "line": {"dash": "dot", "width": 1.5},
        "hoverinfo": "skip",
    }
    marker = {
        "type": "scatter",
        "mode": "markers",
        "name": "float32",
        "meta": {"role": "float"},
        "marker": {"symbol": "star", "size": 13, "line": {"width": 1}},
        **_places([point]),
    }
    return [line, marker]


def _places(points: list[Point]) -> Figure:
    bar = {"type": "data", "thickness": 1, "width": 3}
    return {
        "x": [p.x for p in points],
        "y": [p.y for p in points],
        "error_x": {**bar, "array": [p.x_std for p in points]},
        "error_y": {**bar, "array": [p.y_std for p in points]},
        "hovertext": [hover(p.summary) for p in points],
        "hoverinfo": "text",
    }


def hover(each: Summary) -> str:
    """All figures of a method, in lines of plotly's markup."""
    lines = [f"<b>{plain(each.title)}</b>", f"{plain(each.who)}: {plain(each.method)}"]
    for column in COLUMNS:
        if (found := each.mean(column.figure)) is not None:
            title = measure_of(each) if column is QUALITY else column.title
            lines.append(f"{title}: {column.said(found)}")
    return "<br>".join(lines)


def measure_of(each: Summary) -> str:
    """What quality is: "Accuracy" or "AUC"."""
    return "AUC" if each.measure == "AUC" else "Accuracy"


# In pixels, so that they look equally large.
_SIZES = (9, 9, 10, 12, 10, 12)
_FIRST = (OURS, TFMOT, CONVERTER, AEQ)


@dataclasses.dataclass(frozen=True)
class Maker:
    """One of those who make files; `number` picks colour and marker."""

    name: str
    number: int

    @property
    def marker(self) -> str:
        """The plotly marker."""
        return MARKERS[self.number]

    @property
    def size(self) -> int:
        """Of the marker, in pixels."""
        return _SIZES[self.number]


def makers(names: Iterable[str]) -> dict[str, Maker]:
    """By name; the known ones look the same in every report."""
    given = list(dict.fromkeys(names))
    order = [*_FIRST, *sorted(name for name in given if name not in _FIRST)]
    last = len(MARKERS) - 1
    return {name: Maker(name, min(i, last)) for i, name in enumerate(order) if name in given}
