"""accept: ask the real tools that take .tflite files whether they take this one."""

from __future__ import annotations

import dataclasses
import os
import pkgutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tfcompress.errors import expected_one_of
from tfcompress.results import Result, plain, print_line, print_table
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.plain_weights import has_codes
from tfcompress.tflite.run import ONLY_MICRO
from tfcompress.tools.driving import Figure, NotApplicable, Outcome, Refused, Status, Tool
from tfcompress.tools.environments import Unavailable
from tfcompress.tools.subject import Subject, read_subject

if TYPE_CHECKING:
    from rich.console import Console

Progress = Callable[[str, int, int | None], Any]

# name -> where the tool is, which is imported when it is asked
TOOLS = {
    "apk": "tfcompress.export.android.checking:APK",
    "arm64": "tfcompress.tools.arm64:TOOL",
    "kotlin": "tfcompress.export.android.checking:KOTLIN",
    "litertjs": "tfcompress.tools.litertjs:TOOL",
    "mediapipe": "tfcompress.tools.mediapipe:TOOL",
    "onnxruntime": "tfcompress.tools.runtimes:ONNXRUNTIME",
    "openvino": "tfcompress.tools.runtimes:OPENVINO",
    "tflite_support": "tfcompress.tools.tflite_support:TOOL",
    "tflm": "tfcompress.tools.runtimes:TFLM",
    "vela": "tfcompress.tools.vela:TOOL",
}


@dataclasses.dataclass(frozen=True)
class ToolResult:
    """What one tool said.

    Attributes:
        tool: its name.
        title: with its version.
        status, reason, figures: see `Outcome`.
        seconds: that it took, at first use with its installation.
    """

    tool: str
    title: str
    status: Status
    reason: str
    figures: Mapping[str, Figure]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Acceptance(Result):
    """What the tools said of a file.

    Attributes:
        path: of the file.
        results: one for each tool.
        notes: other things worth knowing, such as kernels that the reference lacks.
        file_bytes, zipped_bytes: size of the file, plain and deflated.
    """

    path: str
    results: tuple[ToolResult, ...]
    notes: tuple[str, ...] = ()
    file_bytes: int = 0
    zipped_bytes: int = 0

    @property
    def passed(self) -> bool:
        """True if no tool failed, none that was asked was not run, and at least one passed.

        A tool that the file is not meant for ("not applicable") does not count.
        """
        found = {result.status for result in self.results}
        return "passed" in found and found <= {"passed", "not applicable"}

    @property
    def counts(self) -> dict[str, int]:
        """How many tools came to which status."""
        return dict(Counter(result.status for result in self.results))

    @property
    def reasons(self) -> list[str]:
        """Why tools came to their status, or what else they said, a line each."""
        told = [result for result in self.results if result.reason]
        return [f"{r.tool} ({r.title}): {r.status}: {r.reason}" for r in told]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {
            "path": self.path,
            "passed": self.passed,
            "counts": self.counts,
            "results": plain(self.results),
            "notes": list(self.notes),
            "file_bytes": self.file_bytes,
            "zipped_bytes": self.zipped_bytes,
        }

    def _print(self, console: Console) -> None:
        """Print a table of the tools, then the reasons of those that did not pass."""
        rows: list[tuple[Any, ...]] = [
            (result.tool, result.status, told(result.figures), f"{result.seconds:.1f}")
            for result in self.results
        ]
        print_table(console, f"{self.path}: what tools say", "tool,status,figures,seconds >", rows)
        for reason in self.reasons:
            print_line(console, reason)
        for note in self.notes:
            print_line(console, f"note: {note}")
        verdict = "accepted" if self.passed else "NOT accepted"
        counts = ", ".join(f"{count} {status}" for status, count in self.counts.items())
        print_line(console, f"{verdict}: {counts}")


