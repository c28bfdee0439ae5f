"""What training costs: steps under techniques and under distillation, and updates of masks.

Models take turns in one process and each round gives one ratio per model; tables show their
medians. Run them on an idle machine:

    PYTHONPATH=tests python -m measurements training_cost --rounds 7
    PYTHONPATH=tests python -m measurements distillation_cost --rounds 7
    PYTHONPATH=tests python -m measurements mask_update --rounds 5
"""

import argparse
import dataclasses
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from measurements import interleaved, parser_of, seconds_of, show
from tfcompress import schedules
from tfcompress.bench.methods import peers
from tfcompress.compression.callbacks import UpdateCompression
from tfcompress.compression.compress import compress
from tfcompress.compression.finalize import rebuild_copy
from tfcompress.compression.in_place import PruneCallback
from tfcompress.distillation import Distiller, Features, SoftLabels
from tfcompress.graph.copying import copy_operation
from tfcompress.layers.batch_norm import FusedBatchNorm
from tfcompress.layers.compressed import Compressed
from tfcompress.legacy import import_tf_keras, import_tfmot
from tfcompress.recipe.recipe import Recipe
from tfcompress.techniques import Cluster, Prune, Quantize
from tfcompress.techniques.rules import Rule

BATCH = 32
WARM_UP = 5  # steps of each round that do not count

# "fused" is the float model with the BatchNormalization of QAT models: what rounding alone costs is
# "qat" over "fused".
VARIANTS = (
    *("plain", "fused", "qat", "weights", "activations", "prune", "prune_callback"),
    *("cluster", "cluster_channel", "pcqat"),
)

# Per-channel clustering is left out: TFMOT skips convolutions without a bias, such as these.
TFMOT_VARIANTS = ("plain", "qat", "prune", "cluster", "pcqat")

CLUSTERS = 16
FREQUENCY = 10  # steps between updates of masks and clusters

# A compiled model, or what has a `fit`, and what makes its callbacks.
Trained = tuple[Any, Callable[[], list]]
_COUNTS = {"rounds": (7, "paired rounds"), "steps": (60, "steps of a round")}

# Ratios are to the plain student or model.
_COLUMNS = {"variant": "", "CPU ms": ".1f", "CPU ratio": ".3f", "ms": ".1f", "ratio": ".3f"}


def mobile_net(kit: Any, width: int = 1) -> Any:
    """The MobileNet-like network: 11 convolutions with BatchNormalization and ReLU6."""
    layers = kit.layers
    kit.utils.set_random_seed(0)

    def block(x, convolution):
        return layers.ReLU(6.0)(layers.BatchNormalization()(convolution(x)))

    inputs = layers.Input((32, 32, 3))
    x = block(inputs, layers.Conv2D(16 * width, 3, padding="same", use_bias=False))
    for filters, strides in ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
        depthwise = layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False)
        x = block(x, depthwise)
        x = block(x, layers.Conv2D(filters * width, 1, use_bias=False))
    return kit.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def compiled(kit: Any, model: Any) -> Any:
    """The model, compiled with SGD for logits."""
    loss = kit.losses.SparseCategoricalCrossentropy(from_logits=True)
    settings = {"jit_compile": False} if kit is keras else {}
    model.compile(kit.optimizers.SGD(0.01, momentum=0.9), loss, **settings)
    return model


def build(variant: str, width: int) -> Trained:
    """One of the `VARIANTS`."""
    constant = schedules.constant(0.8, frequency=FREQUENCY)
    prune = Prune(constant, scope="layer", score="magnitude")
    cluster = Cluster(CLUSTERS, begin=0, frequency=FREQUENCY)
    recipes: dict[str, list[Any]] = {
        "qat": [Quantize()],
        "activations": [Quantize()],
        "weights": [Quantize(activation_bits=None)],
        "prune": [prune],
        "cluster": [cluster],
        "cluster_channel": [dataclasses.replace(cluster, per_channel=True)],
        "pcqat": [prune, cluster, Quantize()],
    }
    model = mobile_net(keras, width)
    callbacks: Callable[[], list] = list
    if variant == "fused":
        model = rebuild_copy(model, _fused_statistics)
    elif variant == "prune_callback":
        callbacks = lambda: [PruneCallback(prune)]  # noqa: E731
    elif variant != "plain":
        model = compress(model, Recipe([Rule("*", recipes[variant])]))
        callbacks = lambda: [UpdateCompression()]  # noqa: E731
    if variant == "activations":
        model = rebuild_copy(model, _plain_weights)
    return compiled(keras, model), callbacks


