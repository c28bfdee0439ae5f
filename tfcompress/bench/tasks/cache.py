"""Generated data, made once and kept in the cache with a manifest of what they are."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tfcompress.tools.environments import Unavailable, cache_folder

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
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{name}-") as scratch:
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


def require(module: str, use: str) -> None:
    """Refuses to go on without a package of the extra `bench`."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise Unavailable(
            f"{use}, which cannot be imported ({error}): pip install 'tfcompress[bench]'"
        ) from error


class NotThere(ValueError):
    """A folder has nothing of a data set: another one may be in it."""


def data_folder(folder: Path, holds: Callable[[Path], bool], expected: str, source: str) -> Path:
    """A data set's own folder: the one given, or one in it, or one in such a one."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise NotThere(f"'{folder}' {what}; expected a folder that holds {expected}. {source}")
    entries = sorted(folder.iterdir())
    near = _folders(entries)
    for each in (folder, *near, *_folders(_entries(near))):
        # One that may be listed need not be one that may be looked into.
        with contextlib.suppress(OSError):
            if holds(each):
                return each
    names = [path.name + "/" * os.path.isdir(path) for path in entries]
    found = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    raise NotThere(f"'{folder}' holds {found or 'nothing'}; expected {expected}. {source}")


def fingerprint(root: Path, files: Iterable[Path]) -> str:
    """SHA-256 over the names, sizes and dates of files, hexadecimal; nothing is read."""
    found = hashlib.sha256()
    for path in files:
        stat = path.stat()
        line = f"{path.relative_to(root).as_posix()} {stat.st_size} {stat.st_mtime_ns}\n"
        found.update(line.encode(errors="surrogateescape"))
    return found.hexdigest()


def _entries(folders: Iterable[Path]) -> list[Path]:
    """What is in folders, without those that cannot be read: lost+found of a disk, say."""
    found: list[Path] = []
    for folder in folders:
        with contextlib.suppress(OSError):
            found += sorted(folder.iterdir())
    return found


def _folders(paths: Iterable[Path]) -> list[Path]:
    # Unlike `Path.is_dir`, which raises an error for what may not be looked at.
    return [path for path in paths if os.path.isdir(path)]
