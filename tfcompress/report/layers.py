"""The layers of a .tflite file in figures, for the report."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np

from tfcompress import data as samples_of
from tfcompress.legacy import is_legacy
from tfcompress.report.tensor_names import layer_names
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.inspect import (
    OperatorInfo,
    TensorInfo,
    constants_by_operator,
    inspect,
)
from tfcompress.tflite.inspection import FLOATS, QUANTIZED
from tfcompress.tflite.runner import Port, ports

SAMPLES = 16
# What a layer is given that equals the float one: float32 itself ends near 140 dB.
EXACT_DB = 200.0
# 255 levels of int8 fall into 51 bins evenly, with 0 in the middle one.
BINS = 51
# They move values, or make the same ones wider or narrower.
_ASIDE = frozenset(
    "QUANTIZE DEQUANTIZE DENSIFY RESHAPE SQUEEZE EXPAND_DIMS SHAPE PACK PAD IDENTITY".split()
)
# Converters give outputs such names; signatures have better ones.
_NAMELESS = ("StatefulPartitionedCall", "PartitionedCall", "Identity")


def layer_figures(
    tflite_path: str | os.PathLike[str] | bytes,
    keras_model: Any = None,
    data: Any = None,
    reference: str | os.PathLike[str] | bytes | None = None,
) -> list[dict[str, Any]]:
    """Describes the operations of a .tflite file as layers, in their order.

    Args:
        tflite_path: the file, or its bytes.
        keras_model: the model that was converted, which tells names of layers. One of tf_keras
            serves for SQNR alone, unless TFMOT made it simulate quantization.
        data: samples of the inputs in real values, as for `tfcompress.verify`; the first 16 are
            run. None leaves out SQNR.
        reference: the float .tflite file of the same model that activations are compared with; it
            is made from the Keras model if None.

    Returns:
        A dict for each operation that computes, ready for `json.dumps`: "name", "op", "bytes" of
        its constants, "params", "sparsity" and "unique" values of its weights, their "bits",
        "sqnr_db" of its output with the errors of the layers before it (200 where both are equal),
        the "range" [min, max] that its output can hold if it is quantized, and the "histogram" of
        its dequantized weights: "edges" [low, high] and "counts" of 51 equal bins. What is not
        known is None, as are the figures of weights where there are none.

    Raises:
        ValueError: a file cannot be read, or the data does not fit it.

    Example:
        >>> layer_figures("model.tflite")[0]["name"]  # doctest: +SKIP
        'conv1'
    """
    content = flatbuffer.load(tflite_path)
    file = flatbuffer.read(content, name=flatbuffer.describe(tflite_path))
    found = inspect(content)
    groups = {
        op and (op.subgraph, op.index): constants
        for (_, op), constants in constants_by_operator(
            file, found.tensors, found.operators
        ).items()
    }
    outputs = {(t.subgraph, t.index): t for t in found.tensors}
    model = keras_model if _is_keras3(keras_model) else None
    names = layer_names(_tensors(file, found.operators), model)
    errors = _errors(file, content, keras_model, data, reference)
    layers = []
    for op, name in zip(found.operators, names, strict=True):
        constants = groups.get((op.subgraph, op.index), [])
        if _is_layer(op, constants):
            output = outputs[op.subgraph, op.outputs[0]]
            error = errors.get(output.index) if op.subgraph == 0 else None
            layers.append(_layer(file, op, name, constants, output, error))
    return layers


def _is_keras3(model: Any) -> bool:
    return any(c.__module__.startswith("keras.") for c in type(model).__mro__)


def _tensors(file: Any, operators: Iterable[OperatorInfo]) -> list[str]:
    """Names of what operators give; those of a signature where the file's own say nothing."""
    known = {
        (signature.subgraphIndex, entry.tensorIndex): flatbuffer.text(entry.name)
        for signature in file.signatureDefs
        for entry in signature.outputs
    }
    return [
        known.get((op.subgraph, op.outputs[0]), op.layer)
        if op.layer.startswith(_NAMELESS)
        else op.layer
        for op in operators
    ]


def _is_layer(op: OperatorInfo, constants: list[TensorInfo]) -> bool:
    if any(t.is_weight for t in constants):
        return bool(op.outputs)
    computes = op.dtype in (*FLOATS, *QUANTIZED) or op.dtype.startswith("dynamic")
    return computes and op.name not in _ASIDE and any(i >= 0 for i in op.outputs[:1])


def _layer(
    file: Any,
    op: OperatorInfo,
    name: str,
    constants: list[TensorInfo],
    output: TensorInfo,
    error: float | None,
) -> dict[str, Any]:
    weights = [t for t in constants if t.is_weight]
    count = sum(math.prod(t.shape) for t in weights)
    zeros = sum((t.sparsity or 0.0) * math.prod(t.shape) for t in weights)
    largest = max(weights, key=lambda t: math.prod(t.shape), default=None)
    return {
        "name": name,
        "op": op.name,
        "bytes": sum(t.bytes for t in constants),
        "params": sum(math.prod(t.shape) for t in constants if _is_parameter(t)),
        "sparsity": round(zeros / count, 6) if count else None,
        "unique": max((t.unique for t in weights if t.unique is not None), default=None),
        "bits": flatbuffer.BITS[largest.dtype] if largest is not None else None,
        "sqnr_db": error,
        "range": _range(output),
        "histogram": histogram(
            values for t in weights if (values := _real_values(file, t)) is not None
        ),
    }


