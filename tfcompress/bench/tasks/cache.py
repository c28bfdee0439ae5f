"""Generated data, made once and kept in the cache with a manifest of what they are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tfcompress.files import temporary
from tfcompress.tools.environments import cache_folder

Arrays = dict[str, np.ndarray]
_MANIFEST = "manifest.json"


def folder() -> Path:
    """Where generated data lie."""
    return cache_folder() / "bench" / "data"


def cached(name: str, settings: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
    """Arrays from the cache, or made and put there."""
    said = json.dumps(settings, sort_keys=True)
    place = folder() / f"{name}-{hashlib.sha256(said.encode()).hexdigest()[:10]}"
    if (arrays := _read(place)) is not None:
        return arrays
    arrays = {key: np.ascontiguousarray(array) for key, array in make().items()}
    place.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: another process may make the same.
    with temporary.folder(place.parent) as scratch:
        made = Path(scratch, "made")
        made.mkdir()
        _write(made, arrays, {"name": name, "settings": settings})
        shutil.rmtree(place, ignore_errors=True)
        # Another process may have been faster: what it made is the same.
        with contextlib.suppress(OSError):
            made.rename(place)
    return arrays


def digest(arrays: Arrays) -> str:
    """SHA-256 over the names, shapes, types and values of arrays, hexadecimal."""
    said = {key: _described(array) for key, array in arrays.items()}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _write(folder: Path, arrays: Arrays, about: Mapping[str, Any]) -> None:
    for key, array in arrays.items():
        with _durable(folder / f"{key}.npy") as file:
            np.save(file, array, allow_pickle=False)
    described = {key: _described(array) for key, array in arrays.items()}
    manifest = {**about, "arrays": described, "digest": digest(arrays)}
    with _durable(folder / _MANIFEST) as file:
        file.write(f"{json.dumps(manifest, indent=2)}\n".encode())


@contextlib.contextmanager
def _durable(path: Path) -> Iterator[BinaryIO]:
    """A new file whose content is on the disk at the end: moves may outlast what was moved."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _described(array: np.ndarray) -> dict[str, Any]:
    values = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": values}


def _read(place: Path) -> Arrays | None:
    """The arrays of a folder; None if it is not there or not what its manifest says."""
    try:
        manifest = json.loads((place / _MANIFEST).read_text())
        arrays = {
            key: np.load(place / f"{key}.npy", allow_pickle=False) for key in manifest["arrays"]
        }
        return arrays if digest(arrays) == manifest["digest"] else None
    except Exception:  # What NumPy and json raise depends on the byte that is wrong.
        return None
