"""The precision that each operation of a file gets: one for all, or by its layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from tfcompress.conversion.grids import Stored, find_grid
from tfcompress.conversion.layer_names import LayerNames
from tfcompress.conversion.precisions import (
    BLOCK,
    FLOATS,
    KERNELS,
    USUAL,
    WEIGHT_BITS,
    Precisions,
    require_able,
)
from tfcompress.conversion.quantize import INT4_OPS, WEIGHTS, observed
from tfcompress.conversion.ranges import constant, ends, is_constant
from tfcompress.errors import did_you_mean
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.flatbuffer import op_name


@dataclasses.dataclass(frozen=True)
class Assignment:
    """What operations get, by the tensors that they give, and layers by their names.

    A layer with weights gets what these get. `trained` is how weights of a trained model are
    stored, by their tensors; None of another.
    """

    operations: dict[int, str]
    layers: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    trained: dict[int, Stored] | None = None

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
        if layer and (layer not in layers or weight_of(file, op) is not None):
            layers[layer] = precision
    return Assignment(found, layers, tuple(_notes(layers, asked, names)))


def as_trained(
    file: Any,
    model: keras.Model,
    widths: set[int],
    precision: str,
    precisions: Precisions | None = None,
) -> Assignment:
    """Each trained weight in the fewest bits that hold it and have a kernel, or as rules ask.

    Args:
        widths: that weights were trained for.
        precision: in "mixed" weights are as they were trained; in "int4" those of a model that was
            trained for more bits are rounded anew; else all have codes of 8 bits.
        precisions: of layers; the others get `precision`.

    Raises:
        ValueError: if weights do not fit into the bits that are asked for, or as `by_layer`.
    """
    names, layer_of, asked = None, dict[int, str](), dict[str, str]()
    if precisions is not None:
        layer_of = _layers(file, names := LayerNames(model))
        for layer in {*layer_of.values()} - {""}:
            asked[layer] = precisions.of_layer(names.known[layer], "")
    found, wider, able = dict[int, Stored](), dict[str, list[str]](), set[tuple[str, str]]()
    for op in file.subgraphs[0].operators:
        weight, layer = weight_of(file, op), layer_of.get(ends(op)[1], "")
        if weight is None:
            continue
        kernels = {name for name in KERNELS if _has_kernel(file, op, name)} & {*WEIGHT_BITS}
        able |= {(layer, name) for name in kernels}
        wanted = asked.get(layer, "")
        found[weight] = new = _stored(file, op, widths, precision, wanted, kernels)
        if wanted in kernels and new.grid is not None and new.bits > WEIGHT_BITS[wanted]:
            wider.setdefault(wanted, []).append(layer)
    if names is not None and precisions is not None:
        _check_rules(precisions, names, {*asked}, able)
    _require_fitting(wider, widths)
    one = one_for_all(file, precision if precision == "int16x8" else USUAL)
    return dataclasses.replace(one, trained=found)


def _stored(
    file: Any, op: Any, widths: set[int], precision: str, wanted: str, kernels: set[str]
) -> Stored:
    """How a trained weight is stored; see `as_trained`.

    Args:
        wanted: what a rule asks for; "" if none does.
        kernels: the precisions that there are for it.
    """
    name = op_name(file, op)
    operand, axis = WEIGHTS[name]
    values = constant(file, op.inputs[operand])
    asked = {WEIGHT_BITS[wanted]} if wanted in kernels else set()
    grid = find_grid(values, axis, sorted(widths | asked))
    if grid is None:
        return Stored(None, 8)
    if precision not in ("int4", "mixed") or wanted == USUAL:
        return Stored(grid, 8)
    if precision == "int4" and min(widths) > 4 and name in INT4_OPS:
        return Stored(observed(values, axis, grid.kind, 4, "max"), 4)
    bits = asked or {WEIGHT_BITS[kernel] for kernel in kernels}
    return Stored(grid, min((n for n in bits if n >= grid.bits), default=8))


def _require_fitting(wider: dict[str, list[str]], widths: set[int]) -> None:
    """Raises if layers are asked for in fewer bits than their weights need."""
    for precision, layers in wider.items():
        named, bits = ", ".join(map(repr, layers[:5])), WEIGHT_BITS[precision]
        more = f" and {len(layers) - 5} more" if len(layers) > 5 else ""
        trained = " or ".join(map(str, sorted(widths)))
        raise ValueError(
            f"weights must have been trained in {bits} bits to be stored as {precision}; received "
            f"{named}{more}, of a model trained in {trained} bits. Leave them out of precision, "
            f"or train them with Rule({layers[0]!r}, [Quantize(bits={bits})])."
        )


# As many values are few; a table of four bits holds them.
_FEW = 16


def stored(file: Any, model: keras.Model) -> tuple[dict[str, str], list[str]]:
    """How an integer file stores the weights of layers, and what is to be told of few values.

    Returns ("int2", "int4" or "int8" by the layer's name, if any has fewer than 8 bits; notes).
    """
    tensors, kinds, few = file.subgraphs[0].tensors, dict[int, str](), dict[int, int]()
    weights = [(op, weight) for op, weight in _stored_weights(file) if weight is not None]
    for _, weight in weights:
        if flatbuffer.scales_of(tensors[weight])[0]:
            kinds[weight] = flatbuffer.dtype_name(tensors[weight])
            codes = constant(file, weight) if kinds[weight] == USUAL else np.arange(_FEW + 1)
            count = np.unique(codes).size
            if count <= min(_FEW, codes.size // 4):
                few[weight] = count
    narrow = {*kinds.values()} - {USUAL}
    if not few and not narrow:
        return {}, []
    layer_of = _layers(file, names := LayerNames(model))
    layers, told = dict[str, str](), dict[str, int]()
    for op, weight in weights:
        layer = layer_of.get(ends(op)[1], "")
        if layer in names.known and weight in kinds:
            layers[layer] = kinds[weight]
            told.update({layer: few[weight]} if weight in few else {})
    fours = [i for i, kind in kinds.items() if kind == "int4"]
    most = max((math.prod(tensors[i].shape) for i in fours), default=0)
    return layers if narrow else {}, list(_storage_notes(told, most))


def asked(file: Any, model: keras.Model, precisions: Precisions | None, precision: str) -> set[int]:
    """The tensors that operators give of layers which rules give a precision."""
    if precisions is None or precision not in precisions.named:
        return set()
    layer_of = _layers(file, names := LayerNames(model))
    known = {index: names.known[layer] for index, layer in layer_of.items() if layer}
    return {i for i, layer in known.items() if precisions.of_layer(layer) == precision}


def operators_by_layer(file: Any, model: keras.Model) -> dict[str, str]:
    """The names of the operators of a file that have the weights of layers."""
    layer_of = _layers(file, LayerNames(model))
    weighted = [op for op, weight in _stored_weights(file) if weight is not None]
    return {layer_of.get(ends(op)[1], ""): op_name(file, op) for op in weighted}


def _stored_weights(file: Any) -> Iterator[tuple[Any, int | None]]:
    """The operators of a file and their weights, which may be made real in front of them."""
    real = dict[int, int]()
    for op in file.subgraphs[0].operators:
        operand, _ = WEIGHTS.get(op_name(file, op), (None, 0))
        if op_name(file, op) == "DEQUANTIZE" and is_constant(file, op.inputs[0]):
            real[op.outputs[0]] = int(op.inputs[0])
        elif operand is not None:
            yield op, real.get(op.inputs[operand], weight_of(file, op))


FEW_VALUES = "few values in int8 codes"


def _storage_notes(told: dict[str, int], most: int) -> Iterator[str]:
    if most:
        yield (
            "int4 weights save flash, not time: but for FULLY_CONNECTED in XNNPACK they are "
            f"widened at each run, in TFLite Micro in the arena ({most:,} bytes for the largest)"
        )
    if told:
        named = ", ".join(f"{name} ({count})" for name, count in [*told.items()][:8])
        more = f" and {len(told) - 8} more" if len(told) > 8 else ""
        yield f"{FEW_VALUES}, which make the file smaller zipped alone: {named}{more}"


# The share of zeros that were surely meant.
_MEANT = 0.4


def zeros_notes(sparsity: float | None, integers: bool) -> Iterator[str]:
    """What zeros are worth in a file; measured in docs/few_bits.md."""
    if sparsity is not None and sparsity >= _MEANT:
        where = "zipped, in what Vela writes and in TFLite Micro's codes (compressed_weights=True)"
        yield (
            f"{sparsity:.0%} of the weights are zeros, which save bytes "
            f"{where if integers else 'zipped'}, and no time: kernels multiply by them. A model "
            "with fewer channels (prune_channels) is faster"
        )


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
        weight = weight_of(file, op)
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


def weight_of(file: Any, op: Any) -> int | None:
    """The tensor that holds the weights of an operator; None if it has none, or computes them."""
    operand, _ = WEIGHTS.get(op_name(file, op), (None, 0))
    known = operand is not None and is_constant(file, op.inputs[operand])
    return int(op.inputs[operand]) if known else None


def _has_kernel(file: Any, op: Any, precision: str) -> bool:
    weight = weight_of(file, op)
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
