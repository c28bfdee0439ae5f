"""The states of a step model in its file: each has one scale, as it comes in and as it goes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tfcompress.graph.states import out_of, states_of
from tfcompress.kinds import FIXED_RANGES
from tfcompress.tflite import signature
from tfcompress.tflite.flatbuffer import op_name

# What kernels of 16 bits give for a softmax, a sigmoid or tanh has steps of 1/32768.
_WIDE = (0.0, 32767 / 32768)


def pairs(model: Any) -> list[list[int]]:
    """The tensors of a file that its states come in and go out as."""
    graph = model.subgraphs[0]
    inputs, outputs = signature.io_names(model)
    given = dict(zip(inputs, graph.inputs, strict=True))
    made = dict(zip(outputs, graph.outputs, strict=True))
    return [[int(given[name]), int(made[out_of(name)])] for name in states_of(inputs, outputs)]


def tie(model: Any, limits: dict[int, tuple], same_scale: Callable, wide: set[int]) -> None:
    """Gives all that has the scale of a state the range of all together. Changes `limits`.

    Args:
        limits: least and greatest values by tensor, as calibration saw them.
        same_scale: (model, operator) -> the tensors that it keeps on one scale.
        wide: tensors that operators of 16 bits give.
    """
    groups = [{*pair} for pair in pairs(model)]
    operators = model.subgraphs[0].operators if groups else []
    every = [{*map(int, same_scale(model, op))} for op in operators]
    fixed = {
        int(op.outputs[0]): _WIDE if op.outputs[0] in wide else FIXED_RANGES[name]
        for op in operators
        if (name := op_name(model, op)) in FIXED_RANGES
    }
    for group in groups:
        size = 0
        while size < len(group):
            size = len(group)
            group.update(*(other for other in [*every, *groups] if not group.isdisjoint(other)))
        known = [fixed[i] for i in group if i in fixed]
        known = known or [limits[i] for i in group if i in limits]
        if known:
            low, high = min(low for low, _ in known), max(high for _, high in known)
            limits.update((i, (low, high)) for i in group if i in limits)
