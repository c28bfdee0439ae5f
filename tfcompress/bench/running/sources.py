"""Which data each task of a benchmark gets, and which tasks have none."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfcompress.bench.running.plan import Plan
from tfcompress.environments import Unavailable

Prepare = Callable[[str, "Path | None"], dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Source:
    """The data of a task.

    Attributes:
        source, digest: see `Data`.
        data_dir: where the real data set lies; None for generated data.
    """

    source: str
    digest: str
    data_dir: Path | None

    def to_dict(self) -> dict[str, str]:
        """As a line of results has it."""
        return {"source": self.source, "digest": self.digest}


def check_data_dir(data_dir: Path | None) -> None:
    """Raises a ValueError unless a folder of real data sets is one."""
    if data_dir is not None and not data_dir.is_dir():
        what = "is a file" if data_dir.exists() else "is not there"
        raise ValueError(
            f"'{data_dir}' {what}; expected a folder of real data sets. Name it with --data-dir, "
            "or leave that out for generated data."
        )


def find_sources(
    plan: Plan, data_dir: Path | None, prepare: Prepare, progress: Callable[..., Any]
) -> dict[str, Source]:
    """Makes or reads the data of all tasks.

    Args:
        plan: its tasks.
        data_dir: with real data sets; a task that finds its own there uses it.
        prepare: see `child.prepare`.
        progress: called as `progress(stage, done, total)`.

    Returns:
        A `Source` for each task that has data.

    Raises:
        Unavailable: what data are made with is missing, for a task that was asked for by name, or
            for all; or what those in the folder are used with.
        ValueError: there is no data set in the folder, or a broken one.
    """
    real = _real_sources(plan, data_dir, prepare, progress)
    found, missing = {}, {}
    for number, name in enumerate(plan.tasks):
        progress("data", number, len(plan.tasks))
        if name in real:
            found[name] = real[name]
            continue
        answer = prepare(name, None)
        reason = answer.get("missing") or answer.get("unreadable")
        if reason is None:
            found[name] = Source(answer["source"], answer["digest"], None)
            continue
        if plan.named:
            raise Unavailable(f"task '{name}' cannot run: {reason}")
        missing[name] = reason
    for name, reason in missing.items():
        if not found:
            raise Unavailable(f"no task can run: '{name}': {reason}")
        message = f"task '{name}' is left out: {reason}. These still run: {', '.join(found)}"
        warnings.warn(message, stacklevel=2)
    return found


def _real_sources(
    plan: Plan, data_dir: Path | None, prepare: Prepare, progress: Callable[..., Any]
) -> dict[str, Source]:
    if data_dir is None:
        return {}
    readers = [name for name, task in plan.tasks.items() if task.read is not None]
    found, reasons = {}, {}
    for number, name in enumerate(readers):
        progress(f"read '{data_dir}'", number, len(readers))
        answer = prepare(name, data_dir)
        if "absent" in answer:
            reasons[name] = answer["absent"]
        elif "digest" in answer:
            found[name] = Source(answer["source"], answer["digest"], data_dir)
        elif "missing" in answer:
            raise Unavailable(f"task '{name}' cannot run: {answer['missing']}")
        else:
            why = answer["unreadable"]
            raise ValueError(f"the data set of task '{name}' cannot be read: {why}")
    if not found:
        # One reason says all that there is to say about one task.
        if len(reasons) == 1:
            raise ValueError(next(iter(reasons.values())))
        told = _looked_for(plan, readers)
        raise ValueError(f"'{data_dir}' has no data set of these tasks: {told}")
    for name, reason in reasons.items():
        warnings.warn(f"task '{name}' takes generated data: {reason}", stacklevel=2)
    return found


def _looked_for(plan: Plan, readers: list[str]) -> str:
    if not readers:
        return f"{', '.join(plan.tasks)} takes none. Leave --data-dir out."
    sought = "; ".join(f"{name}: {plan.tasks[name].real}" for name in readers)
    return f"looked for {sought}. Name the folder that holds one, or leave --data-dir out."
