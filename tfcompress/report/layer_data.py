"""Layers of files as the script of the page takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tfcompress.results import is_number

Layer = dict[str, Any]
Row = dict[str, Any]

# More bars than a plot has pixels would hold up the page for minutes.
_MOST_BINS = 1000
_NUMBERS = ("bytes", "params", "sparsity", "unique", "bits", "sqnr_db")


def task_entry(
    title: str,
    files: Sequence[tuple[str, str, Sequence[Any]]],
    before: Sequence[Any] | None,
    first: int = 0,
) -> dict[str, Any]:
    """Files that are made of one model.

    Returns {"title", "first", "before": layers or None, "files": [{"title", "who", "layers",
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


def match(layers: Sequence[Layer], before: Sequence[Layer]) -> list[int | None]:
    """Finds the layers with weights that two files have in common.

    By name and operation where all layers have a counterpart. Else, as other converters give other
    names, by their place among the layers with weights if operations and shapes of both lists are
    the same. Else those whose name, operation and shape agree.

    Returns for each layer the index of its counterpart, None if there is none.
    """
    ours = [i for i, layer in enumerate(layers) if _weighs(layer)]
    theirs = [i for i, layer in enumerate(before) if _weighs(layer)]
    by_key = dict(zip(_keys(before, theirs), theirs, strict=True))
    keys = _keys(layers, ours)
    places: list[int | None] = [None] * len(layers)
    if all(key in by_key for key in keys):
        pairs = [(i, by_key[key]) for i, key in zip(ours, keys, strict=True)]
    elif [_form(layers[i]) for i in ours] == [_form(before[i]) for i in theirs]:
        pairs = list(zip(ours, theirs, strict=True))
    else:
        found = [(i, by_key[key]) for i, key in zip(ours, keys, strict=True) if key in by_key]
        # Counting anew gives old names to other layers, and a factor has the name of the whole.
        pairs = [(i, other) for i, other in found if _form(layers[i]) == _form(before[other])]
    for i, other in pairs:
        places[i] = other
    return places


def _weighs(layer: Layer) -> bool:
    return layer.get("histogram") is not None


def _keys(layers: Sequence[Layer], indices: Sequence[int]) -> list[tuple[Any, ...]]:
    """Name, operation, and how many of the same came before: names need not be unique."""
    seen: Counter[tuple[Any, Any]] = Counter()
    keys = []
    for i in indices:
        key = layers[i].get("name"), layers[i].get("op")
        keys.append((*key, seen[key]))
        seen[key] += 1
    return keys


def _form(layer: Layer) -> tuple[Any, Any]:
    return layer.get("op"), layer.get("params")
