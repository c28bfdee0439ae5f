"""What a tool is, what it says of a file, and how one is driven in its own environment."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tfcompress.files import temporary
from tfcompress.tools.environments import Unavailable, python_environment, run_tool

DRIVERS = Path(__file__).parent / "drivers"
_SECONDS = 600.0


Status = Literal["passed", "failed", "not run", "not applicable"]
Figure = int | float | str


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a tool said of a file.

    Attributes:
        status: "passed"; "failed", also if the tool refuses the file; "not run", the tool cannot
            be had here; "not applicable", the tool is not meant for such a file.
        reason: why, in words; a remark if it passed, mostly empty.
        figures: what it measured, by name with the unit.
    """

    status: Status
    reason: str = ""
    figures: Mapping[str, Figure] = dataclasses.field(default_factory=dict)


class Refused(Exception):
    """A tool ran and said no to the file; the message is the tool's own."""


class NotApplicable(Exception):
    """A tool is not meant for such a file; the message says why."""


@dataclasses.dataclass(frozen=True)
class Tool:
    """A tool that takes .tflite files.

    Attributes:
        title: with its version.
        run: asks it about a `Subject`; besides what it returns, it may raise `Refused`,
            `NotApplicable` or `Unavailable`.
        options: what it can be told, by name, and what raises a ValueError of a wrong value.
        costs: the figures of which less is better, by which files are compared.
        decodes: whether it takes files with weights in codes.
    """

    title: str
    run: Callable[[Any], Outcome]
    options: Mapping[str, Callable[[Any], None]] = dataclasses.field(default_factory=dict)
    costs: tuple[str, ...] = ()
    decodes: bool = False


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a driver brought back.

    Attributes:
        outputs: for each sample the outputs, in the file's order.
        figures: what it measured.
        files: the content of the files that were asked for, by name.
    """

    outputs: list[list[np.ndarray]]
    figures: dict[str, Figure]
    files: dict[str, bytes]


def drive(
    command: Sequence[str | Path],
    driver: str,
    data: bytes,
    inputs: Sequence[Mapping[str, np.ndarray]] = (),
    *,
    what: str,
    settings: Mapping[str, Any] | None = None,
    files: Sequence[str] = (),
    seconds: float = _SECONDS,
) -> Answer:
    """Run a tool on a file.

    The driver runs in a folder that holds `model.tflite`, `inputs.npz` (arrays named
    "sample/input" by their numbers) and `settings.json`; it writes `outputs.npz` likewise and
    `answer.json`.

    Args:
        command: what starts Python.
        driver: a function of `drivers/run.py`.
        data: the bytes of the .tflite file.
        what: the tool, for messages.
        seconds: after which it is killed.
    """
    with temporary.folder() as name:
        folder = Path(name)
        (folder / "model.tflite").write_bytes(data)
        (folder / "settings.json").write_text(json.dumps(dict(settings or {})))
        arrays = {
            f"{number}/{place}": value
            for number, sample in enumerate(inputs)
            for place, value in enumerate(sample.values())
        }
        np.savez(folder / "inputs.npz", **arrays)  # type: ignore[arg-type]
        try:
            script = [*command, DRIVERS / "run.py", driver]
            run_tool(script, what=what, seconds=seconds, folder=folder)
        except Unavailable as error:  # It is there; so it is the file that it fails on.
            raise Refused(str(error)) from error
        return _read(folder, len(inputs), files, what)


@dataclasses.dataclass(frozen=True)
class Library:
    """A Python library that takes .tflite files.

    Attributes:
        name: of its environment.
        what: it is, for messages.
        packages: with their versions.
    """

    name: str
    what: str
    packages: tuple[str, ...]

    def drive(
        self,
        driver: str,
        data: bytes,
        inputs: Sequence[Mapping[str, np.ndarray]] = (),
        *,
        settings: Mapping[str, Any] | None = None,
        files: Sequence[str] = (),
    ) -> Answer:
        """Run it on a file, see `drive`."""
        python = python_environment(self.name, self.packages)
        return drive([python], driver, data, inputs, what=self.what, settings=settings, files=files)


def _read(folder: Path, samples: int, files: Sequence[str], what: str) -> Answer:
    answer = json.loads((folder / "answer.json").read_text())
    if "missing" in answer:
        raise Unavailable(f"{what} cannot be imported: {answer['missing']}")
    if "refused" in answer:
        raise Refused(answer["refused"])
    outputs: list[list[np.ndarray]] = [[] for _ in range(samples)]
    with np.load(folder / "outputs.npz", allow_pickle=False) as arrays:
        for key in sorted(arrays.files, key=lambda key: [int(part) for part in key.split("/")]):
            outputs[int(key.split("/")[0])].append(arrays[key])
    made = {name: (folder / name).read_bytes() for name in files}
    return Answer(outputs, answer["figures"], made)
