"""A small model and data for it, and sensitivities without measuring."""

import keras
import numpy as np
from keras import layers

import tfcompress as tfc
from tfcompress.recipe.findings import Row, Sensitivity

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(64, 6)).astype("float32")
Y = RANDOM.normal(size=(64, 3)).astype("float32")


def compiled(model, loss="mse", **kwargs):
    model.compile("sgd", loss, jit_compile=False, **kwargs)
    return model


def linear(**kwargs):
    """x A B, without biases."""
    keras.utils.set_random_seed(1)
    parts = [layers.Dense(5, use_bias=False, name="a", **kwargs), layers.Dense(3, use_bias=False)]
    return compiled(keras.Sequential([keras.Input((6,)), *parts]), metrics=["mae"])


def made(drops, sizes=None, prune=None):
    """A Sensitivity from {layer: {sparsity: drop}}."""
    rows = [
        Row(layer, ("kernel",), (sizes or {}).get(layer, 100), "sparsity", s, {"loss": d}, d)
        for layer, found in drops.items()
        for s, d in found.items()
    ]
    return Sensitivity("model", "loss", {"loss": 0.0}, prune or tfc.Prune(0.5), tuple(rows))
