"""Axes of plots as plain data for plotly.js; colours are put in by the page."""

from __future__ import annotations

import html
import math
from typing import Any

Figure = dict[str, Any]

# Of a range, what is left free at its ends.
PADDING = 0.06

# Labels of a narrow plot must lie apart.
_TICKS, _EDGE = 5.5, 0.04

# First digits of ticks, from coarse to fine.
_DIGITS: tuple[tuple[float, ...], ...] = (
    (1,),
    (1, 2, 5),
    (1, 1.5, 2, 3, 4, 5, 7),
    tuple(i / 10 for i in range(10, 100)),
    tuple(i / 100 for i in range(100, 1000)),
)

# Markers of plotly; the page has the same as symbols. The style has a colour for each number.
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down")


def ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Round places for a logarithmic axis, at most six and far enough apart, and their texts."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    least = (high / low) ** (1 / _TICKS)
    places: list[float] = []
    for digits in _DIGITS:
        for place in (d * 10.0**e for e in decades for d in digits):
            apart = all(max(place / p, p / place) >= least for p in places)
            if low <= place <= high and apart:
                places.append(place)
        if len(places) >= 3:
            break
    places.sort()
    return places, [f"{place:,.10g}" for place in places]


def log_range(values: list[float]) -> tuple[float, float]:
    """The ends of a logarithmic axis that shows values above 0."""
    low, high = min(values), max(values)
    padding = max(high / low, 1.5) ** PADDING
    return low / padding, high * padding


def plain(text: str) -> str:
    """A text that plotly is to show as it is: it takes some tags and entities for markup."""
    return html.escape(text, quote=False)


def layout_of(
    x_title: str, y_title: str, x_range: tuple[float, float], y_range: tuple[float, float]
) -> Figure:
    """Layout of a plot whose x axis is logarithmic."""
    # None in the corner, where the other axis has its lowest label.
    edge = (x_range[1] / x_range[0]) ** _EDGE
    places, texts = ticks(x_range[0] * edge, x_range[1] / edge)
    return {
        "xaxis": {
            "type": "log",
            "title": {"text": plain(x_title), "standoff": 8},
            "range": [math.log10(end) for end in x_range],
            "tickvals": places,
            "ticktext": texts,
            "tickangle": 0,
        },
        "yaxis": {"title": {"text": plain(y_title), "standoff": 8}, "range": list(y_range)},
        "hovermode": "closest",
        "showlegend": False,
        "margin": {"l": 60, "r": 12, "t": 12, "b": 52},
    }
