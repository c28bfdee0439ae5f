"""LiteRT in a process of its own: what a file makes it do ends that process, and not this one.

One such process serves all files; it is started with the first of them.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import pickle
import struct
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any, BinaryIO

from tfcompress import children

_LENGTH = struct.Struct("<Q")
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {0} import serve; serve()"
# What answers may be made of beside Python's own values.
_TYPES = {("numpy", "dtype"), ("numpy", "ndarray")}
_MAKERS = ("_reconstruct", "scalar", "_frombuffer")
_ERRORS = {error.__name__: error for error in (ValueError, MemoryError, TypeError)}


class Died(RuntimeError):
    """LiteRT ended its process; the message says how, in one line."""


class Lost(Died):
    """The process ended while it was asked about another file."""


class _Process:
    """The process, from this side."""

    def __init__(self) -> None:
        self.owner, self.lock = os.getpid(), threading.Lock()
        self.dropped: list[int] = []  # Files that nobody needs any more.
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
                _send(self.process.stdin, (dropped, name, arguments))
                while (answer := _receive(self.process.stdout))[0] == "told":
                    if tell is not None:
                        tell(*answer[1:])
            except (EOFError, OSError):
                raise Died(self._how()) from None
            except pickle.UnpicklingError:
                self.end()
                raise Died("it gave no answer that is data") from None
            except BaseException:  # Its answer would be taken for the next one's.
                self.end()
                raise
        if answer[0] == "done":
            return answer[1]
        raise _ERRORS.get(answer[1], RuntimeError)(answer[2])

    def _how(self) -> str:
        self.process.wait()
        self.said.seek(max(0, self.said.seek(0, io.SEEK_END) - 2000))
        lines = self.said.read().decode(errors="replace").split("\n")
        told = [" ".join(line.split()) for line in lines if line.strip() and "INFO:" not in line]
        self.end()
        last = f" ({told[-1][:200]})" if told else ""
        return f"it {children.ended(self.process.returncode)}{last}"

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self._stack.close()


_process: _Process | None = None


def ask(name: str, *arguments: Any, tell: Callable[..., Any] | None = None) -> Any:
    """Calls a function in the process of LiteRT.

    Args:
        name: "module:function" of ours.
        arguments: NumPy arrays and Python's own values.
        tell: called with what the function tells on its way.

    Raises:
        Died: the process ended.
        ValueError, MemoryError, TypeError, RuntimeError: what the function raised.
    """
    global _process
    if _process is None or not _process.lives:
        _process = _Process()
    return _process.ask(name, arguments, tell)


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
            raise Lost("it ended with another file")
        return ask(name, self._number, *arguments)

    def __del__(self) -> None:
        # Not asked for: the collector may come here in the middle of another question.
        if hasattr(self, "_process"):
            self._process.dropped.append(self._number)


# From here on: what runs in the other process.
kept: dict[int, Any] = {}


def keep(value: Any) -> int:
    """Keeps a value from one question to the next; gives the number that it has in `kept`."""
    number = max(kept, default=0) + 1
    kept[number] = value
    return number


def serve() -> None:
    """Answers until nobody asks any more."""
    # What libraries print is no answer.
    ours = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with contextlib.suppress(EOFError, OSError):
        while True:
            dropped, name, arguments = pickle.loads(_read(sys.stdin.buffer))
            for number in dropped:
                kept.pop(number, None)
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
            _send(ours, answer)


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
