"""Pruning, clustering and quantization together: what is lost and what is saved, beside TFMOT.

From one trained float model both toolkits make an int8 file of 80% zeros and 16 values per tensor
with the same number of training steps: tfcompress in one run, TFMOT in its three stages. Run it on
an idle machine:

    python -m tfcompress.bench.joint_quality --seeds 3
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

import tfcompress as tfc
from tfcompress.bench import demo

SPARSITY, CLUSTERS, BATCH = 0.8, 16, 32

# Shares of the steps: pruning and clustering (TFMOT); quantization takes the rest.
PRUNING, CLUSTERING = 0.4, 0.3
Split = tuple[np.ndarray, np.ndarray]


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


def resnet8(kit: Any) -> Any:
    """ResNet-8 of MLPerf Tiny (https://github.com/mlcommons/tiny), 78,666 parameters."""
    layers = kit.layers

    def convolution(x, filters, size=3, strides=1):
        return layers.Conv2D(filters, size, strides, "same", kernel_initializer="he_normal")(x)

    inputs = layers.Input((32, 32, 3))
    x = layers.ReLU()(layers.BatchNormalization()(convolution(inputs, 16)))
    for filters, strides in ((16, 1), (32, 2), (64, 2)):
        y = layers.ReLU()(layers.BatchNormalization()(convolution(x, filters, strides=strides)))
        y = layers.BatchNormalization()(convolution(y, filters))
        x = x if strides == 1 else convolution(x, filters, 1, strides)
        x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    return kit.Model(inputs, layers.Softmax()(x))


TASKS = {
    "digits": Task(demo.make_model, demo.load_digits, 20, 5e-3, 20, 5e-3),
    "resnet8": Task(resnet8, scattered_digits, 12, 3e-3, 10, 3e-3),
}


def train(kit: Any, model: Any, data: Split, epochs: int, rate: float, callbacks=()) -> None:
    """Trains a classifier with Adam; the learning rate falls to 0 along a cosine."""
    steps = epochs * -(-len(data[0]) // BATCH)
    schedule = kit.optimizers.schedules.CosineDecay(rate, steps)
    settings = {"jit_compile": False} if kit is keras else {}
    optimizer = kit.optimizers.Adam(schedule)
    model.compile(optimizer, "sparse_categorical_crossentropy", **settings)
    model.fit(*data, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=list(callbacks))


def by_tfcompress(task: Task, model: Any, data: Split) -> Any:
    """All three techniques in one run."""
    steps = task.tuning_epochs * -(-len(data[0]) // BATCH)
    schedule = tfc.schedules.polynomial(0, SPARSITY, end=int(steps * PRUNING), frequency=10)
    prune = tfc.Prune(schedule, scope="global")
    techniques = [prune, tfc.Cluster(CLUSTERS), tfc.Quantize(momentum=0.95)]
    small = tfc.compress(model, tfc.Recipe([tfc.Rule("*", techniques)]))
    callbacks = [tfc.UpdateCompression()]
    train(keras, small, data, task.tuning_epochs, task.tuning_rate, callbacks)
    return tfc.finalize(small)


def by_tfmot(task: Task, model: Any, data: Split) -> Any:
    """Pruning, clustering that keeps zeros, and quantization that keeps both, one after another."""
    import tf_keras

    steps_per_epoch = -(-len(data[0]) // BATCH)
    pruning = max(1, round(task.tuning_epochs * PRUNING))
    clustering = max(1, round(task.tuning_epochs * CLUSTERING))
    rest = max(1, task.tuning_epochs - pruning - clustering)
    # TFMOT's last update must fall on a multiple of the frequency; most of the stage, as above.
    end = pruning * steps_per_epoch * 3 // 4 // 10 * 10
    schedule = tfc.schedules.polynomial(0.0, SPARSITY, begin=0, end=end, frequency=10)
    stages = (
        (tfc.Prune(schedule), pruning, True),
        (tfc.Cluster(CLUSTERS), clustering, True),
        (tfc.Quantize(), rest, False),
    )
    for technique, epochs, kernels in stages:
        rule = tfc.Rule(_is_clusterable if kernels else "*", [technique])
        small = tfc.compress(model, tfc.Recipe([rule]))
        train(tf_keras, small, data, epochs, task.tuning_rate, [tfc.UpdateCompression()])
        model = tfc.finalize(small)
    return model


def _is_clusterable(layer: Any) -> bool:
    return type(layer).__name__ in ("Conv2D", "Dense")


def measure(path: Path, model: Any, test: Split, precision: str) -> dict[str, float]:
    """Converts a model, and tells the accuracy and the size of the file."""
    tfc.convert(model, path, precision=precision)
    found = tfc.inspect(path)
    weights = [t for t in found.tensors if t.is_constant and len(t.shape) > 1]
    return {
        "accuracy": demo.accuracy(path, *test),
        "bytes": found.file_bytes,
        "zipped": found.zipped_bytes,
        "sparsity": found.sparsity or 0.0,
        "unique": statistics.median(t.unique or 0 for t in weights),
    }


def run(name: str, seed: int, tfmot: bool) -> dict[str, dict[str, float]]:
    """One task with one seed: method -> measured figures."""
    task = TASKS[name]
    data, test = task.data()
    model = task.build(keras)
    keras.utils.set_random_seed(seed)  # which builders set, too
    train(keras, model, data, task.epochs, task.rate)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        rows["float32"] = measure(path, model, test, "float32")
        rows["tfcompress"] = measure(path, by_tfcompress(task, model, data), test, "int8")
        if tfmot:
            import tf_keras

            twin = task.build(tf_keras)
            twin.set_weights(model.get_weights())
            tf_keras.utils.set_random_seed(seed)
            rows["TFMOT"] = measure(path, by_tfmot(task, twin, data), test, "int8")
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Measures, and prints a table or, with --json, one line of JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m tfcompress.bench.parts.joint_quality", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each task (3)")
    parser.add_argument("--no-tfmot", action="store_true", help="leave TFMOT out")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args(arguments)
    results: dict[str, list[dict[str, dict[str, float]]]] = {}
    for name in options.tasks:
        results[name] = []
        for seed in range(options.seeds):
            results[name].append(run(name, seed, not options.no_tfmot))
            print(f"{name}, seed {seed}: {results[name][-1]}", file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps(results))
        return 0
    columns = f"{'accuracy':>16s} {'bytes':>9s} {'zipped':>9s} {'smaller':>8s} {'sparsity':>9s}"
    print(f"{'task':10s} {'method':11s} {columns} {'values':>7s}")
    for name, seeds in results.items():
        for method in seeds[0]:
            rows = [each[method] for each in seeds]
            accuracies = [100 * row["accuracy"] for row in rows]
            spread = statistics.stdev(accuracies) if len(rows) > 1 else 0.0
            ratio = statistics.median(e["float32"]["zipped"] / e[method]["zipped"] for e in seeds)
            middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
            print(
                f"{name:10s} {method:11s} {statistics.mean(accuracies):9.2f} ±{spread:5.2f} "
                f"{middle['bytes']:9.0f} {middle['zipped']:9.0f} {ratio:7.1f}x "
                f"{middle['sparsity']:9.1%} {middle['unique']:7.0f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
