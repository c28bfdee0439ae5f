"""Temporary folders, of which nothing stays: what a killed process left is swept by the next."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import platform
import re
import shutil
import tempfile

from tfcompress.files.writing import PathLike


@functools.cache
def _place() -> str:
    """Of the processes among which a number means one of them: a container has its own."""
    with contextlib.suppress(OSError):
        return _digest(f"{platform.node()} {os.stat('/proc/self/ns/pid').st_ino}")
    return _digest(platform.node())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def folder(inside: PathLike | None = None) -> tempfile.TemporaryDirectory[str]:
    """A new folder that is removed at the end; `inside` is where, by default the system's place."""
    where, prefix = _swept(inside)
    return tempfile.TemporaryDirectory(prefix=prefix, dir=where, ignore_cleanup_errors=True)


def only_here() -> None:
    """Has all temporary files of this process, libraries' too, in one such folder until it exits.

    It goes last: what a library registers after this removes its own files first.
    """
    where, prefix = _swept(None)
    os.environ["TMPDIR"] = name = tempfile.mkdtemp(prefix=prefix, dir=where)
    tempfile.tempdir = None
    atexit.register(shutil.rmtree, name, ignore_errors=True)


def _swept(inside: PathLike | None) -> tuple[str, str]:
    """A place without what others left, and how the names of ours begin."""
    where = tempfile.gettempdir() if inside is None else os.fspath(inside)
    sweep(where)
    return where, f".tfcompress-{_place()}-{os.getpid()}-"


def sweep(where: str) -> None:
    """Removes folders of processes that have ended without doing so."""
    found = re.compile(rf"\.tfcompress-{_place()}-(\d+)-")
    with contextlib.suppress(OSError):
        for entry in os.scandir(where):
            match = found.match(entry.name)
            own = match and entry.stat(follow_symlinks=False).st_uid == os.getuid()
            if match and own and not entry.is_symlink() and not _lives(int(match[1])):
                shutil.rmtree(entry.path, ignore_errors=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # It is somebody else's.
        pass
    return True
