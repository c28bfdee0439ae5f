"""What `convert` tells about the file it wrote."""

from __future__ import annotations

import dataclasses
import fnmatch
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
from rich.markup import escape
from rich.table import Table

from tfcompress.conversion import ranges
from tfcompress.conversion.layer_names import LayerNames
from tfcompress.graph.nodes import Graph
from tfcompress.kinds import OPERATORS
from tfcompress.layers.compressed import is_compressed
from tfcompress.quantization.kernels import reasons_of
from tfcompress.quantization.loops import is_loop, loop_reason
from tfcompress.quantization.recurrent import is_fusable
from tfcompress.results import Result
from tfcompress.targets.targets import io_pair
from tfcompress.tflite import flatbuffer

if TYPE_CHECKING:
    from rich.console import Console

    from tfcompress.conversion.tuning import Step
    from tfcompress.export.microcontroller.compressed_weights import CompressedWeights
    from tfcompress.targets.result import Check
    from tfcompress.tflite.inspection import Inspection, OperatorInfo


@dataclasses.dataclass(frozen=True)
class FloatOp:
    """An operation that stayed float: its name in LiteRT, its output tensor, why, and its layer.

    `layer` is empty where the tensor's name does not tell.
    """

    op: str
    tensor: str
    reason: str
    layer: str = ""


@dataclasses.dataclass(frozen=True)
class Report(Result):
    """What came out of a conversion.

    Attributes:
        path: where the file lies.
        precision, io_dtype: what was asked for; "mixed" if precisions by layer.
        file_bytes, zipped_bytes: size of the file, plain and deflated.
        ops: (op, dtype, count) of all operations.
        float_ops: operations that stayed float although integers were asked for, and why.
        notes: other things worth knowing.
        seconds: wall time by stage.
        format: "tflite", or what was made of the .tflite file, of which the above tells.
        exchanged: what the conversion to that format found; None for "tflite".
        sqnr: signal to quantization noise in dB by output: the file to the float model, on the
            first calibration samples, of which 8 are compared.
        tuning: what was done to the model before its weights were rounded, and what each step was
            worth; see `tfcompress.conversion.tuning.Step`.
        check: what the target says, a `Check`; None if there was no target.
        compressed: what `compressed_weights` did; None without it.
        layers: the precision that each layer got, by its name, if they were asked for by layer, or
            what its weights are stored in, if a trained model has some of fewer than 8 bits.
    """

    path: str
    precision: str
    io_dtype: str
    file_bytes: int
    zipped_bytes: int
    ops: Sequence[tuple[str, str, int]]
    float_ops: Sequence[FloatOp]
    notes: Sequence[str]
    seconds: dict[str, float]
    format: str = "tflite"
    exchanged: dict[str, Any] | None = None
    check: Check | None = None
    layers: dict[str, str] = dataclasses.field(default_factory=dict)
    sqnr: dict[str, float] = dataclasses.field(default_factory=dict)
    tuning: Sequence[Step] = ()
    compressed: CompressedWeights | None = None

    def _print(self, console: Console) -> None:
        taken, given = io_pair(self.io_dtype)
        types = f"{taken} in and out" if taken == given else f"{taken} in, {given} out"
        table = Table(title=escape(f"{self.path}: {self.precision}, {types}"))
        table.add_column("what")
        table.add_column("value")
        size = "size" if self.exchanged is None else "size as .tflite"
        table.add_row(size, f"{self.file_bytes:,} bytes, {self.zipped_bytes:,} zipped")
        for what, value in () if self.compressed is None else self.compressed.rows():
            table.add_row(what, escape(value))
        for op, dtype, count in self.ops:
            table.add_row(f"{count} x {op}", dtype)
        for entry in self.float_ops:
            where = f"layer '{entry.layer}'" if entry.layer else entry.tensor[:60]
            table.add_row(f"[yellow]float: {entry.op}[/]", escape(f"{where}: {entry.reason}"))
        for step in self.tuning:
            table.add_row("tuned", escape(str(step)))
        for name, ratio in self.sqnr.items():
            table.add_row("SQNR", escape(f"{ratio:.1f} dB, output '{name}'"))
        for precision in dict.fromkeys(self.layers.values()):
            named = [name for name, given in self.layers.items() if given == precision]
            more = f" and {len(named) - 8} more" if len(named) > 8 else ""
            how_many = f"{len(named)} layer{'s' * (len(named) > 1)}"
            table.add_row(how_many, escape(f"{precision}: {', '.join(named[:8])}{more}"))
        for note in self.notes:
            table.add_row("[yellow]note[/]", escape(note))
        stages = ", ".join(f"{name} {value:.1f}" for name, value in self.seconds.items())
        if self.exchanged is not None:
            for what, value in _exchanged(self.exchanged):
                table.add_row(escape(what), escape(value))
        table.add_row("seconds", stages)
        console.print(table)
        if self.check is not None:
            self.check.render(console)


