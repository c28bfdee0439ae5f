"""Which layer of one file is which of another, for histograms before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Layer = dict[str, Any]


def match(layers: Sequence[Layer], before: Sequence[Layer]) -> list[int | None]:
    """Finds the layers with weights that two files have in common.

    By name and operation; where names differ, as in files of other converters, by their place
    among the layers with weights, if the operations and the shapes of both lists are the same.

    Args:
        layers, before: from `layer_figures`.

    Returns:
        For each layer the index of its counterpart, None if there is none.

    Example:
        >>> weighted = {"op": "CONV_2D", "params": 9, "histogram": {}}
        >>> match([{"name": "a", **weighted}], [{"name": "b", **weighted}])
        [0]
    """
    theirs = {_key(layer): i for i, layer in reversed(list(enumerate(before))) if _weighs(layer)}
    ours = [layer for layer in layers if _weighs(layer)]
    if not any(_key(layer) in theirs for layer in ours):
        indices = [i for i, layer in enumerate(before) if _weighs(layer)]
        if _forms(ours) != _forms([before[i] for i in indices]):
            return [None] * len(layers)
        places = iter(indices)
        return [next(places) if _weighs(layer) else None for layer in layers]
    return [theirs.get(_key(layer)) if _weighs(layer) else None for layer in layers]


def _weighs(layer: Layer) -> bool:
    return layer.get("histogram") is not None


def _key(layer: Layer) -> tuple[Any, Any]:
    return layer.get("name"), layer.get("op")


def _forms(layers: Sequence[Layer]) -> list[tuple[Any, Any]]:
    return [(layer.get("op"), layer.get("params")) for layer in layers]
