"""Folders of generated files, written whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from tfcompress.files import unwritable


def check_new(folder: Path, force: bool) -> None:
    """Check that files can be generated in a folder, before the work that it takes.

    Args:
        folder: it need not exist.
        force: let it have other content.

    Raises:
        OSError: it cannot be made there.
        ValueError: it has other content.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"cannot make '{folder}': a file has that name. Name a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise ValueError(
            f"'{folder}' exists and is not empty; expected a new folder. Name another one, or "
            "write into it with --force (force=True), which replaces files of the same names."
        )
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"cannot make '{folder}': '{there}' is a file. Name a folder.")
    if not os.access(there, os.W_OK):
        raise PermissionError(f"cannot write in '{there}': it is read-only. Name another folder.")


def write_new(files: Mapping[str, bytes], folder: Path) -> None:
    """Write a folder; one that exists keeps its other files, see `write_into`.

    All is written to a folder beside first, so that nothing is there if that fails.

    Args:
        files: contents by path within the folder.
        folder: where.

    Raises:
        OSError: it cannot be written; nothing was changed.
    """
    folder = folder.resolve()
    if folder.is_dir():
        write_into(files, folder)
        return
    beside = folder.with_name(f".{folder.name[:100]}.{secrets.token_hex(4)}.tmp")
    made: list[Path] = []
    try:
        _make_folders(folder.parent, made)
        _fill(beside, files)
        os.rename(beside, folder)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        for path in reversed(made):
            path.rmdir()
        raise unwritable(error, folder, f"{len(files)} files") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def differing(files: Mapping[str, bytes], folder: Path) -> list[str]:
    """Return the paths that exist in a folder with other content."""
    found = []
    for name, data in files.items():
        path = folder / name
        if os.path.lexists(path) and not (path.is_file() and path.read_bytes() == data):
            found.append(name)
    return found


def write_into(files: Mapping[str, bytes], folder: Path) -> None:
    """Write files into a folder that exists; those of the same names are replaced.

    Args:
        files: contents by path within the folder.
        folder: where.

    Raises:
        OSError: they cannot be written; what was there is as before.
    """
    inside = folder / f".tfcompress.{secrets.token_hex(4)}.tmp"
    new, old = inside / "new", inside / "old"
    done: list[str] = []
    made: list[Path] = []
    try:
        _fill(new, files)
        for name in files:
            _make_folders((folder / name).parent, made)
            _keep(folder / name, old / name)
            os.replace(new / name, folder / name)
            done.append(name)
    except OSError as error:
        for name in done:
            if os.path.lexists(old / name):
                os.replace(old / name, folder / name)
            else:
                (folder / name).unlink()
        for path in reversed(made):
            path.rmdir()
        raise unwritable(error, folder, f"{len(files)} files") from error
    finally:
        shutil.rmtree(inside, ignore_errors=True)


def _keep(path: Path, copy: Path) -> None:
    if os.path.lexists(path):
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy, follow_symlinks=False)


def _fill(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _make_folders(folder: Path, made: list[Path]) -> None:
    """Make a folder and those that it lies in, and note each that was not there."""
    missing = [folder, *folder.parents]
    missing = missing[: next(i for i, path in enumerate(missing) if path.is_dir())]
    for path in reversed(missing):
        path.mkdir()
        made.append(path)
