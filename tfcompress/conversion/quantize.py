"""A float .tflite with known ranges -> an integer one, through litert-quantizer.

Every operation is told by a tag in the names of its outputs how it is to be quantized, so that one
short recipe serves a model of any size; the names are given back afterwards.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Collection
from typing import Any

import numpy as np
from litert_quantizer import qtyping, quantizer
from litert_quantizer.algorithm_manager import AlgorithmName

from tfcompress.conversion import islands
from tfcompress.conversion.grids import Grid, find_grid, is_float_constant, stored_range
from tfcompress.conversion.ranges import (
    Range,
    constant,
    drop_unused,
    floats_of,
    is_constant,
    part_outputs,
    require_ranges,
    type_unread_outputs,
)
from tfcompress.post_training.observers import weight_scale
from tfcompress.targets.targets import io_pair
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

INT4_OPS = ("FULLY_CONNECTED", "CONV_2D")


def static(
    model,
    ranges: dict[int, Range],
    *,
    io_dtype: str,
    weight_bits: set[int] | None,
    int4: bool = False,
    tensorwise: Collection[str] = (),
    floats: set[int] | frozenset[int] = frozenset(),
    weight_observer: str = "max",
) -> Any:
    """Quantizes weights and activations of a float model.

    Args:
        model: its `ModelT`, which is changed.
        io_dtype: "float32", "int8", "uint8" or "int16": the type of inputs and outputs, or both
            with a comma between.
        tensorwise: operations whose weights get one scale, not one a channel.
        weight_observer: one of `WEIGHT_OBSERVERS`, for weights that were not trained.

    Returns the `ModelT` of the integer file.
    """
    graph = model.subgraphs[0]
    ranges, floats = dict(ranges), set(floats)
    # litert-quantizer fails on a constant that nothing reads and whose buffer another has, too.
    drop_unused(model, ranges, floats)
    part_outputs(model, ranges)
    require_ranges(model, ranges, io_dtype)
    if weight_bits is not None:
        _free_weights(model, ranges)
    tags: set[str] = set()
    tag_of: dict[int, str] = {}
    qsv_of_weight: dict[int, dict[str, np.ndarray]] = {}
    for op in graph.operators:
        tag = _tag(model, op, ranges, weight_bits, int4, tensorwise, floats, qsv_of_weight)
        if weight_bits is None and tag != UNTOUCHED and weight_observer != "max":
            qsv_of_weight.update(_observed_weight(model, op, tag, weight_observer))
        tags.add(tag)
        tag_of.update((index, tag) for index in op.outputs)
    original = _rename(model, tag_of)
    qsv = _statistics(model, ranges, qsv_of_weight)
    quantized = _run(model, static_recipe(tags, io_dtype), qsv)
    named = {graph.tensors[i].name.decode(): known for i, known in ranges.items()}
    type_unread_outputs(quantized)
    islands.fold(quantized, {n: r for n, r in named.items() if not n.startswith(UNTOUCHED)})
    _share_tables(quantized)
    drop_unused(quantized, {}, set())
    _restore(quantized, original)
    return quantized


def _free_weights(model, ranges: dict[int, Range]) -> None:
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


def weight_only(model, bits: int, trained: set[int] | None = None) -> Any:
    """Stores weights as integers; the arithmetic stays float. Takes and returns a `ModelT`."""
    original = _rename(model)
    config = [entry(".*", op_config(None, 8, "c"))]
    if bits == 4:
        names = ("FULLY_CONNECTED", "CONV_2D", "EMBEDDING_LOOKUP", "BATCH_MATMUL")
        config += [entry(".*", op_config(None, 4, "c"), name) for name in names]
    tensors = model.subgraphs[0].tensors
    for op in model.subgraphs[0].operators:
        name = op_name(model, op)
        operand, axis = WEIGHTS.get(name, (0, 0))
        if trained and name in WEIGHTS and is_constant(model, op.inputs[operand]):
            grid = find_grid(constant(model, op.inputs[operand]), axis, sorted(trained))
            rule = untouched(name)
            if grid is not None and grid.widest:
                stored = 4 if grid.bits <= 4 and bits == 4 and name in INT4_OPS else 8
                rule = entry("", op_config(None, stored, grid.kind), name)
            config.append({**rule, "regex": f"^{tensors[op.outputs[0]].name.decode()};?$"})
    quantized = _run(model, config, None)
    _restore(quantized, original)
    return quantized


def _tag(model, op, ranges, weight_bits, int4, tensorwise, floats, qsv_of_weight) -> str:
    """How an op is to be quantized: 'a8w4c' (activations, weights, granularity), or 'keep'.

    Trained weights keep their scales (`qsv_of_weight`), and get a bias centred for their kernel.
    """
    activations = floats_of(model, op)
    if not activations or any(i not in ranges for i in activations):
        return UNTOUCHED
    if any(i in floats for i in op.outputs):
        return UNTOUCHED
    bits = max(ranges[i].bits for i in activations)
    name = op_name(model, op)
    operand, axis = WEIGHTS.get(name, (0, 0))
    index = op.inputs[operand]
    if name not in WEIGHTS or not is_constant(model, index):
        return f"a{bits}w8c"
    narrow = int4 and name in INT4_OPS
    if weight_bits is None:
        kind = "t" if name in tensorwise else "c"
        return f"a{bits}w{4 if narrow else 8}{kind}"
    grid = find_grid(constant(model, index), axis, sorted(weight_bits))
    if grid is None:
        return UNTOUCHED
    stored = 4 if narrow and (grid.bits == 4 or 4 not in weight_bits) else 8
    if grid.bits < stored or not grid.widest:  # the same values: the scale stays the trained one
        qsv_of_weight[index] = stored_range(grid, stored)
    return f"a{bits}w{stored}{grid.kind}"


def _observed_weight(model, op, tag: str, method: str) -> dict[int, dict[str, np.ndarray]]:
    """The range of the weights of an op by an observer, by their tensor; none if it has none."""
    operand, axis = WEIGHTS.get(op_name(model, op), (0, 0))
    index = op.inputs[operand]
    if not operand or not is_constant(model, index):
        return {}
    weight, (bits, kind) = constant(model, index), (int(tag.split("w")[1][:-1]), tag[-1])
    reduced = tuple(i for i in range(weight.ndim) if kind == "t" or i != axis)
    scale = weight_scale(weight, reduced, bits, method).astype(np.float64)
    return {index: stored_range(Grid(bits, kind, scale), bits)}


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
    low, high = known.minimum, known.maximum
    if known.bits == 16:
        high = max(-low, high)
        low = -high
    shape = (1,) * rank
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
    "c": qtyping.QuantGranularity.CHANNELWISE,
    "t": qtyping.QuantGranularity.TENSORWISE,
}

# The tag of operations that stay as they are.
UNTOUCHED = "keep"


def static_recipe(tags: set[str], io_dtype: str) -> list[dict[str, Any]]:
    """A recipe that quantizes operations by the tags in their outputs' names."""
    recipe = []
    for tag in sorted(tags - {UNTOUCHED}):
        activations, rest = tag[1:].split("w")
        config = op_config(int(activations), int(rest[:-1]), rest[-1])
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


def op_config(activations: int | None, weights: int, kind: str, unsigned: bool = False):
    """How an operation is to be quantized."""
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
        if activations
        else qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=activations is None,
    )
    return config.to_dict()
