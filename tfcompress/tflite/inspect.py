"""What is in a .tflite file, read from the flatbuffer itself.

The interpreter is not asked: it reports int4 tensors as int8, and delegates rewrite its graph.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING, Any

from tfcompress.results import Result, Rows, plain, plain_fields, print_table
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.metadata import metadata_of
from tfcompress.tflite.metadata.types import Metadata, print_metadata
from tfcompress.tflite.plain_weights import has_codes, with_plain_weights
from tfcompress.tflite.statistics import Statistics, measure
from tfcompress.tflite.weight_codes import OPERATOR

if TYPE_CHECKING:
    from rich.console import Console

CONTROL_FLOW = ("WHILE", "IF", "CALL", "CALL_ONCE", "STABLEHLO_COMPOSITE")
_ACTIVATIONS = ("RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")


def inspect(path: str | os.PathLike[str] | bytes) -> Inspection:
    """Describe a .tflite file: sizes, sparsity, unique values, tensors, operators, metadata.

    Args:
        path: the file, or its bytes.

    Returns:
        An `Inspection`; sizes in bytes, all subgraphs (also the bodies of WHILE and IF).

    Raises:
        ValueError: there is no such file, or it is not a whole .tflite file.

    Example:
        >>> found = inspect("model.tflite")  # doctest: +SKIP
        >>> [(c.name, c.dtype, c.count) for c in found.op_counts]  # doctest: +SKIP
    """
    data = flatbuffer.load(path)
    model = flatbuffer.read(data, name=flatbuffer.describe(path))
    return inspect_parsed(model, data, path)


def inspect_parsed(model: Any, data: bytes, path: str | os.PathLike[str] | bytes) -> Inspection:
    """Describe a file that is unpacked already; see `inspect`."""
    known: dict[tuple, Statistics] = {}  # Tied weights are one buffer behind many tensors.
    plain, codes = with_plain_weights(model) if has_codes(model) else (model, {})
    graphs = [_tensors(model, g, known) for g in range(len(model.subgraphs))]
    for subgraph, index in codes:
        graphs[subgraph][index] = _decoded(plain, graphs[subgraph][index], codes[subgraph, index])
    tensors = tuple(t for graph in graphs for t in graph)
    operators = tuple(op for g in range(len(graphs)) for op in operators_of(model, g, graphs[g]))
    counts = Counter((op.name, op.dtype, op.version) for op in operators)
    groups = constants_by_operator(model, tensors, operators)
    decoded = _decoded_by_operator(graphs, operators)
    layers = tuple(_layer(*key, found, decoded.get(key, [])) for key, found in groups.items())
    constants = [t for found in groups.values() for t in found]
    weights = [t for t in (*constants, *chain(*decoded.values())) if t.is_weight]
    first = model.subgraphs[0]
    model_metadata, problem = _model_metadata(model, data, flatbuffer.describe(path))
    return Inspection(
        path=os.fspath(path) if isinstance(path, (str, os.PathLike)) else "",
        file_bytes=len(data),
        zipped_bytes=flatbuffer.zipped_size(data),
        description=flatbuffer.text(model.description),
        schema_version=model.version,
        metadata=tuple(_metadata(model, entry) for entry in model.metadata),
        signatures=tuple(_signature(entry) for entry in model.signatureDefs),
        inputs=tuple(graphs[0][i] for i in first.inputs),
        outputs=tuple(graphs[0][i] for i in first.outputs),
        tensors=tensors,
        operators=operators,
        op_counts=tuple(OpCount(*key, count) for key, count in sorted(counts.items())),
        layer_bytes=layers,
        dtype_bytes={
            dtype: sum(t.bytes for t in constants if t.dtype == dtype)
            for dtype in sorted({t.dtype for t in constants})
        },
        weights_bytes=sum(t.bytes for t in constants),
        sparsity=_sparsity(weights),
        float_ops=_float_ops(tensors, operators),
        weights=sum(math.prod(t.shape) for t in weights),
        entropy_bytes=sum(t.entropy_bytes or 0 for t in weights),
        coded_bytes=sum(layer.coded_bytes for layer in layers),
        model_metadata=model_metadata,
        model_metadata_problem=problem,
    )


def _decoded(plain: Any, t: TensorInfo, code: str) -> TensorInfo:
    """A weight in a code, with the statistics of what it is decoded to."""
    tensor = plain.subgraphs[t.subgraph].tensors[t.index]
    axis = t.quantized_dimension if t.is_quantized else None
    found = measure(plain, tensor, t.zero_points, axis, is_weight=True)
    return dataclasses.replace(t, code=code, **vars(found))


def _decoded_by_operator(
    graphs: list[list[TensorInfo]], operators: tuple[OperatorInfo, ...]
) -> dict[tuple[int, OperatorInfo | None], list[TensorInfo]]:
    """Weights in codes by what is the first to read them, once they are decoded."""
    found: dict[tuple[int, OperatorInfo | None], list[TensorInfo]] = {}
    seen: set[tuple[int, int]] = set()
    waiting: dict[tuple[int, int], int] = {}
    for op in operators:
        if op.name == OPERATOR:
            pairs = zip(op.outputs, op.inputs[::2], strict=False)
            waiting |= {(op.subgraph, given): stored for given, stored in pairs}
            continue
        for key in ((op.subgraph, index) for index in op.inputs):
            if key in waiting and (op.subgraph, waiting[key]) not in seen:
                seen.add((op.subgraph, waiting[key]))
                found.setdefault((op.subgraph, op), []).append(graphs[key[0]][key[1]])
    return found


def _tensors(model: Any, subgraph: int, known: dict[tuple, Statistics]) -> list[TensorInfo]:
    graph = model.subgraphs[subgraph]
    scales = {i for t in graph.tensors for i in side_tensors(graph, t.quantization)}
    found = []
    for i, tensor in enumerate(graph.tensors):
        t = tensor_of(model, subgraph, i, tensor)
        found.append(t)
        if not t.is_constant:
            continue
        is_weight = len(t.shape) > 1 and (t.dtype in FLOATS or t.is_quantized) and i not in scales
        axis = t.quantized_dimension if t.is_quantized else None
        if axis is not None and t.shape[axis : axis + 1] != (t.scale_count,):
            axis = None
        points = t.zero_points if t.dtype in QUANTIZED else ()
        key = (tensor.buffer, t.dtype, t.shape, points, axis, is_weight, id(tensor.sparsity))
        if key not in known:
            known[key] = measure(model, tensor, points, axis, is_weight)
        found[-1] = dataclasses.replace(t, **vars(known[key]))
    return found


def tensor_of(model: Any, subgraph: int, index: int, tensor: Any) -> TensorInfo:
    """Describe a tensor, without the statistics of its values."""
    dtype, quantization = flatbuffer.dtype_name(tensor), tensor.quantization
    stored = model.buffers[tensor.buffer].data
    size = 0 if stored is None else len(stored)
    scales, zero_points = flatbuffer.scales_of(tensor)
    side, block = side_tensors(model.subgraphs[subgraph], quantization), None
    if side:  # Blockwise: the scales are a constant of their own.
        values = flatbuffer.tensor_values(model, model.subgraphs[subgraph].tensors[side[0]])
        scales = () if values is None else tuple(map(float, values.ravel()))
        block = quantization.details.blockSize
    return TensorInfo(
        subgraph=subgraph,
        index=index,
        name=flatbuffer.text(tensor.name),
        shape=tuple(tensor.shape),
        shape_signature=tuple(tensor.shapeSignature or tensor.shape),
        dtype=dtype,
        is_constant=size > 0,
        bytes=size or flatbuffer.stored_size(tensor.shape, dtype),
        scales=scales,
        zero_points=zero_points,
        quantized_dimension=quantization.quantizedDimension if len(scales) > 1 else None,
        block_size=block,
    )


def side_tensors(graph: Any, quantization: Any) -> list[int]:
    """Return the tensors that hold the scales and zero points of a blockwise one."""
    details: Any = None if quantization is None else quantization.details
    if not hasattr(details, "blockSize"):
        return []
    return [i for i in (details.scales, details.zeroPoints) if 0 < i < len(graph.tensors)]


def operators_of(model: Any, subgraph: int, tensors: list[TensorInfo]) -> list[OperatorInfo]:
    """Describe the operators of a graph, given its tensors."""
    found = []
    for index, op in enumerate(model.subgraphs[subgraph].operators):
        name = flatbuffer.op_name(model, op)
        inputs = [tensors[i] for i in op.inputs if i != -1]
        outputs = [tensors[i] for i in op.outputs if i != -1]
        fused = getattr(op.builtinOptions, "fusedActivationFunction", 0)
        found.append(
            OperatorInfo(
                subgraph=subgraph,
                index=index,
                name=name,
                version=model.operatorCodes[op.opcodeIndex].version,
                inputs=tuple(op.inputs),
                outputs=tuple(op.outputs),
                dtype=_op_dtype(name, inputs, outputs),
                activation=_ACTIVATIONS[fused - 1] if 0 < fused <= len(_ACTIVATIONS) else None,
                layer=outputs[0].name if outputs else "",
            )
        )
    return found


def _op_dtype(name: str, inputs: list[TensorInfo], outputs: list[TensorInfo]) -> str:
    if name == "DEQUANTIZE" and inputs:
        return inputs[0].dtype
    # Comparisons and arg-max give no real numbers but take some; SHAPE only looks at dimensions.
    taken = [] if name in ("SHAPE", "RANK") else sorted(inputs, key=lambda t: t.is_constant)
    real = [t for t in outputs + taken if t.dtype in FLOATS or t.is_quantized]
    if not real:
        return (outputs + inputs)[0].dtype if outputs or inputs else "none"
    weights = [t for t in inputs if t.is_constant and t.is_quantized]
    if real[0].dtype in FLOATS and weights and name not in CONTROL_FLOW:
        return f"dynamic_{weights[0].dtype}"
    return real[0].dtype


def _float_ops(
    tensors: tuple[TensorInfo, ...], operators: tuple[OperatorInfo, ...]
) -> tuple[OperatorInfo, ...]:
    # Quantized constants alone do not count: weight-only files dequantize them and use floats.
    activations = any(t.is_quantized and not t.is_constant for t in tensors)
    if not activations and not any(op.dtype.startswith("dynamic") for op in operators):
        return ()
    aside = ("QUANTIZE", "DEQUANTIZE", *CONTROL_FLOW)
    return tuple(op for op in operators if op.dtype in FLOATS and op.name not in aside)


def constants_by_operator(
    model: Any, tensors: tuple[TensorInfo, ...], operators: tuple[OperatorInfo, ...]
) -> dict[tuple[int, OperatorInfo | None], list[TensorInfo]]:
    """Group the constants by what is the first to use them; those in one buffer are one."""
    info = {(t.subgraph, t.index): t for t in tensors}
    consumers: dict[tuple[int, int], OperatorInfo] = {}
    for op in operators:
        for i in op.inputs:
            consumers.setdefault((op.subgraph, i), op)
    uses: list[tuple[TensorInfo, OperatorInfo | None]] = []
    for op in operators:
        # Weights that are stored narrow and widened first belong to the layer behind.
        widens = op.name in ("DEQUANTIZE", "DENSIFY", OPERATOR) and op.outputs
        user = consumers.get((op.subgraph, op.outputs[0]), op) if widens else op
        graph = model.subgraphs[op.subgraph]
        for i in op.inputs:
            side = [] if i == -1 else side_tensors(graph, graph.tensors[i].quantization)
            uses += [(info[op.subgraph, j], user) for j in [i, *side] if j != -1]
    owners: dict[int, tuple[TensorInfo, OperatorInfo | None]] = {}
    for t, found in [*uses, *((t, None) for t in tensors)]:
        buffer = model.subgraphs[t.subgraph].tensors[t.index].buffer
        # A bias of the same bytes may share the buffer of a weight, which tells more.
        if t.is_constant and (buffer not in owners or t.is_weight > owners[buffer][0].is_weight):
            owners[buffer] = t, found
    groups: dict[tuple[int, OperatorInfo | None], list[TensorInfo]] = {}
    for t, found in owners.values():
        groups.setdefault((t.subgraph, found), []).append(t)
    return groups


def _layer(
    subgraph: int,
    op: OperatorInfo | None,
    constants: list[TensorInfo],
    decoded: list[TensorInfo],
) -> LayerBytes:
    weights = [t for t in (*constants, *decoded) if t.is_weight]
    channels = [t.unique_per_channel for t in weights if t.unique_per_channel is not None]
    return LayerBytes(
        layer=op.layer if op else "",
        operator=op.name if op else "",
        subgraph=subgraph,
        bytes=sum(t.bytes for t in constants),
        dtype=max(decoded or constants, key=lambda t: t.bytes).dtype,
        computes=op.dtype if op else "",
        weights=sum(math.prod(t.shape) for t in weights),
        sparsity=_sparsity(weights),
        unique=max((t.unique or 0 for t in weights), default=None),
        unique_per_channel=max(channels, default=None),
        entropy_bytes=sum(t.entropy_bytes or 0 for t in weights),
        coded_bytes=sum(t.bytes if t.coded_bytes is None else t.coded_bytes for t in constants),
        code=", ".join(dict.fromkeys(t.code for t in decoded)),
        decoded_bytes=sum(t.bytes for t in decoded),
    )


def _sparsity(weights: list[TensorInfo]) -> float | None:
    zeros = sum((t.sparsity or 0.0) * math.prod(t.shape) for t in weights)
    return zeros / sum(math.prod(t.shape) for t in weights) if weights else None


def _metadata(model: Any, entry: Any) -> MetadataInfo:
    name, data = flatbuffer.text(entry.name), model.buffers[entry.buffer].data
    stored = b"" if data is None else bytes(data)
    is_text = name in ("min_runtime_version", "keras_version")
    readable = flatbuffer.text(stored).rstrip("\0") if is_text else None
    return MetadataInfo(name, len(stored), readable)


def _model_metadata(model: Any, data: bytes, name: str) -> tuple[Metadata | None, str | None]:
    # The model itself runs without it.
    try:
        return metadata_of(model, data, name), None
    except ValueError as error:
        return None, str(error)


def _signature(entry: Any) -> SignatureInfo:
    inputs, outputs = (
        {flatbuffer.text(item.name): item.tensorIndex for item in items}
        for items in (entry.inputs, entry.outputs)
    )
    return SignatureInfo(flatbuffer.text(entry.signatureKey), entry.subgraphIndex, inputs, outputs)


FLOATS = ("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")

# int32 is left out: with a scale it is a bias, without one an index.
QUANTIZED = ("int2", "int4", "uint4", "int8", "uint8", "int16")


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """A tensor: `bytes` as stored if constant, else at its shape; 0 if the size is not known.

    What stands last is None unless it is a weight: a constant of 2 or more dimensions, of floats
    or quantized. `unique` counts bit patterns, so -0.0 is not 0.0. `entropy_bytes` is the Shannon
    entropy of the patterns times their number: what an ideal coder of single values comes to.
    `coded_bytes` adds the table of patterns that a decoder needs, up to what is stored anyway.
    """

    subgraph: int
    index: int
    name: str
    shape: tuple[int, ...]
    shape_signature: tuple[int, ...]  # -1 where a dimension is dynamic
    dtype: str
    is_constant: bool
    bytes: int
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    quantized_dimension: int | None  # None unless there are several scales
    block_size: int | None  # elements that share a scale, if quantized blockwise
    sparsity: float | None = None  # of zeros (int8: of the zero point); None if not a constant
    unique: int | None = None
    unique_per_channel: int | None = None  # the most in one channel, if scales are per channel
    entropy_bytes: int | None = None
    coded_bytes: int | None = None
    code: str = ""  # of a weight that TFLite Micro decodes; it is no constant then

    @property
    def scale_count(self) -> int:
        """How many scales: 0 if not quantized, 1 if per-tensor."""
        return len(self.scales)

    @property
    def scale(self) -> float | None:
        """The scale of a per-tensor quantized tensor, else None."""
        return self.scales[0] if len(self.scales) == 1 else None

    @property
    def zero_point(self) -> int | None:
        """The zero point of a per-tensor quantized tensor, else None."""
        return self.zero_points[0] if len(self.scales) == 1 and self.zero_points else None

    @property
    def is_quantized(self) -> bool:
        """True if the integers stand for real numbers."""
        return self.dtype in QUANTIZED and bool(self.scales)

    @property
    def is_weight(self) -> bool:
        """True if it was counted as a weight."""
        return self.entropy_bytes is not None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, with what follows from the scales."""
        grid = {"scale_count": self.scale_count, "scale": self.scale, "zero_point": self.zero_point}
        return {**plain_fields(self), **plain(grid)}