def _is_parameter(t: TensorInfo) -> bool:
    # Whole numbers without a scale are shapes and axes.
    return t.is_weight or t.dtype in FLOATS or bool(t.scales)


def _range(t: TensorInfo) -> list[float] | None:
    """The real values of the smallest and the largest code of a quantized activation."""
    if t.scale is None or t.dtype not in QUANTIZED:
        return None
    limits = np.iinfo(t.dtype) if t.dtype not in ("int2", "int4", "uint4") else None
    if limits is None:
        return None
    point = t.zero_point or 0
    return [_rounded((code - point) * t.scale) for code in (int(limits.min), int(limits.max))]


def _real_values(file: Any, t: TensorInfo) -> np.ndarray | None:
    """The real values of a weight, flat float64; None if they are stored in another way."""
    stored = flatbuffer.tensor_values(file, file.subgraphs[t.subgraph].tensors[t.index])
    if stored is None:
        return None
    values = stored.astype(np.float64)
    if not t.is_quantized:
        return values.ravel()
    scales, points = np.array(t.scales), np.array(t.zero_points or (0,), np.float64)
    if t.block_size:
        if t.block_size * len(scales) != values.size:
            return None
        return (values.reshape(-1, t.block_size) * scales[:, None]).ravel()
    axis = t.quantized_dimension
    if axis is not None:
        if values.shape[axis] != len(scales):
            return None
        shape = [-1 if d == axis else 1 for d in range(values.ndim)]
        scales = scales.reshape(shape)
        points = points.reshape(shape) if points.size > 1 else points
    return ((values - points) * scales).ravel()


def histogram(arrays: Iterable[np.ndarray]) -> dict[str, list] | None:
    """How values are spread, symmetric around 0 so that zeros are the middle bin.

    Args:
        arrays: float values; those that are not finite are left out.

    Returns:
        {"edges": [low, high], "counts": [51 whole numbers]}, or None without values.

    Example:
        >>> histogram([np.array([-1.0, 0.0, 0.0, 1.0])])["counts"][25]
        2
    """
    parts = [array.ravel() for array in arrays]
    values = np.concatenate(parts) if parts else np.empty(0)
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    # Half a step of int8 more, so that its 255 levels lie in the middle of fifths of bins.
    high = float(np.abs(values).max()) * 127.5 / 127 or 1.0
    counts, _ = np.histogram(values, BINS, (-high, high))
    return {"edges": [_rounded(-high), _rounded(high)], "counts": counts.tolist()}


def _errors(
    file: Any, content: bytes, model: Any, data: Any, reference: Any
) -> dict[int, float | None]:
    """SQNR in dB by tensor index; empty if there is nothing to compare with."""
    if data is None:
        return {}
    exact = _exact(file, model, reference)
    if exact is None:
        return {}
    from tfcompress.tflite.layer_errors import tensor_errors

    return {
        index: None if math.isnan(ratio) or ratio == -math.inf else round(min(ratio, EXACT_DB), 2)
        for index, ratio in tensor_errors(
            file, content, exact, _batches(ports(file)[0], data, model)
        ).items()
    }


def _exact(file: Any, model: Any, reference: Any) -> Any:
    """The float file that activations are compared with; None if there is none."""
    if reference is not None:
        return flatbuffer.read(reference, name=flatbuffer.describe(reference))
    if _is_keras3(model):
        from tfcompress.tflite.layer_errors import float_twin

        return float_twin(model, file)
    # What TFMOT quantizes rounds as the file does, and is no float model any more.
    if not is_legacy(model) or any(type(x).__name__.startswith("Quantize") for x in model.layers):
        return None
    import tensorflow as tf

    from tfcompress.tflite import lower

    with lower.quiet():
        return flatbuffer.read(tf.lite.TFLiteConverter.from_keras_model(model).convert())


def _batches(inputs: list[Port], data: Any, model: Any) -> list[dict[str, np.ndarray]]:
    """The first samples as batches of the size that the file takes; the last is filled up."""
    pairs = _named(inputs, model)
    wanted = [
        SimpleNamespace(
            name=name,
            shape=(None, *entry.shape[1:]),
            dtype=entry.dtype if entry.scale is None else "float32",
        )
        for name, entry in pairs
    ]
    rows = list(samples_of.batches(data, wanted, limit=SAMPLES))
    size = inputs[0].shape[0]
    rows += [rows[-1]] * (-len(rows) % size)
    return [
        {entry.name: np.concatenate([row[n] for row in rows[i : i + size]]) for n, entry in pairs}
        for i in range(0, len(rows), size)
    ]


def _named(inputs: list[Port], model: Any) -> list[tuple[str, Port]]:
    """The file's inputs in the order and by the names of the model's, where these are known."""
    names = [tensor.name for tensor in getattr(model, "inputs", None) or ()]
    if len(names) != len(inputs) or not _is_keras3(model):
        return [(entry.name, entry) for entry in inputs]
    by_name = {entry.name: entry for entry in inputs}
    if set(names) != set(by_name):
        return list(zip(names, inputs, strict=True))
    return [(name, by_name[name]) for name in names]


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
