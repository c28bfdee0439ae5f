"""An operator of a .tflite file as the rules of a target look at it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.tflite import flatbuffer
from tfcompress.tflite.inspect import operators_of, tensor_of
from tfcompress.tflite.inspection import FLOATS, QUANTIZED, OperatorInfo, TensorInfo
from tfcompress.tflite.weight_codes import OPERATOR

_WIDENING = ("DEQUANTIZE", "DENSIFY", OPERATOR)


@dataclasses.dataclass(frozen=True)
class Op:
    """An operator with its tensors: what `check_values` measures.

    `inputs` holds None where an optional one is left out; `options` may be None in odd files.
    """

    model: Any
    info: OperatorInfo
    options: Any
    inputs: tuple[TensorInfo | None, ...]
    outputs: tuple[TensorInfo, ...]
    is_builtin: bool
    # Tensors that are no constants but follow from constants alone, as widened float16 weights.
    settled: frozenset[int] = frozenset()
    # Tensors of the graph that something gives: its inputs, variables and outputs of operators.
    fed: frozenset[int] = frozenset()

    @property
    def given(self) -> tuple[TensorInfo, ...]:
        """The inputs that are not left out."""
        return tuple(t for t in self.inputs if t is not None)

    @property
    def sets_state(self) -> bool:
        """Whether it only writes what a variable tensor begins with."""
        tensors = self.model.subgraphs[self.info.subgraph].tensors
        return bool(self.outputs) and all(tensors[t.index].isVariable for t in self.outputs)

    @property
    def activations(self) -> tuple[TensorInfo, ...]:
        """Outputs, and inputs that are no constants."""
        return (*(t for t in self.given if not t.is_constant), *self.outputs)

    def needed(self, position: int) -> TensorInfo:
        """An input that has to be there; a LookupError if it is not."""
        tensor = self.inputs[position]
        if tensor is None:
            raise LookupError(f"input {position} is left out")
        return tensor

    def values(self, tensor: TensorInfo) -> np.ndarray:
        """The values of a constant; a LookupError if they cannot be had."""
        stored = self.model.subgraphs[tensor.subgraph].tensors[tensor.index]
        found = flatbuffer.tensor_values(self.model, stored) if tensor.is_constant else None
        if found is None:
            raise LookupError(f"'{tensor.name}' is no constant that can be read")
        return found

    def is_settled(self, tensor: TensorInfo) -> bool:
        """Tells whether a tensor has the same values in every run."""
        return tensor.is_constant or tensor.index in self.settled

    def option(self, name: str) -> Any:
        """An option by the schema's name; an AttributeError if the operator has none such."""
        return getattr(self.options, name)


def operators(model: Any) -> list[Op]:
    """Returns the operators of all graphs of a file, in the order in which they run."""
    return [op for index in range(len(model.subgraphs)) for op in _of_graph(model, index)]


def tensors(model: Any, subgraph: int) -> list[TensorInfo]:
    """Returns what a graph's tensors are, without statistics of their values."""
    return [
        tensor_of(model, subgraph, i, t) for i, t in enumerate(model.subgraphs[subgraph].tensors)
    ]


def is_real(tensor: TensorInfo) -> bool:
    """Tells whether a tensor holds real numbers, quantized or not."""
    return tensor.dtype in FLOATS or tensor.is_quantized or tensor.dtype in QUANTIZED


def _of_graph(model: Any, subgraph: int) -> list[Op]:
    known = tensors(model, subgraph)
    found = []
    raw = model.subgraphs[subgraph].operators
    settled: set[int] = set()
    fed = _fed(model.subgraphs[subgraph])
    for op, info in zip(raw, operators_of(model, subgraph, known), strict=True):
        code = model.operatorCodes[op.opcodeIndex]
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        if info.name in _WIDENING and all(known[i].is_constant for i in op.inputs if i != -1):
            settled.update(op.outputs)
        found.append(
            Op(
                model=model,
                info=info,
                options=op.builtinOptions if op.builtinOptions is not None else op.builtinOptions2,
                inputs=tuple(None if i == -1 else known[i] for i in op.inputs),
                outputs=tuple(known[i] for i in op.outputs if i != -1),
                # A custom operator may bear the name of a builtin one.
                is_builtin=number != schema.BuiltinOperator.CUSTOM,
                settled=frozenset(settled),
                fed=fed,
            )
        )
    return found


def _fed(graph: Any) -> frozenset[int]:
    variables = (i for i, tensor in enumerate(graph.tensors) if tensor.isVariable)
    made = (i for op in graph.operators for i in op.outputs)
    return frozenset((*graph.inputs, *variables, *made))
