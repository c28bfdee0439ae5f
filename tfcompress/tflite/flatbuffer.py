"""The .tflite flatbuffer as Python objects: strict reading, aligned writing, small look-ups."""

from __future__ import annotations

import copy
import io
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.tflite.lookups import (
    BITS,
    decode,
    dtype_name,
    is_constant,
    op_name,
    stored_size,
    tensor_bytes,
    tensor_values,
    text,
)
from tfcompress.tflite.verifier import check_constant, check_model, check_tables

__all__ = [
    "BITS",
    "decode",
    "describe",
    "dtype_name",
    "is_constant",
    "load",
    "op_name",
    "read",
    "stored_size",
    "tensor_bytes",
    "tensor_values",
    "text",
    "write",
    "zipped_size",
]

IDENTIFIER = b"TFL3"
MEND = "Make it again with tfcompress.convert, or copy it again in full."


def read(source: str | os.PathLike[str] | bytes, *, name: str | None = None) -> Any:
    """Read a .tflite file into the schema's `ModelT`, checking everything it refers to.

    Data that lies after the flatbuffer (files over 2 GB) is put into its buffers. Inputs,
    outputs and shapes are Python lists, never None. Weights are views, not copies.

    Args:
        source: a path, or the bytes of the file.
        name: what error messages call it; its path if None.

    Returns:
        An `ai_edge_litert.schema_py_generated.ModelT`.

    Raises:
        ValueError: the path cannot be read, or what lies there is not a whole .tflite file.

    Example:
        >>> model = read("model.tflite")  # doctest: +SKIP
        >>> [op_name(model, op) for op in model.subgraphs[0].operators]  # doctest: +SKIP
    """
    data, where = load(source), name or describe(source)
    if len(data) < 8 or data[4:8] != IDENTIFIER:
        raise ValueError(
            f"{where} is not a .tflite file: received {len(data)} bytes that start with "
            f"{data[:8]!r}; expected the identifier 'TFL3' at byte 4. "
            "A .keras, .h5 or SavedModel must go through tfcompress.convert first."
        )
    try:
        check_tables(data)
        model = schema.ModelT.InitFromPackedBuf(data, 0)
        check_model(model)
        _resolve_offsets(model, data)
        for tensor in (t for graph in model.subgraphs for t in graph.tensors):
            check_constant(model, tensor)
    except (struct.error, ValueError, TypeError, IndexError, AttributeError, OverflowError) as e:
        reason = "an offset points outside of the file" if isinstance(e, struct.error) else e
        raise ValueError(
            f"{where} is damaged: received {len(data)} bytes in which {reason}; "
            f"expected a whole .tflite file. {MEND}"
        ) from e
    return model


def load(source: str | os.PathLike[str] | bytes) -> bytes:
    """Read the bytes of a file, or pass bytes on.

    Args:
        source: a path, or the bytes themselves.

    Returns:
        The bytes.

    Raises:
        ValueError: no file is there, or it cannot be read.

    Example:
        >>> load(b"TFL3")
        b'TFL3'
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
    """Pack a model as the bytes of a .tflite file, with constants aligned to 16 bytes.

    Args:
        model: a `ModelT`; it is left as it is.

    Returns:
        The bytes of the file.

    Raises:
        ValueError: the file would be larger than 2 GB.

    Example:
        >>> data = write(read("model.tflite"))  # doctest: +SKIP
    """
    model = copy.copy(model)
    model.operatorCodes = [_both_codes(code) for code in model.operatorCodes or []]
    model.buffers = [_AlignedBuffer(b) for b in model.buffers or []]
    builder = flatbuffers.Builder(1024)
    try:
        builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    except flatbuffers.builder.BuilderSizeError as error:
        raise ValueError(
            "the model does not fit in a flatbuffer; expected less than 2 GB of weights. "
            "Quantize it to int8 or int4, or split it."
        ) from error
    return bytes(builder.Output())


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


def zipped_size(data: bytes) -> int:
    """Return the bytes of a zip file with the model in it (deflate, level 9), as an app ships it.

    Args:
        data: the bytes of the .tflite file.

    Returns:
        The number of bytes, zip headers included.

    Example:
        >>> zipped_size(bytes(1000)) < 200
        True
    """
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
