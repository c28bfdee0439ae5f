"""Which engine finds good architectures with the fewest trainings, on the table of digits.

    PYTHONPATH=tests python -m measurements architecture_search --seeds 20 --trials 100

Each engine asks for architectures of `digits_table` until so many different ones were trained;
what was trained before, or costs more than the budget of MACs, costs nothing. Exit status 1 tells
that evolution or REINFORCE is no better than random picks, on the mean of the seeds.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from measurements import digits_table as digits
from measurements import parser_of, show_table, spread
from tfcompress.recipe.findings import drawn, empty_figure
from tfcompress.search.choices import of_trial
from tfcompress.search.samplers import sampler

ENGINES = ("random", "tpe", "evolution", "reinforcement")
# About the median of the table: half of the architectures are too large.
BUDGET = 20_000.0
_ASKED = 50

Table = Mapping[tuple[int, ...], Mapping[str, float]]


def curve_of(
    table: Table, engine: str, seed: int, trials: int, budget: float | None, **settings: Any
) -> np.ndarray:
    """The best accuracy so far after each training, shape (trials,)."""
    study = optuna.create_study(sampler=sampler(engine, seed, **settings), direction="maximize")
    known: set[tuple[int, ...]] = set()
    curve: list[float] = []
    for _ in range(_ASKED * trials):
        if len(curve) == trials:
            break
        trial = study.ask()
        choose = of_trial(trial)
        for name, options in digits.OPTIONS.items():
            choose(name, options)
        picks = tuple(trial.params[name] for name in digits.OPTIONS)
        row = table[picks]
        excess = 0.0 if budget is None else row["macs"] / budget - 1
        if excess > 0:
            trial.set_constraint("macs", excess)
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            continue
        study.tell(trial, row["accuracy"])
        if picks not in known:
            known.add(picks)
            curve.append(max([row["accuracy"], *curve[-1:]]))
    return np.array(curve + [max(curve, default=0.0)] * (trials - len(curve)))


def compare(
    engines: Sequence[str],
    seeds: int,
    trials: int = 100,
    budget: float | None = None,
    table: Table | None = None,
) -> dict[str, np.ndarray]:
    """{engine: best accuracy so far, shape (seeds, trials)}, at equal numbers of trainings."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table = digits.read() if table is None else table
    run = functools.partial(curve_of, table, trials=trials, budget=budget)
    return {name: np.array([run(name, seed) for seed in range(seeds)]) for name in engines}


def draw(found: Mapping[str, np.ndarray], path: str | Path, best: float) -> None:
    """Draws the mean of the seeds with its standard error."""
    figure = empty_figure((8.0, 5.0), "best architecture so far, on the table of digits")
    axes = figure.subplots()
    for name, curves in found.items():
        steps, mean = np.arange(1, curves.shape[1] + 1), curves.mean(0)
        error = curves.std(0) / np.sqrt(len(curves))
        (line,) = axes.plot(steps, mean, label=name)
        axes.fill_between(steps, mean - error, mean + error, alpha=0.2, color=line.get_color())
    axes.axhline(best, linestyle=":", color="#333333", label="best of the table")
    low = min(curves[:, min(9, curves.shape[1] - 1)].mean() for curves in found.values())
    axes.set_ylim(low - 0.005, best + 0.002)
    axes.set_xlabel("architectures trained")
    axes.set_ylabel("best accuracy so far")
    axes.grid(alpha=0.3)
    axes.legend()
    drawn(figure, path)


def architecture_search(arguments: Sequence[str]) -> int:
    """Compares the engines on the table of digits, without a budget and with one."""
    counts = {"seeds": (20, "searches of each engine"), "trials": (100, "trainings of each")}
    parser = parser_of(architecture_search, counts, with_json=False)
    parser.add_argument("--plot", metavar="PATH", help="an image of the curves, without a budget")
    options = parser.parse_args(arguments)
    table, missed = digits.read(), False
    for budget in (None, BUDGET):
        found = compare(ENGINES, options.seeds, options.trials, budget, table)
        fitting = [row for row in table.values() if budget is None or row["macs"] <= budget]
        best = max(row["accuracy"] for row in fitting)
        _show(found, budget, best, len(fitting))
        if options.plot and budget is None:
            draw(found, options.plot, best)
        means = {name: curves.mean() for name, curves in found.items()}
        missed |= min(means["evolution"], means["reinforcement"]) <= means["random"]
    return int(missed)


def _show(found: Mapping[str, np.ndarray], budget: float | None, best: float, count: int) -> None:
    trials = next(iter(found.values())).shape[1]
    points = [n for n in (20, 50, 100, 200) if n < trials] + [trials]
    columns = {"engine": ""} | {f"after {n}": "" for n in points} | {"mean of the curve": ""}
    rows = [
        [name, *(spread(100 * curves[:, n - 1]) for n in points), spread(100 * curves.mean(1))]
        for name, curves in found.items()
    ]
    limit = "no budget" if budget is None else f"at most {budget:,.0f} MACs"
    title = f"best accuracy in %, {limit}: {count} architectures, the best {100 * best:.2f}"
    show_table(title, columns, rows)
