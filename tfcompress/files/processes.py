"""Functions run in processes of their own, so that a crash or a hang of one ends only that one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from tfcompress.files import children

# What a process gets to clean up when it is told to end.
_SECONDS = 3.0
# How often the memory of a process is looked at, and how long is waited at a time if it is not.
_LOOK, _LONG = 0.25, 3600.0


class Failed(RuntimeError):
    """What was run apart did not end well; the message says how, in one line."""


def preload(modules: Sequence[str]) -> None:
    """Names what the server that processes are forked from imports; of use before the first."""
    _context().set_forkserver_preload(list(modules))


def _context() -> Any:
    # Plain forks would take over locks of TensorFlow's threads.
    return multiprocessing.get_context("forkserver")


def run_apart(
    function: Callable[..., Any], *arguments: Any, seconds: float, memory: int | None = None
) -> Any:
    """Calls a function in a process of its own.

    Args:
        seconds: after which it is ended.
        memory: bytes that the process alone may take; None: any.

    Raises:
        Failed: it was ended, crashed, or the function raised an error.
    """
    context = _context()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, arguments), daemon=True)
    try:
        with _without_main():
            process.start()
    except pickle.PicklingError:  # Something of the program's own is run.
        process.start()
    theirs.close()
    try:
        _wait(ours, process.pid, seconds, memory)
        try:
            done, found = ours.recv()
        except EOFError:
            process.join(10)
            raise Failed(children.ended(process.exitcode)) from None
    except BaseException:
        process.terminate()
        process.join(_SECONDS)
        raise
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()
    if not done:
        raise Failed(found)
    return found


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Has a new process not import the program that this one runs, a user's script, again.

    What is run apart is in a module of its own; a script without `if __name__ == "__main__"` would
    begin anew in each process.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _wait(pipe: Connection, pid: int, seconds: float, memory: int | None) -> None:
    """Waits until a process answers or ends; raises if it takes too long, or too much memory."""
    end = time.monotonic() + seconds
    while not pipe.poll(min(max(0.0, end - time.monotonic()), _LOOK if memory else _LONG)):
        if time.monotonic() >= end:
            raise Failed(f"did not end within {seconds:.0f} s")
        if memory and (taken := _resident(pid)) > memory:
            raise Failed(f"took {taken / 2**20:,.0f} MiB of memory; allowed are "
                         f"{memory / 2**20:,.0f}")  # fmt: skip


def _resident(pid: int) -> int:
    """Bytes of memory that a process has; 0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/statm") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _answer(pipe: Connection, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    children.end_with_parent()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Told to end, it removes what it has made on the way. Ctrl-C is for the command to take.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)  # Standard output is for the result of the command.
    try:
        answer = True, function(*arguments)
    except Exception as error:
        told = " ".join(str(error).split())[:400]
        answer = False, f"{type(error).__name__}: {told}" if told else type(error).__name__
    pipe.send(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
