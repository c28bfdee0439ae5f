"""Generated data, made once and kept in the cache with a manifest of what they are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfcompress.environments import cache_folder

Arrays = dict[str, np.ndarray]
_MANIFEST = "manifest.json"


def folder() -> Path:
    """Where generated data lie."""
    return cache_folder() / "bench" / "data"


def cached(name: str, settings: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
    """Arrays from the cache, or made and put there.

    Args:
        name: of the data.
        settings: all that they follow from, ready for `json.dumps`: seeds, counts, versions of
            programs, a version of the generator itself.
        make: makes them.

    Returns:
        name -> array.

    Example:
        >>> cached("zeros", {"count": 3}, lambda: {"x": np.zeros(3)})  # doctest: +SKIP
    """
    said = json.dumps(settings, sort_keys=True)
    place = folder() / f"{name}-{hashlib.sha256(said.encode()).hexdigest()[:10]}"
    if (arrays := _read(place)) is not None:
        return arrays
    arrays = {key: np.ascontiguousarray(array) for key, array in make().items()}
    place.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: another process may make the same.
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{name}-") as scratch:
        made = Path(scratch, "made")
        made.mkdir()
        for key, array in arrays.items():
            np.save(made / f"{key}.npy", array, allow_pickle=False)
        manifest = {
            "name": name,
            "settings": settings,
            "arrays": {key: _described(array) for key, array in arrays.items()},
            "digest": digest(arrays),
        }
        (made / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        shutil.rmtree(place, ignore_errors=True)
        # Another process may have been faster: what it made is the same.
        with contextlib.suppress(OSError):
            made.rename(place)
    return arrays


def digest(arrays: Arrays) -> str:
    """SHA-256 over the names, shapes, types and values of arrays, hexadecimal."""
    said = {key: _described(array) for key, array in arrays.items()}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


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
    except (OSError, ValueError, KeyError):
        return None
