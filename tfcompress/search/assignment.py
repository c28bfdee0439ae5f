"""One option for each of several things, so that a sum is least and others keep within limits."""

from __future__ import annotations

import contextlib
import math
import numbers
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfcompress.errors import check

# By what part of the whole the other sums decide between equals.
_TIE = 1e-6
# By what part a limit may be missed, as solvers count in floats.
_SLACK = 1e-9

Costs = Mapping[str, Sequence[Sequence[float]]]


def check_budgets(
    given: Mapping[str, Any], units: Mapping[str, tuple[str, float]]
) -> dict[str, float]:
    """The budgets that were given, by name; raises if there is none, or one cannot be.

    Args:
        given: {name: amount, or None}.
        units: {name: (what the amount is of, the most that it may be)}.
    """
    found = {name: value for name, value in given.items() if value is not None}
    if not found:
        *first, last = (f"{name} ({unit})" for name, (unit, _) in units.items())
        raise ValueError(
            f"a file needs a budget; received none. Give {', '.join(first)} or {last}."
        )
    for name, value in found.items():
        unit, most = units[name]
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        holds = number and 0 < float(value) <= most and math.isfinite(value)
        words = "above 0" if math.isinf(most) else f"in (0, {most:g}]"
        check(holds, name, f"a number {words} ({unit})", value)
    return {name: float(value) for name, value in found.items()}


def total(costs: Sequence[Sequence[float]], picks: Sequence[int]) -> float:
    """The sum of the costs of what is picked."""
    return math.fsum(options[pick] for options, pick in zip(costs, picks, strict=True))


def assign(costs: Costs, least: str, limits: Mapping[str, float]) -> tuple[list[int], bool]:
    """The options for which one sum of costs is least: an integer program, solved exactly by HiGHS.

    Args:
        costs: {name: for each thing the cost of each of its options}; infinite for none.
        least: the name of the sum to make least.
        limits: {name: the most that a sum may be}.

    Returns (the number of the option of each thing, whether all limits hold). Where they cannot
    hold together, the sum of the parts by which they are missed is least.
    """
    table = {name: np.array([c for each in rows for c in each]) for name, rows in costs.items()}
    possible = np.all([np.isfinite(column) for column in table.values()], axis=0)
    table = {name: np.where(possible, column, 0.0) for name, column in table.items()}
    owner = np.repeat(np.arange(len(costs[least])), [len(each) for each in costs[least]])
    objective = _scaled(table[least])
    for name in table.keys() - {least}:
        objective = objective + _TIE * _scaled(table[name])
    scale = {name: max(abs(limit), float(np.abs(table[name]).max()), 1e-300)
             for name, limit in limits.items()}  # fmt: skip
    rows = [table[name] / scale[name] for name in limits]
    most = [limit / scale[name] + _SLACK for name, limit in limits.items()]
    found = _solve(objective, owner, possible, rows, most, 0.0)
    if found is not None:
        return found, True
    missed = _solve(np.zeros(len(owner)), owner, possible, rows, most, 1.0)
    assert missed is not None, "every thing has an option, and limits may be missed"
    return missed, False


def _scaled(column: np.ndarray) -> np.ndarray:
    return column / max(float(np.abs(column).max(initial=0.0)), 1e-300)


def _solve(
    objective: np.ndarray,
    owner: np.ndarray,
    possible: np.ndarray,
    rows: list[np.ndarray],
    most: list[float],
    price: float,
) -> list[int] | None:
    """The options that are best where each unit by which a limit is missed has a price; 0: none."""
    from scipy import optimize, sparse

    count, slack = len(owner), len(rows) if price else 0
    things = int(owner.max()) + 1
    one = sparse.csr_matrix((np.ones(count), (owner, np.arange(count))), (things, count + slack))
    constraints = [optimize.LinearConstraint(one, 1, 1)]
    for number, row in enumerate(rows):
        missed = np.zeros(slack)
        missed[number : number + 1] = -1.0
        whole = sparse.csr_matrix(np.concatenate([row, missed])[None])
        constraints.append(optimize.LinearConstraint(whole, -np.inf, most[number]))
    with _hushed():
        found = optimize.milp(
            np.concatenate([objective, np.full(slack, price)]),
            integrality=np.concatenate([np.ones(count), np.zeros(slack)]),
            bounds=optimize.Bounds(0, np.concatenate([possible, np.full(slack, np.inf)])),
            constraints=constraints,
            options={"mip_rel_gap": 1e-7, "time_limit": 60.0},
        )
    if found.x is None:
        return None
    chosen = np.flatnonzero(found.x[:count] > 0.5)
    return [int(i - np.searchsorted(owner, owner[i])) for i in chosen]


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keeps what HiGHS prints to file descriptor 1 from what commands print there."""
    sys.stdout.flush()
    kept, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)
