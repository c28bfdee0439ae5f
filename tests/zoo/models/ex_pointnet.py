"""keras.io: PointNet (T-net, Dot, Conv1D, global max)."""

import keras
from keras import layers


def cb(x, f):
    return layers.Activation("relu")(
        layers.BatchNormalization(momentum=0.0)(layers.Conv1D(f, 1, padding="valid")(x))
    )


def db(x, f):
    return layers.Activation("relu")(layers.BatchNormalization(momentum=0.0)(layers.Dense(f)(x)))


def tnet(x0, n):
    x = cb(x0, 16)
    x = cb(x, 32)
    x = layers.GlobalMaxPooling1D()(x)
    x = db(x, 16)
    t = layers.Reshape((n, n))(layers.Dense(n * n)(x))
    return layers.Dot(axes=(2, 1))([x0, t])


def build():
    i = keras.Input((64, 3))
    x = tnet(i, 3)
    x = cb(x, 16)
    x = tnet(x, 16)
    x = cb(x, 32)
    x = layers.GlobalMaxPooling1D()(x)
    x = layers.Dropout(0.3)(db(x, 16))
    return keras.Model(i, layers.Dense(6, activation="softmax")(x))
