"""What every surgery starts from: a flat copy of the user's model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import keras

from tfcompress.dispatch import is_legacy
from tfcompress.graph.flatten import flatten
from tfcompress.graph.inputs import require_model
from tfcompress.graph.nodes import Graph
from tfcompress.layers.compressed import is_compressed


def opened(model: keras.Model) -> keras.Model:
    """A flat Functional copy of a model, with weights of its own, see `tfcompress.flatten`."""
    require_keras3(model)
    if is_compressed(model):
        raise ValueError(
            "model must be a plain one, whose layers can be exchanged; received "
            f"'{model.name}', whose layers are wrapped by compress or quantize_aware. Finalize it "
            "first with tfcompress.finalize, or do surgery before compress."
        )
    return flatten(model)


def require_keras3(model) -> None:
    """Raises a TypeError unless this is a Keras 3 model; says how to bring over a tf_keras one."""
    if is_legacy(model):
        raise TypeError(
            f"model must be a keras.Model of Keras 3; received '{model.name}' of tf_keras "
            "(Keras 2). Save it with model.save('old.h5'), then bring it over with `tfcompress "
            "migrate old.h5 new.keras`."
        )
    require_model(model)


def exchanged(graph: Graph, call: Callable) -> keras.Model:
    """A new model of a graph of `opened`, whose operations may be used again."""
    for node in graph.nodes:
        if not node.is_input:
            # Else they would know two calls, of which one is in no model.
            node.operation._inbound_nodes.clear()
            node.operation._outbound_nodes.clear()
    return graph.rebuild(
        lambda node, *args, **kwargs: args[0] if node.is_input else call(node, *args, **kwargs)
    )


Points = list[tuple[float, float]]


def lower_hull(points: Points) -> Points:
    """The lower convex hull of points that are sorted by their first coordinate."""
    corners: Points = []
    for point in points:
        while len(corners) > 1 and _turns_down(corners[-2], corners[-1], point):
            corners.pop()
        corners.append(point)
    return corners


def _turns_down(a, b, c) -> bool:
    """Whether b lies on the line from a to c, or above it."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])


@dataclasses.dataclass(frozen=True)
class Change:
    """What became of one layer or group of channels, or why nothing did.

    Attributes:
        layer: its name in the flat model, see `tfcompress.flatten`.
        detail: "64 -> 32 channels", "rank 12 of 64", or the reason why it stays.
    """

    layer: str
    detail: str


@dataclasses.dataclass(frozen=True)
class SurgeryReport:
    """What surgery did, as `model.surgery_report` of the new model.

    Attributes:
        operation: "prune_channels", "factorize" and so on.
        changes: what was changed.
        kept: what was wanted but stays as it was, and why.
        macs: multiply-accumulate operations of one sample, before and after.
        params: numbers in all weights, before and after.
    """

    operation: str
    changes: tuple[Change, ...]
    kept: tuple[Change, ...]
    macs: tuple[int, int]
    params: tuple[int, int]

    def __str__(self) -> str:
        rows = [*self.changes, *(Change(x.layer, f"kept: {x.detail}") for x in self.kept)]
        width = max((len(row.layer) for row in rows), default=0)
        lines = [f"{row.layer.ljust(width)}  {row.detail}" for row in rows]
        for name, (before, after) in (("MACs", self.macs), ("params", self.params)):
            share = f" ({after / before:.1%})" if before else ""
            lines.append(f"{name}: {before:,} -> {after:,}{share}")
        return "\n".join(lines)


def with_report(model: keras.Model, report: SurgeryReport) -> keras.Model:
    """The model, with the report as its attribute `surgery_report`, which is not saved."""
    model.surgery_report = report
    return model
