"""Weights of a .tflite file in codes that TFLite Micro decodes before the operators that read them.

Each such operator gets a TFLM_DECODE in front; what that gives lives in the arena while it runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.tflite import arena, flatbuffer
from tfcompress.tflite.flatbuffer import add_buffer, changed, dtype_name, op_name
from tfcompress.tflite.plain_weights import copied
from tfcompress.tflite.signature import io_names
from tfcompress.tflite.unused import drop_buffers, drop_tensors
from tfcompress.tflite.weight_codes import OPERATOR, Coded, codings

# Where the operators take weights that need not be constants.
_WEIGHTS = {
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED"), (1,)),
    **dict.fromkeys(("BATCH_MATMUL", "ADD", "SUB", "MUL", "CONCATENATION"), None),
    "GATHER": (0,),
}
# Their kernels have integers as biases and read no scale of them.
_UNSCALED = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")
_CODABLE = ("int8", "int4", "int2", "int16", "float32")
# What two tensors, two buffers and an operator take in a file, besides what is in the buffers.
OVERHEAD = 180


@dataclasses.dataclass(frozen=True, eq=False)
class Weight:
    """A constant that could be stored in a code.

    Attributes:
        buffer: its number in the file.
        layer: the name of what the first operator that reads it gives.
        values: of it, int4 as int8.
        stored: the bytes that it takes without a code.
        coded: it in the code that it is to have; None if there is none that is smaller.
        codings: it in each code that is smaller, the smallest first.
        demand: the most bytes that are live in the arena while it is decoded.
    """

    buffer: int
    layer: str
    values: np.ndarray
    stored: int
    coded: Coded | None
    codings: tuple[Coded, ...]
    demand: int

    @property
    def saved(self) -> int:
        """What the file is smaller by, about, if it is coded."""
        return 0 if self.coded is None else self.stored - self.coded.bytes - OVERHEAD

    @property
    def code(self) -> str:
        """The name of its code; '' without one."""
        return "" if self.coded is None else self.coded.code

    @property
    def unique(self) -> int:
        """How many values there are."""
        return len(np.unique(self.values))


def weights_of(model: Any) -> list[Weight]:
    """The constants that operators take as weights, in the order in which they are read."""
    uses: dict[int, list[tuple[int, int, int]]] = {}  # graph, operator, tensor
    other = {entry.buffer for entry in model.metadata}
    for number, graph in enumerate(model.subgraphs):
        for step, op in enumerate(graph.operators):
            places = _WEIGHTS.get(op_name(model, op), ())
            for place, index in enumerate(op.inputs):
                if index == -1:
                    continue
                buffer = graph.tensors[index].buffer
                if places is None or place in places:
                    uses.setdefault(buffer, []).append((number, step, index))
                else:
                    other.add(buffer)
        other |= {graph.tensors[index].buffer for index in graph.outputs}
    live = [arena.live_bytes(model, number) for number in range(len(model.subgraphs))]
    found = (_weight(model, b, used, live) for b, used in uses.items() if b not in other)
    return [weight for weight in found if weight is not None]


def _weight(model: Any, buffer: int, uses: list[tuple[int, int, int]], live: Any) -> Weight | None:
    tensors = [model.subgraphs[number].tensors[index] for number, _, index in uses]
    kinds = {(dtype_name(t), tuple(t.shape), _axis(t), _has_points(t)) for t in tensors}
    dtype, shape, axis, has_points = next(iter(kinds))
    values = flatbuffer.tensor_values(model, tensors[0])
    if len(kinds) > 1 or dtype not in _CODABLE or values is None or has_points:
        return None
    if axis not in (None, 0, len(shape) - 1):  # which TFLM_DECODE refuses
        return None
    (number, step, _), coded = uses[0], codings(values, axis)
    first = model.subgraphs[number].operators[step].outputs[0]
    return Weight(
        buffer=buffer,
        layer=flatbuffer.text(model.subgraphs[number].tensors[first].name),
        values=values,
        stored=len(model.buffers[buffer].data),
        coded=coded[0] if coded else None,
        codings=tuple(coded),
        demand=max(live[number][step] for number, step, _ in uses) + values.nbytes,
    )


def _axis(tensor: Any) -> int | None:
    """The axis of channels that have scales of their own."""
    scales, _ = flatbuffer.scales_of(tensor)
    return int(tensor.quantization.quantizedDimension) if len(scales) > 1 else None


def _has_points(tensor: Any) -> bool:
    return any(flatbuffer.scales_of(tensor)[1]) or tensor.sparsity is not None


def with_decoding(model: Any, weights: Collection[Weight]) -> Any:
    """A copy of a file with weights in codes, decoded before each operator that reads them."""
    model = copied(model)
    chosen = {weight.buffer: weight for weight in weights}
    if chosen:
        code = schema.OperatorCodeT(schema.BuiltinOperator.CUSTOM, OPERATOR.encode(), 1)
        code.builtinCode = schema.BuiltinOperator.CUSTOM
        model.operatorCodes.append(code)
    for graph in model.subgraphs:
        _Decoding(model, graph, chosen).run()
    for number in range(len(model.subgraphs)):
        drop_tensors(model, number)
    drop_buffers(model)
    return model


class _Decoding:
    """Puts operators that decode into a graph."""

    def __init__(self, model: Any, graph: Any, chosen: dict[int, Weight]):
        self.model, self.graph, self.chosen = model, graph, chosen
        self.pairs: dict[int, list[int]] = {}  # the two constants of a weight, by its buffer

    def run(self) -> None:
        operators = []
        for op in self.graph.operators:
            coded = [i for i in dict.fromkeys(op.inputs) if i != -1 and self._is_chosen(i)]
            if coded:
                decoded = [self._decoded(index) for index in coded]
                inputs = [i for index in coded for i in self._pair(index)]
                operators.append(
                    schema.OperatorT(len(self.model.operatorCodes) - 1, inputs, decoded)
                )
                renamed = dict(zip(coded, decoded, strict=True))
                op.inputs = [renamed.get(i, i) for i in op.inputs]
            operators.append(op)
        self.graph.operators = operators

    def _is_chosen(self, index: int) -> bool:
        return self.graph.tensors[index].buffer in self.chosen

    def _pair(self, index: int) -> list[int]:
        buffer = self.graph.tensors[index].buffer
        if buffer not in self.pairs:
            coded = self.chosen[buffer].coded
            assert coded is not None
            self.pairs[buffer] = [self._constant(coded.stored), self._constant(coded.ancillary)]
        return self.pairs[buffer]

    def _constant(self, data: bytes) -> int:
        buffer = add_buffer(self.model, data)
        self.graph.tensors.append(
            schema.TensorT([len(data)], schema.TensorType.UINT8, buffer, hasRank=True)
        )
        return len(self.graph.tensors) - 1

    def _decoded(self, index: int) -> int:
        """A tensor of its own for each operator, as it lives only while that runs."""
        tensor = self.graph.tensors[index]
        narrow = dtype_name(tensor) in ("int4", "int2")
        kind = schema.TensorType.INT8 if narrow else tensor.type
        self.graph.tensors.append(changed(tensor, buffer=0, type=kind))
        return len(self.graph.tensors) - 1


def slim(model: Any, name_of: Callable[[str], str], keep: Collection[str] = ()) -> Any:
    """A copy of a file without what TFLite Micro does not read.

    That is the signature, names but those of inputs, outputs and layers, metadata, scales of biases
    of convolutions, and all but one of zero points that are all 0.

    Args:
        name_of: the layer that a tensor's name tells; '' if it does not.
        keep: names of metadata that stay.
    """
    model = copied(model)
    model.metadata = [m for m in model.metadata if flatbuffer.text(m.name) in keep]
    taken, given = io_names(model)
    model.signatureDefs, model.description = [], None
    for number, graph in enumerate(model.subgraphs):
        edges = zip((*graph.inputs, *graph.outputs), (*taken, *given), strict=False)
        ports = {} if number else dict(edges)
        _name(graph, ports, name_of)
        _unscale(model, graph)
        graph.name = None
    return model


def _name(graph: Any, ports: dict[int, str], name_of: Callable[[str], str]) -> None:
    made = {index for op in graph.operators for index in op.outputs}
    for index, tensor in enumerate(graph.tensors):
        told = ports.get(index, "")
        if not told and index in made:
            told = name_of(flatbuffer.text(tensor.name))
        tensor.name, tensor.shapeSignature = told.encode() or None, None


def _unscale(model: Any, graph: Any) -> None:
    biases = {
        op.inputs[-1]
        for op in graph.operators
        if op_name(model, op) in _UNSCALED and dtype_name(graph.tensors[op.inputs[-1]]) == "int32"
    }
    others = {i for op in graph.operators if op_name(model, op) not in _UNSCALED for i in op.inputs}
    for index, tensor in enumerate(graph.tensors):
        told = tensor.quantization
        if index in biases - others or (told is not None and told.scale is None):
            tensor.quantization = None
        elif told is not None and told.details is None:
            points = [] if told.zeroPoint is None else list(told.zeroPoint)
            points = points if any(points) else points[:1]
            tensor.quantization = changed(told, min=None, max=None, zeroPoint=points)
