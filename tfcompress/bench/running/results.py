"""The results file: JSON lines, appended while the benchmark runs, mended where it was cut off."""

from __future__ import annotations

import fcntl
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from tfcompress.bench.tasks.task import FORMS
from tfcompress.results import is_number, plain

Row = dict[str, Any]
_START = b'{"kind": "'
_RUN_KEY = ("form", "task", "seed", "method")

# What tells the lines of a kind apart: a later one takes the place of an earlier one.
_OF_RUN = ("latency", "layers", "vela")
_KEYS = {"machine": ("id",), **dict.fromkeys(("run", *_OF_RUN), _RUN_KEY)}
_ABOUT = ("form", "task", "method")

_TEXTS = {
    "machine": ("id", "cpu", "system", "python", "started"),
    "run": (*_ABOUT, "who", "family", "title", "status", "machine"),
    **dict.fromkeys(_OF_RUN, _ABOUT),
}

_NUMBERS = {
    "run": (
        *("quality", "quality_keras", "bytes", "zipped", "flash", "params", "macs"),
        *("convert_s", "step_cpu_ms", "step_cpu_ratio", "keras_step_cpu_ratio", "peak_mb"),
    ),
    "latency": ("ms", "ratio"),
}


def key_of(row: Row) -> tuple[Any, ...]:
    """What a line is about: its kind, and the form, task, seed and method, or the machine."""
    return (row["kind"], *(row[name] for name in _KEYS[row["kind"]]))


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """All lines of a results file, as they were written."""
    if not Path(path).is_file():
        raise ValueError(
            f"no file at '{path}'; expected the results of `tfcompress bench`. Check the path."
        )
    return _parse(Path(path).read_bytes(), os.fspath(path))[0]


def latest(rows: Sequence[Row]) -> list[Row]:
    """The lines that hold, in the order in which they were first written.

    A later line takes the place of an earlier one of the same key. Latency, layers and Vela go with
    the run before them: of a method that has run again since, they are left out. So is what was
    measured on other data than the last run of a task, with another fine-tuning, or from another
    float model than the last run of a seed.
    """
    kept: dict[tuple[Any, ...], Row] = {}
    last: dict[tuple[Any, ...], Any] = {}
    for row in rows:
        key = key_of(row)
        if row["kind"] == "run":
            for kind in _OF_RUN:
                kept.pop((kind, *key[1:]), None)
            last |= _conditions(row)
        elif row["kind"] != "machine" and ("run", *key[1:]) not in kept:
            continue
        kept[key] = row
    return [row for row in kept.values() if _is_comparable(row, kept, last)]


def _conditions(run: Row) -> dict[tuple[Any, ...], Any]:
    """What all runs that are compared must have in common, by what they are."""
    task = run["form"], run["task"]
    found: dict[tuple[Any, ...], Any] = {("data", *task): run["data"]["digest"]}
    # The float model has no fine-tuning, and what failed tells no float model.
    if run.get("tuning") is not None:
        found |= {("tuning", *task): run["tuning"]}
    if run["status"] == "ok":
        found |= {("checkpoint", *task, run["seed"]): run.get("checkpoint")}
    return found


def _is_comparable(row: Row, kept: dict[tuple[Any, ...], Row], last: dict[Any, Any]) -> bool:
    if row["kind"] == "machine":
        return True
    run = kept[key_of({**row, "kind": "run"})]
    return all(last[name] == value for name, value in _conditions(run).items())


def of_form(rows: Sequence[Row], form: str | None = None) -> list[Row]:
    """The lines of one form of the benchmark, and the machines that they come from."""
    if form is None:
        there = {row.get("form") for row in rows}
        form = next((each for each in FORMS if each in there), FORMS[0])
    found = [row for row in rows if row.get("form") == form]
    used = {row["machine"] for row in found if "machine" in row}
    return [row for row in rows if row["kind"] == "machine" and row["id"] in used] + found


def machines(rows: Sequence[Row]) -> list[Row]:
    """The machines that results come from."""
    tasks: dict[str, dict[str, None]] = {}
    for row in rows:
        if "machine" in row:
            tasks.setdefault(row["machine"], {})[row["task"]] = None
    return [{**row, "tasks": [*tasks[row["id"]]]} for row in rows if row["kind"] == "machine"]


class ResultsFile:
    """A results file that is being written; no two benchmarks write to one.

    Args:
        path: the file; made if it is missing, mended if its last line was cut off.

    Attributes:
        rows: all lines, also those that are appended.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._file: BinaryIO = open(self.path, "a+b")  # noqa: SIM115
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"another benchmark is writing to '{self.path}'. Wait until it ends, or name "
                    "another file with --results."
                ) from None
            self._file.seek(0)
            content = self._file.read()
            self.rows, end = _parse(content, os.fspath(self.path))
            self._file.truncate(end)
            if end and content[end - 1 : end] != b"\n":
                self._file.write(b"\n")
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def append(self, row: Row) -> None:
        """Writes one line; it is on the disk when this returns."""
        text = json.dumps(plain(row), allow_nan=False)
        row = json.loads(text)  # as it will be read again
        _check(row, "a new line")
        self._file.write(text.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows.append(row)


def _parse(content: bytes, path: str) -> tuple[list[Row], int]:
    """The lines, and where the last whole one ends."""
    rows: list[Row] = []
    end = 0
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        where = f"line {number} of '{path}'"
        try:
            row = json.loads(line, parse_constant=_no_constant)
        except ValueError as error:
            # A file of something else begins in another way.
            if not line.endswith(b"\n") and (rows or _START.startswith(line[: len(_START)])):
                warnings.warn(f"{where} was cut off, and is left out", stacklevel=3)
                break
            raise ValueError(
                f"{where} is no JSON: {error}. Expected the results of `tfcompress bench`; remove "
                "the line, or name another file."
            ) from error
        _check(row, where)
        rows.append(row)
        end += len(line)
    return rows, end


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _check(row: Any, where: str) -> None:
    """Raises a ValueError unless a line has what readers rely on."""
    wrong = _wrong(row)
    if wrong:
        raise ValueError(
            f"{where} {wrong}. Expected the results of `tfcompress bench`; remove the line, or "
            "name another file."
        )


def _wrong(row: Any) -> str:
    kind = row.get("kind") if isinstance(row, dict) else None
    if kind not in _KEYS:
        return f"is of no known kind ({', '.join(_KEYS)})"
    for name in _TEXTS[kind]:
        if not isinstance(row.get(name), str):
            return f"has no text {name!r}"
    if kind == "machine":
        return "" if isinstance(row.get("versions"), dict) else "has no versions"
    if not is_number(row.get("seed")):
        return "has no number 'seed'"
    if row["form"] not in FORMS:
        return f"is of no known form ({', '.join(FORMS)})"
    for name in _NUMBERS.get(kind, ()):
        if row.get(name) is not None and not is_number(row[name]):
            return f"has {row[name]!r} as {name!r}, which is no number"
    data = row.get("data")
    if kind == "run" and not (isinstance(data, dict) and isinstance(data.get("digest"), str)):
        return "does not say which data it is of"
    if kind == "layers" and not isinstance(row.get("layers"), list):
        return "has no list 'layers'"
    return ""
