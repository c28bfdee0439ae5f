"""The models that the quality of surgery is measured on, and how they are trained."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

# filters and strides of the first blocks of MobileNetV1 at width 1
_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1))


def resnet8(width: int = 48) -> keras.Model:
    """ResNet-8 of MLPerf Tiny with more filters, on half of the resolution.

    Args:
        width: filters of the first stage; the next ones have two and four times as many.

    Returns:
        An untrained model from (batch, 32, 32, 3) images to (batch, 10) probabilities.
    """
    inputs = keras.Input((32, 32, 3), name="image")
    x = _conv(inputs, width, stride=2)
    for filters, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
        y = _conv(_conv(x, filters, stride=stride), filters, activation=False)
        if stride != 1:
            x = layers.Conv2D(filters, 1, strides=stride, padding="same")(x)
        x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(inputs, _classes(x), name="resnet8")


def mobilenet(width: float = 1.5) -> keras.Model:
    """The first half of MobileNetV1.

    Args:
        width: multiplier of all filters.

    Returns:
        An untrained model from (batch, 32, 32, 3) images to (batch, 10) probabilities.
    """
    inputs = keras.Input((32, 32, 3), name="image")
    x = _conv(inputs, int(32 * width), stride=2)
    for filters, stride in _BLOCKS:
        x = layers.DepthwiseConv2D(3, strides=stride, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = _conv(x, int(filters * width), kernel=1)
    return keras.Model(inputs, _classes(x), name="mobilenet")


def _conv(x, filters: int, kernel: int = 3, stride: int = 1, activation: bool = True):
    x = layers.Conv2D(filters, kernel, strides=stride, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    return layers.ReLU()(x) if activation else x


def _classes(x):
    return layers.Softmax(name="class")(layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def train(
    model: keras.Model, x: Any, y: Any, *, steps: int, rate: float, batch: int, loss: str
) -> None:
    """Trains with Adam for a number of steps; the learning rate falls to 0 along a cosine.

    Args:
        model: is compiled and changed.
        x, y: arrays.
        steps: of the optimizer, rounded up to whole epochs.
        rate: learning rate at the start.
        batch: samples of a step.
        loss: as of `compile`.
    """
    epochs = -(-steps // -(-len(x) // batch))
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * -(-len(x) // batch))
    model.compile(keras.optimizers.Adam(schedule), loss, jit_compile=False)
    model.fit(x, y, batch_size=batch, epochs=epochs, verbose=0)
