"""Checks that a .tflite file is whole: its tables before they are unpacked, then what they say."""

from __future__ import annotations

import struct
from typing import Any

from tfcompress.tflite.lookups import BITS, dtype_name, is_constant, stored_size, text

# What each slot of a table refers to: str, an element size in bytes (a vector of scalars), the
# name of a table, or [name] (a vector of tables). Slots that are not listed hold scalars.
# "Options" stands for every table of a union: its header is checked, its slots are not.
_TABLES: dict[str, dict[int, Any]] = {
    "Model": {
        **{1: ["OperatorCode"], 2: ["SubGraph"], 3: str, 4: ["Buffer"], 5: 4, 6: ["Metadata"]},
        **{7: ["SignatureDef"], 8: ["ExternalBufferGroup"], 9: ["ExternalBuffer"]},
    },
    "OperatorCode": {1: str},
    "SubGraph": {0: ["Tensor"], 1: 4, 2: 4, 3: ["Operator"], 4: str},
    "Tensor": {0: 4, 3: str, 4: "Quantization", 6: "Sparsity", 7: 4, 9: ["VariantSubType"]},
    "Quantization": {0: 4, 1: 4, 2: 4, 3: 8, 5: "Options"},
    "Sparsity": {0: 4, 1: 4, 2: ["DimensionMetadata"]},
    "DimensionMetadata": {3: "Options", 5: "Options"},
    "VariantSubType": {0: 4},
    "Operator": {1: 4, 2: 4, 4: "Options", 5: 1, 7: 1, 8: 4, 12: "Options"},
    "Buffer": {0: 1},
    "Metadata": {0: str},
    "SignatureDef": {0: ["TensorMap"], 1: ["TensorMap"], 2: str},
    "TensorMap": {0: str},
    "ExternalBufferGroup": {0: str},
    "ExternalBuffer": {4: str},
    "Options": {},
}


class _Verifier:
    """Walks the tables before they are unpacked, so that a bad offset costs nothing.

    The generated unpacking code trusts every length: a flipped byte could make it loop over
    millions of overlapping tables. No byte of a sound file belongs to two tables, so the file's
    own size is a budget for what may be visited, and time is linear in it.
    """

    def __init__(self, data: bytes):
        self.data = data
        self.tables_left = len(data) // 4
        # Writers may share equal tables, texts and vectors, but never gain this much by it.
        self.seen: set[int] = set()
        self.repeats_left = 10_000
        self.bytes_left = 16 * len(data)

    def number(self, code: str, position: int) -> int:
        if position < 0:
            raise ValueError("an offset points before the start of the file")
        return struct.unpack_from(code, self.data, position)[0]

    def table(self, position: int, name: str) -> None:
        self.tables_left -= 1
        self.repeats_left -= position in self.seen
        self.seen.add(position)
        if self.tables_left < 0 or self.repeats_left < 0:
            raise ValueError("tables lie on top of one another")
        vtable = position - self.number("<i", position)
        vtable_size, table_size = self.number("<H", vtable), self.number("<H", vtable + 2)
        end = max(vtable + vtable_size, position + table_size)
        if vtable_size < 4 or end > len(self.data):
            raise ValueError(f"a table ({name}) does not fit in the file")
        kinds = _TABLES[name]
        for slot in range((vtable_size - 4) // 2):
            entry = self.number("<H", vtable + 4 + 2 * slot)
            if entry >= max(table_size, 1):
                raise ValueError(f"a field of a table ({name}) lies outside of it")
            if entry and slot in kinds:
                target = position + entry + self.number("<I", position + entry)
                self.value(target, kinds[slot])

    def value(self, position: int, kind: Any) -> None:
        if isinstance(kind, str):
            return self.table(position, kind)
        length = self.number("<I", position)
        size = length * (kind if isinstance(kind, int) else 1 if kind is str else 4)
        self.bytes_left -= size
        if position + 4 + size > len(self.data) or self.bytes_left < 0:
            raise ValueError("a list or a text does not fit in the file")
        if isinstance(kind, list):
            for i in range(length):
                item = position + 4 + 4 * i
                self.table(item + self.number("<I", item), kind[0])


def check_tables(data: bytes) -> None:
    """Raise a ValueError or a struct.error if a table, a list or a text does not fit in a file."""
    verifier = _Verifier(data)
    verifier.table(verifier.number("<I", 0), "Model")


def check_model(model: Any) -> None:
    """Raise a ValueError if parts of an unpacked model refer to others that it does not have.

    Args:
        model: a `ModelT`; lists that it leaves out become empty ones.
    """
    if model.version != 3:
        raise ValueError(f"the schema version is {model.version} instead of 3")
    if model.externalBuffers:
        raise ValueError("the weights lie in other files (external buffers), which is unsupported")
    for name in ("operatorCodes", "subgraphs", "buffers", "metadata", "signatureDefs"):
        setattr(model, name, getattr(model, name) or [])
    if not model.subgraphs:
        raise ValueError("there is no graph")
    for graph in model.subgraphs:
        _check_graph(model, graph)
    for entry in model.metadata:
        _check_indices([entry.buffer], len(model.buffers), "a metadata entry", "buffer")
    for signature in model.signatureDefs:
        where = f"signature '{text(signature.signatureKey)}'"
        _check_indices([signature.subgraphIndex], len(model.subgraphs), where, "graph")
        signature.inputs, signature.outputs = signature.inputs or [], signature.outputs or []
        used = [m.tensorIndex for m in signature.inputs + signature.outputs]
        count = len(model.subgraphs[signature.subgraphIndex].tensors)
        _check_indices(used, count, where, "tensor")


def _check_graph(model: Any, graph: Any) -> None:
    graph.tensors, graph.operators = graph.tensors or [], graph.operators or []
    _lists(graph, "inputs", "outputs")
    _check_indices(graph.inputs + graph.outputs, len(graph.tensors), "a graph", "tensor")
    for tensor in graph.tensors:
        _lists(tensor, "shape")
        # An empty signature would say "a scalar" where None says nothing.
        if tensor.shapeSignature is not None:
            _lists(tensor, "shapeSignature")
        _check_indices([tensor.buffer], len(model.buffers), f"'{text(tensor.name)}'", "buffer")
    for number, op in enumerate(graph.operators):
        where = f"operator {number}"
        _lists(op, "inputs", "outputs")
        _check_indices([op.opcodeIndex], len(model.operatorCodes), where, "operator code")
        # -1 stands for an optional tensor that is left out.
        used = [i for i in op.inputs + op.outputs if i != -1]
        _check_indices(used, len(graph.tensors), where, "tensor")


def _lists(owner: Any, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        setattr(owner, name, [] if value is None else [int(v) for v in value])


def _check_indices(indices: list[int], count: int, where: str, what: str) -> None:
    for index in indices:
        if not 0 <= index < count:
            raise ValueError(f"{where} refers to {what} {index} of {count}")


def check_constant(model: Any, tensor: Any) -> None:
    """Raise a ValueError if a dense constant has more or fewer bytes than its shape takes."""
    data, dtype = model.buffers[tensor.buffer].data, dtype_name(tensor)
    if not is_constant(model, tensor) or tensor.sparsity is not None or dtype not in BITS:
        return
    expected = stored_size(tensor.shape, dtype)
    if len(data) != expected:
        raise ValueError(
            f"tensor '{text(tensor.name)}' ({dtype}, shape {tensor.shape}) has {len(data)} bytes "
            f"instead of {expected}"
        )
