"""Methods' runs on tasks so small that they train in a moment."""

import dataclasses

import numpy as np

from tfcompress.bench.methods.run import Run, train_float
from tfcompress.bench.tasks import TASKS
from tfcompress.bench.tasks.task import Data, Task, Training

DIGITS = TASKS["digits"]


def dropping(kit, classes):
    """A small model with BatchNormalization and Dropout, which draw and remember."""
    layers = kit.layers
    inputs = layers.Input((8,))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(16)(inputs)))
    x = layers.Dropout(0.3)(x)
    return kit.Model(inputs, layers.Softmax()(layers.Dense(classes)(x)))


def rebuilding(kit, classes):
    inputs = kit.layers.Input((8,))
    x = kit.layers.BatchNormalization()(kit.layers.Dense(5, activation="relu")(inputs))
    return kit.Model(inputs, kit.layers.Dense(8)(x))


def task_of(build, loss="sparse_categorical_crossentropy") -> tuple[Task, Data]:
    random = np.random.default_rng(0)
    x = random.normal(size=(256, 8)).astype("float32")
    y = None if loss == "mse" else (x[:, 0] > 0).astype("int64")
    tested = x[:64].reshape(16, 4, 8) if y is None else x[:64]
    data = Data(x, y, tested, np.arange(len(tested)) % 2 > 0, 2 if y is not None else 0, "", "")
    training = Training(40, 16, 1e-2)
    task = Task("small", "", build, (2, 0, 0), lambda: data, training, training, (training,) * 2)
    return dataclasses.replace(task, loss=loss), data


def separable(kit, classes):
    """Takes three frames, and looks at all of them."""
    layers = kit.layers
    inputs = layers.Input((3, 1, 4))
    x = layers.DepthwiseConv2D((3, 1))(layers.Conv2D(16, 1)(inputs))
    x = layers.Flatten()(layers.ReLU()(layers.BatchNormalization()(x)))
    return kit.Model(inputs, layers.Softmax()(layers.Dense(classes)(x)))


def streams_of(build) -> tuple[Task, Data]:
    """Streams of seven frames of four numbers, five windows each."""
    random = np.random.default_rng(0)
    frames = random.normal(size=(120, 7, 1, 4)).astype("float32")
    windows = np.stack([frames[:, i : i + 3] for i in range(5)], 1)
    heard = windows[..., 0].sum((2, 3)) > 1
    x, y = windows[:80].reshape(-1, 3, 1, 4), 1 - heard[:80].ravel().astype("int64")
    data = Data(x, y, windows[80:], heard[80:].any(1), 2, "", "")
    training = Training(40, 16, 1e-2)
    made = Task("small", "", build, (2, 0, 0), lambda: data, training, training, (training,) * 2)
    return dataclasses.replace(made, streams=True), data


def run_of(task, data, folder, checkpoint=None, steps=12, seed=0) -> Run:
    if checkpoint is None:
        checkpoint = folder / "float.keras"
        train_float(task, data, dataclasses.replace(task.training, steps=5), seed).save(checkpoint)
    tuning = dataclasses.replace(task.tuning, steps=steps)
    return Run(task=task, data=data, seed=seed, tuning=tuning, checkpoint=checkpoint, folder=folder)
