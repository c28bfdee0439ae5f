"""Files written whole or not at all, one or several."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

PathLike = str | os.PathLike[str]

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
    temporary = _hidden(target, "tmp")
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


def _hidden(path: Path, ending: str) -> Path:
    """A new name beside a path, which listings leave out."""
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.{ending}")


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


def differing(files: Mapping[str, bytes], folder: Path) -> list[str]:
    """Return the paths that exist in a folder with other content."""
    found = []
    for name, data in files.items():
        path = folder / name
        same = path.is_file() and not path.is_symlink() and path.read_bytes() == data
        if _links(folder, [name]) or (os.path.lexists(path) and not same):
            found.append(name)
    return found


def _links(base: Path, names: Iterable[Any]) -> list[Path]:
    """The links to folders that lie between a folder and files in it, the outermost of each."""
    found: dict[Path, None] = {}
    for name in names:
        inner = [base / part for part in reversed(Path(name).parents)][1:]
        found.update(dict.fromkeys([path for path in inner if path.is_symlink()][:1]))
    return list(found)


def write_all(files: Mapping[Any, bytes], folder: PathLike = "") -> None:
    """Write files so that all are in place, or all is as it was; folders that lack are made.

    All are written under other names first; only then they get their own, and what they replace
    comes back if one of them cannot. A new `folder` gets its name when all is in it. Links in it
    are replaced, and what they lead to is left alone. A process that is killed between two renames
    can leave a mixture, which no file system prevents.
    """
    base = Path(folder).resolve()
    if base.is_dir():
        moves = {_hidden(base / name, "new"): base / name for name in files}
        contents = dict(zip(moves, files.values(), strict=True))
    else:
        new = _hidden(base, "new")
        moves, contents = {new: base}, {new / name: data for name, data in files.items()}
    saved = {path: _hidden(path, "old") for path in moves.values()}
    links = {path: _hidden(path, "old") for path in _links(base, files) if folder}
    made: list[Path] = []
    placed: list[Path] = []
    try:
        for path, copy in links.items():
            os.replace(path, copy)
        for path, data in contents.items():
            _make_folders(path.parent, made)
            path.write_bytes(data)
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        for path, copy in saved.items():
            _keep(path, copy)
        for path, target in moves.items():
            os.replace(path, target)
            placed.append(target)
    except BaseException as error:
        _put_back(placed, saved)
        _remove(moves)
        for path in reversed(made):
            with contextlib.suppress(FileNotFoundError):  # In a new folder, which is gone already.
                path.rmdir()
        _put_back([path for path in links if os.path.lexists(links[path])], links)
        if isinstance(error, OSError):
            where = folder or next(iter(files))
            raise unwritable(error, where, f"{len(files)} files") from error
        raise
    finally:
        _remove([*saved.values(), *links.values()])


def _put_back(paths: Iterable[Path], saved: Mapping[Path, Path]) -> None:
    for path in paths:
        if os.path.lexists(saved[path]):
            os.replace(saved[path], path)
        else:
            path.unlink()


def _keep(path: Path, copy: Path) -> None:
    if os.path.lexists(path):
        try:
            os.link(path, copy, follow_symlinks=False)
        except OSError:  # Not every file system knows links.
            shutil.copy2(path, copy, follow_symlinks=False)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _make_folders(folder: Path, made: list[Path]) -> None:
    """Make a folder and those that it lies in, and note each that was not there."""
    missing = [folder, *folder.parents]
    missing = missing[: next(i for i, path in enumerate(missing) if path.is_dir())]
    for path in reversed(missing):
        path.mkdir()
        made.append(path)
