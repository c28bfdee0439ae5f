"""What training under techniques costs: its step against the same model's plain Keras step.

Variants take turns in one process, so that a slow spell of the machine hits all of them, and each
round gives one ratio per variant; the table shows their medians. Run it on an idle machine:

    python -m tfcompress.bench.training_cost --rounds 7
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

BATCH = 32
WARM_UP = 5  # steps of each round that do not count

# "fused" is the float model with the BatchNormalization of QAT models: what rounding alone costs is
# "qat" over "fused".
VARIANTS = (
    "plain",
    "fused",
    "qat",
    "weights",
    "activations",
    "prune",
    "prune_callback",
    "cluster",
    "cluster_channel",
    "pcqat",
)

CLUSTERS = 16
FREQUENCY = 10  # steps between updates of masks and clusters


def mobile_net(keras: Any, width: int = 1) -> Any:
    """The MobileNet-like network: 11 convolutions with BatchNormalization and ReLU6."""
    layers = keras.layers
    keras.utils.set_random_seed(0)

    def block(x, convolution):
        return layers.ReLU(6.0)(layers.BatchNormalization()(convolution(x)))

    inputs = layers.Input((32, 32, 3))
    x = block(inputs, layers.Conv2D(16 * width, 3, padding="same", use_bias=False))
    for filters, strides in ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
        depthwise = layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False)
        x = block(x, depthwise)
        x = block(x, layers.Conv2D(filters * width, 1, use_bias=False))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def build(variant: str, width: int) -> tuple[Any, Callable[[], list]]:
    """A compiled Keras 3 model of one of the `VARIANTS`, and what makes its callbacks."""
    import keras

    import tfcompress as tfc
    from tfcompress.compression.finalize import rebuild_copy

    prune = tfc.Prune(tfc.schedules.constant(0.8, frequency=FREQUENCY))
    cluster = tfc.Cluster(CLUSTERS, begin=0, frequency=FREQUENCY)
    recipes: dict[str, list[Any]] = {
        "qat": [tfc.Quantize()],
        "activations": [tfc.Quantize()],
        "weights": [tfc.Quantize(activation_bits=None)],
        "prune": [prune],
        "cluster": [cluster],
        "cluster_channel": [dataclasses.replace(cluster, per_channel=True)],
        "pcqat": [prune, cluster, tfc.Quantize()],
    }
    model = mobile_net(keras, width)
    callbacks: Callable[[], list] = list
    if variant == "fused":
        model = rebuild_copy(model, _fused_statistics)
    elif variant == "prune_callback":
        callbacks = lambda: [tfc.PruneCallback(prune)]  # noqa: E731
    elif variant != "plain":
        model = tfc.compress(model, tfc.Recipe([tfc.Rule("*", recipes[variant])]))
        callbacks = lambda: [tfc.UpdateCompression()]  # noqa: E731
    if variant == "activations":
        model = rebuild_copy(model, _plain_weights)
    return compiled(keras, model, jit_compile=False), callbacks


def _plain_weights(operation):
    from tfcompress.graph.copying import copy_operation
    from tfcompress.layers.compressed import Compressed

    if isinstance(operation, Compressed):
        return copy_operation(operation.layer), lambda: None
    return None


def _fused_statistics(operation):
    import keras

    from tfcompress.graph.copying import copy_operation
    from tfcompress.layers.batch_norm import FusedBatchNorm

    if isinstance(operation, keras.layers.BatchNormalization):
        return FusedBatchNorm(copy_operation(operation)), lambda: None
    return None


def compiled(keras: Any, model: Any, **kwargs) -> Any:
    """The model, compiled with SGD for logits."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss, **kwargs)
    return model


def measure(
    models: dict[str, tuple[Any, Callable[[], list]]],
    keras: Any,
    rounds: int,
    steps: int,
    progress: Callable = lambda _: None,
) -> dict[str, list[tuple[float, float]]]:
    """Trains the models in turns."""

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == WARM_UP - 1:
                self.start = time.process_time(), time.perf_counter()
            if batch == steps - 1:
                ends = time.process_time(), time.perf_counter()
                count = (steps - WARM_UP) / 1000
                self.spent = tuple((b - a) / count for a, b in zip(self.start, ends, strict=True))

        on_predict_batch_end = on_train_batch_end

    random = np.random.default_rng(0)
    x = random.random((steps * BATCH, 32, 32, 3), "float32")
    y = random.integers(0, 10, steps * BATCH)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for number in range(rounds + 1):
        # The order is turned, so that no variant always follows the same one.
        names = list(models)[number % len(models) :] + list(models)[: number % len(models)]
        for name in names:
            clock = Clock()
            model, callbacks = models[name]
            together = [*callbacks(), clock]
            model.fit(x, y, batch_size=BATCH, verbose=0, shuffle=False, callbacks=together)
            if number > 0:  # the first round traces
                found[name].append(clock.spent)
        progress(f"round {number} of {rounds}, load {os.getloadavg()[0]:.1f}")
    return found


