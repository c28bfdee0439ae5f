"""profile: parameters, MACs and activation memory of a model, layer by layer."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
from keras import KerasTensor, tree

from tfcompress.graph.inputs import require_model
from tfcompress.graph.layers import Parameter
from tfcompress.graph.nodes import Graph, Node
from tfcompress.results import Result, Rows, plain, print_table
from tfcompress.surgery.macs import macs_by_node, params_of
from tfcompress.surgery.shapes import Shape, Specs, asked_shapes, graph_to_read, size, specs_of

if TYPE_CHECKING:
    from rich.console import Console


@dataclasses.dataclass(frozen=True)
class ProfileRow:
    """One call of a layer or operation.

    Attributes:
        name: of the layer in the flat model, see `tfcompress.flatten`.
        kind: its class.
        shapes: of its outputs for one sample, without the batch.
        params: numbers in its weights; 0 at later calls of a layer that is shared.
        macs: multiply-accumulate operations; None for code whose operations are not known.
        activation_bytes: of its outputs.
        alive_bytes: of all activations that are held while it runs.
    """

    name: str
    kind: str
    shapes: tuple[Shape, ...]
    params: int
    macs: int | None
    activation_bytes: int
    alive_bytes: int


@dataclasses.dataclass(frozen=True)
class Profile(Result):
    """What `profile` found; prints as tables.

    Attributes:
        model: its name.
        rows: one for each call of a layer or operation, in the order in which they run.
        peak: the row at which the most activations are held.
        open_shapes: inputs of which an axis is not known and counts as 1.
    """

    model: str
    rows: tuple[ProfileRow, ...]
    peak: ProfileRow
    open_shapes: tuple[str, ...]

    @property
    def params(self) -> int:
        """Numbers in all weights."""
        return sum(row.params for row in self.rows)

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations of one sample, as far as they are known."""
        return sum(row.macs or 0 for row in self.rows)

    @property
    def activation_bytes(self) -> int:
        """Of all activations, if none were given up."""
        return sum(row.activation_bytes for row in self.rows)

    @property
    def peak_bytes(self) -> int:
        """The most that activations take at once."""
        return self.peak.alive_bytes

    @property
    def unknown(self) -> tuple[str, ...]:
        """Layers and operations whose MACs are not known and count as 0."""
        return tuple(dict.fromkeys(row.name for row in self.rows if row.macs is None))

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {
            "model": self.model,
            "params": self.params,
            "macs": self.macs,
            "activation_bytes": self.activation_bytes,
            "peak_bytes": self.peak_bytes,
            "peak_layer": self.peak.name,
            "unknown": list(self.unknown),
            "open_shapes": list(self.open_shapes),
            "rows": plain(self.rows),
        }

    def _print(self, console: Console) -> None:
        columns = "layer,type,output,params >,MACs >,activation bytes >,alive bytes >"
        rows: Rows = []
        for row in self.rows:
            macs = "unknown" if row.macs is None else row.macs
            numbers = (row.params, macs, row.activation_bytes, row.alive_bytes)
            rows.append((row.name, row.kind, _text(row.shapes), *numbers))
        print_table(console, self.model, columns, rows)
        sums: Rows = [
            ("parameters", f"{self.params:,}"),
            ("MACs", f"{self.macs:,}"),
            ("activations", f"{self.activation_bytes:,} bytes"),
            ("peak of activations", f"{self.peak_bytes:,} bytes, at {self.peak.name}"),
        ]
        if self.unknown:
            sums.append(("MACs not known, counted as 0", ", ".join(self.unknown)))
        if self.open_shapes:
            sums.append(("inputs with axes counted as 1", ", ".join(self.open_shapes)))
        print_table(console, "In sum, for one sample", "what,value", sums)


