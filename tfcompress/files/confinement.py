"""What a process may still do to files once it works on what nobody vouches for.

Linux's Landlock holds it against the process and all that it starts, whatever code they run.
Elsewhere, and on kernels before 5.13, nothing is confined.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable

# The same on all machines, as in linux/landlock.h.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _BENEATH, _NO_NEW_PRIVILEGES = 1, 1, 38
_EXECUTE = 1 << 0
# Writing, removing (2) and making (7); moving; cutting off.
_CHANGES = [1 << 1, *(1 << bit for bit in (4, 5, 6, 7, 8, 9, 10, 11, 12))]
_REFER, _TRUNCATE = 1 << 13, 1 << 14  # From versions 2 and 3 on.
_OF_FILES = 1 << 1 | _TRUNCATE
_BIND_TCP, _CONNECT_TCP = 1 << 0, 1 << 1  # From version 4 on.


class _Rules(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_, _fields_ = 1, (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def version() -> int:
    """Which Landlock this system has; 0 if none."""
    if sys.platform != "linux":
        return 0
    system = ctypes.CDLL(None, use_errno=True)
    return max(0, system.syscall(_CREATE_RULESET, None, 0, _VERSION))


def confine(folders: Iterable[str | os.PathLike[str]] = (), *, alone: bool = False) -> bool:
    """Keeps this thread, and all that it starts from now on, from changing files elsewhere.

    Args:
        folders: in which it may; what is not there is left out.
        alone: start no programs, and reach no network, either.

    Returns whether the system holds it.
    """
    known = version()
    if not known:
        return False
    system = ctypes.CDLL(None, use_errno=True)
    changes = sum(_CHANGES) | (_REFER if known > 1 else 0) | (_TRUNCATE if known > 2 else 0)
    network = _BIND_TCP | _CONNECT_TCP if alone else 0
    rules = _Rules(changes | (_EXECUTE if alone else 0), network)
    size = ctypes.sizeof(rules) if known > 3 else 8
    held = system.syscall(_CREATE_RULESET, ctypes.byref(rules), size, 0)
    if held < 0:
        return False
    try:
        for path in (os.fspath(folder) for folder in folders):
            if os.path.exists(path):
                _allow(system, held, path, changes)
        system.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        return system.syscall(_RESTRICT_SELF, held, 0) == 0
    finally:
        os.close(held)


def _allow(system: ctypes.CDLL, rules: int, path: str, changes: int) -> None:
    folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        allowed = changes if os.path.isdir(path) else changes & _OF_FILES
        rule = _Beneath(allowed, folder)
        system.syscall(_ADD_RULE, rules, _BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(folder)
