"""A float .tflite with known ranges -> an integer one, through litert-quantizer.

Every operation is told by a tag in the names of its outputs how it is to be quantized, so that one
short recipe serves a model of any size; the names are given back afterwards.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from litert_quantizer import qtyping, quantizer
from litert_quantizer.algorithm_manager import AlgorithmName

from tfcompress.conversion import islands, packing
from tfcompress.conversion.grids import (
    Grid,
    Stored,
    find_grid,
    fits,
    handed_grid,
    is_float_constant,
    stored_range,
)
from tfcompress.conversion.precisions import BLOCK, KERNELS, WEIGHT_BITS
from tfcompress.conversion.ranges import (
    Range,
    constant,
    drop_unused,
    ends,
    floats_of,
    is_constant,
    part_outputs,
    require_ranges,
    step_of,
    type_unread_outputs,
)
from tfcompress.targets.targets import io_pair
from tfcompress.techniques.scales import weight_scale
from tfcompress.tflite import flatbuffer, signature
from tfcompress.tflite.flatbuffer import op_name
from tfcompress.tflite.run import quiet

# Which operand holds the weights, and along which of its axes the output channels lie.
WEIGHTS = {
    "FULLY_CONNECTED": (1, 0),
    "CONV_2D": (1, 0),
    "DEPTHWISE_CONV_2D": (1, 3),
    "TRANSPOSE_CONV": (1, 0),
}

# The greatest number of int32 is the inverse of somewhat less.
_OF_INT32 = 1.001 * 2.0**-31

# What `precision="int4"` of a whole model stores in 4 bits.
INT4_OPS = ("FULLY_CONNECTED", "CONV_2D")


def static(
    model,
    ranges: dict[int, Range],
    *,
    io_dtype: str,
    precisions: Mapping[int, str] | None = None,
    trained: Mapping[int, Stored] | None = None,
    tensorwise: Collection[str] = (),
    floats: set[int] | frozenset[int] = frozenset(),
    weight_observer: str = "max",
    scales: Mapping[int, tuple[str, np.ndarray]] | None = None,
    cells: Mapping[int, float] | None = None,
    widths: Collection[int] | None = None,
) -> Any:
    """Quantizes weights and activations of a float model.

    Args:
        model: its `ModelT`, which is changed.
        io_dtype: "float32", "int8", "uint8" or "int16": the type of inputs and outputs, or both
            with a comma between.
        precisions: those of operators (see `Precisions`) by the tensors that they give, where they
            are not int8; ones that they have no kernel for are as int8.
        trained: how weights are stored that were trained for quantization, by their tensors; None
            if none was.
        tensorwise: operations whose weights get one scale, not one a channel.
        weight_observer: one of `WEIGHT_OBSERVERS`, for weights that were not trained.
        floats: tensors whose operators stay as they are.
        scales: by the tensors that operators give, the layer whose weights were rounded to a grid
            before, and the scales of that; see `grids.handed_grid`.
        cells: the greatest values of the cell states of LSTMs, by the tensors that these give.
        widths: the bits of weights that were trained for them; None if none were.

    Returns the `ModelT` of the integer file.
    """
    graph = model.subgraphs[0]
    ranges, floats, told = dict(ranges), set(floats), dict(precisions or {})
    handed, stored = dict(scales or {}), None if trained is None else dict(trained)
    most = dict(cells or {})
    # litert-quantizer fails on a constant that nothing reads and whose buffer another has, too.
    drop_unused(model, ranges, floats, told, handed, most, {} if stored is None else stored)
    part_outputs(model, ranges, floats, told)
    require_ranges(model, ranges, io_dtype)
    again = _rounded_again(model, ranges)
    if stored is not None:
        _free_weights(model, ranges, stored)
    tag_of: dict[int, str] = {}
    qsv_of_weight: dict[int, dict[str, np.ndarray]] = {}
    for op in graph.operators:
        _, first = ends(op)
        tag = UNTOUCHED
        if not any(i in floats or i in again for i in op.outputs):
            one = op_name(model, op) in tensorwise
            weights = Weights(stored, handed.get(first), one, weight_observer)
            tag = _tag(model, op, ranges, told.get(first, "int8"), weights, qsv_of_weight)
        tag_of.update((index, tag) for index in op.outputs)
    original = _rename(model, tag_of)
    qsv = _statistics(model, ranges, qsv_of_weight)
    quantized = _run(model, static_recipe({*tag_of.values()}, io_dtype), qsv)
    names = {i: graph.tensors[i].name.decode() for i in ranges}
    type_unread_outputs(quantized)
    known = {i for i, name in names.items() if i in again or not name.startswith(UNTOUCHED)}
    named = {names[i]: ranges[i] for i in known}
    if stored is not None:
        islands.round_twice(quantized, named)
    named_cells = {graph.tensors[i].name.decode(): value for i, value in most.items()}
    islands.fold(quantized, named, named_cells, widths)
    _share_tables(quantized)
    _store_narrow(quantized)
    drop_unused(quantized)
    _restore(quantized, original)
    return quantized


def _rounded_again(model, ranges: dict[int, Range]) -> set[int]:
    """The tensors that are others, rounded to a range of their own: see `take_markers`.

    litert-quantizer would give both one scale; left out, they become a QUANTIZE.
    """
    graph, found = model.subgraphs[0], set[int]()
    for source, made in (ends(op) for op in graph.operators if op_name(model, op) == "RESHAPE"):
        if list(graph.tensors[source].shape) != list(graph.tensors[made].shape):
            continue
        before, after = ranges.get(source), ranges.get(made)
        if before is None or after is None or {before.bits, after.bits} != {8}:
            continue
        if None not in (before.node, after.node) and before.node != after.node:
            found.add(made)
    return found


def _store_narrow(model) -> None:
    """Stores weights in the bits that tags tell."""
    graph, bits_of, halves = model.subgraphs[0], dict[int, int](), []
    for op in graph.operators:
        tags = [bytes(graph.tensors[i].name).partition(b"_")[0].decode() for i in op.outputs[:1]]
        found = [match for match in map(_NARROW.fullmatch, tags) if match]
        if found and op_name(model, op) in WEIGHTS:
            bits_of[op.inputs[WEIGHTS[op_name(model, op)][0]]] = int(found[0][1])
        elif tags == [HALF]:
            halves.append(op)
    packing.pack(model, bits_of)
    packing.halve(model, halves)


def _free_weights(model, ranges: dict[int, Range], trained: dict[int, Stored]) -> None:
    """Gives weights that are looked up in, too, a tensor without the range of that.

    With the range of asymmetric codes symmetric ones would be coarser than the trained ones.
    """
    graph = model.subgraphs[0]
    for op in graph.operators:
        operand, _ = WEIGHTS.get(op_name(model, op), (None, 0))
        if operand is None or op.inputs[operand] not in ranges:
            continue
        tensor = graph.tensors[op.inputs[operand]]
        if flatbuffer.is_constant(model, tensor):
            graph.tensors.append(flatbuffer.changed(tensor, name=bytes(tensor.name) + b"_weights"))
            trained[len(graph.tensors) - 1] = trained[op.inputs[operand]]
            op.inputs[operand] = len(graph.tensors) - 1


def _share_tables(model) -> None:
    """Holds codes once that are both looked up in and weights."""
    graph = model.subgraphs[0]
    tables: dict[bytes, int] = {}
    for op in graph.operators:
        if op_name(model, op) == "GATHER" and is_constant(model, op.inputs[0]):
            table = graph.tensors[op.inputs[0]]
            tables[flatbuffer.tensor_bytes(model, table) or b""] = table.buffer
    for op in graph.operators if tables else ():
        operand, _ = WEIGHTS.get(op_name(model, op), (None, 0))
        if operand is not None and is_constant(model, op.inputs[operand]):
            weight = graph.tensors[op.inputs[operand]]
            codes = flatbuffer.tensor_bytes(model, weight) or b""
            weight.buffer = tables.get(codes, weight.buffer)


def weight_only(model, bits: int, trained: set[int] | None = None, observer: str = "max") -> Any:
    """Stores weights as integers; the arithmetic stays float. Takes and returns a `ModelT`."""
    original = _rename(model)
    config = [entry(".*", op_config(None, 8, "c"))]
    if bits == 4:
        names = ("FULLY_CONNECTED", "CONV_2D", "EMBEDDING_LOOKUP", "BATCH_MATMUL")
        config += [entry(".*", op_config(None, 4, "c"), name) for name in names]
    tensors, qsv = model.subgraphs[0].tensors, {}
    for op in model.subgraphs[0].operators:
        name = op_name(model, op)
        operand, axis = WEIGHTS.get(name, (0, 0))
        if name not in WEIGHTS or not is_constant(model, index := op.inputs[operand]):
            continue
        values = constant(model, index)
        if observer != "max":
            stored = bits if name in INT4_OPS else 8
            found = observed(values, axis, "c", stored, observer)
            qsv[tensors[index].name.decode()] = stored_range(found, stored)
        if trained and name != "TRANSPOSE_CONV":  # which stays float
            grid = find_grid(values, axis, sorted(trained))
            rule = untouched(name)
            if grid is not None:
                stored = 4 if grid.bits <= 4 and bits == 4 and name in INT4_OPS else 8
                rule = entry("", op_config(None, stored, grid.kind), name)
                # Of the codes of as many bits the greatest need not be among them.
                qsv[tensors[index].name.decode()] = stored_range(grid, stored)
            config.append({**rule, "regex": f"^{tensors[op.outputs[0]].name.decode()};?$"})
    quantized = _run(model, config, qsv or None)
    _restore(quantized, original)
    return quantized


class Weights(NamedTuple):
    """What is known of the grid of an operator's weights.

    Attributes:
        trained: how those of a trained model are stored, by their tensors; None if of another.
        handed: the name of their layer and their scales, if they lie on a grid that is known.
        tensorwise: whether they are to have one scale, else one a channel.
        observer: one of `WEIGHT_OBSERVERS`, for those that were not trained.
    """

    trained: Mapping[int, Stored] | None
    handed: tuple[str, np.ndarray] | None
    tensorwise: bool
    observer: str

    @property
    def is_own(self) -> bool:
        """Whether grids of 8 bits are those that litert-quantizer finds by itself."""
        return self.handed is None and (self.trained is not None or self.observer == "max")

    def grid(self, values: np.ndarray, axis: int, bits: int) -> Grid:
        """The grid to store values on in some bits, that were not trained."""
        kind = "t" if self.tensorwise else "c"
        if self.handed is not None:
            layer, scale = self.handed
            known = handed_grid(values, axis, scale, 8, layer)
            # The converter may have made an operator of it that is stored in fewer bits.
            if fits(values, known, bits):
                return known._replace(bits=bits)
        return observed(values, axis, kind, bits, self.observer)


def _tag(model, op, ranges, precision: str, weights: Weights, qsv_of_weight) -> str:
    """How an op is to be quantized: 'a8w4c' (activations, weights, granularity), or 'keep'.

    Weights whose grid is not litert-quantizer's own get their scales by `qsv_of_weight`.
    """
    if precision in _AS_FLOATS:
        return _AS_FLOATS[precision]
    activations = floats_of(model, op)
    if not activations or any(i not in ranges for i in activations):
        return UNTOUCHED
    given = [i for i in op.outputs if i in ranges] or activations
    bits = max(ranges[i].bits for i in given)
    name = op_name(model, op)
    operand, axis = WEIGHTS.get(name, (0, 0))
    index = op.inputs[operand]
    if name not in WEIGHTS or not is_constant(model, index):
        return f"a{bits}w8c"
    if weights.trained is not None:
        grid, stored = weights.trained[index]
    else:
        stored = WEIGHT_BITS[precision] if name in KERNELS.get(precision, ()) else 8
        grid = weights.grid(constant(model, index), axis, stored)
    if grid is None:
        return UNTOUCHED
    held = _holding_bias(model, op, grid, ranges)
    changed = not np.array_equal(held.scale, grid.scale)
    # The same values: the scale stays.
    if grid.bits < 8 or not grid.widest or not weights.is_own or changed:
        qsv_of_weight[index] = stored_range(held, 8)
    return f"a{bits}w{stored}{grid.kind}"


def _holding_bias(model, op, grid: Grid, ranges: dict[int, Range]) -> Grid:
    """A grid whose scales are no smaller than the bias, in whole steps of products, has room for.

    Zeros lie on any grid: theirs counts products in steps of the output, as training does.
    """
    operand, axis = WEIGHTS[op_name(model, op)]
    source = next((i for i in op.inputs if i in ranges and i != op.inputs[operand]), None)
    if source is None:  # a constant
        return grid
    step, made = step_of(ranges[source]), step_of(ranges[op.outputs[0]])
    scale = np.where(grid.scale > 0, grid.scale, made / step)
    bias = op.inputs[-1]
    given = bias not in (-1, source, op.inputs[operand]) and is_constant(model, bias)
    if given and ranges[source].bits == 8:
        sizes = np.abs(constant(model, bias)) * (_OF_INT32 / step)
        shape = [-1 if i == axis else 1 for i in range(grid.scale.ndim)]
        scale = np.maximum(scale, sizes.max() if grid.kind == "t" else sizes.reshape(shape))
    return grid._replace(scale=scale)


def observed(values: np.ndarray, axis: int, kind: str, bits: int, method: str) -> Grid:
    """The grid of weights by an observer, with one scale ("t") or one a channel ("c")."""
    reduced = tuple(i for i in range(values.ndim) if kind == "t" or i != axis)
    return Grid(bits, kind, weight_scale(values, reduced, bits, method).astype(np.float64))


@contextlib.contextmanager
def hushed():
    """Keeps back litert-quantizer's reports, progress bars and warnings."""
    text = io.StringIO()
    with (
        quiet(),
        contextlib.redirect_stdout(text),
        contextlib.redirect_stderr(text),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def _run(model, recipe: list[dict[str, Any]], qsv) -> Any:
    tool = quantizer.Quantizer(flatbuffer.write(model), recipe)
    with hushed():
        result = tool.quantize(qsv, enable_progress_report=False, enable_progress_bar=False)
    return flatbuffer.read(bytes(result.quantized_model))


def _statistics(
    model, ranges: dict[int, Range], of_weight: dict[int, dict[str, np.ndarray]]
) -> dict[str, dict[str, np.ndarray]]:
    """What litert-quantizer would find by calibration: least and greatest values by name."""
    tensors = model.subgraphs[0].tensors
    found = {i: _qsv(known, len(tensors[i].shape)) for i, known in ranges.items()}
    found.update(of_weight)
    for op in model.subgraphs[0].operators:
        for index in _plain_constants(model, op):
            if index not in found:
                found[index] = _constant_qsv(constant(model, index))
    return {tensors[i].name.decode(): entry for i, entry in found.items()}


def _qsv(known: Range, rank: int) -> dict[str, np.ndarray]:
    low, high, shape = known.minimum, known.maximum, (1,) * rank
    # In double precision, so that the scale that the markers told comes out to the last bit.
    return {"min": np.full(shape, low, np.float64), "max": np.full(shape, high, np.float64)}


def _plain_constants(model, op) -> list[int]:
    """The float constants that an op reads which are neither weights nor a bias."""
    operands = op.inputs[:1] if op_name(model, op) in WEIGHTS else op.inputs
    return [i for i in operands if i >= 0 and is_float_constant(model, i)]


def _constant_qsv(values: np.ndarray) -> dict[str, np.ndarray]:
    """The range of a constant operand: all of it, and zero."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    return _qsv(Range(low, high if high > low else low + 1.0), values.ndim)


_RENAMED = re.compile(rb"[a-z0-9]+_\d+x\d+(?=_|$)")


def _rename(model, tag_of: dict[int, str] | None = None) -> dict[bytes, bytes]:
    """Gives every tensor a short unique name, its tag in front; returns new -> original."""
    original, tag_of = {}, tag_of or {}
    for graph_number, graph in enumerate(model.subgraphs):
        for index, tensor in enumerate(graph.tensors):
            tag = tag_of.get(index, "t") if graph_number == 0 else "t"
            name = f"{tag}_{graph_number}x{index}".encode()
            original[name] = bytes(tensor.name or b"")
            tensor.name = name
    return original


def _restore(model, original: dict[bytes, bytes]) -> None:
    """Gives tensors their names back; those that quantization added keep their suffix."""
    used: set[bytes] = set()
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            new = name = bytes(tensor.name)
            base = _RENAMED.match(name)
            if base is not None and base[0] in original:
                new = original[base[0]] + name[base.end() :]
            while new in used:
                new += b"_"
            used.add(new)
            tensor.name = new
    # A QUANTIZE or DEQUANTIZE at the edge has put another tensor outermost.
    signature.name_inputs_and_outputs(model, [], [])


_GRANULARITY = {
    "b": qtyping.QuantGranularity[f"BLOCKWISE_{BLOCK}"],
    "c": qtyping.QuantGranularity.CHANNELWISE,
    "t": qtyping.QuantGranularity.TENSORWISE,
}

# The tags of operations that stay as they are; with weights of 16 bits; with weights of 4 bits in
# blocks, which LiteRT multiplies with inputs that it quantizes itself.
UNTOUCHED, HALF, BLOCKS = "keep", "keephalf", "keepblocks"
_AS_FLOATS = {"float32": UNTOUCHED, "float16": HALF, "int4_blockwise": BLOCKS}
# The tags of weights that are stored in fewer than 8 bits.
_NARROW = re.compile(r"a\d+w([24])[ct]")


def static_recipe(tags: set[str], io_dtype: str) -> list[dict[str, Any]]:
    """A recipe that quantizes operations by the tags in their outputs' names.

    All weights of integer operations are of 8 bits, which those of narrower grids are stored in
    until they are packed.
    """
    recipe = []
    for tag in sorted(tags - {UNTOUCHED, HALF}):
        config = op_config(None, 4, "b", dynamic=True)
        if tag != BLOCKS:
            config = op_config(int(tag[1:].split("w")[0]), 8, tag[-1])
        recipe.append(entry(f"^{tag}_", config))
    for name, dtype in zip(("INPUT", "OUTPUT"), io_pair(io_dtype), strict=True):
        bits = 16 if dtype == "int16" else 8
        config = op_config(bits, 8, "c", unsigned=dtype == "uint8")
        recipe.append(untouched(name) if dtype == "float32" else entry(".*", config, name))
    return recipe


def entry(regex: str, config: dict[str, Any], operation: str = "*") -> dict[str, Any]:
    """An entry that quantizes operations with outputs whose names fit a regular expression."""
    return {
        "regex": regex,
        "operation": operation,
        "algorithm_key": AlgorithmName.MIN_MAX_UNIFORM_QUANT,
        "op_config": config,
    }


def untouched(operation: str) -> dict[str, Any]:
    """An entry that leaves all operations of a type as they are."""
    return {"regex": ".*", "operation": operation, "algorithm_key": AlgorithmName.NO_QUANTIZE}


def op_config(
    activations: int | None,
    weights: int,
    kind: str,
    unsigned: bool = False,
    dynamic: bool = False,
):
    """How an operation is to be quantized; `dynamic`: activations by the kernel, as it runs."""
    integer = qtyping.TensorDataType.UINT if unsigned else qtyping.TensorDataType.INT
    config = qtyping.OpQuantizationConfig(
        activation_tensor_config=activations
        and qtyping.TensorQuantizationConfig(
            num_bits=activations, symmetric=activations == 16, dtype=integer
        ),
        weight_tensor_config=qtyping.TensorQuantizationConfig(
            num_bits=weights, symmetric=True, granularity=_GRANULARITY[kind]
        ),
        compute_precision=qtyping.ComputePrecision.INTEGER
        if activations or dynamic
        else qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=activations is None and not dynamic,
    )
    return config.to_dict()
