"""How long updates of masks and clusters take, for one weight of 25 million.

The median of some rounds, beside one sort of the same weight:

    python -m tfcompress.bench.mask_update --rounds 5
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import tfcompress as tfc

TECHNIQUES: dict[str, Any] = {
    "unstructured": tfc.Prune(0.8),
    "2:4": tfc.Prune(pattern="2:4"),
    "1x4 blocks": tfc.Prune(0.8, pattern="1x4"),
    "filters": tfc.Prune(0.8, pattern="filters"),
    "16 clusters": tfc.Cluster(16),
    "16 clusters, per channel": tfc.Cluster(16, per_channel=True),
}


def update(technique: Any, layer: keras.layers.Layer) -> Callable[[], Any]:
    """What updates the state of a technique on a layer's kernel; a first update is done."""
    bound = technique.bind(layer, "kernel")
    weight = keras.ops.convert_to_tensor(layer.kernel)
    state = bound.update(weight, bound.initial_state(weight), 0)
    return lambda: bound.update(weight, state, bound.next_step(0))


def main(arguments: list[str] | None = None) -> int:
    """Measures, and prints a table or, with --json, one line of JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m tfcompress.bench.parts.mask_update", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--side", type=int, default=5000, help="of the square weight (5000)")
    parser.add_argument("--rounds", type=int, default=5, help="timed updates (5)")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args(arguments)
    layer = keras.layers.Dense(options.side)
    layer.build((None, options.side))
    layer.kernel.assign(np.random.default_rng(0).normal(size=(options.side, options.side)))
    kernel = np.asarray(keras.ops.convert_to_numpy(layer.kernel))
    jobs = {"one sort": lambda: np.sort(kernel, axis=None)}
    jobs.update({name: update(technique, layer) for name, technique in TECHNIQUES.items()})
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(options.rounds):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - start)
    found = {name: round(statistics.median(times), 3) for name, times in seconds.items()}
    if options.json:
        print(json.dumps({"weights": options.side**2, "seconds": found}))
    else:
        for name, value in found.items():
            print(f"{name:26s} {value:6.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
