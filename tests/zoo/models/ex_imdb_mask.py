"""Embedding(mask_zero) + BiLSTM text classifier."""

import keras
from keras import layers


def build():
    i = keras.Input((20,), dtype="int32")
    x = layers.Embedding(200, 16, mask_zero=True)(i)
    x = layers.Bidirectional(layers.LSTM(16, return_sequences=True))(x)
    x = layers.Bidirectional(layers.LSTM(16))(x)
    return keras.Model(i, layers.Dense(1, activation="sigmoid")(x))


def data(n, rng):
    import numpy as np

    x = rng.integers(1, 200, (n, 20))
    lengths = rng.integers(8, 21, n)
    return (x * (np.arange(20) < lengths[:, None])).astype("int32")
