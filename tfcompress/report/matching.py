"""Which layer of one file is which of another, for histograms before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

Layer = dict[str, Any]


def match(layers: Sequence[Layer], before: Sequence[Layer]) -> list[int | None]:
    """Finds the layers with weights that two files have in common.

    By name and operation where all layers have a counterpart. Else, as other converters give other
    names, by their place among the layers with weights if operations and shapes of both lists are
    the same. Else those whose name, operation and shape agree.

    Args:
        layers, before: from `layer_figures`.

    Returns:
        For each layer the index of its counterpart, None if there is none.

    Example:
        >>> weighted = {"op": "CONV_2D", "params": 9, "histogram": {}}
        >>> match([{"name": "a", **weighted}], [{"name": "b", **weighted}])
        [0]
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
