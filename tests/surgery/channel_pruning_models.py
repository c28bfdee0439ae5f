"""A small model whose channels to prune with a callback, and how many of them are zero."""

import keras
import numpy as np
from callback_models import X, Y, compiled
from keras import layers, ops

from tfcompress import schedules
from tfcompress.compression.callbacks import iterations
from tfcompress.surgery.pruning.dead import remove_dead_channels
from tfcompress.surgery.pruning.in_training import ChannelPruning


def plain():
    """Channels of `first` go through a BatchNormalization, a residual and a depthwise layer."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(8, 3, use_bias=False, padding="same", name="first")(x)
    x = skip = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Add()([skip, layers.Conv2D(8, 1, name="other")(x)])
    x = layers.Conv2D(12, 3, activation="relu", name="second")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


def make(optimizer=None, model=None, **kwargs):
    """A compiled model; not its step, which takes longer than a few of these."""
    return compiled(model or plain(), optimizer, **{"run_eagerly": True, **kwargs})


def fit(model, steps, *callbacks, batch=4, **kwargs):
    kwargs = {"batch_size": batch, "verbose": 0, "shuffle": False, **kwargs}
    return model.fit(X[: batch * steps], Y[: batch * steps], callbacks=list(callbacks), **kwargs)


def in_order(group):
    """A score: the first channels go first."""
    return np.arange(group.size) + 1.0


def gone(model):
    """Which output channels of `first` and `second` are zero in their kernels."""
    kernels = [np.array(model.get_layer(name).kernel) for name in ("first", "second")]
    return [np.flatnonzero((kernel == 0).all((0, 1, 2))).tolist() for kernel in kernels]


def counts(model):
    return [len(each) for each in gone(model)]


def assert_removable(model, x=X):
    """What is left computes the same; returns it."""
    small = remove_dead_channels(model)
    wanted, found = (ops.convert_to_numpy(each(x, training=False)) for each in (model, small))
    scale = float(np.max(np.abs(wanted)))
    np.testing.assert_allclose(found, wanted, atol=1e-5 * scale)
    return small


class Watch(keras.callbacks.Callback):
    """Zero channels after each batch; what was gone must not come back."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        now = gone(self.model)
        for before, after in zip(self.seen[-1][1] if self.seen else now, now, strict=True):
            assert set(before) <= set(after)
        self.seen.append((iterations(self.model), now))


GROWING = schedules.points([(0, 0.25), (3, 0.5), (6, 1.0)])
WANTED = {0: [1, 1], 3: [2, 3], 6: [4, 6]}


def callback(**settings):
    """Removes half of the channels of `first` and `second` by step 6."""
    halves = {"first": 0.5, "second": 0.5}
    settings = {"per_layer": halves, "round_to": 1, "schedule": GROWING, **settings}
    return ChannelPruning(**settings)


def assert_follows(watch, offset=0):
    """What was seen after each batch is what `callback` is to do by then."""
    for step, found in watch.seen:
        last = max(start for start in WANTED if start <= step + offset)
        assert [len(each) for each in found] == WANTED[last], step
