"""What quality compression costs: techniques together beside TFMOT.

Run it on an idle machine:

    PYTHONPATH=tests python -m measurements joint_quality --seeds 3
"""

import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from measurements import parser_of, show, spread, tell
from tfcompress import schedules
from tfcompress.bench import demo, models
from tfcompress.bench.models import fit
from tfcompress.compression.callbacks import UpdateCompression
from tfcompress.compression.compress import compress
from tfcompress.compression.finalize import finalize
from tfcompress.conversion.convert import convert
from tfcompress.legacy import import_tf_keras
from tfcompress.recipe.recipe import Recipe
from tfcompress.techniques import Cluster, Prune, Quantize
from tfcompress.techniques.rules import Rule
from tfcompress.tflite.inspect import inspect

Split = tuple[np.ndarray, np.ndarray]

# Of a file: accuracy, bytes, zipped, sparsity, unique.
Figures = dict[str, float]
BATCH = 32


def measure(path: Path, model: Any, test: Split, precision: str) -> Figures:
    """Converts a model, and tells the accuracy and the size of the file."""
    convert(model, path, precision=precision)
    found = inspect(path)
    weights = [t for t in found.tensors if t.is_constant and len(t.shape) > 1]
    return {
        "accuracy": demo.accuracy(path, *test),
        "bytes": found.file_bytes,
        "zipped": found.zipped_bytes,
        "sparsity": found.sparsity or 0.0,
        "unique": statistics.median(t.unique or 0 for t in weights),
    }


def median(rows: Sequence[Figures], name: str) -> float:
    """Of a figure over the seeds."""
    return statistics.median(row[name] for row in rows)


def accuracy(rows: Sequence[Figures]) -> str:
    """In percent over the seeds, in words."""
    return spread(100 * row["accuracy"] for row in rows)


SPARSITY, CLUSTERS = 0.8, 16

# Shares of the steps: pruning and clustering (TFMOT); quantization takes the rest.
PRUNING, CLUSTERING = 0.4, 0.3


@dataclasses.dataclass(frozen=True)
class Task:
    """A model and its data: `build(kit)` makes it with `keras` or `tf_keras`.

    Attributes:
        epochs, rate: of the float training, which falls along a cosine.
        tuning_epochs, tuning_rate: of the compression.
    """

    build: Callable[[Any], Any]
    data: Callable[[], tuple[Split, Split]]
    epochs: int
    rate: float
    tuning_epochs: int
    tuning_rate: float


def scattered_digits() -> tuple[Split, Split]:
    """The digits on noisy 32x32 colour images, at random places, sizes and brightness.

    Returns (images, labels) to train with, five of each digit, and to test with, two of each.
    """
    random = np.random.default_rng(0)

    def scatter(images: np.ndarray, labels: np.ndarray, copies: int) -> Split:
        order = np.tile(np.arange(len(images)), copies)
        canvas = random.normal(0.25, 0.15, (len(order), 32, 32, 3))
        for row, index in enumerate(order):
            side = int(random.integers(14, 25))
            grid = np.arange(side) * 8 // side
            digit = images[index, :, :, 0][np.ix_(grid, grid)]
            top, left = random.integers(0, 32 - side, 2)
            tint = random.uniform(0.5, 1.0, 3)
            canvas[row, top : top + side, left : left + side] += digit[..., None] * tint
        return canvas.clip(0, 1).astype(np.float32), labels[order]

    train, test = demo.load_digits()
    return scatter(*train, 5), scatter(*test, 2)


TASKS = {
    "digits": Task(models.digits, demo.load_digits, 20, 5e-3, 20, 5e-3),
    "resnet8": Task(models.resnet8, scattered_digits, 12, 3e-3, 10, 3e-3),
}