def _plain_weights(operation):
    if isinstance(operation, Compressed):
        return copy_operation(operation.layer), lambda: None
    return None


def _fused_statistics(operation):
    if isinstance(operation, keras.layers.BatchNormalization):
        return FusedBatchNorm(copy_operation(operation)), lambda: None
    return None


def build_tfmot(variant: str, width: int) -> Trained:
    """One of the `TFMOT_VARIANTS`, of tf_keras."""
    kit, sparsity = import_tf_keras(), import_tfmot().sparsity.keras
    model = mobile_net(kit, width)
    callbacks: Callable[[], list] = list
    if variant == "qat":
        model = peers.quantized(model)
    elif variant == "prune":
        schedule = sparsity.ConstantSparsity(0.8, 0, frequency=FREQUENCY)
        model = sparsity.prune_low_magnitude(model, schedule)
        callbacks = lambda: [sparsity.UpdatePruningStep()]  # noqa: E731
    elif variant == "cluster":
        model = peers.clustered(model, CLUSTERS)
    elif variant == "pcqat":
        model = peers.quantized(_sparse_and_clustered(model), keep=True)
    return compiled(kit, model), callbacks


def _sparse_and_clustered(model: Any) -> Any:
    """The weights as pruning and clustering would leave them."""
    for layer in model.layers:
        if type(layer).__name__ not in ("Conv2D", "Dense"):
            continue
        kernel = layer.kernel.numpy()
        grid = np.linspace(kernel.min(), kernel.max(), CLUSTERS - 1)
        nearest = grid[np.abs(kernel[..., None] - grid).argmin(-1)]
        limit = np.quantile(np.abs(kernel), 0.8)
        layer.kernel.assign(np.where(np.abs(kernel) < limit, 0.0, nearest))
    return model


def step_times(
    models: Mapping[str, Trained], kit: Any, rounds: int, steps: int
) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds of CPU and of the clock that a step takes, for each round of each model."""

    class Clock(kit.callbacks.Callback):
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

    def training(model: Any, callbacks: Callable[[], list]) -> Callable[[], tuple[float, float]]:
        def train() -> tuple[float, float]:
            clock = Clock()
            together = [*callbacks(), clock]
            model.fit(x, y, batch_size=BATCH, verbose=0, shuffle=False, callbacks=together)
            return clock.spent

        return train

    jobs = {name: training(*made) for name, made in models.items()}
    # The first round traces.
    return {name: spent[1:] for name, spent in interleaved(jobs, rounds + 1).items()}


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


def _checked(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    options = parser.parse_args(arguments)
    if options.steps <= WARM_UP:
        parser.error(f"--steps must be more than {WARM_UP}")
    return options


def training_cost(arguments: list[str] | None = None) -> int:
    """What training under techniques costs: its step against the same model's plain Keras step."""
    parser = parser_of(training_cost, {"width": (1, "multiplies the channels"), **_COUNTS})
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--no-tfmot", action="store_true", help="leave TFMOT out")
    parser.add_argument("--only-tfmot", action="store_true", help=argparse.SUPPRESS)
    options = _checked(parser, arguments)
    settings = {name: getattr(options, name) for name in ("width", "rounds", "steps")}
    turns = options.rounds, options.steps
    if options.only_tfmot:
        peer = {f"tfmot_{name}": build_tfmot(name, options.width) for name in TFMOT_VARIANTS}
        summary = summarize(step_times(peer, import_tf_keras(), *turns), "tfmot_plain")
    else:
        names = dict.fromkeys(("plain", *options.variants))
        models = {name: build(name, options.width) for name in names}
        summary = summarize(step_times(models, keras, *turns), "plain")
        if not options.no_tfmot:
            summary.update(_of_tfmot(settings))
    rows = ((name, *row.values()) for name, row in summary.items())
    plain = {**settings, "batch": BATCH, "variants": summary}
    show(options, plain, "A training step", _COLUMNS, rows)
    return 0


def _of_tfmot(settings: dict[str, int]) -> dict[str, dict]:
    """Of TFMOT, in a process of its own; {} if it or tf_keras is not installed."""
    if not all(map(importlib.util.find_spec, ("tf_keras", "tensorflow_model_optimization"))):
        return {}
    command = [sys.executable, "-m", __package__, "training_cost", "--only-tfmot", "--json"]
    command += [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=3600)
    return json.loads(done.stdout.splitlines()[-1])["variants"] if done.returncode == 0 else {}


