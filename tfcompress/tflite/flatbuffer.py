"""The .tflite flatbuffer as Python objects: strict reading, aligned writing, small look-ups."""

from __future__ import annotations

import copy
import io
import math
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

IDENTIFIER = b"TFL3"
MEND = "Make it again with tfcompress.convert, or copy it again in full."


def read(source: str | os.PathLike[str] | bytes, *, name: str | None = None) -> Any:
    """Read a .tflite file into the schema's `ModelT`, checking everything it refers to.

    Data that lies after the flatbuffer (files over 2 GB) is put into its buffers. Inputs,
    outputs and shapes are Python lists, never None. Weights are views, not copies.

    Args:
        source: a path, or the bytes of the file.
    """
    data, where = load(source), name or describe(source)
    if len(data) < 8 or data[4:8] != IDENTIFIER:
        raise ValueError(
            f"{where} is not a .tflite file: received {len(data)} bytes that start with "
            f"{data[:8]!r}; expected the identifier 'TFL3' at byte 4. "
            "A .keras, .h5 or SavedModel must go through tfcompress.convert first."
        )
    try:
        Verifier(data, _TABLES).root("Model")
        model = schema.ModelT.InitFromPackedBuf(data, 0)
        check_model(model)
        _resolve_offsets(model, data)
        for tensor in (t for graph in model.subgraphs for t in graph.tensors):
            check_constant(model, tensor)
    except (struct.error, ValueError, TypeError, IndexError, AttributeError, OverflowError) as e:
        reason = "an offset points outside of the file" if isinstance(e, struct.error) else e
        raise ValueError(
            f"{where} is damaged: received {len(data)} bytes in which {str(reason)[:300]}; "
            f"expected a whole .tflite file. {MEND}"
        ) from e
    return model


def load(source: str | os.PathLike[str] | bytes) -> bytes:
    """Read the bytes of a file, or pass bytes on.

    Args:
        source: a path, or the bytes themselves.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(
            f"expected the path or the bytes of a .tflite file; received {type(source).__name__}. "
            "Convert a Keras model with tfcompress.convert first."
        )
    path = Path(source)
    try:
        # A device or a pipe would block or never end.
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "not a regular file"
            raise ValueError(f"expected a .tflite file; '{path}' is {kind}. Name the file itself.")
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(
            f"no file at '{path}'; expected the path of a .tflite file. Check the path."
        ) from None
    except OSError as error:
        raise ValueError(
            f"cannot read '{path}': {error.strerror}; expected a readable .tflite file. "
            "Check its permissions."
        ) from error


def describe(source: str | os.PathLike[str] | bytes) -> str:
    """Name a source in an error message: its quoted path, or how many bytes were given."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"a model of {len(source)} bytes"
    return f"'{os.fspath(source)}'"


def write(model: Any) -> bytes:
    """Pack a model as the bytes of a .tflite file, with constants aligned to 16 bytes."""
    model = copy.copy(model)
    model.operatorCodes = [_both_codes(code) for code in model.operatorCodes or []]
    model.buffers = [_AlignedBuffer(b) for b in model.buffers or []]
    builder = _Sharing(1024)
    try:
        builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    except flatbuffers.builder.BuilderSizeError as error:
        raise ValueError(
            "the model does not fit in a flatbuffer; expected less than 2 GB of weights. "
            "Quantize it to int8 or int4, or split it."
        ) from error
    return bytes(builder.Output())


class _Sharing(flatbuffers.Builder):
    """A builder that writes equal vectors of numbers of eight bytes once.

    These are zero points, of which each channel has one in the weight and one in the bias: all 0.
    """

    head: int  # which the base leaves without a type

    def __init__(self, size: int):
        super().__init__(size)
        self._written: dict[bytes, int] = {}
        self._began: int | None = None  # where such a vector did, until it ends

    def StartVector(self, elemSize: int, numElems: int, alignment: int) -> int:
        self._began = self.Offset() if elemSize == 8 else None
        return super().StartVector(elemSize, numElems, alignment)

    def EndVector(self, numElems: int | None = None) -> int:
        count, offset = self.vectorNumElems, super().EndVector(numElems)
        if self._began is None:
            return offset
        content = bytes(self.Bytes[self.head : self.head + 4 + 8 * count])
        known = self._written.setdefault(content, offset)
        if known != offset:  # take it back
            self.head = len(self.Bytes) - self._began
        self._began = None
        return known


