"""Several files put in place together, or none of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from tfcompress import files


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write files so that all are in place, or all are as they were.

    Each is written under another name first; only then are they renamed. If a rename fails, those
    before it are undone. A process that is killed between two renames can leave a mixture, which
    no file system prevents.

    Args:
        contents: path -> content; all in folders that exist.

    Raises:
        OSError: a file cannot be written; nothing has changed then.

    Example:
        >>> write_together({Path("a.xml"): b"<net/>", Path("a.bin"): b""})  # doctest: +SKIP
    """
    fresh = {path: path.with_name(f".{path.name[:100]}.{os.getpid()}.new") for path in contents}
    saved = {path: path.with_name(f".{path.name[:100]}.{os.getpid()}.old") for path in contents}
    placed: list[Path] = []
    try:
        for path, content in contents.items():
            files.atomic_write(fresh[path], content)
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
