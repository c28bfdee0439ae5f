"""What surgery costs and saves: half of the MACs or parameters gone, quality and int8 latency.

For each seed a float model is trained; then half of its MACs (of the autoencoder: its parameters)
go, and what is left is trained for half of the steps. Accuracy is that of Keras models and of int8
files; files are timed in turns under XNNPACK. Run it on an idle machine:

    PYTHONPATH=tests python -m measurements surgery_quality --seeds 3

Exit status 1 tells that a goal is missed: on the mean of the seeds at most 0.5 point of accuracy
lost, in float32 and in int8, and int8 files 1.6 times as fast; at most 0.01 AUC lost.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers
from scipy import ndimage

from measurements import parser_of, show_table, spread, tell
from tfcompress.bench import demo
from tfcompress.bench.models import autoencoder, fit
from tfcompress.bench.running.latency import latencies
from tfcompress.bench.tasks.anomaly import Sounds, machine_sounds
from tfcompress.conversion.convert import convert
from tfcompress.surgery.factors.factorize import factorize
from tfcompress.surgery.pruning.prune_channels import prune_channels
from tfcompress.tflite import machine


def resnet8(width: int = 48) -> keras.Model:
    """ResNet-8 of MLPerf Tiny with more filters, on half of the resolution."""
    inputs = keras.Input((32, 32, 3), name="image")
    x = _conv(inputs, width, stride=2)
    for filters, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
        y = _conv(_conv(x, filters, stride=stride), filters, activation=False)
        if stride != 1:
            x = layers.Conv2D(filters, 1, strides=stride, padding="same")(x)
        x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(inputs, _classes(x), name="resnet8")


def mobilenet(width: float = 1.5) -> keras.Model:
    """The first half of MobileNetV1."""
    inputs = keras.Input((32, 32, 3), name="image")
    x = _conv(inputs, int(32 * width), stride=2)
    for filters, stride in _BLOCKS:
        x = layers.DepthwiseConv2D(3, strides=stride, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = _conv(x, int(filters * width), kernel=1)
    return keras.Model(inputs, _classes(x), name="mobilenet")


# Models, and the steps that they are trained for: whole epochs, and their halves, too.
CLASSIFIERS: dict[str, tuple[Callable[[], keras.Model], int]] = {
    "resnet": (resnet8, 676),
    "mobilenet": (mobilenet, 1014),
}
TASKS = (*CLASSIFIERS, "autoencoder")
RATE, BATCH = 3e-3, 64
SOUND_STEPS, SOUND_RATE, SOUND_BATCH = 1280, 2e-3, 128

# The first way of each task has to reach the goals.
PRUNING: dict[str, dict[str, Any]] = {"defaults": {}, "round_to=16": {"round_to": 16}}
FACTORIZING = {"svd with data": True, "svd": False}
LOST, LOST_AUC, SPEEDUP = 0.5, 0.01, 1.6
CALIBRATION = 200
Row = dict[str, Any]


def classifier_rows(task: str, seeds: int) -> Iterator[Row]:
    """Trains, prunes, trains on, converts and times one classifier for each seed."""
    (x, y), test = digit_images()
    build, steps = CLASSIFIERS[task]
    settings: dict[str, Any] = {"rate": RATE, "batch": BATCH}
    for seed in range(seeds):
        keras.utils.set_random_seed(seed)
        model = build()
        train(model, x, y, seed, steps, **settings)
        before, rows = accuracy(model, test), []
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder, "whole.tflite")]
            int8_before = int8_accuracy(model, paths[0], x, test)
            for way, pruning in PRUNING.items():
                small = prune_channels(model, macs=0.5, **pruning)
                row = told(task, seed, way, small)
                row |= {"before": before, "after": accuracy(small, test)}
                train(small, x, y, seed, steps // 2, **settings)
                paths.append(Path(folder, f"{way}.tflite"))
                row |= {"tuned": accuracy(small, test), "int8_before": int8_before}
                row["int8_tuned"] = int8_accuracy(small, paths[-1], x, test)
                rows.append(row)
            for row, times in zip(rows, speedups(paths), strict=True):
                tell(str(row | times))
                yield row | times


def told(task: str, seed: int, way: str, small: keras.Model) -> Row:
    """The start of a row: what is measured, and which shares of MACs and parameters are left."""
    report = small.surgery_report
    shares = {"macs": report.macs, "params": report.params}
    left = {name: after / before for name, (before, after) in shares.items()}
    return {"task": task, "seed": seed, "way": way, **left}


def accuracy(model: keras.Model, test: Split) -> float:
    """Percent of images whose class is found."""
    found = model.predict(test[0], batch_size=256, verbose=0)
    return 100 * float(np.mean(np.argmax(found, 1) == test[1]))


def int8_accuracy(model: keras.Model, path: Path, x: Any, test: Split) -> float:
    """Writes an int8 file; percent of images whose class it finds."""
    convert(model, path, precision="int8", calibration=x[:CALIBRATION])
    return 100 * demo.accuracy(path, *test)


def speedups(paths: Sequence[Path]) -> list[Row]:
    """How many times as fast each file is as the first one.

    With AMX, XNNPACK takes 64 channels at a time whatever there are, and small models gain little
    by having fewer. Phones and most computers have no AMX; so what counts is measured without it.

    Returns for each but the first {"speedup": without AMX, "speedup_amx": with it}, or None where
    that cannot be told.
    """
    found = []
    for times in latencies(paths)[1:]:
        with_amx = times if machine.has_amx() else None
        without = times["no_amx"] if with_amx else times
        each = {"speedup": without, "speedup_amx": with_amx}
        found.append({name: 1 / pair["ratio"] if pair else None for name, pair in each.items()})
    return found


def autoencoder_rows(task: str, seeds: int) -> Iterator[Row]:
    """Trains, factorizes and trains on the autoencoder of MLPerf Tiny for each seed."""
    for seed in range(seeds):
        sounds = machine_sounds(seed)
        x = sounds.train.reshape(-1, sounds.train.shape[-1])
        settings: dict[str, Any] = {"rate": SOUND_RATE, "batch": SOUND_BATCH, "loss": "mse"}
        keras.utils.set_random_seed(seed)
        model = autoencoder()
        train(model, x, x, seed, SOUND_STEPS, **settings)
        before = auc(model, sounds)
        for way, with_data in FACTORIZING.items():
            data = x if with_data else None
            small = factorize(model, "svd", params=0.5, data=data)
            row = told(task, seed, way, small)
            row |= {"before": before, "after": auc(small, sounds)}
            train(small, x, x, seed, SOUND_STEPS // 2, **settings)
            row["tuned"] = auc(small, sounds)
            tell(str(row))
            yield row


def auc(model: keras.Model, sounds: Sounds) -> float:
    """Area under the ROC curve of the mean squared error of clips."""
    from sklearn.metrics import roc_auc_score

    clips, frames, width = sounds.test.shape
    found = model.predict(sounds.test.reshape(-1, width), batch_size=2048, verbose=0)
    errors = np.square(found.reshape(clips, frames, width) - sounds.test).mean((1, 2))
    return float(roc_auc_score(sounds.broken, errors))


def missed(rows: Sequence[Row]) -> list[str]:
    """The goals that rows of one task and way miss, in words."""
    auc_task = rows[0]["task"] == "autoencoder"
    limit = LOST_AUC if auc_task else LOST
    found = []
    for kind in ("",) if auc_task else ("", "int8_"):
        lost = statistics.mean(row[f"{kind}before"] - row[f"{kind}tuned"] for row in rows)
        if lost > limit:
            found.append(f"{kind}quality: {lost:.4g} lost, goal at most {limit}")
    if not auc_task:
        known = [row["speedup"] for row in rows if row["speedup"] is not None]
        speedup = statistics.mean(known) if known else 0.0
        if speedup < SPEEDUP:
            found.append(f"latency: {speedup:.2f} times as fast, goal {SPEEDUP}")
    return found


COLUMNS = {
    **{"before": "float", "after": "after surgery", "tuned": "trained on"},
    **{"int8_before": "int8", "int8_tuned": "int8 trained on"},
    **{"speedup": "speedup", "speedup_amx": "with AMX", "macs": "MACs", "params": "params"},
}


def surgery_quality(arguments: list[str] | None = None) -> int:
    """What surgery costs and saves: half of the MACs or parameters gone, quality and latency."""
    parser = parser_of(surgery_quality, {"seeds": (3, "trainings of each model")}, with_json=False)
    parser.add_argument("--task", choices=TASKS, help="only one (all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a line for each model")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    for task in [options.task] if options.task else TASKS:
        measure = classifier_rows if task in CLASSIFIERS else autoencoder_rows
        rows += measure(task, options.seeds)
    if options.json:
        options.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["way"]), []).append(row)
    cells = []
    for (task, way), each in groups.items():
        known = ([r[key] for r in each if r.get(key) is not None] for key in COLUMNS)
        digits = 4 if task == "autoencoder" else 2
        cells.append((task, way, *(spread(values, digits) for values in known)))
    columns = {"task": "", "way": "", **dict.fromkeys(COLUMNS.values(), "s")}
    show_table("Means and standard deviations over the seeds", columns, cells)
    judged = (next(iter(PRUNING)), next(iter(FACTORIZING)))
    failures = []
    for (task, way), each in groups.items():
        if way in judged:
            failures += [f"{task}, {way}: {words}" for words in missed(each)]
    print(*failures or ["all goals are reached"], sep="\n")
    return 1 if failures else 0


Split = tuple[np.ndarray, np.ndarray]
SIDE = 32
TRAIN_COPIES, TEST_COPIES = 8, 5


def digit_images() -> tuple[Split, Split]:
    """The digits of scikit-learn on images of 32 x 32 x 3: turned, sheared, coloured, under noise.

    Returns (images, labels) to train with and to test with, 10,784 and 2,245 made from different
    digits: float32 of shape (count, 32, 32, 3) around [0, 1], and integers 0 to 9.
    """
    random = np.random.default_rng(0)
    (train, train_labels), (test, test_labels) = demo.load_digits()

    def rendered(digits: np.ndarray, labels: np.ndarray, copies: int) -> Split:
        images = [_rendered(digit[..., 0], random) for digit in np.tile(digits, (copies, 1, 1, 1))]
        return np.stack(images).astype("float32"), np.tile(labels, copies)

    return rendered(train, train_labels, TRAIN_COPIES), rendered(test, test_labels, TEST_COPIES)


def _rendered(digit: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """One image of a digit of 8 x 8."""
    angle, shear = random.normal(0, 0.12, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shrink = 8 / random.uniform(20, 30, 2)
    matrix = turn @ np.array([[1, shear], [0, 1]]) * shrink[:, None]
    middle = (SIDE - 1) / 2 + random.uniform(-2, 2, 2)
    shape = ndimage.affine_transform(
        digit, matrix, 3.5 - matrix @ middle, output_shape=(SIDE, SIDE), order=1
    )
    patches = random.uniform(0.2, 0.8, 3) + random.uniform(-0.2, 0.2, (4, 4, 3))
    ground = ndimage.zoom(patches, (SIDE // 4, SIDE // 4, 1), order=1)
    ink = ground.mean((0, 1)) + random.choice([-1, 1]) * random.uniform(0.3, 0.7, 3)
    image = ground + shape[..., None] * (ink - ground)
    return image + random.normal(0, 0.1, image.shape)


# filters and strides of the first blocks of MobileNetV1 at width 1
_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1))


def _conv(x, filters: int, kernel: int = 3, stride: int = 1, activation: bool = True):
    x = layers.Conv2D(filters, kernel, strides=stride, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    return layers.ReLU()(x) if activation else x


def _classes(x):
    return layers.Softmax(name="class")(layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def train(
    model: keras.Model, x: Any, y: Any, seed: int, steps: int, batch: int, **settings: Any
) -> None:
    """Trains for a number of steps, in whole epochs; see `fit`."""
    keras.utils.set_random_seed(seed)
    fit(model, x, y, epochs=-(-steps // -(-len(x) // batch)), batch=batch, **settings)
