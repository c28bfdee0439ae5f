"""What TFMOT's pruning keeps at the rate of the float model's training.

The benchmark gives its peers the rate of the fine-tuning, and ours that of the first training where
it prunes while it trains:

    PYTHONPATH=tests python -m measurements peer_rate --seeds 3
"""

import dataclasses
import statistics
import tempfile
from pathlib import Path

from measurements import parser_of, show
from tfcompress.bench.methods import METHODS
from tfcompress.bench.methods.run import Run
from tfcompress.bench.running import child
from tfcompress.bench.tasks import TASKS

PEERS = ("prune80_int8_tfmot", "pcqat_int8_tfmot")


def peer_rate(arguments: list[str] | None = None) -> int:
    """What TFMOT's pruning loses on keywords at either rate."""
    options = parser_of(peer_rate, {"seeds": (3, "trainings of each")}).parse_args(arguments)
    task, found = TASKS["keywords"], dict[str, dict[str, list[float]]]()
    data = task.generate()
    training, tuning = task.trainings("full")
    rates = {"fine-tuning's rate": tuning.rate, "first training's rate": training.rate}
    floats = [_quality("float32", task, data, tuning, seed) for seed in range(options.seeds)]
    for name in PEERS:
        found[name] = {}
        for rate, value in rates.items():
            again = dataclasses.replace(tuning, rate=value)
            found[name][rate] = [
                _quality(name, task, data, again, seed) - before
                for seed, before in enumerate(floats)
            ]
    rows = [[name, *map(statistics.fmean, by.values())] for name, by in found.items()]
    columns = {"peer": "", **dict.fromkeys(rates, "+.2f")}
    show(options, found, "points of quality to float32", columns, rows)
    return 0


def _quality(name: str, task, data, tuning, seed: int) -> float:
    """That of the file of a method, in percent."""
    checkpoint = child.train(task.name, seed, "full", None)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(
            task=task,
            data=data,
            seed=seed,
            tuning=tuning,
            checkpoint=checkpoint,
            folder=Path(folder),
            metered=False,
        )
        METHODS[name].make(run)
        return 100 * child.file_quality(task, data, run.path)
