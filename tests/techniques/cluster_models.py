"""A small model to cluster, its training, and what is read from it."""

import keras
import numpy as np
from keras import layers

import tfcompress as tfc
from tfcompress import Cluster
from tfcompress.layers.compressed import Compressed

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(32, 6, 6, 3)).astype("float32")
Y = RANDOM.normal(size=(32, 4)).astype("float32")


def make(*techniques, use_bias=True, run_eagerly=True):
    """A compiled model; not its step, which takes longer than a few of these."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, activation="relu", use_bias=use_bias, name="conv")(inputs)
    outputs = layers.Dense(4, name="dense")(layers.GlobalAveragePooling2D()(x))
    model = tfc.compress(keras.Model(inputs, outputs), [tfc.Rule("*", list(techniques))])
    model.compile(keras.optimizers.Adam(0.02), "mse", jit_compile=False, run_eagerly=run_eagerly)
    return model


def fit(model, steps, **kwargs):
    """Steps of batches of 4, eight an epoch."""
    x, y = X[: 4 * min(steps, 8)], Y[: 4 * min(steps, 8)]
    callbacks = [tfc.UpdateCompression(), *kwargs.pop("callbacks", [])]
    kwargs = {"epochs": -(-steps // 8), "callbacks": callbacks, **kwargs}
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0, **kwargs)
    return model


def kernels(model):
    final = tfc.finalize(model)
    found = [final.get_layer(name) for name in ("conv", "dense")]
    return [np.array(getattr(x, "layer", x).kernel) for x in found]


def wrapped(model):
    return [x for x in model.layers if isinstance(x, Compressed)]


def state_of(model, kind=Cluster):
    target = wrapped(model)[0].bound[0]
    index = [type(t) for t in target.techniques].index(kind)
    return target.states[index]
