"""A .tflite file as an array in C++ source, with all that TFLite Micro needs to run it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from tfcompress.export.microcontroller.generation import (
    TYPES,
    check_name,
    file_names,
    generate,
    resolver_methods,
    states_of_ports,
)
from tfcompress.export.microcontroller.result import CArray, Port
from tfcompress.files.writing import check_new, write_all
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.arena import activation_bytes
from tfcompress.tflite.inspect import inspect
from tfcompress.tflite.inspection import TensorInfo
from tfcompress.tflite.metadata import descriptions
from tfcompress.tflite.signature import io_names
from tfcompress.tools import runtimes
from tfcompress.tools.driving import Refused
from tfcompress.tools.environments import Unavailable

_MOST_BYTES = 64 * 2**20


def c_array(
    model: str | os.PathLike[str] | bytes,
    folder: str | os.PathLike[str],
    *,
    name: str = "model",
    force: bool = False,
) -> CArray:
    """Write a model as C++ source for TFLite Micro.

    The folder gets an aligned array with the file's bytes (.h, .cc), a header that adds exactly the
    file's operators to an op resolver, one of settings (arena size, scales and zero points), a
    minimal `main.cc` and a README. TFLite Micro, in an environment of its own, measures the arena.

    Args:
        model: a .tflite file, or its bytes.
        folder: to write; a new or empty one.
        name: what the files, the array and the constants are named after.
        force: write into a folder with content; files of the same names are replaced.

    Returns:
        A `CArray`.

    Raises:
        ValueError: the file is damaged, TFLite Micro cannot run it, `name` is no C identifier, or
            the folder has content.
        OSError: the folder cannot be written.

    Example:
        >>> c_array("model.tflite", "firmware/model").arena_bytes  # doctest: +SKIP
        8384
    """
    check_name(name)
    target, where = Path(folder), flatbuffer.describe(model)
    data = flatbuffer.load(model)
    found = examine(data, name, where)
    check_new(target, force)
    arena, note = _measured(data, where, found)
    found = dataclasses.replace(found, folder=str(target), arena_bytes=arena, arena_note=note)
    files = {file: text.encode() for file, text in generate(found, data).items()}
    write_all(files, target)
    return found


def examine(data: bytes, name: str, where: str) -> CArray:
    """Find out what the files need to say, but for the size of the arena."""
    if len(data) > _MOST_BYTES:
        raise ValueError(
            f"{where} takes {len(data):,} bytes; expected at most {_MOST_BYTES:,}, far more than a "
            "microcontroller holds. Make the model smaller first."
        )
    model = flatbuffer.read(data, name=where)
    found = inspect(data)
    ops = resolver_methods(found, where)
    inputs, outputs = (
        tuple(_port(*parts, where) for parts in zip(tensors, names, said, strict=True))
        for tensors, names, said in zip(
            (found.inputs, found.outputs), io_names(model), descriptions(model, data), strict=True
        )
    )
    return CArray(
        folder="",
        files=file_names(name, bool(states_of_ports(inputs, outputs))),
        name=name,
        array_bytes=len(data),
        ops=tuple(ops.values()),
        variables=_variables(model),
        arena_bytes=None,
        arena_lower_bound=activation_bytes(model),
        arena_note="",
        inputs=inputs,
        outputs=outputs,
    )


def _variables(model: Any) -> int:
    """How many variables a file has, which several subgraphs may open."""
    options = [
        op.builtinOptions
        for graph in model.subgraphs
        for op in graph.operators
        if flatbuffer.op_name(model, op) == "VAR_HANDLE"
    ]
    names = {(x.container, x.sharedName) for x in options if hasattr(x, "sharedName")}
    return len(names) or len(options)


def _port(tensor: TensorInfo, name: str, about: str, where: str) -> Port:
    # TFLite Micro takes the sizes that are stored, whatever the signature leaves open.
    dynamic = any(size < 1 for size in tensor.shape)
    if tensor.dtype not in TYPES or dynamic:
        wrong = f"shape {list(tensor.shape)}" if dynamic else f"type {tensor.dtype}"
        raise ValueError(
            f"'{name:.60}' of {where} has the {wrong}; expected fixed sizes and one of "
            f"{', '.join(TYPES)} for what goes in and out of TFLite Micro. Convert again with a "
            "fixed batch and io_dtype='int8'."
        )
    quantized = tensor.scale is not None and tensor.dtype in ("int8", "uint8", "int16")
    return Port(
        name=name,
        shape=tensor.shape,
        dtype=tensor.dtype,
        bytes=tensor.bytes,
        scale=tensor.scale if quantized else None,
        zero_point=(tensor.zero_point or 0) if quantized else None,
        about=about,
    )


def _measured(data: bytes, where: str, found: CArray) -> tuple[int | None, str]:
    """The bytes of the arena and who measured them, or why nobody did."""
    if "AddEthosU" in found.ops:
        return None, "the operator ethos-u runs on the device alone"
    try:
        return measure_arena(data, where)
    except Unavailable as error:
        return None, str(error)


def measure_arena(data: bytes, where: str) -> tuple[int, str]:
    """Let TFLite Micro find the smallest arena in which a model can be planned and run.

    Returns (bytes, a multiple of 16; who measured).
    """
    try:
        found = runtimes.arena_bytes(data)
    except Refused as error:
        raise ValueError(
            f"TFLite Micro refuses {where}: {error}; expected a file that it can run. Convert "
            "again with target='microcontroller', or replace the layer that it names."
        ) from error
    return found, f"measured by {runtimes.TFLM.title} on a 64-bit machine"