@dataclasses.dataclass(frozen=True)
class OperatorInfo:
    """An operator; `dtype` is what it computes in, `layer` the name of its first output.

    `dtype` is the type of the real numbers that flow through ('float32', 'int8', 'int16', ...),
    'dynamic_int8' or 'dynamic_int4' where float activations meet quantized weights, and the
    plain type ('int32', 'bool') where there are no real numbers. QUANTIZE and DEQUANTIZE bear
    the quantized type.
    """

    subgraph: int
    index: int
    name: str
    version: int
    inputs: tuple[int, ...]  # tensor indices; -1 where an optional one is left out
    outputs: tuple[int, ...]
    dtype: str
    activation: str | None
    layer: str


@dataclasses.dataclass(frozen=True)
class OpCount:
    """How often an operator occurs with this type and version."""

    name: str
    dtype: str
    version: int
    count: int


@dataclasses.dataclass(frozen=True)
class LayerBytes:
    """The constants that an operator is the first to consume ('' if none does).

    All of them count in `bytes` and `coded_bytes`, of which the weights alone are coded; only
    the weights count in the rest.
    """

    layer: str
    operator: str
    subgraph: int
    bytes: int
    dtype: str  # of the largest constant
    computes: str  # what the operator computes in, see `OperatorInfo`; '' without one
    weights: int  # elements
    sparsity: float | None
    unique: int | None  # the most in one tensor
    unique_per_channel: int | None  # the most in one channel of a tensor with scales per channel
    entropy_bytes: int
    coded_bytes: int
    code: str = ""  # in which TFLite Micro decodes the weights
    decoded_bytes: int = 0  # what these take in its arena while the operator runs

    @property
    def precision(self) -> str:
        """What the constants are stored in, and what is computed in if that is another."""
        computes = "dynamic" if self.computes.startswith("dynamic") else self.computes
        same = self.dtype == computes or not computes or not self.weights
        named = self.dtype if same else f"{self.dtype} x {computes}"
        return f"{named} ({self.code})" if self.code else named


