"""A search whose trials train nothing: what they find follows from their recipes."""

import functools
import json
import time
from pathlib import Path

from pilot_trials import run

from tfcompress.pilot.budget import Budget, Goal
from tfcompress.pilot.job import Job
from tfcompress.pilot.ledger import Ledger
from tfcompress.pilot.search import Deadline, Search
from tfcompress.pilot.space import Space
from tfcompress.pilot.workers import Here

SIZES = (8, 7, 6, 5, 4, 3, 2)


def space(parts=3):
    """Of each part a share of the weights that stays; the smaller, the worse."""
    options = {
        f"part{i}": {
            f"bits {n}": {"rules": [{"layers": f"{i}-{n}", "techniques": ["quantize"]}]}
            for n in SIZES
        }
        for i in range(parts)
    }
    # Rules of the last part would replace those of the others, which differ in their training.
    ways = {"batch_size": int, "rate": float, "optimizer": str}
    for (way, kind), part in zip(ways.items(), list(options)[:-1], strict=False):
        for n, option in zip(SIZES, options[part].values(), strict=True):
            option.clear()
            option["training"] = {way: kind(10 * n)}
    return Space(options, (dict.fromkeys(options, "bits 8"),))


def judge(folder):
    value = json.loads((folder / "value.json").read_text())
    return {"measures": {"accuracy": value}, "quality": value}


def job(record, folder, epochs, resume, wait=0.0, crash=None):
    recipe = "" if record is None else record.recipe
    training = {} if record is None else record.training
    how = {"target": str(wait), "io_dtype": crash, "resume": resume}
    return Job(str(folder), __file__, __file__, recipe, epochs, training, **how)


def searched(
    folder, trials=None, seconds=None, budget="flash=50k,quality=-0.5", engine="tpe", seed=0,
    workers=None, turns=(1, 2, 6), storage=None, parts=3, where=None, wait=0.0, crash=None,
):  # fmt: skip
    """A search that was carried out, and its records."""
    found = space(parts) if where is None else where
    Path(folder).mkdir(parents=True, exist_ok=True)
    objectives = 2 if engine == "nsga2" else 1

    def told(goal, figures):
        both = [-figures["quality"], figures["flash"]]
        return both if objectives == 2 else [goal(figures)]

    def goal_of(base):
        return Goal(Budget.parse(budget).bounds(base.figures, True), base.figures, True)

    with Ledger(Path(folder), storage, engine, found, budget, seed, objectives) as ledger:
        search = Search(
            ledger=ledger,
            space=found,
            turns=turns,
            job=functools.partial(job, wait=wait, crash=crash),
            workers=workers or Here(run, preloaded=("tfcompress.files.tied",)),
            deadline=Deadline(seconds, trials, time.monotonic()),
            judge=judge,
            goal_of=goal_of,
            objectives=told,
            tell=lambda stage, done, total: None,
        )
        search.run()
        return search, ledger.records()


def plain(records):
    """What must be the same of two searches."""
    return [
        (r.key, r.turn, r.status, {k: v for k, v in r.figures.items() if k != "seconds"})
        for r in records
    ]


if __name__ == "__main__":
    import sys

    searched(sys.argv[1], trials=int(sys.argv[2]), wait=float(sys.argv[3]))
