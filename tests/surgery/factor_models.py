"""Layers and models for the tests of factorize."""

import keras
import numpy as np
from keras import layers


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def of_layer(layer, *shape, dtype=None):
    """A model of one layer with random weights."""
    x = keras.Input(shape, dtype=dtype)
    model = keras.Model(x, layer(x))
    for number, variable in enumerate(model.weights):
        variable.assign(normal(*variable.shape, seed=number))
    return model


def samples(model, count=2, seed=3):
    """Inputs for a model."""
    made = []
    for x in model.inputs:
        if "int" in x.dtype:
            made.append(np.random.default_rng(seed).integers(0, 10, (count, *x.shape[1:])))
        else:
            made.append(normal(count, *(size or 7 for size in x.shape[1:]), seed=seed))
    return made if len(made) > 1 else made[0]


def outputs(model, x):
    return [np.asarray(y) for y in keras.tree.flatten(model(x, training=False))]


def relative_error(model, other, x=None) -> float:
    """The largest difference of outputs, relative to the largest output."""
    x = samples(model) if x is None else x
    pairs = zip(outputs(model, x), outputs(other, x), strict=True)
    return max(float(np.max(np.abs(a - b)) / max(np.max(np.abs(a)), 1e-9)) for a, b in pairs)


def kinds(model) -> list[str]:
    return [type(operation).__name__ for operation in model.operations[1:]]


def small_cnn():
    x = inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="stem")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(24, 3, strides=2, padding="same", activation="relu", name="middle")(x)
    x = layers.Conv2D(32, 3, activation="relu", name="wide")(x)
    x = layers.Flatten()(x)
    x = layers.Dense(64, activation="relu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax", name="kind")(x), name="cnn")