def _both_codes(code: Any) -> Any:
    """A code with its number in the old one-byte field, too, which some readers look at alone."""
    code = copy.copy(code)
    code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    return code


class _AlignedBuffer:
    """A buffer that packs its data on a 16-byte boundary, which the schema asks for.

    The generated `BufferT.Pack` leaves it unaligned; kernels on microcontrollers then fault.
    """

    def __init__(self, buffer: Any):
        self.data = buffer.data

    def Pack(self, builder: Any) -> int:  # ModelT.Pack calls it by this name
        data = None if self.data is None else np.asarray(self.data, np.uint8).tobytes()
        if data is not None:
            builder.StartVector(1, len(data), 16)
            builder.head -= len(data)
            builder.Bytes[builder.head : builder.head + len(data)] = data
            vector = builder.EndVector()
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, vector)
        return schema.BufferEnd(builder)


def changed(table: Any, **fields: Any) -> Any:
    """A copy of a table with some of its fields changed; what it holds is shared."""
    twin = copy.copy(table)
    vars(twin).update(fields)
    return twin


def add_buffer(model: Any, data: bytes) -> int:
    """Put data into a new buffer of a model, and return the buffer's number."""
    model.buffers.append(schema.BufferT(np.frombuffer(data, np.uint8)))
    return len(model.buffers) - 1


def op_code(model: Any, builtin: int, version: int = 1) -> int:
    """Return the number of a model's code for an operator; adds one if there is none."""
    codes = [code.builtinCode for code in model.operatorCodes]
    if builtin not in codes:
        model.operatorCodes.append(schema.OperatorCodeT(builtin, None, version, builtin))
        return len(codes)
    return codes.index(builtin)


def zipped_size(data: bytes) -> int:
    """The bytes of a zip file with the model in it (deflate, level 9), as an app ships it."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr(zipfile.ZipInfo("model.tflite"), data, zipfile.ZIP_DEFLATED, 9)
    return len(target.getvalue())


def _resolve_offsets(model: Any, data: bytes) -> None:
    for number, buffer in enumerate(model.buffers):
        # The converter writes 1 as a place holder for "not yet known".
        if buffer.offset > 1:
            buffer.data = _outside(data, buffer.offset, buffer.size, f"buffer {number}")
        buffer.offset = buffer.size = 0
    for op in (op for graph in model.subgraphs for op in graph.operators):
        offset, size = op.largeCustomOptionsOffset, op.largeCustomOptionsSize
        if offset > 1:
            op.customOptions = _outside(data, offset, size, "a custom operator")
        op.largeCustomOptionsOffset = op.largeCustomOptionsSize = 0


def _outside(data: bytes, offset: int, size: int, what: str) -> np.ndarray:
    if offset + size > len(data):
        raise ValueError(f"{what} ends at byte {offset + size}, after the end of the file")
    return np.frombuffer(data, np.uint8, size, offset)


# Bits of one element; types without an entry (string, resource, variant) have no fixed size.
BITS = {
    **{"int2": 2, "int4": 4, "uint4": 4, "bool": 8, "int8": 8, "uint8": 8},
    **{"float8_e4m3fn": 8, "float8_e5m2": 8, "int16": 16, "uint16": 16, "float16": 16},
    **{"bfloat16": 16, "int32": 32, "uint32": 32, "float32": 32, "int64": 64, "uint64": 64},
    **{"float64": 64, "complex64": 64, "complex128": 128},
}


def _enum_names(enum: type) -> dict[int, str]:
    return {v: k for k, v in vars(enum).items() if isinstance(v, int)}


_OPS = _enum_names(schema.BuiltinOperator)
_DTYPES = {k: v.lower() for k, v in _enum_names(schema.TensorType).items()}


def text(value: bytes | str | None) -> str:
    """Decode a text of the flatbuffer; None gives '', bad UTF-8 gives replacement signs."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""


def op_name(model: Any, op: Any) -> str:
    """Name an operator, e.g. 'CONV_2D', or its custom code, e.g. 'FlexErf'."""
    code = model.operatorCodes[op.opcodeIndex]
    # Codes above 127 do not fit the old one-byte field: the larger of the two is the true one.
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    if number == schema.BuiltinOperator.CUSTOM:
        return text(code.customCode) or "CUSTOM"
    return _OPS.get(number, f"BUILTIN_{number}")


def dtype_name(tensor: Any) -> str:
    """Name the type that the file declares for a tensor, e.g. 'float32', 'int8', 'int4'."""
    return _DTYPES.get(tensor.type, f"type_{tensor.type}")


