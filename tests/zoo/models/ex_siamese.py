"""Siamese contrastive (shared CNN, euclidean distance by ops in Lambda)."""

import keras
from keras import layers, ops


def dist(v):
    return ops.sqrt(
        ops.maximum(
            ops.sum(ops.square(v[0] - v[1]), axis=1, keepdims=True), keras.backend.epsilon()
        )
    )


def build():
    i = keras.Input((28, 28, 1))
    x = layers.BatchNormalization()(i)
    x = layers.Conv2D(4, 5, activation="tanh")(x)
    x = layers.AveragePooling2D(2)(x)
    x = layers.Conv2D(16, 5, activation="tanh")(x)
    x = layers.AveragePooling2D(2)(x)
    x = layers.BatchNormalization()(layers.Flatten()(x))
    e = keras.Model(i, layers.Dense(10, activation="tanh")(x))
    a, b = keras.Input((28, 28, 1)), keras.Input((28, 28, 1))
    d = layers.Lambda(dist, output_shape=(1,))([e(a), e(b)])
    return keras.Model(
        [a, b], layers.Dense(1, activation="sigmoid")(layers.BatchNormalization()(d))
    )
