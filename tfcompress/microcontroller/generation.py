"""The text of each file that `c_array` writes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from tfcompress.microcontroller import templates
from tfcompress.microcontroller.report import CArray, Port
from tfcompress.microcontroller.texts import byte_lines, comment, number


class Kind(NamedTuple):
    """A type: its member of TfLiteTensor's data, what fills an input, and how it is printed."""

    member: str
    value: str
    form: str
    cast: str


# Integers without a scale are mostly indices, of which 0 is always one.
TYPES = {
    "float32": Kind("f", "static_cast<float>(i % 256) / 255.0f", "%f", "double"),
    "int8": Kind("int8", "static_cast<int8_t>(i % 256 - 128)", "%d", "int"),
    "uint8": Kind("uint8", "static_cast<uint8_t>(i % 256)", "%d", "int"),
    "int16": Kind("i16", "static_cast<int16_t>(i % 256)", "%d", "int"),
    "int32": Kind("i32", "0", "%ld", "long"),
    "uint32": Kind("u32", "0", "%lu", "unsigned long"),
    "int64": Kind("i64", "0", "%ld", "long"),
    "bool": Kind("b", "false", "%d", "int"),
}


def file_names(name: str) -> tuple[str, ...]:
    """The files, named after the model."""
    return (
        f"{name}.h",
        f"{name}.cc",
        f"{name}_ops.h",
        f"{name}_settings.h",
        "main.cc",
        "README.md",
    )


def generate(found: CArray, data: bytes) -> dict[str, str]:
    """Write the files as texts.

    Args:
        found: what they are to say.
        data: the bytes of the .tflite file.

    Returns:
        Texts by file name.

    Raises:
        ValueError: a scale is not finite.
    """
    name, big = found.name, found.name.upper()
    words = {"name": name, "NAME": big, "size": len(data)}
    calls = "".join(templates.ADD_OP.format(method=method) for method in found.ops)
    calls = calls or templates.NO_OPS
    interpreter = templates.VARIABLES if found.variables else templates.PLAIN
    fills = "".join(_fill(i, port) for i, port in enumerate(found.inputs))
    prints = "".join(_print(i, port) for i, port in enumerate(found.outputs))
    texts = (
        templates.ARRAY_HEADER.format(**words),
        templates.ARRAY_SOURCE.format(**words, bytes=byte_lines(data)),
        # The resolver of TFLite Micro has no room for none.
        templates.OPS.format(**words, count=max(1, len(found.ops)), calls=calls),
        templates.SETTINGS.format(
            **words, arena=_arena(found, big), ports="\n".join(_port_lines(found, big))
        ),
        templates.MAIN.format(
            **words,
            interpreter=interpreter.format(**words, variables=found.variables),
            fills=fills,
            prints=prints,
        ),
        templates.README.format(
            **words, arena=_arena_text(found), ports="\n".join(_table(found)), ops=len(found.ops)
        ),
    )
    return dict(zip(file_names(name), texts, strict=True))


def _arena(found: CArray, big: str) -> str:
    if found.arena_bytes is None:
        return templates.ARENA_ESTIMATE.format(
            NAME=big,
            note=comment(found.arena_note),
            lower=found.arena_lower_bound,
            guess=_rounded(2 * found.arena_lower_bound + 16 * 1024),
        )
    size = _rounded(found.arena_bytes)
    return templates.ARENA.format(NAME=big, note=comment(found.arena_note), size=size)


def _arena_text(found: CArray) -> str:
    if found.arena_bytes is None:
        return (
            f"not measured ({comment(found.arena_note)}); at least {found.arena_lower_bound:,} "
            "bytes, an estimate from the activations alone"
        )
    return f"{found.arena_bytes:,} bytes, {comment(found.arena_note)}"


def _rounded(size: int) -> int:
    return -(-size // 16) * 16


def _ports(found: CArray) -> Iterator[tuple[str, int, Port]]:
    for kind, ports in (("input", found.inputs), ("output", found.outputs)):
        for i, port in enumerate(ports):
            yield kind, i, port


def _port_lines(found: CArray, big: str) -> Iterator[str]:
    for kind, i, port in _ports(found):
        start = f"{big}_{kind.upper()}_{i}"
        shape = " x ".join(map(str, port.shape)) or "scalar"
        yield f"\n/* {kind} {i}: {comment(port.name)}, {port.dtype}, {shape} */"
        yield f"#define {start}_BYTES {port.bytes}u"
        if port.scale is not None:
            yield f"#define {start}_SCALE {number(port.scale)}"
            yield f"#define {start}_ZERO_POINT ({port.zero_point})"


def _table(found: CArray) -> Iterator[str]:
    for kind, i, port in _ports(found):
        shape = " x ".join(map(str, port.shape)) or "scalar"
        real = "x" if port.scale is None else f"{port.scale:.9g} (x - {port.zero_point})"
        yield f"| {kind} {i} | `{comment(port.name)}` | {port.dtype} | {shape} | {real} |"


def _fill(i: int, port: Port) -> str:
    kind = TYPES[port.dtype]
    count = math.prod(port.shape)
    return templates.FILL.format(i=i, count=count, member=kind.member, value=kind.value)


def _print(i: int, port: Port) -> str:
    kind = TYPES[port.dtype]
    count = math.prod(port.shape)
    return templates.PRINT.format(
        i=i, count=count, member=kind.member, form=kind.form, cast=kind.cast
    )