@dataclasses.dataclass(frozen=True)
class Acceptances(Result):
    """What the tools said of several files, beside one another.

    Attributes:
        files: an `Acceptance` each; the first is what the others are measured by.
        costs: for each tool the figures of which less is better.
    """

    files: tuple[Acceptance, ...]
    costs: Mapping[str, tuple[str, ...]]

    @property
    def passed(self) -> bool:
        """True if all files passed."""
        return all(file.passed for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {"passed": self.passed, "files": plain(self.files), "costs": plain(self.costs)}

    def _print(self, console: Console) -> None:
        """Print a table for each tool, then the reasons of those that did not pass."""
        for number, (tool, costs) in enumerate(self.costs.items()):
            firsts = self._row(self.files[0], number, costs)
            rows: list[tuple[Any, ...]] = [
                (file.path, file.results[number].status, *map(_beside, row, firsts))
                for file in self.files
                for row in [self._row(file, number, costs)]
            ]
            names = ",".join(f"{name} >" for name in ("bytes", "zipped", *costs))
            title = self.files[0].results[number].title
            print_table(
                console, f"{tool} ({title}): to the first file", f"file,status,{names}", rows
            )
        for file in self.files:
            for reason in file.reasons:
                print_line(console, f"{file.path}: {reason}")
        print_line(console, "accepted: all files" if self.passed else "NOT all files accepted")

    def _row(self, file: Acceptance, number: int, costs: tuple[str, ...]) -> list[Figure | None]:
        figures = file.results[number].figures
        return [file.file_bytes, file.zipped_bytes, *(figures.get(name) for name in costs)]


def _beside(value: Figure | None, first: Figure | None) -> str:
    """A figure, and how many times that of the first file it is."""
    if not isinstance(value, int | float):
        return ""
    ratio = f" ({value / first:.2f}x)" if isinstance(first, int | float) and first else ""
    return f"{value:,}{ratio}"


def accept_all(
    paths: Iterable[str | os.PathLike[str]],
    tools: Iterable[str] | str | None = None,
    *,
    data: Any = None,
    progress: Progress | None = None,
    **options: Any,
) -> Acceptances:
    """Run real third-party tools on several .tflite files, to see which costs them least.

    Such as a model plain, pruned, clustered and with few values, by Vela's flash and cycles.

    Args:
        paths: of the .tflite files; the first is what the others are measured by.
        tools, data, progress, **options: as of `accept`.

    Returns:
        An `Acceptances`, which prints a table for each tool.

    Raises:
        TypeError, ValueError: as of `accept`, or if there is no file, before a tool runs.

    Example:
        >>> accept_all(["plain.tflite", "pruned.tflite"], "vela").render()  # doctest: +SKIP
    """
    if isinstance(paths, str | os.PathLike):
        raise TypeError(
            f"paths must be a list of paths of .tflite files; received {os.fspath(paths)!r}. "
            "Put it in brackets, or call tfcompress.accept."
        )
    asked = _asked(tools, options)
    files = [read_subject(_checked(path), options, data) for path in paths]
    if not files:
        raise ValueError("paths must name one .tflite file or more; received none. Add some.")
    found = [_answers(asked, file, progress) for file in files]
    return Acceptances(tuple(found), {name: tool.costs for name, tool in asked.items()})


def accept(
    path: str | os.PathLike[str],
    tools: Iterable[str] | str | None = None,
    *,
    data: Any = None,
    progress: Progress | None = None,
    **options: Any,
) -> Acceptance:
    """Run real third-party tools on a .tflite file.

    Each tool lives in an environment of its own in the user's cache, made at first use. Tools that
    run the file all get the same samples, and are compared with LiteRT's reference kernels.

    Args:
        path: of the .tflite file.
        tools: their names, also in one string with commas between: apk, arm64, kotlin, litertjs,
            mediapipe, onnxruntime, openvino, tflite_support, tflm, vela; all if None.
        data: inputs that are typical of the model, in real numbers and in any form that `convert`
            takes for calibration; random ones if None.
        progress: called as `progress(tool, done, total)`.
        **options: of the tools, such as `accelerator="ethos-u55-128"` for vela.

    Returns:
        An `Acceptance`. A tool that cannot be had is in it as "not run", never as "passed".

    Raises:
        TypeError: the file is no path.
        ValueError: the file is damaged or LiteRT cannot run it, a tool or an option is unknown,
            the data does not fit the file.

    Example:
        >>> accept("model.tflite", ["vela", "tflm"]).passed  # doctest: +SKIP
        True
    """
    asked = _asked(tools, options)
    return _answers(asked, read_subject(_checked(path), options, data), progress)


def _checked(path: Any) -> str | os.PathLike[str]:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"path must be the path of a .tflite file; received {type(path).__name__}. Write the "
            "file first, then name it."
        )
    return path


def _asked(tools: Iterable[str] | str | None, options: dict[str, Any]) -> dict[str, Tool]:
    """The tools by their names, if they take the options."""
    asked = {name: pkgutil.resolve_name(TOOLS[name]) for name in check_tools(tools)}
    _check_options(asked, options)
    return asked


def _answers(asked: dict[str, Tool], file: Subject, progress: Progress | None) -> Acceptance:
    """What tools say of a file."""
    results = []
    for number, (name, tool) in enumerate(asked.items()):
        if progress is not None:
            progress(name, number, len(asked))
        start = time.perf_counter()
        said = ask(tool, file)
        seconds = round(time.perf_counter() - start, 2)
        results.append(
            ToolResult(name, tool.title, said.status, said.reason, said.figures, seconds)
        )
    notes = (file.note,) if file.note else ()
    sizes = len(file.data), flatbuffer.zipped_size(file.data)
    return Acceptance(str(file.path), tuple(results), notes, *sizes)


def list_tools() -> list[str]:
    """The names of the tools that `accept` knows.

    Example:
        >>> "vela" in list_tools()
        True
    """
    return sorted(TOOLS)


def check_tools(tools: Iterable[str] | str | None) -> list[str]:
    """Return the names of tools without repetitions, all if None."""
    known = list_tools()
    if tools is None:
        return known
    if isinstance(tools, str):
        tools = [name for part in tools.split(",") if (name := part.strip())]
    if not isinstance(tools, Iterable):
        raise TypeError(
            f"tools must be names in a list, or in one string with commas between; received "
            f"{type(tools).__name__}. Try 'vela,tflm', or None for all."
        )
    names = list(dict.fromkeys(tools))
    if not names:
        raise ValueError(f"no tool was named; {expected_one_of('', known)}")
    for name in names:
        if name not in known:
            raise ValueError(f"unknown tool {name!r}; {expected_one_of(str(name), known)}")
    return names


def ask(tool: Tool, file: Subject) -> Outcome:
    """Run one tool."""
    if not tool.decodes and has_codes(flatbuffer.read(file.data)):
        return Outcome("failed", f"{tool.title} cannot run the file: {ONLY_MICRO}.")
    try:
        return tool.run(file)
    except Refused as refusal:
        return Outcome("failed", str(refusal))
    except NotApplicable as reason:
        return Outcome("not applicable", str(reason))
    except Unavailable as reason:
        return Outcome("not run", str(reason))


def told(figures: Mapping[str, Figure]) -> str:
    """Figures in one line."""
    return ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}"
        for name, value in figures.items()
    )


def _check_options(tools: dict[str, Tool], options: dict[str, Any]) -> None:
    known = {name: check for tool in tools.values() for name, check in tool.options.items()}
    for name, value in options.items():
        if name not in known:
            expected = expected_one_of(name, known) if known else "these tools take none."
            raise ValueError(f"unknown option {name!r} of {', '.join(tools)}; {expected}")
        known[name](value)
