"""What a tool said of a file."""

from __future__ import annotations

import dataclasses
from typing import Literal

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
    figures: dict[str, Figure] = dataclasses.field(default_factory=dict)


class Refused(Exception):
    """A tool ran and said no to the file; the message is the tool's own."""


class NotApplicable(Exception):
    """A tool is not meant for such a file; the message says why."""
