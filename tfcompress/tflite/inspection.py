"""What `inspect` tells about a .tflite file: plain data that can print itself."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from tfcompress.tflite.tables import Rows, as_text, print_table

if TYPE_CHECKING:
    from rich.console import Console

# int32 is left out: with a scale it is a bias, without one an index.
QUANTIZED = ("int2", "int4", "uint4", "int8", "uint8", "int16")


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
        return as_text(self.render)


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