DISTILLED = ("plain", "teacher", "distill", "features", "memory", "file", "keras")
TEACHER_WIDTH = 3


class _Forward:
    """A model whose `fit` only predicts: what a teacher's forward pass costs by itself."""

    def __init__(self, model: keras.Model):
        self.model = model

    def fit(self, x, y, *, batch_size, verbose, shuffle, callbacks):
        self.model.predict(x, batch_size=batch_size, verbose=verbose, callbacks=callbacks)


def build_distilled(variant: str, folder: Path) -> Any:
    """One of the models that are `DISTILLED`."""
    student = mobile_net(keras)
    if variant == "plain":
        return compiled(keras, student)
    teacher = mobile_net(keras, TEACHER_WIDTH)
    if variant == "teacher":
        return _Forward(teacher)
    if variant == "keras":
        soft_labels = keras.distillation.LogitsDistillation(temperature=4.0)
        return compiled(keras, keras.distillation.Distiller(teacher, student, soft_labels))
    losses: list[Any] = [SoftLabels()]
    if variant == "features":
        losses.append(Features(teacher.layers[-6].name, student.layers[-6].name))
    cache = {"memory": "memory", "file": folder / "teacher.h5"}.get(variant)
    return compiled(keras, Distiller(student, teacher, losses, cache=cache))


def distillation_cost(arguments: list[str] | None = None) -> int:
    """What distillation costs: its step against the student's and the teacher's forward pass."""
    parser = parser_of(distillation_cost, _COUNTS)
    options = _checked(parser, arguments)
    with tempfile.TemporaryDirectory() as folder:
        models = {name: (build_distilled(name, Path(folder)), list) for name in DISTILLED}
        found = step_times(models, keras, options.rounds, options.steps)
    # What distillation may cost at most: both models, one after the other.
    pairs = zip(found["plain"], found["teacher"], strict=True)
    found["plain + teacher"] = [(a[0] + b[0], a[1] + b[1]) for a, b in pairs]
    summary = summarize(found, "plain")
    both = summarize(found, "plain + teacher")
    rows = ((name, *row.values(), both[name]["cpu_ratio"]) for name, row in summary.items())
    plain = {"to_plain": summary, "to_plain_and_teacher": both}
    columns = {**_COLUMNS, "CPU to plain and teacher": ".3f"}
    show(options, plain, "A step of distillation", columns, rows)
    return 0


TECHNIQUES: dict[str, Any] = {
    "unstructured": Prune(schedules.constant(0.8)),
    "2:4": Prune(schedules.constant(0.5), pattern="2:4"),
    "1x4 blocks": Prune(schedules.constant(0.8), pattern="1x4"),
    "filters": Prune(schedules.constant(0.8), pattern="filters"),
    "16 clusters": Cluster(16),
    "16 clusters, per channel": Cluster(16, per_channel=True),
}


def update(technique: Any, layer: keras.layers.Layer) -> Callable[[], Any]:
    """What updates the state of a technique on a layer's kernel; a first update is done."""
    bound = technique.bind(layer, "kernel")
    weight = keras.ops.convert_to_tensor(layer.kernel)
    state = bound.update(weight, bound.initial_state(weight), 0)
    return lambda: bound.update(weight, state, bound.next_step(0))


def mask_update(arguments: list[str] | None = None) -> int:
    """How long updates of masks and clusters take for one weight of 25 million, beside a sort."""
    counts = {"side": (5000, "of the square weight"), "rounds": (5, "timed updates")}
    options = parser_of(mask_update, counts).parse_args(arguments)
    layer = keras.layers.Dense(options.side)
    layer.build((None, options.side))
    layer.kernel.assign(np.random.default_rng(0).normal(size=(options.side, options.side)))
    kernel = np.asarray(keras.ops.convert_to_numpy(layer.kernel))
    jobs = {"one sort": seconds_of(lambda: np.sort(kernel, axis=None))}
    for name, technique in TECHNIQUES.items():
        jobs[name] = seconds_of(update(technique, layer))
    times = interleaved(jobs, options.rounds)
    found = {name: round(statistics.median(each), 3) for name, each in times.items()}
    plain = {"weights": options.side**2, "seconds": found}
    columns = {"update": "", "seconds": ".2f"}
    show(options, plain, f"A weight of {options.side**2:,}", columns, found.items())
    return 0
