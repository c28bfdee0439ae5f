"""What archives declare to hold, against what they are, before anything in them is unpacked."""

from __future__ import annotations

import contextlib
import inspect
import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

# A file may hold so many times its own size, and so many bytes more.
TIMES, MORE = 10, 256 * 2**20
# Text takes some 20 times its size when it is parsed.
_TEXT = 16 * 2**20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_HEADER = 30  # bytes before the name of a member of a zip file


def check_size(declared: int, size: int, what: str) -> None:
    """Raises a ValueError if what is declared can only be meant to fill the memory."""
    if declared > TIMES * size + MORE:
        raise ValueError(
            f"{what} declares {declared:,} bytes, and {size:,} are there; expected at most "
            f"{TIMES} times as many and {MORE:,} more"
        )


def check_zip(archive: zipfile.ZipFile) -> None:
    """Raises a ValueError unless the members lie side by side and are of possible sizes."""
    assert archive.fp is not None
    size = archive.fp.seek(0, os.SEEK_END)
    members = sorted(archive.infolist(), key=lambda member: member.header_offset)
    check_size(sum(member.file_size for member in members), size, "it")
    end, seen = 0, set()
    for member in members:
        if member.header_offset < end or member.filename in seen:
            raise ValueError(f"its member '{member.filename[:80]}' lies over another one")
        if member.compress_type not in _METHODS:
            raise ValueError(f"its member '{member.filename[:80]}' is packed in an unusual way")
        if member.filename.endswith(".json") and member.file_size > _TEXT:
            raise ValueError(f"its '{member.filename[:80]}' declares {member.file_size:,} bytes")
        seen.add(member.filename)
        end = member.header_offset + _HEADER + member.compress_size


def check_arrays(archive: zipfile.ZipFile) -> None:
    """Raises a ValueError unless each array of a .npz is as large as its header says."""
    for member in archive.infolist():
        with archive.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                version, np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read(stream)
            declared = math.prod(shape) * dtype.itemsize
            if not dtype.hasobject and declared > member.file_size:
                raise ValueError(
                    f"its array '{member.filename[:80]}' declares {declared:,} bytes, and "
                    f"{member.file_size:,} are there"
                )


@contextlib.contextmanager
def no_more_weights(layer: Any, path: Path) -> Iterator[None]:
    """Has layers raise a ValueError that make more weights than a file can hold.

    Args:
        layer: Keras's class of layers.
        path: the file, or the folder, that they are made from.
    """
    files = path.rglob("*") if path.is_dir() else [path]
    size, made = sum(file.stat().st_size for file in files), 0
    before = layer.add_weight
    signature = inspect.signature(before)

    def add_weight(*given: Any, **named: Any) -> Any:
        nonlocal made
        shape = signature.bind(*given, **named).arguments.get("shape") or ()
        made += 4 * math.prod(n or 1 for n in ([shape] if isinstance(shape, int) else shape))
        check_size(made, size, "its configuration")
        return before(*given, **named)

    layer.add_weight = add_weight
    try:
        yield
    finally:
        layer.add_weight = before