@dataclasses.dataclass(frozen=True)
class SignatureInfo:
    """A signature: names of inputs and outputs to tensor indices of its subgraph."""

    name: str
    subgraph: int
    inputs: dict[str, int]
    outputs: dict[str, int]


@dataclasses.dataclass(frozen=True)
class MetadataInfo:
    """A metadata entry; `text` only for those that hold a plain text."""

    name: str
    bytes: int
    text: str | None


@dataclasses.dataclass(frozen=True)
class Inspection(Result):
    """Everything `inspect` found; constants that several tensors share are counted once."""

    path: str
    file_bytes: int
    zipped_bytes: int  # as a zip (deflate, level 9), which is what an app store ships
    description: str
    schema_version: int
    metadata: tuple[MetadataInfo, ...]
    signatures: tuple[SignatureInfo, ...]
    inputs: tuple[TensorInfo, ...]  # of the first subgraph
    outputs: tuple[TensorInfo, ...]
    tensors: tuple[TensorInfo, ...]  # of all subgraphs, as are the operators
    operators: tuple[OperatorInfo, ...]
    op_counts: tuple[OpCount, ...]
    layer_bytes: tuple[LayerBytes, ...]
    dtype_bytes: dict[str, int]
    weights_bytes: int  # all constants
    sparsity: float | None  # over weights: constants of 2 or more dimensions, no indices
    float_ops: tuple[OperatorInfo, ...]  # compute in float although the file has quantized ops
    weights: int  # elements of those that `sparsity` is over
    entropy_bytes: int  # of the weights
    coded_bytes: int  # all constants, the weights among them coded
    model_metadata: Metadata | None  # names, labels and so on, see `tfcompress.Metadata`
    model_metadata_problem: str | None  # why it cannot be read, if it cannot

    def render(self, console: Console | None = None, *, details: bool = False) -> None:
        """Print tables.

        Args:
            console: a rich console; standard output if None.
            details: also list every operator and tensor.
        """
        from rich.console import Console

        console = console or Console()
        _render_summary(self, console)
        print_metadata(console, self.model_metadata, self.model_metadata_problem)
        rows: Rows = [(c.name, c.dtype, c.version, c.count) for c in self.op_counts]
        print_table(console, "Operators", "name,dtype,version >,count >", rows)
        layers = sorted(self.layer_bytes, key=lambda layer: -layer.bytes)
        _render_layers(layers if details else layers[:20], console)
        if self.float_ops:
            rows = [(op.layer, op.name, op.dtype) for op in self.float_ops]
            print_table(console, "Computed in float", "layer,operator,dtype", rows)
        if details:
            _render_details(self, console)


