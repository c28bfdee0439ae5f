"""Random nets whose weights have few values, for files with weights in codes."""

import keras
import numpy as np
from keras import layers

KINDS = (2, 3, 4, 7, 8, 15, 16, 33, 64, 128)


def _attention(x):
    rows = layers.Reshape((-1, x.shape[-1]))(x)
    given = layers.MultiHeadAttention(2, 8)(rows, rows)
    return layers.Reshape(x.shape[1:])(layers.Add()([rows, given]))


def _block(x, random):
    kind = random.integers(5)
    if kind == 0:
        return layers.Conv2D(int(random.integers(8, 40)), 3, padding="same", activation="relu")(x)
    if kind == 1:
        return layers.DepthwiseConv2D(3, padding="same")(x)
    if kind == 2:
        y = layers.Conv2D(x.shape[-1], 1, activation="relu6")(x)
        return layers.Add()([x, y])
    if kind == 3:
        y = layers.Conv2D(int(random.integers(4, 24)), (1, 3), padding="same")(x)
        return layers.Concatenate()([x, y])
    return _attention(x)


def random_net(seed):
    """A net of random layers whose kernels have 2 to 128 values, and calibration images.

    Returns (model, images).
    """
    keras.utils.set_random_seed(seed)
    random = np.random.default_rng(seed)
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(inputs)
    for _ in range(4):
        x = _block(x, random)
    x = layers.Dense(int(random.integers(20, 90)))(layers.Flatten()(x))
    model = keras.Model(inputs, layers.Dense(5, activation="softmax")(x))
    few_values(model, random)
    return model, random.normal(size=(20, 8, 8, 3)).astype("float32")


def few_values(model, random):
    """Gives the kernels of a model few values, half of the time times a scale of each channel."""
    for variable in model.trainable_variables:
        if len(variable.shape) < 2 or "bias" in variable.name:
            continue
        count = int(random.choice(KINDS))
        half = random.uniform(0.1, 1, count // 2)
        grid = np.concatenate([-half, half, [0] * (count % 2)])
        codes = random.choice(len(grid), variable.shape)
        if random.random() < 0.5:
            codes[np.random.default_rng(0).random(variable.shape) < 0.6] = 0
        scales = 1.0 if random.random() < 0.5 else random.uniform(0.5, 2, variable.shape[-1])
        kernel = grid[codes] * scales
        # Numbers far smaller than those that they are added to have no integer kernel.
        fan_in = kernel.size / (1 if kernel.shape[-1] == 1 else kernel.shape[-1])
        variable.assign(kernel / np.sqrt(np.square(kernel).mean() * fan_in + 1e-9))
