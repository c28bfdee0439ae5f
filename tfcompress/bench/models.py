"""The models of the benchmark: the five of MLPerf Tiny, by hand, and a small CNN for digits.

Source: the model definitions and the parameter counts of github.com/mlcommons/tiny.
"""

from __future__ import annotations

from collections.abc import Iterable
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


def wake_word(kit: Any = keras, classes: int = 3) -> keras.Model:
    """Separable convolutions over 30 frames of 40 mel bands, without padding: a word or none."""
    layers = kit.layers
    x = inputs = kit.Input((30, 1, 40), name="bands")
    for size, filters in ((3, 128), (5, 128), (10, 128), (15, 32)):
        x = layers.DepthwiseConv2D((size, 1), use_bias=False)(x)
        x = layers.Conv2D(filters, 1, use_bias=False)(x)
        x = layers.Dropout(0.2)(layers.ReLU()(layers.BatchNormalization()(x)))
    return kit.Model(inputs, _classes(kit, layers.Flatten()(x), classes), name="wake_word")


def mobilenet_v1(kit: Any = keras, classes: int = 2) -> keras.Model:
    """MobileNetV1 at width 0.25 for images of 96 x 96 x 3: a person or none."""
    inputs = kit.Input((96, 96, 3), name="image")
    x = _conv(kit, inputs, 8, stride=2)
    for filters, stride in _MOBILENET:
        x = _conv(kit, _depthwise(kit, x, stride), filters // 4, kernel=1)
    x = kit.layers.Flatten()(kit.layers.AveragePooling2D(3)(x))
    return kit.Model(inputs, _classes(kit, x, classes), name="mobilenet_v1")


def autoencoder(kit: Any = keras, classes: int = 0) -> keras.Model:
    """The fully connected autoencoder for 5 frames of 128 mel bands; it has no classes."""
    layers = kit.layers
    x = inputs = kit.Input((640,), name="frames")
    for width in (128, 128, 128, 128, 8, 128, 128, 128, 128):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(width)(x)))
    outputs = layers.Dense(640, name="reconstruction")(x)
    return kit.Model(inputs, outputs, name="autoencoder")


def digits(kit: Any = keras, classes: int = 10) -> keras.Model:
    """The CNN of `tfcompress demo`: convolutions, a depthwise one, a residual Add, pooling."""
    layers = kit.layers

    def block(x, convolution):
        return layers.ReLU()(layers.BatchNormalization()(convolution(x)))

    inputs = layers.Input((8, 8, 1), name="image")
    x = block(inputs, layers.Conv2D(24, 3, padding="same", use_bias=False, name="stem"))
    y = block(x, layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise"))
    y = block(y, layers.Conv2D(24, 1, use_bias=False, name="pointwise"))
    x = layers.Add(name="residual")([x, y])
    x = layers.MaxPooling2D(name="pool")(x)
    x = block(x, layers.Conv2D(48, 3, padding="same", use_bias=False, name="wide"))
    x = layers.GlobalAveragePooling2D(name="average")(x)
    x = layers.Dense(classes, name="logits")(x)
    return kit.Model(inputs, layers.Softmax(name="digit")(x), name="digits")


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


def compile_for(
    model: Any,
    steps: int,
    rate: float,
    loss: str = "sparse_categorical_crossentropy",
    kit: Any = keras,
) -> None:
    """Compiles a model with Adam, whose learning rate falls to 0 along a cosine over the steps."""
    # XLA makes depthwise convolutions several times slower on a CPU; tf_keras leaves it out.
    settings = {"jit_compile": False} if kit is keras else {}
    optimizer = kit.optimizers.Adam(kit.optimizers.schedules.CosineDecay(rate, steps))
    model.compile(optimizer, loss, **settings)
    # Variables that the first step makes have TensorFlow trace it twice.
    optimizer.build(model.trainable_variables)


def fit(
    model: Any,
    x: np.ndarray,
    y: np.ndarray,
    *,
    epochs: int,
    rate: float,
    batch: int = 32,
    callbacks: Iterable[Any] = (),
    **settings: Any,
) -> None:
    """Compiles a model by `compile_for`, which takes the settings, and trains it."""
    compile_for(model, epochs * -(-len(x) // batch), rate, **settings)
    model.fit(x, y, batch_size=batch, epochs=epochs, verbose=0, callbacks=list(callbacks))
