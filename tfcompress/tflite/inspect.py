"""What is in a .tflite file, read from the flatbuffer itself.

The interpreter is not asked: it reports int4 tensors as int8, and delegates rewrite its graph.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from tfcompress.tflite import flatbuffer

if TYPE_CHECKING:
    from rich.console import Console

FLOATS = ("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")
# int32 is left out: with a scale it is a bias, without one an index.
QUANTIZED = ("int2", "int4", "uint4", "int8", "uint8", "int16")
CONTROL_FLOW = ("WHILE", "IF", "CALL", "CALL_ONCE", "STABLEHLO_COMPOSITE")
Rows = list[tuple[Any, ...]]
_ACTIVATIONS = ("RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """A tensor: `bytes` as stored if constant, else at its shape; 0 if the size is not known."""

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
    sparsity: float | None  # fraction of zeros (int8: of the zero point); None if not a constant

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
    """Bytes of the constants that an operator is the first to consume ('' if none does)."""

    layer: str
    operator: str
    subgraph: int
    bytes: int


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
class Inspection:
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

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, dicts and numbers, ready for `json.dumps`."""
        return _plain(self)

    def render(self, console: Console | None = None, *, details: bool = False) -> None:
        """Print tables.

        Args:
            console: a rich console; standard output if None.
            details: also list every operator and tensor.
        """
        from rich.console import Console

        console = console or Console()
        _render_summary(self, console)
        rows: Rows = [(c.name, c.dtype, c.version, c.count) for c in self.op_counts]
        print_table(console, "Operators", "name,dtype,version >,count >", rows)
        layers = sorted(self.layer_bytes, key=lambda layer: -layer.bytes)[: None if details else 20]
        rows = [(layer.layer or "(no operator)", layer.operator, layer.bytes) for layer in layers]
        print_table(console, "Bytes of constants by layer", "layer,operator,bytes >", rows)
        if self.float_ops:
            rows = [(op.layer, op.name, op.dtype) for op in self.float_ops]
            print_table(console, "Computed in float", "layer,operator,dtype", rows)
        if details:
            _render_details(self, console)

    def __str__(self) -> str:
        from rich.console import Console

        target = io.StringIO()
        self.render(Console(file=target, width=120, color_system=None))
        return target.getvalue()


