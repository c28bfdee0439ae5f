"""Folders of real data sets."""

from __future__ import annotations

import contextlib
import hashlib
import os
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
        OSError: the given one cannot be read.

    Example:
        >>> data_folder(Path("data"), lambda folder: (folder / "yes").is_dir(), "", "")
        ... # doctest: +SKIP
    """
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
