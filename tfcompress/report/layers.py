"""The layers of a .tflite file in figures, for the report."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np

from tfcompress.compression.finalize import rebuild_copy
from tfcompress.conversion.convert import convert
from tfcompress.conversion.layer_names import LayerNames
from tfcompress.dispatch import is_legacy
from tfcompress.files import samples as samples_of
from tfcompress.files import temporary
from tfcompress.graph.copying import copy_operation, copy_weights
from tfcompress.graph.flatten import flatten
from tfcompress.layers.batch_norm import FusedBatchNorm
from tfcompress.layers.compressed import Compressed, is_compressed
from tfcompress.layers.fake_quant import FakeQuant
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.inspect import constants_by_operator, inspect
from tfcompress.tflite.inspection import FLOATS, QUANTIZED, OperatorInfo, TensorInfo
from tfcompress.tflite.plain_weights import has_codes, plain_twin
from tfcompress.tflite.run import Port, ports, quiet
from tfcompress.verification.layer_errors import float_twin, tensor_errors

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
    """Describes the operations of a .tflite file as layers, in their order."""
    content = flatbuffer.load(tflite_path)
    file = flatbuffer.read(content, name=flatbuffer.describe(tflite_path))
    flash = {(x.subgraph, x.layer, x.operator): x.bytes for x in inspect(content).layer_bytes}
    if has_codes(file):  # which LiteRT does not run, and of which the values are wanted
        file = plain_twin(file)
        content = flatbuffer.write(file)
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
            layers[-1]["bytes"] = flash.get((op.subgraph, op.layer, op.name), layers[-1]["bytes"])
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
    if not any(i >= 0 for i in op.outputs[:1]):
        return False
    if any(t.is_weight for t in constants):
        return True
    computes = op.dtype in (*FLOATS, *QUANTIZED) or op.dtype.startswith("dynamic")
    return computes and op.name not in _ASIDE


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
    if t.dtype in ("int2", "int4", "uint4"):
        return None
    limits = np.iinfo(t.dtype)
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
        if not 0 <= axis < values.ndim or values.shape[axis] != len(scales):
            return None
        shape = [-1 if d == axis else 1 for d in range(values.ndim)]
        scales = scales.reshape(shape)
        points = points.reshape(shape) if points.size > 1 else points
    return ((values - points) * scales).ravel()


def histogram(arrays: Iterable[np.ndarray]) -> dict[str, list] | None:
    """How values are spread, symmetric around 0 so that zeros are the middle bin.

    Returns {"edges": [low, high], "counts": [51 whole numbers]}, or None without values.
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
        return float_twin(model, file)[0]
    # What TFMOT quantizes rounds as the file does, and is no float model any more.
    if not is_legacy(model) or any(type(x).__name__.startswith("Quantize") for x in model.layers):
        return None
    import tensorflow as tf

    with quiet():
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


# What the weights are, and what the file is, in words. Masks only hide weights while a model
# trains; what `finalize` baked in is in the weights themselves.
_PLAIN = "the float model", "float32 file of the same model"
_LEFT_OUT = (
    "the float weights that the model holds, its techniques not applied",
    "float32 file without the techniques",
)
_APPLIED = (
    "the float model with its techniques applied",
    "float32 file with the techniques applied",
)


@dataclasses.dataclass(frozen=True)
class FloatFiles:
    """Float files of a model, as bytes.

    Attributes:
        twin: operations in the forms of the .tflite file, techniques applied: what the file is to
            compute.
        before: the same before techniques: what its weights were made of.
        float32: what `convert` writes of the latter: what the file is shipped instead of.
        weights: what the weights of `before` are, in words.
        title: what `float32` is, in words.
    """

    twin: bytes
    before: bytes
    float32: bytes
    weights: str
    title: str


def float_files(model: Any, tflite_path: str | os.PathLike[str]) -> FloatFiles:
    """The float files that a .tflite file is seen beside."""
    file = flatbuffer.read(tflite_path)
    twin = flatbuffer.write(float_twin(model, file)[0])
    compressed = is_compressed(model)
    try:
        if not compressed:
            return FloatFiles(twin, twin, _float32(model, file), *_PLAIN)
        plain = _without_techniques(model)
        before = flatbuffer.write(float_twin(plain, file)[0])
        return FloatFiles(twin, before, _float32(plain, file), *_LEFT_OUT)
    except (TypeError, ValueError):
        return FloatFiles(twin, twin, twin, *(_APPLIED if compressed else _PLAIN))


def _without_techniques(model: keras.Model) -> keras.Model:
    plain = rebuild_copy(flatten(model), _plain_function)
    if is_compressed(plain):
        raise ValueError("the model holds techniques inside of other layers")
    return plain


def _plain_function(operation: Any) -> Any:
    """What stands for an operation where there are no techniques, as `rebuild_copy` takes it."""
    if isinstance(operation, FakeQuant):
        activation = keras.layers.Activation(operation.activation or "linear", name=operation.name)
        # It is called with the row of its range, too.
        return (lambda x, **_: activation(x)), lambda: None
    if not isinstance(operation, (Compressed, FusedBatchNorm)):
        return None
    twin = copy_operation(operation.layer)
    return twin, lambda: copy_weights([(operation.layer, twin)])


def _float32(model: keras.Model, file: Any) -> bytes:
    graph = file.subgraphs[0]
    batch_size = int(graph.tensors[graph.inputs[0]].shape[0])
    with temporary.folder() as folder:
        path = Path(folder, "float32.tflite")
        convert(model, path, precision="float32", batch_size=batch_size)
        return path.read_bytes()


# Where a converter fuses operations into one, the one with weights names the layer.
_WEIGHTED = re.compile(r"conv|depthwise|matmul|biasadd|dense|einsum", re.IGNORECASE)
_MAX = 60


def layer_names(tensors: Sequence[str], model: Any = None) -> list[str]:
    """Names the layers that make tensors."""
    known = None if model is None else LayerNames(model)
    scopes = [_scope(tensor) for tensor in tensors]
    numbers = {match[1] for s in scopes if s and (match := re.search(r"_(\d+)$", s))}
    # Keras 3 exports a copy of the model, in which every layer has the same number behind it.
    copied = len(numbers) == 1 and all(s is None or re.search(r"_\d+$", s) for s in scopes)
    names = []
    for tensor, scope in zip(tensors, scopes, strict=True):
        guessed = re.sub(r"_\d+$", "", scope) if scope and copied else scope
        name = known.of(tensor) if known else ""
        names.append((name or _plain(guessed or tensor))[:_MAX])
    return names


def _scope(tensor: str) -> str | None:
    """'model/conv1/Relu;model/conv1/Conv2D' -> 'conv1'; None if the name has no such form."""
    paths = [part.split("/") for part in tensor.split(";") if part.count("/")]
    if not paths:
        return None
    weighted = [path for path in paths if _WEIGHTED.search(path[-1])]
    path = (weighted or paths)[0]
    inner = path[1:-1] or path[:-1]
    return "/".join(inner)


def _plain(name: str) -> str:
    """Without what quantization-aware training puts around the names of layers."""
    name = name.split(";")[0]
    name = re.sub(r"(^|/)quant_", r"\1", name)
    return re.sub(r"_range$", "", name).rstrip("_")
