"""Which layers of a model a method of factorization can take apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from tfcompress.errors import did_you_mean
from tfcompress.graph.nodes import Graph
from tfcompress.kinds import DEPTHWISE, SEPARABLE, TRANSPOSED, is_exactly, is_of
from tfcompress.surgery.base import Change, Wanted, rules_of
from tfcompress.surgery.factors.layers import CONVOLUTIONS, separated
from tfcompress.surgery.factors.sites import Site, common_reason
from tfcompress.surgery.factors.structured import BlockSite, KroneckerSite, not_reshaped
from tfcompress.surgery.factors.svd import SvdSite
from tfcompress.surgery.factors.tensors import CpSite, SpatialSite, TuckerSite
from tfcompress.surgery.shapes import specs_of
from tfcompress.techniques.rules import Rule

METHODS: dict[str, type[Site]] = {
    "svd": SvdSite,
    "tucker": TuckerSite,
    "cp": CpSite,
    "spatial_svd": SpatialSite,
    "kronecker": KroneckerSite,
    "block_diagonal": BlockSite,
}

# Convolutions that no method takes apart.
_OTHER_CONVOLUTIONS = DEPTHWISE | SEPARABLE | TRANSPOSED


def find_sites(
    flat: keras.Model, graph: Graph, method: str, wanted: Wanted | Sequence[Wanted] | None
) -> tuple[list[Site], list[Change]]:
    """The layers that a method can take apart, in order, and those that it cannot, and why."""
    rules = None if wanted is None else rules_of(wanted)
    named = _matching(flat, rules) if rules is not None else _usual(flat, METHODS[method])
    site_of = _site_maker(graph, METHODS[method])
    sites, kept = [], []
    for layer in named:
        site = site_of(layer)
        reason = _reason(site, method)
        if reason is None:
            sites.append(site)
        else:
            kept.append(Change(layer.name, reason))
    kept += _inside(flat, rules or [])
    if not sites:
        listed = "; ".join(f"'{x.layer}': {x.detail}" for x in kept[:3])
        raise ValueError(
            f"no layer that method='{method}' can take apart: expected {_kinds(METHODS[method])}; "
            f"received model '{flat.name}'"
            + (f" and layers={wanted!r}" if wanted is not None else "")
            + (f", where it cannot ({listed})" if listed else ", which has none")
            + ". Choose another method, or other layers."
        )
    return sites, kept


def without_separable(
    flat: keras.Model, method: str, wanted: Wanted | Sequence[Wanted] | None
) -> tuple[keras.Model, Wanted | Sequence[Wanted] | None]:
    """A model whose wanted separable convolutions are two, if a method takes the second apart.

    Returns (it, what is wanted of it).
    """
    kind = METHODS[method]
    if kind.spatial or not set(CONVOLUTIONS) & set(kind.kinds):
        return flat, wanted
    rules = None if wanted is None else rules_of(wanted)
    named = _matching(flat, rules) if rules is not None else _usual(flat, kind)
    separable = [layer for layer in named if is_exactly(layer, SEPARABLE)]
    if not separable:
        return flat, wanted
    names = None if rules is None else [layer.name for layer in named]
    return separated(Graph.of(flat), separable), names


def _matching(flat: keras.Model, rules: list[Rule]) -> list:
    """The layers with weights that rules match."""
    every = list(flat._flatten_layers(include_self=False))
    for rule in rules:
        if not any(rule.matches(layer) for layer in every):
            known = [layer.name for layer in every if layer.weights]
            text = str(rule.layers)
            raise ValueError(
                f"layers must match layers of model '{flat.name}'; received {rule.layers!r}, "
                "which matches none. "
                + did_you_mean(text, known, f"Its layers are {', '.join(known[:12])}.")
            )
    return [x for x in flat.layers if x.weights and any(rule.matches(x) for rule in rules)]


def _usual(flat: keras.Model, kind: type[Site]) -> list:
    """The layers of the kinds that a method is for."""
    others = _OTHER_CONVOLUTIONS if set(CONVOLUTIONS) & set(kind.kinds) else ()
    found = [x for x in flat.layers if isinstance(x, kind.kinds) or is_of(x, others)]
    return [layer for layer in found if not (kind.spatial and _is_pointwise(layer))]


def _is_pointwise(layer) -> bool:
    return all(length == 1 for length in layer.kernel_size)


def _inside(flat: keras.Model, rules: list[Rule]) -> list[Change]:
    """The layers inside of other layers that rules match."""
    found = []
    for outer in flat.layers:
        for layer in outer._flatten_layers(include_self=False):
            if layer.weights and any(rule.matches(layer) for rule in rules):
                kind = type(outer).__name__
                found.append(
                    Change(
                        layer.name, f"it is inside of '{outer.name}' ({kind}), which stays whole"
                    )
                )
    return found


def _reason(site: Site, method: str) -> str | None:
    """Why a layer cannot be taken apart, if it cannot."""
    layer, kinds = site.layer, type(site).kinds
    if type(layer) not in kinds:
        own = isinstance(layer, kinds)
        name = type(layer).__name__
        own_class = f"{name} is a class of its own, which may compute something else"
        return own_class if own else f"method='{method}' does not take {name} apart"
    if type(site).spatial and _is_pointwise(layer):
        return "its kernel covers one place, so that it is a matrix; use method='svd'"
    reason = common_reason(layer) or type(site).refuses(layer)
    if reason is None and isinstance(site, KroneckerSite | BlockSite):
        reason = not_reshaped(site)
    return reason


def _kinds(kind: type[Site]) -> str:
    names = [x.__name__ for x in kind.kinds]
    text = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{text} larger than one place" if kind.spatial else text


def _site_maker(graph: Graph, kind: type[Site]) -> Callable[[Any], Site]:
    specs = specs_of(graph)
    calls: dict[int, list] = {}
    for node in graph.nodes:
        if not node.is_input and node.inputs:
            shapes = [tuple(specs[id(x)].shape) for x in (node.inputs[0], node.outputs[0])]
            calls.setdefault(id(node.operation), []).append(tuple(shapes))
    taken = {node.name for node in graph.nodes}

    def name(wanted: str) -> str:
        number, found = 1, wanted
        while found in taken:
            found, number = f"{wanted}_{number}", number + 1
        taken.add(found)
        return found

    return lambda layer: kind(layer, calls[id(layer)], name)