def _exchanged(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What is told of a file in another format: its files, and how far it is from LiteRT."""
    rows = [(Path(name).name, f"{size:,} bytes") for name, size in found["files"].items()]
    figures = ", ".join(f"{name} {value}" for name, value in found["compared"].items())
    rows.append(("against LiteRT", f"{figures}. {found['remark']}".rstrip(". ")))
    return [*rows, ("weights", f"{found['weights']}, in {found['ops']} operations")]


def float_reasons(
    file: Any,
    known: Collection[int],
    floats: Collection[int],
    divisors: Collection[int] = (),
    quotients: Collection[int] = (),
) -> dict[str, str]:
    """Why operations will stay float if they do, before a file is quantized, by their outputs.

    Those of which that cannot be told from the file alone are named by what gives them floats.
    """
    found: dict[str, str] = {}
    tensors = file.subgraphs[0].tensors
    for op in file.subgraphs[0].operators:
        name = flatbuffer.op_name(file, op)
        unknown = [i for i in ranges.floats_of(file, op) if i not in known]
        reason = f"LiteRT's integer kernel of {name} does not take it as it is here"
        if any(index in divisors for index in (*op.inputs, *op.outputs)):
            reason = "its divisor comes so near to 0 that integers would round it there"
        elif any(index in quotients for index in op.outputs):
            reason = "its divisor varies so much that LiteRT's integer kernel would fail"
        elif name not in OPERATORS:
            reason = f"LiteRT has no integer kernel of {name}"
        elif any(index in floats for index in op.outputs):
            reason = "its layer was left out of quantization"
        elif unknown:
            reason = f"the range of '{flatbuffer.text(tensors[unknown[0]].name)}' is not known"
        for index in op.outputs:
            found[flatbuffer.text(tensors[index].name)] = reason
    return found


def listed(file: Inspection, reasons: Mapping[str, str], model: Any) -> list[FloatOp]:
    """The operations of a quantized file that stayed float, and why by their layers."""
    names = {(t.subgraph, t.index): t.name for t in file.tensors}
    floats = [
        op
        for op in file.operators
        if op.name not in ("QUANTIZE", "DEQUANTIZE") and "float" in op.dtype
    ]
    if not floats:
        return []
    layer_of, whole = _layers(model)
    found = []
    for op in floats:
        tensor = names.get((op.subgraph, op.outputs[0]), "") if op.outputs else ""
        whole_one = (name for name in LayerNames.named(tensor) if name in whole)
        layer = next(whole_one, "") or layer_of(tensor)
        reason = reasons.get(tensor, f"LiteRT has no integer kernel of {op.name}")
        if layer in whole and op.name in OPERATORS and not reason.startswith(_OWN):
            reason = f"its layer {whole[layer]}"
        reason = operator_in_loop(file, op) or reason
        found.append(FloatOp(op.name, tensor, reason, layer))
    return found


# Reasons that no layer is to blame for.
_OWN = ("its divisor", "it belongs to")


def _layers(model: Any) -> tuple[Callable[[str], str], dict[str, str]]:
    """A function from tensors to names of layers, and why layers of a trained model are float."""
    if not isinstance(model, keras.Model):
        return lambda tensor: "", {}
    try:
        return LayerNames(model).of, reasons_of(Graph.of(model)) if is_compressed(model) else {}
    except Exception:  # What cannot be flattened has names that its file does not tell.
        return lambda tensor: "", {}


def require_no_loops(file: Any, model: Any, io_dtype: str) -> None:
    """Raise if a file with a loop is to have integer inputs and outputs."""
    graph = file.subgraphs[0]
    loops = [op for op in graph.operators if flatbuffer.op_name(file, op) == "WHILE"]
    if loops and io_dtype != "float32":
        tensor = flatbuffer.text(graph.tensors[loops[0].outputs[0]].name)
        raise _loop_error([f"'{tensor}' is a loop"], io_dtype)


def require_no_float_loops(
    model: keras.Model, skip: Sequence[str], io_dtype: str, bits: int
) -> None:
    """Raise before any work if a layer that will stay a loop is to have integers around it.

    With floats around it warns.

    Args:
        bits: of activations. An LSTM of 8 is one operator, also with states that are kept.
    """
    found = {
        layer.name: reason
        for layer in model._flatten_layers()
        if is_loop(layer) and not (bits == 8 and is_fusable(layer))
        if (reason := loop_reason(layer)) is not None
        if not any(fnmatch.fnmatchcase(layer.name, pattern) for pattern in skip)
    }
    told = [f"layer '{name}' {reason}" for name, reason in found.items()]
    if told and io_dtype != "float32":
        raise _loop_error(told, io_dtype)
    if told:
        warnings.warn(f"these loops stay float: {'; '.join(told)}.", stacklevel=6)


def _loop_error(told: list[str], io_dtype: str) -> ValueError:
    return ValueError(
        f"{'; '.join(told)} (LiteRT has no integer kernel of WHILE); received io_dtype="
        f"'{io_dtype}' (a target may ask for it). Mend that, or pass io_dtype='float32', which "
        "leaves the loop float."
    )


def operator_in_loop(file: Inspection, op: OperatorInfo) -> str | None:
    """Why an operator of a quantized file is float, if a loop is why.

    Returns the reason in words; None if it is another.
    """
    if op.name == "WHILE":
        return "a loop, of which LiteRT has no integer kernel"
    if op.subgraph != 0 and any(other.name == "WHILE" for other in file.operators):
        return "inside a loop (WHILE), of which LiteRT has no integer kernel"
    return None
