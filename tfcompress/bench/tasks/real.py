"""Folders of real data sets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path


class NotThere(ValueError):
    """A folder has nothing of a data set: another one may be in it."""


def data_folder(folder: Path, holds: Callable[[Path], bool], expected: str, source: str) -> Path:
    """A data set's own folder: the one given, or one in it, or one in such a one.

    Args:
        folder: the one given.
        holds: whether a folder is the data set's own.
        expected: what such a folder holds, in words.
        source: where the data set is to be had.

    Returns:
        The first that holds it.

    Raises:
        NotThere: there is none.

    Example:
        >>> data_folder(Path("data"), lambda folder: folder.name == "ToyCar", "", "")
        ... # doctest: +SKIP
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise NotThere(f"'{folder}' {what}; expected a folder that holds {expected}. {source}")
    near = _folders([folder])
    for each in (folder, *near, *_folders(near)):
        if holds(each):
            return each
    entries = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    found = ", ".join(entries[:5]) + (", ..." if len(entries) > 5 else "")
    raise NotThere(f"'{folder}' holds {found or 'nothing'}; expected {expected}. {source}")


def fingerprint(root: Path, files: Iterable[Path]) -> str:
    """SHA-256 over the names, sizes and dates of files, hexadecimal; nothing is read."""
    found = hashlib.sha256()
    for path in files:
        stat = path.stat()
        line = f"{path.relative_to(root).as_posix()} {stat.st_size} {stat.st_mtime_ns}\n"
        found.update(line.encode(errors="surrogateescape"))
    return found.hexdigest()


def _folders(parents: Iterable[Path]) -> list[Path]:
    return [path for parent in parents for path in sorted(parent.iterdir()) if path.is_dir()]
