"""Programs that are run, and end at the latest when this process does, with all that they started.

Each is watched by a small process of its own, which this file is run as: it ends its session when
the pipe to this process closes, as it does however this process ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

_PDEATHSIG = 1  # of Linux's prctl


@contextlib.contextmanager
def child(command: Sequence[str | os.PathLike[str]], **options: Any) -> Iterator[subprocess.Popen]:
    """Runs a program for as long as the context lasts.

    Args:
        options: of `subprocess.Popen`.
    """
    words = [os.fspath(word) for word in command]
    if shutil.which(words[0]) is None:
        raise FileNotFoundError(2, "No such program", words[0])
    watched, held = os.pipe()
    watching = [sys.executable, "-I", "-S", __file__, str(watched), *words]
    try:
        process = subprocess.Popen(watching, pass_fds=(watched,), start_new_session=True, **options)
    except BaseException:
        os.close(held)
        raise
    finally:
        os.close(watched)
    with process:
        try:
            yield process
        finally:
            os.close(held)


def finished(
    command: Sequence[str | os.PathLike[str]], seconds: float, **options: Any
) -> subprocess.CompletedProcess:
    """What a program printed, and its exit status, as `subprocess.run` gives them.

    Raises:
        subprocess.TimeoutExpired: it took longer, and was ended.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    with child(command, **pipes, **options) as process:
        out, said = process.communicate(timeout=seconds)
    return subprocess.CompletedProcess(process.args, process.returncode, out, said)


def end_with_parent() -> None:
    """Has Linux end this process when the one that started it ends; elsewhere it does nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)


def ended(status: int | None) -> str:
    """How a process ended that should not have, in words."""
    if status is not None and status < 0:
        hint = " (out of memory?)" if -status == signal.SIGKILL else ""
        return f"crashed: ended by {signal.Signals(-status).name}{hint}"
    return f"crashed: ended with status {status}"


def _watch(pipe: int, command: list[str]) -> None:
    process = subprocess.Popen(command)

    def end() -> None:
        os.read(pipe, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=end, daemon=True).start()
    status = process.wait()
    if status < 0:  # Ends as the program did.
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    _watch(int(sys.argv[1]), sys.argv[2:])