def inspect(path: str | os.PathLike[str] | bytes) -> Inspection:
    """Describe a .tflite file: sizes, tensors, operators, metadata.

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
    graphs = [_tensors(model, g) for g in range(len(model.subgraphs))]
    tensors = tuple(t for graph in graphs for t in graph)
    operators = tuple(op for g in range(len(graphs)) for op in _operators(model, g, graphs[g]))
    counts = Counter((op.name, op.dtype, op.version) for op in operators)
    layer_bytes, dtype_bytes = _constant_bytes(model, tensors, operators)
    first = model.subgraphs[0]
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
        layer_bytes=layer_bytes,
        dtype_bytes=dtype_bytes,
        weights_bytes=sum(dtype_bytes.values()),
        sparsity=_overall_sparsity(model, tensors),
        float_ops=_float_ops(tensors, operators),
    )


def _tensors(model: Any, subgraph: int) -> list[TensorInfo]:
    graph = model.subgraphs[subgraph]
    return [_tensor(model, subgraph, i, tensor) for i, tensor in enumerate(graph.tensors)]


def _tensor(model: Any, subgraph: int, index: int, tensor: Any) -> TensorInfo:
    dtype, quantization = flatbuffer.dtype_name(tensor), tensor.quantization
    stored = model.buffers[tensor.buffer].data
    size = 0 if stored is None else len(stored)
    scales, zero_points, block = _scales(model, model.subgraphs[subgraph], quantization)
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
        sparsity=_sparsity(model, tensor, zero_points) if size else None,
    )


def _scales(
    model: Any, graph: Any, quantization: Any
) -> tuple[tuple[float, ...], tuple[int, ...], int | None]:
    if quantization is None:
        return (), (), None
    scales = () if quantization.scale is None else tuple(map(float, quantization.scale))
    points = () if quantization.zeroPoint is None else tuple(map(int, quantization.zeroPoint))
    side = _side_tensors(graph, quantization)
    if not side:
        return scales, points, None
    # Blockwise: the scales are a constant of their own.
    values = flatbuffer.tensor_values(model, graph.tensors[side[0]])
    scales = () if values is None else tuple(map(float, values.ravel()))
    return scales, points, quantization.details.blockSize


def _side_tensors(graph: Any, quantization: Any) -> list[int]:
    """Return the tensors that hold the scales and zero points of a blockwise one."""
    details: Any = None if quantization is None else quantization.details
    if not hasattr(details, "blockSize"):
        return []
    return [i for i in (details.scales, details.zeroPoints) if 0 < i < len(graph.tensors)]


def _sparsity(model: Any, tensor: Any, zero_points: tuple[int, ...]) -> float | None:
    elements = math.prod(tensor.shape)
    dtype = flatbuffer.dtype_name(tensor)
    if tensor.sparsity is not None and dtype in ("float16", "float32", "int8") and elements > 0:
        # Only some values are stored; the others are zeros.
        raw = flatbuffer.tensor_bytes(model, tensor) or b""
        # Nothing says how many values a sparse constant stores: ignore an incomplete last one.
        whole = len(raw) * 8 // flatbuffer.BITS[dtype] * flatbuffer.BITS[dtype] // 8
        stored = flatbuffer.decode(raw[:whole], dtype)
        return 1.0 - np.count_nonzero(stored) / elements
    values = flatbuffer.tensor_values(model, tensor)
    if values is None or values.size == 0:
        return None
    if dtype not in QUANTIZED or not zero_points:
        return float(np.mean(values == 0))
    zero: Any = zero_points[0]
    axis = tensor.quantization.quantizedDimension
    if 0 <= axis < values.ndim and len(zero_points) == values.shape[axis]:
        zero = np.reshape(zero_points, [-1 if d == axis else 1 for d in range(values.ndim)])
    return float(np.mean(values == zero))


def _overall_sparsity(model: Any, tensors: tuple[TensorInfo, ...]) -> float | None:
    zeros, elements, seen = 0.0, 0, set()
    for t in tensors:
        buffer = model.subgraphs[t.subgraph].tensors[t.index].buffer
        is_weight = len(t.shape) > 1 and (t.dtype in FLOATS or t.is_quantized)
        if is_weight and t.sparsity is not None and buffer not in seen:
            seen.add(buffer)
            zeros += t.sparsity * math.prod(t.shape)
            elements += math.prod(t.shape)
    return zeros / elements if elements else None


def _operators(model: Any, subgraph: int, tensors: list[TensorInfo]) -> list[OperatorInfo]:
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


def _constant_bytes(
    model: Any, tensors: tuple[TensorInfo, ...], operators: tuple[OperatorInfo, ...]
) -> tuple[tuple[LayerBytes, ...], dict[str, int]]:
    info = {(t.subgraph, t.index): t for t in tensors}
    consumers: dict[tuple[int, int], OperatorInfo] = {}
    for op in operators:
        for i in op.inputs:
            consumers.setdefault((op.subgraph, i), op)
    uses: list[tuple[TensorInfo, OperatorInfo | None]] = []
    for op in operators:
        # Weights that are stored narrow and widened first belong to the layer behind.
        widens = op.name in ("DEQUANTIZE", "DENSIFY") and op.outputs
        user = consumers.get((op.subgraph, op.outputs[0]), op) if widens else op
        graph = model.subgraphs[op.subgraph]
        for i in op.inputs:
            side = [] if i == -1 else _side_tensors(graph, graph.tensors[i].quantization)
            uses += [(info[op.subgraph, j], user) for j in [i, *side] if j != -1]
    sizes: dict[tuple[int, OperatorInfo | None], int] = {}
    dtypes: dict[str, int] = {}
    seen = set()
    for t, found in [*uses, *((t, None) for t in tensors)]:
        buffer = model.subgraphs[t.subgraph].tensors[t.index].buffer
        if t.is_constant and buffer not in seen:
            seen.add(buffer)
            sizes[t.subgraph, found] = sizes.get((t.subgraph, found), 0) + t.bytes
            dtypes[t.dtype] = dtypes.get(t.dtype, 0) + t.bytes
    layers = tuple(
        LayerBytes(op.layer if op else "", op.name if op else "", subgraph, size)
        for (subgraph, op), size in sizes.items()
    )
    return layers, dict(sorted(dtypes.items()))


def _metadata(model: Any, entry: Any) -> MetadataInfo:
    name, data = flatbuffer.text(entry.name), model.buffers[entry.buffer].data
    stored = b"" if data is None else bytes(data)
    is_text = name in ("min_runtime_version", "keras_version")
    readable = flatbuffer.text(stored).rstrip("\0") if is_text else None
    return MetadataInfo(name, len(stored), readable)


def _signature(entry: Any) -> SignatureInfo:
    inputs, outputs = (
        {flatbuffer.text(item.name): item.tensorIndex for item in items}
        for items in (entry.inputs, entry.outputs)
    )
    return SignatureInfo(flatbuffer.text(entry.signatureKey), entry.subgraphIndex, inputs, outputs)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        plain = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, TensorInfo):
            extra = ("scale_count", "scale", "zero_point")
            plain |= {name: _plain(getattr(value, name)) for name in extra}
        return plain
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    # JSON has no NaN and no infinity.
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(console: Console, title: str, columns: str, rows: Rows) -> None:
    """Print a table.

    Args:
        console: a rich console.
        title: shown above.
        columns: headings with commas between; one that ends in '>' is right-aligned.
        rows: lists of values; integers get thousands separators.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns.split(","):
        right = column.endswith(">")
        table.add_column(column.rstrip(" >"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        # Tensor names may hold brackets, which rich would take for markup.
        table.add_row(*(f"{v:,}" if isinstance(v, int) else escape(str(v)) for v in row))
    console.print(table)


def _render_summary(found: Inspection, console: Console) -> None:
    rows: Rows = [
        ("file", f"{found.file_bytes:,} bytes, {found.zipped_bytes:,} zipped"),
        ("constants", f"{found.weights_bytes:,} bytes"),
        *((f"  {dtype}", f"{size:,} bytes") for dtype, size in found.dtype_bytes.items()),
        ("description", f"{found.description} (schema {found.schema_version})"),
    ]
    if found.sparsity is not None:
        rows.insert(-1, ("sparsity", f"{found.sparsity:.1%}"))
    rows += [(f"metadata {m.name}", m.text or f"{m.bytes:,} bytes") for m in found.metadata]
    for s in found.signatures:
        rows.append((f"signature {s.name}", f"{', '.join(s.inputs)} -> {', '.join(s.outputs)}"))
    print_table(console, found.path, "what,value", rows)
    ports = [("input", t) for t in found.inputs] + [("output", t) for t in found.outputs]
    rows = [(kind, t.name, list(t.shape_signature), t.dtype, _scale_text(t)) for kind, t in ports]
    print_table(console, "Inputs and outputs", ",name,shape,dtype,quantization", rows)


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
