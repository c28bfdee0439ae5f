"""What `inspect` finds in a file, and how it is printed."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from tfcompress.results import Result, Rows, plain, plain_fields, print_table
from tfcompress.tflite.metadata.types import Metadata, print_metadata

if TYPE_CHECKING:
    from rich.console import Console

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
