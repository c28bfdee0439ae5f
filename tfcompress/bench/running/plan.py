"""What a benchmark has to do, from the names that were asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfcompress.bench.methods import METHODS, Method
from tfcompress.bench.tasks import TASKS, Task
from tfcompress.suggestions import did_you_mean

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
    """Checks the names that were asked for.

    Args:
        tasks, methods: names; None or none for all, or those of the short form.
        seeds: how many.
        short: the short form.

    Returns:
        A `Plan`, in the order of those that are known.

    Raises:
        ValueError: a name is not known, or there are no seeds.

    Example:
        >>> make_plan(["digits"], ["qat_int8"], short=True).seeds
        1
    """
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