def _render_summary(found: Inspection, console: Console) -> None:
    coded = f"{found.coded_bytes:,} entropy-coded (theory)"
    rows: Rows = [
        ("file", f"{found.file_bytes:,} bytes, {found.zipped_bytes:,} zipped"),
        ("constants", f"{found.weights_bytes:,} bytes, {coded}"),
        *((f"  {dtype}", f"{size:,} bytes") for dtype, size in found.dtype_bytes.items()),
        ("description", f"{found.description} (schema {found.schema_version})"),
    ]
    decoded = [layer.decoded_bytes for layer in found.layer_bytes if layer.decoded_bytes]
    if decoded:
        told = f"of {len(decoded)} layers: {sum(decoded):,} bytes decoded, {max(decoded):,} at once"
        rows.insert(2, ("weights in codes", f"{told} at most, by TFLite Micro alone"))
    if found.sparsity is not None:
        bits = 8 * found.entropy_bytes / found.weights
        rows.insert(-1, ("weights", f"{found.weights:,} with {bits:.2f} bits of entropy each"))
        rows.insert(-1, ("sparsity", f"{found.sparsity:.1%}"))
    rows += [(f"metadata {m.name}", m.text or f"{m.bytes:,} bytes") for m in found.metadata]
    for s in found.signatures:
        rows.append((f"signature {s.name}", f"{', '.join(s.inputs)} -> {', '.join(s.outputs)}"))
    print_table(console, found.path, "what,value", rows)
    ports = [("input", t) for t in found.inputs] + [("output", t) for t in found.outputs]
    rows = [(kind, t.name, list(t.shape_signature), t.dtype, _scale_text(t)) for kind, t in ports]
    print_table(console, "Inputs and outputs", ",name,shape,dtype,quantization", rows)


