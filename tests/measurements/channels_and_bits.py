"""Channels and bits learned together beside the ways to choose them one after the other, at equal
bytes and after equally many steps: the table of docs/architecture.md.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from measurements import parser_of, show_table, spread, tell

SHARES = (0.75, 0.5)
# Of the steps, those that learn what to choose where that takes a training.
SEARCH = 0.5
TARGET = "microcontroller"
# How often less is asked for, until the trained file is within its bytes, too.
TRIES = 5


def channels_and_bits(arguments: list[str] | None = None) -> int:
    """Quality at equal bytes of channels and bits that were chosen in several ways."""
    parser = parser_of(channels_and_bits, {"seeds": (3, "float models"), "steps": (840, "of each")})
    parser.add_argument("--tasks", default="digits")
    parser.add_argument("--shares", default=",".join(map(str, SHARES)), help="of the int8 file")
    options = parser.parse_args(arguments)
    shares = [float(share) for share in options.shares.split(",")]
    rows = []
    for task in options.tasks.split(","):
        found: dict[tuple[float, str], list[dict]] = {}
        for seed in range(options.seeds):
            for share, way, each in _measured(task, seed, options.steps, shares):
                found.setdefault((share, way), []).append(each)
                tell(f"{task} {seed} {share} {way}: {each}")
        for (share, way), every in found.items():
            points = [100 * each["quality"] for each in every]
            sizes = np.mean([each["bytes"] for each in every])
            rows.append((task, share, way, float(sizes), spread(points)))
    if options.json:
        print(json.dumps(rows))
    else:
        columns = {"task": "", "of int8": ".2f", "way": "", "bytes": ",.0f", "quality": ""}
        show_table("channels and bits", columns, rows)
    return 0


def _measured(
    name: str, seed: int, steps: int, shares: list[float]
) -> Iterator[tuple[float, str, dict[str, Any]]]:
    """(share, way, figures) of a float model of a task."""
    import keras

    from tfcompress.bench.running import child
    from tfcompress.bench.tasks import TASKS

    task = TASKS[name]
    child.prepare(name, None)
    data = child.load(task, None)
    model = keras.saving.load_model(child.train(name, seed, "full", None))
    model.compile(keras.optimizers.Adam(task.tuning.rate), task.loss, jit_compile=False)
    x = data.x_train.astype("float32") * np.float32(data.scale)
    given = _Given(task, data, model, (x, data.y_train), steps, seed)
    with tempfile.TemporaryDirectory() as folder:
        given.path = Path(folder) / "file.tflite"
        yield 1.0, "int8", (whole := given.trained(model, {}, steps))
        for share in shares:
            flash = int(share * whole["bytes"])
            for way, make in WAYS.items():
                try:
                    figures = make(given, flash)
                except ValueError as error:  # Out of reach of this way.
                    tell(f"{way}: {error}")
                    continue
                yield share, way, figures


class _Given:
    """A float model with its data."""

    def __init__(self, task, data, model, train, steps: int, seed: int):
        self.task, self.data, self.model, self.train = task, data, model, train
        self.steps, self.seed, self.path = steps, seed, Path()

    def epochs(self, steps: float) -> int:
        """How many epochs of the training data steps are."""
        return max(1, round(steps * self.task.tuning.batch / len(self.train[0])))

    def trained(self, model: Any, bits: dict[str, int], steps: int) -> dict[str, Any]:
        """Figures of the file of a model, trained with bits of layers."""
        from tfcompress.bench.running import child

        size = self.size(model, bits, steps)
        return {"bytes": size, "quality": child.file_quality(self.task, self.data, self.path)}

    def size(self, model: Any, bits: dict[str, int], steps: int = 1) -> int:
        """Bytes of the file of a model, trained with bits of layers."""
        import keras

        import tfcompress as tfc

        keras.utils.set_random_seed(self.seed)
        rules = [tfc.Rule("*", [tfc.Quantize()])]
        rules += [tfc.Rule(n, [tfc.Quantize(bits=b, step="learned")]) for n, b in bits.items()]
        small = tfc.compress(model, rules)
        rate = keras.optimizers.schedules.CosineDecay(self.task.tuning.rate, steps)
        small.compile(keras.optimizers.Adam(rate), self.task.loss, jit_compile=False)
        batch, (x, y) = self.task.tuning.batch, self.train
        rows = np.resize(np.random.default_rng(self.seed).permutation(len(x)), steps * batch)
        small.fit(x[rows], y[rows], batch_size=batch, verbose=0)
        tfc.convert(small, self.path, target=TARGET)
        return self.path.stat().st_size


def _learned(given: _Given, flash: int) -> dict[str, Any]:
    import tfcompress as tfc

    # Trained files are some hundred bytes larger.
    asked = flash
    for _ in range(TRIES):
        found = tfc.choose_channels_and_bits(
            given.model, given.train, flash=asked, epochs=given.epochs(SEARCH * given.steps),
            seed=given.seed, batch_size=given.task.tuning.batch, target=TARGET,
        )  # fmt: skip
        bits = {row.layer: row.bits for row in found.layers if row.bits != 8}
        size = given.size(found.model, bits)
        if size <= flash:
            return given.trained(found.model, bits, round((1 - SEARCH) * given.steps))
        asked -= size - flash
    raise ValueError(f"no channels and bits within {flash} bytes")


def _channels(given: _Given, flash: int, bits: int) -> dict[str, Any]:
    """The most channels whose file is within the budget, by scores."""
    import tfcompress as tfc
    from tfcompress.graph.nodes import Graph
    from tfcompress.post_training.kernels import kernels_of

    sample = tuple(each[:1000] for each in given.train)
    few = {k.name: bits for k in kernels_of(Graph.of(given.model))} if bits != 8 else {}
    model, low, high = None, 0.02, 1.0
    for _ in range(6):
        share = (low + high) / 2
        small = tfc.prune_channels(given.model, params=share, data=sample, round_to=4)
        if given.size(small, few) <= flash:
            model, low = small, share
        else:
            high = share
    if model is None:
        raise ValueError(f"no channels of {bits} bits within {flash} bytes")
    return given.trained(model, few, given.steps)


def _precisions(given: _Given, flash: int) -> dict[str, Any]:
    import tfcompress as tfc

    asked = flash
    for _ in range(TRIES):
        found = tfc.choose_precision(given.model, given.train[0][:200], flash=asked,
                                     precisions=("int8", "int4"), target=TARGET)  # fmt: skip
        bits = {name: 4 for name, each in found.precisions.items() if each == "int4"}
        size = given.size(given.model, bits)
        if size <= flash:
            return given.trained(given.model, bits, given.steps)
        asked -= size - flash
    raise ValueError(f"no bits within {flash} bytes")


WAYS: dict[str, Callable[[_Given, int], dict[str, Any]]] = {
    "learned together": _learned,
    "channels, then int8": lambda given, flash: _channels(given, flash, 8),
    "channels, then int4": lambda given, flash: _channels(given, flash, 4),
    "bits by choose_precision": _precisions,
}