def profile(
    model: keras.Model,
    *,
    shapes: Mapping[str, Shape] | Shape | None = None,
    bytes_per_value: int | None = None,
) -> Profile:
    """Parameters, multiply-accumulate operations (MACs) and activation memory of a model.

    MACs are those of convolutions, products of matrices, attention and RNNs; what works on single
    values (normalization, activations, pooling) counts 0. Activations are the outputs of all
    operations for one sample. They run one after the other as `tfcompress.flatten` orders them,
    none in the place of its input and none fused with the one before, and each is held until the
    last that reads it; inputs from the start, outputs to the end. A runtime that fuses BatchNorm
    and activations into convolutions takes less; `inspect` tells what a .tflite file takes.

    Args:
        model: any built Keras 3 model; it is left untouched. Of a compressed one the weights are
            counted, the states of techniques are not.
        shapes: where axes of the inputs are not known: {name of an input: shape without the
            batch}, or the shape of the only input. What stays unknown counts as 1.
        bytes_per_value: of activations that are floats: 1 as in int8, 2 or 4; by default what their
            dtypes take.

    Returns:
        A `Profile`.

    Raises:
        TypeError: the model is not a Keras 3 model.
        ValueError: the model cannot be flattened, or an argument is not as described.

    Example:
        >>> found = profile(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
        >>> found.params, found.macs, found.peak_bytes
        (15, 12, 28)
    """
    require_model(model)
    if isinstance(bytes_per_value, bool) or bytes_per_value not in (None, 1, 2, 4, 8):
        raise ValueError(
            f"bytes_per_value must be 1, 2, 4 or 8; received {bytes_per_value!r}. Take 1 for int8."
        )
    graph = graph_to_read(model)
    specs = specs_of(graph, asked_shapes(graph, shapes))
    held = [_bytes_of(node, specs, bytes_per_value) for node in graph.nodes]
    rows: list[ProfileRow] = []
    seen: set[int] = set()
    alive = _alive(graph, held)
    for (node, macs), own, now in zip(macs_by_node(graph, specs), held, alive, strict=True):
        found = tuple(_without_batch(node, specs[id(tensor)]) for tensor in node.outputs)
        params = params_of(node.operation, seen)
        kind = type(node.operation).__name__
        rows.append(ProfileRow(node.name, kind, found, params, macs, sum(own), now))
    leaves = [t for t in tree.flatten(graph.inputs) if None in specs[id(t)].shape]
    peak = max(rows, key=lambda row: row.alive_bytes)
    return Profile(model.name, tuple(rows), peak, tuple(tensor.name for tensor in leaves))


def _bytes_of(node: Node, specs: Specs, bytes_per_value: int | None) -> list[int]:
    """The sizes of a node's outputs; a weight that is a tensor of its own is no activation."""
    if isinstance(node.operation, Parameter):
        return [0] * len(node.outputs)
    return [_bytes(specs[id(tensor)], bytes_per_value) for tensor in node.outputs]


def _bytes(spec: KerasTensor, bytes_per_value: int | None) -> int:
    if bytes_per_value is not None and "float" in spec.dtype:
        return size(spec.shape) * bytes_per_value
    bits = re.search(r"\d+", spec.dtype)  # bool has none, and takes a byte
    return size(spec.shape) * max(1, int(bits[0]) // 8 if bits else 1)


def _alive(graph: Graph, held: list[list[int]]) -> list[int]:
    """The bytes of all tensors that are held while each node runs."""
    place = {id(node): number for number, node in enumerate(graph.nodes)}
    end = len(graph.nodes) - 1
    changes = [0] * (end + 2)
    inputs = {id(tensor) for tensor in tree.flatten(graph.inputs)}
    counted: set[int] = set()
    for number, (node, sizes) in enumerate(zip(graph.nodes, held, strict=True)):
        for tensor, taken in zip(node.outputs, sizes, strict=True):
            if id(tensor) in counted:
                continue
            counted.add(id(tensor))
            last = max([number, *(place[id(reader)] for reader in graph.consumers(tensor))])
            changes[0 if id(tensor) in inputs else number] += taken
            changes[1 + (end if graph.is_output(tensor) else last)] -= taken
    return list(itertools.accumulate(changes))[:-1]


def _without_batch(node: Node, spec: KerasTensor) -> Shape:
    shape = tuple(spec.shape)
    batch = not isinstance(node.operation, Parameter) and shape[:1] in ((1,), (None,))
    return shape[1:] if batch else shape


def _text(shapes: tuple[Shape, ...]) -> str:
    return ", ".join("x".join("?" if a is None else str(a) for a in s) or "()" for s in shapes)