def summarize(found: dict[str, list[tuple[float, float]]], baseline: str) -> dict[str, dict]:
    """Medians per variant: cpu_ms and wall_ms of a step, and their paired ratios to a baseline."""
    summary = {}
    for name, rounds in found.items():
        row = {}
        for index, clock in enumerate(("cpu", "wall")):
            row[f"{clock}_ms"] = statistics.median(spent[index] for spent in rounds)
            pairs = zip(rounds, found[baseline], strict=True)
            row[f"{clock}_ratio"] = statistics.median(a[index] / b[index] for a, b in pairs)
        summary[name] = {key: round(value, 3) for key, value in row.items()}
    return summary


def run_tfmot(width: int, rounds: int, steps: int) -> dict[str, dict]:
    """Measures TFMOT in a process of its own; {} if it or tf_keras is not installed."""
    if not all(map(importlib.util.find_spec, ("tf_keras", "tensorflow_model_optimization"))):
        return {}
    command = [
        sys.executable,
        "-m",
        "tfcompress.bench.parts.training_cost",
        "--only-tfmot",
        "--json",
    ]
    command += ["--width", str(width), "--rounds", str(rounds), "--steps", str(steps)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=3600)
    return json.loads(done.stdout.splitlines()[-1])["variants"] if done.returncode == 0 else {}


def _measure_tfmot(width: int, rounds: int, steps: int) -> dict[str, dict]:
    import tf_keras

    from tfcompress.bench.parts.tfmot_models import VARIANTS as NAMES
    from tfcompress.bench.parts.tfmot_models import build as build_tfmot

    models = {f"tfmot_{name}": build_tfmot(name, width) for name in NAMES}
    return summarize(measure(models, tf_keras, rounds, steps), "tfmot_plain")


def _measure_own(width: int, rounds: int, steps: int, variants: tuple[str, ...]) -> dict[str, dict]:
    import keras

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    models = {name: build(name, width) for name in variants}
    return summarize(measure(models, keras, rounds, steps, progress), "plain")


def _print_table(summary: dict[str, dict]) -> None:
    print(f"{'variant':16s} {'CPU ms':>8s} {'wall ms':>8s} {'CPU ratio':>10s} {'wall ratio':>10s}")
    for name, row in summary.items():
        numbers = f"{row['cpu_ms']:8.1f} {row['wall_ms']:8.1f}"
        print(f"{name:16s} {numbers} {row['cpu_ratio']:10.3f} {row['wall_ratio']:10.3f}")


def main(arguments: list[str] | None = None) -> int:
    """Measures, and prints a table or, with --json, one line of JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m tfcompress.bench.parts.training_cost", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--width", type=int, default=1, help="multiplies the channels (1)")
    parser.add_argument("--rounds", type=int, default=7, help="paired rounds (7)")
    parser.add_argument("--steps", type=int, default=60, help="steps of a round (60)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--no-tfmot", action="store_true", help="leave TFMOT out")
    parser.add_argument("--only-tfmot", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args(arguments)
    if options.steps <= WARM_UP or options.rounds < 1:
        parser.error(f"--steps must be more than {WARM_UP} and --rounds at least 1")
    size = options.width, options.rounds, options.steps
    if options.only_tfmot:
        summary = _measure_tfmot(*size)
    else:
        variants = ("plain", *(name for name in options.variants if name != "plain"))
        summary = _measure_own(*size, variants)
        if not options.no_tfmot:
            summary.update(run_tfmot(*size))
    if options.json:
        settings = {"width": size[0], "rounds": size[1], "steps": size[2], "batch": BATCH}
        print(json.dumps({**settings, "variants": summary}))
    else:
        _print_table(summary)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(main())