def by_tfcompress(task: Task, model: Any, data: Split) -> Any:
    """All three techniques in one run."""
    steps = task.tuning_epochs * -(-len(data[0]) // BATCH)
    schedule = schedules.polynomial(0, SPARSITY, end=int(steps * PRUNING), frequency=10)
    prune = Prune(schedule)
    techniques = [prune, Cluster(CLUSTERS), Quantize(momentum=0.95)]
    small = compress(model, Recipe([Rule("*", techniques)]))
    callbacks = [UpdateCompression()]
    fit(small, *data, epochs=task.tuning_epochs, rate=task.tuning_rate, callbacks=callbacks)
    return finalize(small)


def by_tfmot(task: Task, model: Any, data: Split) -> Any:
    """Pruning, clustering that keeps zeros, and quantization that keeps both, one after another."""
    steps_per_epoch = -(-len(data[0]) // BATCH)
    pruning = max(1, round(task.tuning_epochs * PRUNING))
    clustering = max(1, round(task.tuning_epochs * CLUSTERING))
    rest = max(1, task.tuning_epochs - pruning - clustering)
    # TFMOT's last update must fall on a multiple of the frequency; most of the stage, as above.
    end = pruning * steps_per_epoch * 3 // 4 // 10 * 10
    schedule = schedules.polynomial(0.0, SPARSITY, begin=0, end=end, frequency=10)
    stages = (
        (Prune(schedule), pruning, True),
        (Cluster(CLUSTERS), clustering, True),
        (Quantize(), rest, False),
    )
    for technique, epochs, kernels in stages:
        rule = Rule(_is_clusterable if kernels else "*", [technique])
        small = compress(model, Recipe([rule]))
        callbacks, kit = [UpdateCompression()], import_tf_keras()
        rate = task.tuning_rate
        fit(small, *data, epochs=epochs, rate=rate, callbacks=callbacks, kit=kit)
        model = finalize(small)
    return model


def _is_clusterable(layer: Any) -> bool:
    return type(layer).__name__ in ("Conv2D", "Dense")


def _compressed(task: Task, seed: int, tfmot: bool) -> dict[str, Figures]:
    """One task with one seed, by each method."""
    data, test = task.data()
    keras.utils.set_random_seed(seed)
    model = task.build(keras)
    keras.utils.set_random_seed(seed)
    fit(model, *data, epochs=task.epochs, rate=task.rate)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        rows["float32"] = measure(path, model, test, "float32")
        rows["tfcompress"] = measure(path, by_tfcompress(task, model, data), test, "int8")
        if tfmot:
            tf_keras = import_tf_keras()
            twin = task.build(tf_keras)
            twin.set_weights(model.get_weights())
            tf_keras.utils.set_random_seed(seed)
            rows["TFMOT"] = measure(path, by_tfmot(task, twin, data), test, "int8")
    return rows


def joint_quality(arguments: list[str] | None = None) -> int:
    """Pruning, clustering and quantization together: what is lost and saved, beside TFMOT.

    From one trained float model both toolkits make an int8 file of 80% zeros and 16 values per
    tensor with the same number of training steps: tfcompress in one run, TFMOT in three stages.
    """
    parser = parser_of(joint_quality, {"seeds": (3, "trainings of each task")})
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--no-tfmot", action="store_true", help="leave TFMOT out")
    options = parser.parse_args(arguments)
    results: dict[str, list[dict[str, Figures]]] = {}
    for name in options.tasks:
        results[name] = []
        for seed in range(options.seeds):
            results[name].append(_compressed(TASKS[name], seed, not options.no_tfmot))
            tell(f"{name}, seed {seed}: {results[name][-1]}")
    rows = []
    for name, seeds in results.items():
        for method in seeds[0]:
            found = [each[method] for each in seeds]
            sizes = [median(found, key) for key in ("bytes", "zipped")]
            ratio = statistics.median(e["float32"]["zipped"] / e[method]["zipped"] for e in seeds)
            left = [median(found, key) for key in ("sparsity", "unique")]
            rows.append((name, method, accuracy(found), *sizes, ratio, *left))
    columns = {"task": "", "method": "", "accuracy": "s", "bytes": ".0f", "zipped": ".0f"}
    columns |= {"times smaller": ".1f", "sparsity": ".1%", "values": ".0f"}
    show(options, results, "80% zeros, 16 values and int8", columns, rows)
    return 0