def scales_of(tensor: Any) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Return the scales and the zero points of a tensor; empty where the file tells none."""
    told = tensor.quantization
    scales, points = (None, None) if told is None else (told.scale, told.zeroPoint)
    return (
        () if scales is None else tuple(map(float, scales)),
        () if points is None else tuple(map(int, points)),
    )


def is_constant(model: Any, tensor: Any) -> bool:
    """Tell whether the file holds the tensor's values."""
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def tensor_bytes(model: Any, tensor: Any) -> bytes | None:
    """Return a constant's bytes as they are stored (int4 packed), or None if it is no constant."""
    data = model.buffers[tensor.buffer].data
    if not is_constant(model, tensor):
        return None
    return data.tobytes() if isinstance(data, np.ndarray) else bytes(data)


def stored_size(shape: list[int], dtype: str) -> int:
    """Return the bytes a dense tensor takes, 0 if its type has no fixed size.

    Args:
        shape: the dimensions.
        dtype: a name as from `dtype_name`; 4-bit types are packed two to a byte.
    """
    return (math.prod(max(d, 0) for d in shape) * BITS.get(dtype, 0) + 7) // 8


def tensor_values(model: Any, tensor: Any) -> np.ndarray | None:
    """Decode a dense constant.

    Returns an array of the tensor's shape: int4, int2 and uint4 unpacked to 8 bits, bfloat16
    widened to float32. None if it is not a constant, is stored sparse, or has no NumPy type.
    """
    data, dtype = tensor_bytes(model, tensor), dtype_name(tensor)
    if data is None or tensor.sparsity is not None or dtype not in BITS or "float8" in dtype:
        return None
    return decode(data, dtype)[: math.prod(tensor.shape)].reshape(tensor.shape)


def decode(data: bytes, dtype: str) -> np.ndarray:
    """Decode stored bytes to a flat array; an odd number of packed elements leaves padding."""
    if BITS[dtype] < 8:
        bits = BITS[dtype]
        # The first element sits in the lowest bits.
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        packed = np.frombuffer(data, np.uint8)[:, None] >> shifts
        if dtype.startswith("u"):
            return (packed & (2**bits - 1)).ravel()
        return ((packed << (8 - bits)).astype(np.uint8).view(np.int8) >> (8 - bits)).ravel()
    if dtype == "bfloat16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))


def packed(codes: np.ndarray, bits: int) -> bytes:
    """Codes in as few bytes as they take, the first in the lowest bits."""
    per_byte = 8 // bits
    flat = codes.ravel().astype(np.uint8) & (2**bits - 1)
    rows = np.pad(flat, (0, -flat.size % per_byte)).reshape(-1, per_byte)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return np.bitwise_or.reduce(rows << shifts, axis=1).astype(np.uint8).tobytes()


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


class Verifier:
    """Walks the tables before they are unpacked, so that a bad offset costs nothing.

    The generated unpacking code trusts every length: a flipped byte could make it loop over
    millions of overlapping tables. No byte of a sound file belongs to two tables, so the file's
    own size is a budget for what may be visited, and time is linear in it.

    Args:
        tables: what the slots of each table refer to, see `_TABLES`.
    """

    def __init__(self, data: bytes, tables: dict[str, dict[int, Any]]):
        self.data, self.tables = data, tables
        self.tables_left = len(data) // 4
        # Writers may share equal tables, texts and vectors, but never gain this much by it.
        self.seen: set[int] = set()
        self.repeats_left = 10_000
        self.bytes_left = 16 * len(data)

    def root(self, name: str) -> None:
        """Raise a ValueError or a struct.error if a table, a list or a text does not fit."""
        self.table(self.number("<I", 0), name)

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
        kinds = self.tables[name]
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


def check_model(model: Any) -> None:
    """Raise a ValueError if parts of an unpacked model refer to others that it does not have."""
    if model.version != 3:
        raise ValueError(f"the schema version is {model.version} instead of 3")
    if model.externalBuffers:
        raise ValueError("the weights lie in other files (external buffers), which is unsupported")
    for name in ("operatorCodes", "subgraphs", "buffers", "metadata", "signatureDefs"):
        setattr(model, name, getattr(model, name) or [])
    if not model.subgraphs:
        raise ValueError("there is no graph")
    # The first one is empty by the format, and LiteRT does without it.
    model.buffers = model.buffers or [schema.BufferT()]
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
