"""The precision that each operation of a file gets: one for all, or by its layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from tfcompress.conversion.layer_names import LayerNames
from tfcompress.conversion.precisions import (
    BLOCK,
    FLOATS,
    KERNELS,
    USUAL,
    Precisions,
    require_able,
)
from tfcompress.conversion.quantize import INT4_OPS, WEIGHTS
from tfcompress.conversion.ranges import constant, ends, is_constant
from tfcompress.errors import did_you_mean
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.flatbuffer import op_name


@dataclasses.dataclass(frozen=True)
class Assignment:
    """What operations get, by the tensors that they give, and layers by their names.

    A layer with weights gets what these get.
    """

    operations: dict[int, str]
    layers: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def wide(self) -> set[int]:
        """The tensors that operations of 16 bits give."""
        return {i for i, precision in self.operations.items() if precision == "int16x8"}

    def floats_in(self, file: Any) -> set[str]:
        """The names of tensors that operations give which are float as they were asked to be."""
        tensors = file.subgraphs[0].tensors
        found = (i for i, precision in self.operations.items() if precision in FLOATS)
        return {flatbuffer.text(tensors[i].name) for i in found}


def one_for_all(file: Any, precision: str) -> Assignment:
    """A precision for all operations of a float file, as `convert` takes it by name."""
    found: dict[int, str] = {}
    for op in file.subgraphs[0].operators:
        narrow = precision == "int4" and op_name(file, op) not in INT4_OPS
        found.update((i, USUAL if narrow else precision) for i in op.outputs)
    return Assignment(found)


def by_layer(file: Any, model: keras.Model, precisions: Precisions) -> Assignment:
    """The precisions of the operations of a float file by the layers that they come from.

    Where a layer's kernel is not what LiteRT runs in fewer bits, it stays int8.

    Raises:
        ValueError: if no operation comes from the layers of a rule, or none of them can be that.
    """
    names, operators = LayerNames(model), file.subgraphs[0].operators
    layer_of = _layers(file, names)
    asked = {"": USUAL} | {
        name: precisions.of_layer(names.known[name]) for name in {*layer_of.values()} - {""}
    }
    able = {
        (layer_of[ends(op)[1]], precision)
        for op in operators
        for precision in KERNELS
        if _has_kernel(file, op, precision)
    }
    _check_rules(precisions, names, {*layer_of.values()} - {""}, able)
    found: dict[int, str] = {}
    layers: dict[str, str] = {}
    for op in operators:
        layer = layer_of.get(ends(op)[1], "")
        precision = asked[layer]
        if precision in KERNELS and not _has_kernel(file, op, precision):
            others = precision in FLOATS and (layer, precision) in able
            precision = "float32" if others else USUAL
        found.update((i, precision) for i in op.outputs)
        if layer and (layer not in layers or _weight_of(file, op) is not None):
            layers[layer] = precision
    return Assignment(found, layers, tuple(_notes(layers, asked, names)))


def _notes(layers: dict[str, str], asked: dict[str, str], names: LayerNames) -> Iterator[str]:
    """What is to be told of layers that did not get what was asked for, and of those in blocks."""
    for precision in KERNELS:
        others = [
            name
            for name, given in layers.items()
            if asked[name] == precision != given and getattr(names.known[name], "weights", None)
        ]
        if others:
            more = f" and {len(others) - 8} more" if len(others) > 8 else ""
            yield f"{USUAL}, as LiteRT has no {precision} kernel: {', '.join(others[:8])}{more}"
    if "int4_blockwise" in layers.values():
        yield (
            "int4_blockwise runs in XNNPACK, LiteRT's default on CPUs; its reference kernels and "
            "TFLite Micro give wrong numbers for it without an error"
        )


def handed(
    file: Any, grids: Mapping[bytes, tuple[str, np.ndarray]]
) -> dict[int, tuple[str, np.ndarray]]:
    """The layer and scales of weights that were rounded before, by the tensors of operations.

    Args:
        grids: layer and scales by the content of kernels, see `Tuned.grids`.
    """
    found: dict[int, tuple[str, np.ndarray]] = {}
    for op in file.subgraphs[0].operators:
        weight = _weight_of(file, op)
        known = None if weight is None else grids.get(constant(file, weight).tobytes())
        if known is not None:
            found[ends(op)[1]] = known
    return found


def _layers(file: Any, names: LayerNames) -> dict[int, str]:
    """The layer of each tensor that an operation gives, by its name or by what it is made of."""
    graph, found = file.subgraphs[0], dict[int, str]()
    for op in graph.operators:
        own = (names.of(flatbuffer.text(graph.tensors[i].name)) for i in op.outputs)
        given = (found[i] for i in op.inputs if i in found)
        layer = next(filter(None, (*own, *given)), "")
        found.update((i, layer) for i in op.outputs)
    return found


def _weight_of(file: Any, op: Any) -> int | None:
    operand, _ = WEIGHTS.get(op_name(file, op), (None, 0))
    known = operand is not None and is_constant(file, op.inputs[operand])
    return int(op.inputs[operand]) if known else None


def _has_kernel(file: Any, op: Any, precision: str) -> bool:
    weight = _weight_of(file, op)
    if weight is None or op_name(file, op) not in KERNELS[precision]:
        return False
    in_row = int(file.subgraphs[0].tensors[weight].shape[-1])
    return precision != "int4_blockwise" or in_row % BLOCK == 0


def _check_rules(
    precisions: Precisions, names: LayerNames, there: set[str], able: set[tuple[str, str]]
) -> None:
    for rule, precision in precisions:
        mine = [name for name in sorted(there) if rule.matches(names.known[name])]
        if not mine:
            matched = [name for name, layer in names.known.items() if rule.matches(layer)]
            near = did_you_mean(matched[0] if matched else "", sorted(there))
            raise ValueError(
                f"{rule.words} must match layers from which operations of the file come; it "
                f"matches {', '.join(map(repr, matched[:5]))}, which does nothing in inference or "
                f"was merged into another layer: name that one. {near}".strip()
            )
        if precision in KERNELS:
            taking = [name for name in mine if (name, precision) in able]
            require_able(rule, precision, taking, [names.known[name] for name in mine])
