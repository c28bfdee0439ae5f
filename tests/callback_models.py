"""A small model to prune with a callback, short fits of it, and a watch over its zeros."""

import keras
import numpy as np
from keras import layers

from tfcompress import schedules

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(64, 6, 6, 2)).astype("float32")
Y = RANDOM.integers(0, 3, 64)
GROWING = schedules.linear(0.1, 0.7, begin=2, end=9, frequency=3)


def plain(**conv):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(5, 3, activation="relu", name="conv", **conv),
            layers.Flatten(),
            layers.Dense(3, dtype="float32", name="dense"),
        ]
    )


def compiled(model, optimizer=None, **kwargs):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    settings = {"jit_compile": False, **kwargs}
    model.compile(optimizer or keras.optimizers.Adam(0.02), loss, **settings)
    return model


def make(optimizer=None, **kwargs):
    return compiled(plain(), optimizer, **kwargs)


def fit(model, steps, *callbacks, batch=4, **kwargs):
    kwargs = {"batch_size": batch, "verbose": 0, "shuffle": False, **kwargs}
    return model.fit(X[: batch * steps], Y[: batch * steps], callbacks=list(callbacks), **kwargs)


def kernels(model):
    return [np.array(v) for v in model.trainable_variables if v.name == "kernel"]


def zeros(model):
    return [int((kernel == 0).sum()) for kernel in kernels(model)]


def wanted(model, sparsity):
    return [k.size - round(k.size * (1 - sparsity)) for k in kernels(model)]


class Watch(keras.callbacks.Callback):
    """Zeros after each batch; what was zero must not come back."""

    def __init__(self):
        super().__init__()
        self.seen, self.gone = [], []

    def on_train_batch_end(self, batch, logs=None):
        masks = [kernel == 0 for kernel in kernels(self.model)]
        for before, now in zip(self.gone, masks, strict=False):
            assert (now | ~before).all()
        assert not any(np.signbit(k[k == 0]).any() for k in kernels(self.model))
        self.gone = masks
        self.seen.append((int(self.model.optimizer.iterations), [int(m.sum()) for m in masks]))


def assert_follows(model, seen, schedule):
    for step, found in seen:
        assert found == wanted(model, schedule.at(step)), step