def _render_layers(layers: list[LayerBytes], console: Console) -> None:
    # The numbers alone nearly fill a terminal of 80 columns.
    wide = console.width >= 100
    rows: Rows = []
    for layer, name in zip(layers, _short_names([layer.layer for layer in layers]), strict=True):
        kind: tuple[str, ...] = (name or "(no operator)", layer.operator, layer.precision)
        if not wide:
            kind = (f"{kind[0]}\n{layer.operator} {layer.precision}",)
        sparsity = "" if layer.sparsity is None else f"{layer.sparsity:.1%}"
        numbers = (layer.weights or "", sparsity, _unique_text(layer))
        rows.append((*kind, *numbers, layer.bytes, layer.coded_bytes))
    channels = any(layer.unique_per_channel is not None for layer in layers)
    print_table(
        console,
        f"Constants by layer: unique values{' (in one channel)' if channels else ''}, bytes as "
        "stored and entropy-coded",
        f"layer,{'operator,dtype,' if wide else ''}weights >,sparsity >,unique >,bytes >,coded >",
        rows,
    )


def _short_names(names: list[str]) -> list[str]:
    """Leave out what a converter fused into a layer, and the model that all layers lie in."""
    first = [name.split(";")[0] for name in names]
    parts = [name.split("/") for name in first if name]
    nested = all(len(p) > 2 and p[0] == parts[0][0] for p in parts)
    return [name.partition("/")[2] for name in first] if nested else first


def _unique_text(layer: LayerBytes) -> str:
    text = "" if layer.unique is None else f"{layer.unique:,}"
    return text if layer.unique_per_channel is None else f"{text} ({layer.unique_per_channel:,})"


def _render_details(found: Inspection, console: Console) -> None:
    rows: Rows = [
        (o.subgraph, o.index, o.name, o.version, o.dtype, o.activation or "", o.layer)
        for o in found.operators
    ]
    columns = "graph >,index >,operator,version >,dtype,activation,layer"
    print_table(console, "All operators", columns, rows)
    rows = [
        (t.subgraph, t.index, t.name, list(t.shape_signature), t.dtype, t.bytes, _scale_text(t))
        for t in found.tensors
    ]
    columns = "graph >,index >,name,shape,dtype,bytes >,quantization"
    print_table(console, "All tensors", columns, rows)


def _scale_text(t: TensorInfo) -> str:
    if t.scale is not None:
        return f"scale {t.scale:.6g}, zero point {t.zero_point or 0}"
    if t.block_size:
        return f"{t.scale_count} scales, blocks of {t.block_size}"
    return f"{t.scale_count} scales, dimension {t.quantized_dimension}" if t.scales else ""
