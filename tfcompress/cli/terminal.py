"""What commands share: errors in one line, quiet libraries, progress, printed results."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

from tfcompress import results
from tfcompress.files import confinement, temporary
from tfcompress.results import plain, say
from tfcompress.tools.environments import Unavailable

# Of a message: what a file calls things may be of any length.
_LONGEST = 1500
INTERRUPTED = 130  # What shells say of Ctrl-C.

_own_process = False  # Whether nothing but one command runs in this process.

# What bad input raises; anything else is a defect of tfcompress.
EXPECTED = (ValueError, TypeError, OSError, MemoryError, ImportError, Unavailable)


def run(app: typer.Typer, arguments: list[str] | None) -> int:
    """Run a command, print any error in one line, and return the exit status, see `app.main`."""
    global _own_process
    own = _own_process = arguments is None  # Not called by another program.
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    debug = "--debug" in arguments[:end]
    arguments = [a for i, a in enumerate(arguments) if i >= end or a != "--debug"]
    if own:
        _mend_streams()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.nullcontext() if debug else _hushed())
        try:
            if own:
                stack.enter_context(_ended_cleanly())
                temporary.only_here()
            command = typer.main.get_command(app)
            status = command.main(arguments, prog_name="tfcompress", standalone_mode=False)
            sys.stdout.flush()
            if status == INTERRUPTED:  # typer's own way to say it; older versions raise Abort.
                raise KeyboardInterrupt
            return status if isinstance(status, int) else 0
        except BrokenPipeError:
            # The reader (head, less) has seen enough; nothing may be written at exit either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 0
        except (Exception, KeyboardInterrupt) as error:
            if debug and not hasattr(error, "format_message"):
                traceback.print_exc()
            status, message = _explain(error, debug)
            say(f"Error: {message}")
            return status


def confine(written: Iterable[Path]) -> None:
    """Has the system keep this process, if it is our own, from changing files anywhere else.

    Temporary files and devices are left to it.
    """
    if _own_process:
        # A link is written through, see `writing`.
        ways = (path.parents for file in written for path in (file.absolute(), file.resolve()))
        folders = [next(path for path in way if path.is_dir()) for way in ways]
        # Ours, of which the system's is the parent, is removed at the end.
        confinement.confine([*folders, Path(tempfile.gettempdir()).parent, "/dev"])


def _mend_streams() -> None:
    """Gives this process the streams that it was started without, and ones that take any text."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # Else the next file that is opened would take its place.
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


# What is raised in a callback of a library may be lost there.
_told_to_end = threading.Event()


@contextlib.contextmanager
def _ended_cleanly() -> Iterator[None]:
    """Has a process that is told to end clean up, as at Ctrl-C."""

    def end(number: int, frame: Any) -> None:
        _told_to_end.set()
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    taken = [number for number in numbers if before[number] is not signal.SIG_IGN]  # as nohup does
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])


def _explain(error: BaseException, debug: bool) -> tuple[int, str]:
    """Return the exit status and a message in one line."""
    # typer turns Ctrl-C and the end of a file that is read into the same.
    cause = error.__cause__ if isinstance(error, typer.Abort) else None
    if isinstance(error, KeyboardInterrupt) or isinstance(cause, KeyboardInterrupt):
        return INTERRUPTED, "interrupted; nothing half-written is left."
    if hasattr(error, "format_message"):  # Of typer, or of click in older versions of typer.
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "tfcompress"
        return 2, f"{_one_line(error.format_message()).rstrip('.')}. See {command} --help."
    message = _one_line(cause or error)
    message = message[:_LONGEST] + "..." if len(message) > _LONGEST else message
    if isinstance(error, MemoryError):
        return 2, f"not enough memory: {message}. Take fewer --samples, or a smaller model."
    if isinstance(error, OSError) and error.strerror:  # Without the number.
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, EXPECTED):
        return 2, message
    hint = "" if debug else " (This should not happen; run again with --debug to see where.)"
    return 3, f"{type(cause or error).__name__}: {message[:300]}{hint}"


def _one_line(message: object) -> str:
    return " ".join(str(message).split()) or type(message).__name__


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep back the logs of TensorFlow and LiteRT, in Python and in C++; our warnings stay."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    disabled = logging.root.manager.disable
    with contextlib.ExitStack() as stack:
        null = stack.enter_context(open(os.devnull, "w"))
        # C++ writes to descriptor 2, and some of it whatever the log level.
        saved = os.dup(2)
        stack.callback(os.close, saved)
        ours = sys.stderr
        if _is_descriptor_2(ours):
            ours = stack.enter_context(
                open(os.dup(saved), "w", buffering=1, errors="backslashreplace")
            )
        stack.callback(os.dup2, saved, 2)
        os.dup2(null.fileno(), 2)
        stack.enter_context(contextlib.redirect_stderr(null))
        stack.callback(logging.disable, disabled)
        logging.disable(logging.WARNING)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module="tfcompress")
        warnings.showwarning = _show_warning
        results.stream = ours
        try:
            yield
        finally:
            results.stream = None


def _is_descriptor_2(stream: Any) -> bool:
    try:
        return stream.fileno() == 2
    except (AttributeError, OSError, ValueError):  # A stream in memory, or none at all.
        return False


def _show_warning(message: object, category: Any, *args: Any, **kwargs: Any) -> None:
    say(f"Warning: {_one_line(message)}")


class Progress:
    """Progress on standard error: a bar in a terminal, else a line for each stage.

    Meanwhile, what libraries print is kept off standard output, which is for the result.
    """

    def __init__(self, quiet: bool):
        self.quiet = quiet
        self.stage: str | None = None
        self.bar: Any = None
        self.task: Any = None
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Progress:
        self.stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stream = results.stream or sys.stderr
        if not self.quiet and stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            console = Console(file=stream)
            self.bar = Bar(*columns, TimeElapsedColumn(), console=console, transient=True)
            self.stack.enter_context(self.bar)
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.close()

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Show that `done` of `total` steps of a stage are done; None if it is not known."""
        if _told_to_end.is_set():
            raise KeyboardInterrupt
        changed, self.stage = stage != self.stage, stage
        if self.bar is not None:
            if changed:
                if self.task is not None:
                    self.bar.remove_task(self.task)
                self.task = self.bar.add_task(_escape(stage), total=total)
            self.bar.update(self.task, completed=done, total=total)
        elif changed and not self.quiet:
            say(f"{stage} ...")


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def emit(result: Any, as_json: bool, **options: Any) -> None:
    """Print a result that has `to_dict()` and `render(console, **options)`."""
    if as_json:
        emit_json(result.to_dict())
    else:
        result.render(_console(), **options)


def emit_table(rows: list[dict[str, str]], as_json: bool) -> None:
    """Print a table of dicts of the same keys."""
    if as_json:
        emit_json(rows)
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(escape(text) for text in row.values()))
    _console().print(table)


def emit_json(value: Any) -> None:
    """Print plain data as JSON; no NaN, no NumPy numbers."""
    print(json.dumps(plain(value), indent=2, allow_nan=False))


def _console() -> Any:
    from rich.console import Console

    def broken() -> None:
        raise BrokenPipeError

    # Without a terminal rich assumes 80 columns, which would break long names.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.on_broken_pipe = broken  # type: ignore[method-assign] # it would end with status 1
    return console
