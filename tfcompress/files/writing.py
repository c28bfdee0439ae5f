"""Models read with safe mode on, and files written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass

PathLike = str | os.PathLike[str]
_HDF5 = b"\x89HDF\r\n\x1a\n"
_CUSTOM = re.compile(r"(?:Could not locate \w+|Unknown [\w ]+:) '([^']+)'")

_MENDS = {
    errno.ENOSPC: "Free some space, or name a path on another disk.",
    errno.EDQUOT: "Free some of your quota, or name a path on another disk.",
    errno.EROFS: "The disk is read-only; name a path on another one.",
    errno.EACCES: "Check the permissions of the folder, or name a path elsewhere.",
    errno.EPERM: "Check the permissions of the folder, or name a path elsewhere.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


def atomic_write(path: PathLike, data: bytes) -> None:
    """Write a file in whole, or leave everything as it was.

    The bytes go to a file without a name in the same folder where the system can do that (Linux),
    so that even a killed process leaves nothing behind; it gets its name when all is on the disk.
    """
    check_writable(path)
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode & 0o7777 if target.exists() else None
        with unfinished(target) as (descriptor, finish):
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            if mode is not None:
                os.fchmod(descriptor, mode)
            os.fsync(descriptor)
            finish()
    except OSError as error:
        raise unwritable(error, path, f"{len(data):,} bytes") from error


def is_same(one: PathLike, other: PathLike) -> bool:
    """Whether two paths are, or would be, one file."""
    return os.path.realpath(one) == os.path.realpath(other) or (
        os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)
    )


def check_writable(path: PathLike) -> None:
    """Check that a file can be written, before the work that its content takes."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"expected the path of a file to write; received {type(path).__name__}.")
    if not os.fspath(path) or "\0" in os.fspath(path):
        raise ValueError(f"expected the path of a file to write; received {os.fspath(path)!r}.")
    target = Path(os.path.realpath(path))
    try:
        if target.is_dir():
            raise IsADirectoryError(f"cannot write '{path}': it is a folder. Name a file in it.")
        if target.exists() and not target.is_file():
            raise OSError(f"cannot write '{path}': it is not a regular file. Name another path.")
        if not target.parent.is_dir():
            raise FileNotFoundError(
                f"cannot write '{path}': there is no folder '{Path(path).parent}'. "
                "Create it first, or name a path in a folder that exists."
            )
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(
                f"cannot write '{path}': the file that is there is read-only. "
                "Remove it or name another path."
            )
        with unfinished(target):
            pass
    except OSError as error:
        if error.errno is None:  # One of the above.
            raise
        raise unwritable(error, path, "a new file") from error


@contextlib.contextmanager
def unfinished(target: Path) -> Iterator[tuple[int, Any]]:
    """Open a new file beside `target`; gives its descriptor and what puts it in place."""
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        flags = os.O_WRONLY | os.O_TMPFILE
        descriptor, named = os.open(target.parent, flags, 0o666), False
    except (OSError, AttributeError):  # Not every file system knows files without a name.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        descriptor, named = os.open(temporary, flags, 0o666), True

    def finish() -> None:
        if not named:
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                # Given a folder, Python calls linkat, which alone follows this link.
                os.link(f"/proc/self/fd/{descriptor}", temporary.name, dst_dir_fd=folder)
            finally:
                os.close(folder)
        os.replace(temporary, target)

    try:
        yield descriptor, finish
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def unwritable(error: OSError, path: PathLike, what: str) -> OSError:
    """Return the error for a file that could not be written, with the mend."""
    reason = (error.strerror or str(error)).lower()
    mend = _MENDS.get(error.errno or 0, "Name another path.")
    clear = type(error)(f"cannot write '{path}' ({what}): {reason}. {mend} Nothing was changed.")
    clear.errno = error.errno
    return clear


def check_new(folder: Path, force: bool) -> None:
    """Check that files can be generated in a folder, before the work that it takes."""
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
    """Write files into a folder that exists; those of the same names are replaced."""
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


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write files so that all are in place, or all are as they were.

    Each is written under another name first; only then are they renamed. If a rename fails, those
    before it are undone. A process that is killed between two renames can leave a mixture, which
    no file system prevents.
    """
    fresh = {path: path.with_name(f".{path.name[:100]}.{os.getpid()}.new") for path in contents}
    saved = {path: path.with_name(f".{path.name[:100]}.{os.getpid()}.old") for path in contents}
    placed: list[Path] = []
    try:
        for path, content in contents.items():
            atomic_write(fresh[path], content)
        for path in contents:
            if path.exists():
                os.link(path, saved[path])
        for path in contents:
            os.replace(fresh[path], path)
            placed.append(path)
    except BaseException:
        for path in placed:
            if saved[path].exists():
                os.replace(saved[path], path)
            else:
                path.unlink()
        raise
    finally:
        for path in (*fresh.values(), *saved.values()):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
