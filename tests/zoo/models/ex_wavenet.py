"""WaveNet (causal dilated gated Conv1D, skips)."""

import keras
from keras import layers


def build():
    i = keras.Input((64, 1))
    x = layers.Conv1D(16, 2, padding="causal")(i)
    skips = []
    for d in (1, 2, 4, 8):
        t = layers.Conv1D(16, 2, padding="causal", dilation_rate=d, activation="tanh")(x)
        s = layers.Conv1D(16, 2, padding="causal", dilation_rate=d, activation="sigmoid")(x)
        z = layers.Multiply()([t, s])
        z = layers.Conv1D(16, 1)(z)
        skips.append(z)
        x = layers.Add()([x, z])
    x = layers.Activation("relu")(layers.Add()(skips))
    x = layers.Conv1D(16, 1, activation="relu")(x)
    return keras.Model(i, layers.Conv1D(32, 1, activation="softmax")(x))
