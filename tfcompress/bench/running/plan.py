"""What a benchmark has to do, from the names that were asked for."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfcompress.bench.methods import METHODS, Method
from tfcompress.bench.tasks import TASKS, Task
from tfcompress.errors import did_you_mean
from tfcompress.tools.environments import Unavailable

# What all else is compared with.
REFERENCE = "float32"
SHORT_TASKS = ("digits",)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Tasks, methods and seeds 0, 1, ...

    Attributes:
        tasks, methods: by their names; float32 is always the first method.
        seeds: how many.
        short: with the trainings of the short form.
        named: whether the tasks were asked for by name.
    """

    tasks: dict[str, Task]
    methods: dict[str, Method]
    seeds: int
    short: bool
    named: bool

    @property
    def form(self) -> str:
        """As results name it."""
        return "short" if self.short else "full"


def make_plan(
    tasks: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    seeds: int = 1,
    short: bool = False,
) -> Plan:
    """Checks the names that were asked for."""
    usual = [name for name, method in METHODS.items() if method.short or not short]
    wanted = {REFERENCE, *(methods or usual)}
    _check("method", wanted, METHODS)
    chosen = set(tasks or (SHORT_TASKS if short else TASKS))
    _check("task", chosen, TASKS)
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise ValueError(f"seeds must be a whole number of at least 1; received {seeds!r}. Try 3.")
    return Plan(_chosen(TASKS, chosen), _chosen(METHODS, wanted), seeds, short, bool(tasks))


def _check(what: str, names: Iterable[str], known: Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            mend = did_you_mean(name, known, f"See `tfcompress bench --list` for all {what}s.")
            few = f"{', '.join(list(known)[:5])}{', ...' if len(known) > 5 else ''}"
            raise ValueError(f"unknown {what} {name!r}; expected one of {few}. {mend}")


def _chosen(known: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: known[name] for name in known if name in names}


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
        progress: called as `progress(stage, done, total)`.
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
