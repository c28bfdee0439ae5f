"""Which engine finds good architectures with the fewest trainings, on the table of digits.

    PYTHONPATH=tests python -m measurements architecture_search --seeds 20 --trials 100
    PYTHONPATH=tests python -m measurements engines_live --seeds 3 --trials 20

Each engine asks for architectures of `digits_table` until so many different ones were trained;
what was trained before, or costs more than the budget of MACs, costs nothing. Exit status 1 tells
that evolution or REINFORCE is no better than random picks, on the mean of the seeds.

`engines_live` trains what it finds, engines that share one training among them. All train for
equally many epochs, of which one of the supernet counts four, as each of its steps trains four
networks. The best of each search is then trained anew for longer, and judged on samples that no
search has seen.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import optuna
from keras import layers

from measurements import digits_table as digits
from measurements import parser_of, show_table, spread, tell
from tfcompress.recipe.findings import drawn, empty_figure
from tfcompress.search.architecture.search_architecture import search_architecture
from tfcompress.search.architecture.space import ArchitectureSpace
from tfcompress.search.architecture.supernet import DIMENSIONS
from tfcompress.search.choices import of_picks, of_trial
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


LIVE = ("random", "evolution", "reinforcement", "supernet", "gradient")
# Of the MACs of the whole network.
_SHARE = 0.15
_EPOCHS, _LAST_EPOCHS, _TRAININGS = 3, 20, 3
_SANDWICH = 4


def network(seed: int) -> keras.Model:
    """A CNN of two stages with residual blocks, of which engines leave out, narrow and cut."""
    keras.utils.set_random_seed(seed)

    def conv(x, filters: int, strides: int = 1):
        x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    x = inputs = keras.Input((8, 8, 1))
    for filters, strides in ((16, 1), (32, 2)):
        x = layers.ReLU()(conv(x, filters, strides))
        for _ in range(2):
            y = conv(layers.ReLU()(conv(x, filters)), filters)
            x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x))


def _compiled(model: keras.Model) -> keras.Model:
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy",
                  metrics=["accuracy"], jit_compile=False)  # fmt: skip
    return model


def live_search(engine: str, seed: int, trials: int) -> dict[str, Any]:
    """The curve of a search, and what its best architecture is worth."""
    (x, y), test = digits.digits()
    model = _compiled(network(seed))
    space = ArchitectureSpace.of(model, dimensions=DIMENSIONS)
    shared = trials * _EPOCHS // (_SANDWICH if engine == "supernet" else 1)
    whole = space(lambda name, options: options[-1])
    start = time.process_time()
    found = search_architecture(
        model if engine in LIVE[3:] else space,
        (x, y),
        engine=engine,
        trials=trials,
        budget={"macs": _SHARE * digits.profile(whole, bytes_per_value=1).macs},
        epochs=_EPOCHS,
        compile=dict(model._compile_config.config),
        supernet_epochs=shared,
        seed=seed,
    )
    seconds = time.process_time() - start
    scores = []
    for number in range(_TRAININGS):
        keras.utils.set_random_seed(100 * seed + number)
        fresh = keras.models.clone_model(space(of_picks(found.best.picks)))
        _compiled(fresh).fit(x, y, epochs=_LAST_EPOCHS, batch_size=32, verbose=0)
        scores.append(fresh.evaluate(*test, verbose=0, return_dict=True)["accuracy"])
    macs = found.best.costs.macs
    return {"curve": found.curve, "test": float(np.mean(scores)), "macs": macs, "seconds": seconds}


def engines_live(arguments: Sequence[str]) -> int:
    """Compares the engines by what their best architectures are worth after a training."""
    counts = {"seeds": (3, "searches of each engine"), "trials": (20, "trainings of each")}
    parser = parser_of(engines_live, counts, with_json=False)
    parser.add_argument("--plot", metavar="PATH", help="an image of the curves")
    options = parser.parse_args(arguments)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in LIVE}
    for seed in range(options.seeds):
        for name in LIVE:
            found[name].append(live_search(name, seed, options.trials))
            tell(f"{name} {seed}: {found[name][-1]}")
    rows = [
        [name, spread(100 * each["test"] for each in every), spread(e["macs"] for e in every),
         spread(e["seconds"] for e in every)] for name, every in found.items()
    ]  # fmt: skip
    columns = {"engine": "", "accuracy": "", "MACs": "", "CPU seconds": ""}
    show_table(f"after {options.trials * _EPOCHS} epochs", columns, rows)
    if options.plot:
        curves = {n: np.array([e["curve"] for e in found[n]]) for n in LIVE[:3]}
        draw(curves, options.plot, max(c.max() for c in curves.values()))
    means = {name: np.mean([each["test"] for each in every]) for name, every in found.items()}
    return int(min(means[name] for name in LIVE[1:]) <= means["random"])
