"""Native code on untrusted files in a process of its own, which they may end, and not this one.

One such process serves all files; it is started with the first of them. It changes no file, starts
no program and reaches no network, where the system can hold that.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import json
import os
import pickle
import resource
import signal
import struct
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from tfcompress.files import children, confinement

_LENGTH = struct.Struct("<Q")
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {0} import serve; serve()"
# What answers may be made of beside Python's own values.
_TYPES = {("numpy", "dtype"), ("numpy", "ndarray")}
_MAKERS = ("_reconstruct", "scalar", "_frombuffer")
_ERRORS = {error.__name__: error for error in (ValueError, MemoryError, TypeError)}
# Seconds of processor time that one question may take, instead of what is asked with `allow`.
SECONDS = "TFCOMPRESS_SECONDS"


class Died(ValueError):
    """The process ended over a file; the message says how, in one line."""


class TooLong(Died):
    """It was ended, as it took more time than such a file can need."""


class _Process:
    """The process, from this side."""

    def __init__(self) -> None:
        self.owner, self.lock = os.getpid(), threading.Lock()
        self.dropped: list[int] = []  # Files that nobody needs any more.
        self.seconds: int | None = None  # That it may take now.
        self.used = False  # Whether another file may have left something there.
        # What was freed here, such as a converter's, makes room for it; glibc alone has this.
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        self._stack = contextlib.ExitStack()
        self.said = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        path = json.dumps([os.path.abspath(entry) for entry in sys.path])
        command = [sys.executable, "-c", _START.format(__name__), path]
        self.process = self._stack.enter_context(
            children.child(command, stdin=-1, stdout=-1, stderr=self.said)
        )

    @property
    def lives(self) -> bool:
        return self.owner == os.getpid() and self.process.poll() is None

    def ask(self, name: str, arguments: tuple, tell: Callable[..., Any] | None) -> Any:
        with self.lock:
            try:
                dropped, self.dropped = self.dropped, []
                asked = (dropped, _chosen_seconds(), _folder(), name, arguments)
                _send(self.process.stdin, asked)
                while (answer := _receive(self.process.stdout))[0] in ("told", "may take"):
                    if answer[0] == "may take":
                        self.seconds = answer[1]
                    elif tell is not None:
                        tell(*answer[1:])
            except (EOFError, OSError):
                raise self._death() from None
            except pickle.UnpicklingError:
                self.end()
                raise Died("it gave no answer that is data") from None
            except BaseException:  # Its answer would be taken for the next one's.
                self.end()
                raise
        self.used = True
        if answer[0] == "done":
            return answer[1]
        raise _ERRORS.get(answer[1], RuntimeError)(answer[2])

    def _death(self) -> Died:
        self.process.wait()
        if self.process.returncode == -signal.SIGXCPU:
            self.end()
            return TooLong(
                f"it was ended after {self.seconds} s of processor time, far more than such "
                "a file takes: a loop in it may have no end. If it is only slow, give it longer: "
                f"export {SECONDS}={10 * (self.seconds or 1)}"
            )
        self.said.seek(max(0, self.said.seek(0, io.SEEK_END) - 2000))
        lines = self.said.read().decode(errors="replace").split("\n")
        told = [" ".join(line.split()) for line in lines if line.strip() and "INFO:" not in line]
        self.end()
        last = f" ({told[-1][:200]})" if told else ""
        return Died(f"it {children.ended(self.process.returncode)}{last}")

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self._stack.close()


def _folder() -> str | None:
    """Where this process is, which relative paths begin at; None where that was removed."""
    with contextlib.suppress(OSError):
        return os.getcwd()
    return None


def _chosen_seconds() -> int | None:
    given = os.environ.get(SECONDS)
    if given is None:
        return None
    if not given.isdecimal() or not 0 < int(given) < 10**9:
        raise ValueError(
            f"{SECONDS} must be a whole number of seconds above 0; received {given!r}. Set it to "
            "600, or unset it."
        )
    return int(given)


_process: _Process | None = None


def ask(name: str, *arguments: Any, tell: Callable[..., Any] | None = None) -> Any:
    """Calls a function in that process.

    Args:
        name: "module:function" of ours.
        arguments: NumPy arrays and Python's own values.
        tell: called with what the function tells on its way.

    Raises:
        Died: the process ended.
        ValueError, MemoryError, TypeError, RuntimeError: what the function raised.
    """
    process = _living()
    used = process.used
    try:
        return process.ask(name, arguments, tell)
    except TooLong:
        raise
    except Died:
        if not used:
            raise
    return _living().ask(name, arguments, tell)


def _living() -> _Process:
    global _process
    if _process is None or not _process.lives:
        _process = _Process()
    return _process


class Kept:
    """Something that a function has kept there, gone when this is.

    Args:
        name, arguments: as for `ask`, of what calls `keep` and gives its number first.

    Attributes:
        told: what else it gave.
    """

    def __init__(self, name: str, *arguments: Any):
        self._number, *self.told = ask(name, *arguments)
        assert _process is not None
        self._process = _process

    def ask(self, name: str, *arguments: Any) -> Any:
        """Calls a function with it."""
        if self._process is not _process or not self._process.lives:
            raise Died("it ended with another file")
        return self._process.ask(name, (self._number, *arguments), None)

    def __del__(self) -> None:
        # Not asked for: the collector may come here in the middle of another question.
        if hasattr(self, "_process"):
            self._process.dropped.append(self._number)


# From here on: what runs in the other process.
kept: dict[int, Any] = {}
_chosen: int | None = None
_told: int | None = None
_ours: BinaryIO | None = None  # Where answers go.


def keep(value: Any) -> int:
    """Keeps a value from one question to the next; gives the number that it has in `kept`."""
    number = max(kept, default=0) + 1
    kept[number] = value
    return number


def allow(seconds: int | None) -> None:
    """Has the system end the other process after so much more processor time; here it does nothing.

    Args:
        seconds: for what comes next, unless others were chosen; None: no end.
    """
    global _told
    if _ours is None:
        return
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    limits = [most]
    if seconds is not None:
        seconds = _chosen or seconds
        used = resource.getrusage(resource.RUSAGE_SELF)
        limits.append(int(used.ru_utime + used.ru_stime) + 1 + seconds)
        if seconds != _told:  # Else it would disturb what is being timed.
            _send(_ours, ("may take", seconds))
            _told = seconds
    limit = min((n for n in limits if n != resource.RLIM_INFINITY), default=most)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, most))


def serve() -> None:
    """Answers until nobody asks any more."""
    global _chosen, _ours
    # What libraries print is no answer.
    ours = _ours = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _lose()
    with contextlib.suppress(EOFError, OSError):
        while True:
            dropped, _chosen, folder, name, arguments = pickle.loads(_read(sys.stdin.buffer))
            for number in dropped:
                kept.pop(number, None)
            with contextlib.suppress(OSError):
                os.chdir(folder or os.curdir)
            module, function = name.split(":")
            try:
                called = getattr(importlib.import_module(module), function)
                tells = {"tell": lambda *told: _send(ours, ("told", *told))}
                found = called(*arguments, **(tells if getattr(called, "tells", False) else {}))
                answer: tuple[Any, ...] = ("done", found)
            except Exception as error:
                kinds = [kind.__name__ for kind in type(error).__mro__]
                kind = next((name for name in kinds if name in _ERRORS), kinds[0])
                answer = ("failed", kind, str(error)[:4000])
            allow(None)
            _send(ours, answer)


def _lose() -> None:
    """Leaves this process nothing to lose: it only reads, and goes first when memory is short."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    confinement.confine(alone=True)


def _send(stream: BinaryIO | Any, value: Any) -> None:
    data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def _read(stream: BinaryIO | Any) -> bytes:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    data = stream.read(_LENGTH.unpack(head)[0])
    if len(data) < _LENGTH.unpack(head)[0]:
        raise EOFError
    return data


class _Answers(pickle.Unpickler):
    """Takes nothing but arrays and Python's own values: a file may have taken the process over."""

    def find_class(self, module: str, name: str) -> Any:
        own = module.split(".")[0] == "numpy" and name in _MAKERS
        if own or (module, name) in _TYPES or module == "numpy.dtypes":
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


def _receive(stream: BinaryIO | Any) -> Any:
    return _Answers(io.BytesIO(_read(stream))).load()
