"""Small look-ups in an unpacked .tflite file: names, types, sizes and values of constants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

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

    Returns:
        The number of bytes.

    Example:
        >>> stored_size([3, 3], "int4")
        5
    """
    return (math.prod(max(d, 0) for d in shape) * BITS.get(dtype, 0) + 7) // 8


def tensor_values(model: Any, tensor: Any) -> np.ndarray | None:
    """Decode a dense constant.

    Args:
        model: the `ModelT` that holds the tensor.
        tensor: one of its `TensorT`.

    Returns:
        An array of the tensor's shape: int4, int2 and uint4 unpacked to 8 bits, bfloat16
        widened to float32. None if it is not a constant, is stored sparse, or has no NumPy type.

    Example:
        >>> model = read("model.tflite")  # doctest: +SKIP
        >>> tensor_values(model, model.subgraphs[0].tensors[1])  # doctest: +SKIP
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
