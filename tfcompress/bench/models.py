"""The published architectures that acceptance is tried on: the four of MLPerf Tiny v1, by hand.

Source: the model definitions and the parameter counts of github.com/mlcommons/tiny.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

# filters and strides of MobileNetV1's 13 blocks at width 1
_MOBILENET = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1)),
)


def resnet8(kit: Any = keras, classes: int = 10) -> keras.Model:
    """ResNet-8 for images of 32 x 32 x 3."""
    layers = kit.layers
    inputs = kit.Input((32, 32, 3), name="image")
    x = _conv(kit, inputs, 16)
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        y = _conv(kit, _conv(kit, x, filters, stride=stride), filters, activation=False)
        if stride != 1:
            x = layers.Conv2D(filters, 1, strides=stride, padding="same")(x)
        x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Flatten()(layers.AveragePooling2D(8)(x))
    return kit.Model(inputs, _classes(kit, x, classes), name="resnet8")


def ds_cnn(kit: Any = keras, classes: int = 12) -> keras.Model:
    """DS-CNN for 49 frames of 10 MFCCs, which finds keywords."""
    layers = kit.layers
    inputs = kit.Input((49, 10, 1), name="mfcc")
    x = layers.Dropout(0.2)(_conv(kit, inputs, 64, kernel=(10, 4), stride=2))
    for _ in range(4):
        x = _conv(kit, _depthwise(kit, x), 64, kernel=1)
    x = layers.AveragePooling2D((25, 5))(layers.Dropout(0.4)(x))
    return kit.Model(inputs, _classes(kit, layers.Flatten()(x), classes), name="ds_cnn")


def mobilenet_v1(kit: Any = keras, classes: int = 2) -> keras.Model:
    """MobileNetV1 at width 0.25 for images of 96 x 96 x 3: a person or none."""
    inputs = kit.Input((96, 96, 3), name="image")
    x = _conv(kit, inputs, 8, stride=2)
    for filters, stride in _MOBILENET:
        x = _conv(kit, _depthwise(kit, x, stride), filters // 4, kernel=1)
    x = kit.layers.Flatten()(kit.layers.AveragePooling2D(3)(x))
    return kit.Model(inputs, _classes(kit, x, classes), name="mobilenet_v1")


def autoencoder(kit: Any = keras) -> keras.Model:
    """The fully connected autoencoder for 5 frames of 128 mel bands, which finds anomalies."""
    layers = kit.layers
    x = inputs = kit.Input((640,), name="frames")
    for width in (128, 128, 128, 128, 8, 128, 128, 128, 128):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(width)(x)))
    outputs = layers.Dense(640, name="reconstruction")(x)
    return kit.Model(inputs, outputs, name="autoencoder")


def digits() -> keras.Model:
    """The CNN of `tfcompress demo` for handwritten digits of 8 x 8 x 1, not trained."""
    from tfcompress.bench.demo import make_model

    return make_model()


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A published model.

    Attributes:
        build: makes it.
        parameters: how many it must have.
        loss: to train it with.
    """

    build: Callable[[], keras.Model]
    parameters: int
    loss: str = "sparse_categorical_crossentropy"


ARCHITECTURES = {
    "digits": Architecture(digits, 12_346),
    "ds_cnn": Architecture(ds_cnn, 24_908),
    "mobilenet_v1": Architecture(mobilenet_v1, 221_794),
    "resnet8": Architecture(resnet8, 78_666),
    "autoencoder": Architecture(autoencoder, 269_992, "mse"),
}


def generated_data(model: keras.Model, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Data that a model can learn: patches of its own for each class, under noise."""
    random = np.random.default_rng(seed)
    shape, classes = model.input_shape[1:], model.output_shape[-1]
    # The same classes whatever the seed, so that there is data to test with, too.
    patterns = np.random.default_rng(0).uniform(0, 1, (min(classes, 12), *shape))
    for axis, length in enumerate(shape, 1):
        # Large patches: small ones would not outlast the strides of a network.
        patterns = np.take(patterns, np.arange(length) * 8 // max(length, 8), axis)
    labels = random.integers(0, len(patterns), count)
    x = 0.7 * patterns[labels] + random.uniform(0, 0.3, (count, *shape))
    x = x.astype(np.float32)
    return (x, x) if model.output_shape == model.input_shape else (x, labels)


def _conv(kit: Any, x, filters: int, kernel=3, stride: int = 1, activation: bool = True):
    x = kit.layers.Conv2D(filters, kernel, strides=stride, padding="same")(x)
    x = kit.layers.BatchNormalization()(x)
    return kit.layers.ReLU()(x) if activation else x


def _depthwise(kit: Any, x, stride: int = 1):
    x = kit.layers.DepthwiseConv2D(3, strides=stride, padding="same")(x)
    return kit.layers.ReLU()(kit.layers.BatchNormalization()(x))


def _classes(kit: Any, x, count: int):
    return kit.layers.Softmax(name="class")(kit.layers.Dense(count)(x))
