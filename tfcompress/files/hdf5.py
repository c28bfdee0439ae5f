"""HDF5 files read whole in a process of its own, before this one reads them.

The library crashes on some damaged files, and takes all time or memory over others. It is a wall
against these; no one against a file made for a fault of the library, as Keras reads it afterwards.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import resource
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfcompress.files import apart, sizes

_TEXTS = ("keras_version", "model_config", "training_config")
# Of processor time; and of memory, beside the file.
_SECONDS, _BYTES_PER_SECOND, _MEMORY = 3, 10**7, 2**30


def look_through(file: Path, member: str | None = None) -> dict[str, Any]:
    """What a file says of itself: "texts" (its attributes), and "names" of what is in it.

    Args:
        member: of a zip file, which is meant; it need not be there.

    Raises:
        ValueError: if it is damaged, leads elsewhere, or declares more than can be there.
    """
    found = file.stat()
    return _look_through(file, member, found.st_mtime_ns, found.st_size, found.st_ino)


@functools.lru_cache(maxsize=4)
def _look_through(file: Path, member: str | None, *version: int) -> dict[str, Any]:
    try:
        return apart.ask(f"{__name__}:examine", str(file), member)
    except ValueError as error:
        raise ValueError(damaged(file, str(error))) from error


def damaged(file: Path, reason: str) -> str:
    """The message that a file of a model cannot be read."""
    return (
        f"'{file}' is damaged or cut off: {reason}. Save the model again with "
        "model.save('model.keras'), or copy it again in full."
    )


# From here on: what runs in the other process.
def examine(path: str, member: str | None) -> dict[str, Any]:
    """As `look_through`, here; raises a ValueError in few words."""
    size = os.path.getsize(path)
    apart.allow(_SECONDS + size // _BYTES_PER_SECOND)
    try:
        with _little_memory(_MEMORY + (sizes.TIMES + 2) * size):
            return _examine(path, member)
    except MemoryError:
        raise ValueError("it takes more memory than a file of its size should") from None
    except Exception as error:  # HDF5 raises many kinds for damaged files.
        line = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(line.split(". ")[0].rstrip(".")[:200]) from None


@contextlib.contextmanager
def _little_memory(more: int) -> Iterator[None]:
    before, most = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(OSError, ValueError):  # No /proc, or a lower limit that is set.
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + more, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, most))


def _examine(path: str, member: str | None) -> dict[str, Any]:
    import h5py

    source: Any = path
    size = os.path.getsize(path)
    if member is not None:
        with zipfile.ZipFile(path) as archive:
            if member not in archive.namelist():
                return {"texts": {}, "names": []}
            data = archive.read(member)
        # Not from a stream: HDF5 seeks at will, also after an error.
        source, size = h5py.h5f.open_file_image(data), len(data)
    with h5py.File(source, "r") as content:
        found = {name: content.attrs[name] for name in _TEXTS if name in content.attrs}
        texts = {
            name: text.decode(errors="replace") if isinstance(text, bytes) else text
            for name, text in found.items()
        }
        _read(content, size)
        return {"texts": texts, "names": list(content)}


def _read(content: Any, size: int) -> None:
    """Reads all data; raises a ValueError if some lie in other files, or are of impossible sizes.

    Args:
        content: an open `h5py.File`.
        size: of the file in bytes.
    """
    import h5py

    declared, groups, seen = 0, [content], set()
    _read_attributes(content)
    while groups:
        group = groups.pop()
        for name in group:
            kind = group.get(name, getclass=True, getlink=True)
            if kind is not h5py.HardLink:
                raise ValueError(f"its entry '{name[:80]}' leads elsewhere ({kind.__name__})")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                continue
            seen.add(address)
            _read_attributes(item)
            if isinstance(item, h5py.Group):
                groups.append(item)
            elif isinstance(item, h5py.Dataset):
                if item.external or item.is_virtual:
                    raise ValueError(f"its data set '{name[:80]}' lies in another file")
                declared += math.prod(item.shape or (0,)) * item.dtype.itemsize
                sizes.check_size(declared, size, "it")
                with contextlib.suppress(TypeError):  # NumPy has no such type.
                    item[()]


def _read_attributes(item: Any) -> None:
    for name in item.attrs:
        with contextlib.suppress(TypeError):
            item.attrs[name]
