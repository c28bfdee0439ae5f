"""Layers of files as the script of the page takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfcompress.bench.running.results import is_number
from tfcompress.bench.summaries import FLOAT, Summary
from tfcompress.report.matching import match

Layer = dict[str, Any]
Row = dict[str, Any]

# More bars than a plot has pixels would hold up the page for minutes.
_MOST_BINS = 1000
_NUMBERS = ("bytes", "params", "sparsity", "unique", "bits", "sqnr_db")


def layer_data(rows: Sequence[Row], summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """The layers of all files of a benchmark.

    Args:
        rows: lines of results.
        summaries: the methods that are shown.

    Returns:
        See `task_entry`, for each task that has layers.
    """
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


def task_entry(
    title: str,
    files: Sequence[tuple[str, str, Sequence[Any]]],
    before: Sequence[Any] | None,
    first: int = 0,
) -> dict[str, Any]:
    """Files that are made of one model.

    Args:
        title: of the task or the model.
        files: for each a title, who made it, and its layers from `layer_figures`.
        before: the layers of the float file.
        first: which file is shown first.

    Returns:
        {"title", "first", "before": layers or None, "files": [{"title", "who", "layers",
        "before": for each layer the index of its counterpart in the float file, or None}]}.
    """
    reference = None if before is None else [_clean(layer) for layer in before]
    shown = []
    for name, who, layers in files:
        cleaned = [_clean(layer) for layer in layers]
        # The float file has nothing before it.
        pairs = match(cleaned, [] if reference is None or layers is before else reference)
        shown.append({"title": name, "who": who, "layers": cleaned, "before": pairs})
    return {"title": title, "first": first, "before": reference, "files": shown}


def _clean(layer: Any) -> Layer:
    """A layer with all that the page takes for granted: results may come from anywhere."""
    given = layer if isinstance(layer, dict) else {}
    found: Layer = {key: str(given.get(key) or "") for key in ("name", "op")}
    found |= {key: _number(given.get(key)) for key in _NUMBERS}
    return {**found, "range": _pair(given.get("range")), "histogram": _histogram(given)}


def _number(value: Any) -> float | None:
    return value if is_number(value) else None


def _pair(value: Any) -> list[float] | None:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    low, high = _number(value[0]), _number(value[1])
    return None if low is None or high is None else [low, high]


def _histogram(layer: Layer) -> dict[str, Any] | None:
    given = layer.get("histogram")
    if not isinstance(given, dict) or not isinstance(given.get("counts"), (list, tuple)):
        return None
    edges, counts = _pair(given.get("edges")), [_number(count) or 0 for count in given["counts"]]
    if edges is None or edges[0] >= edges[1] or not 0 < len(counts) <= _MOST_BINS:
        return None
    return {"edges": edges, "counts": counts}
