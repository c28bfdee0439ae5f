"""keras.io: LSTM seq2seq (encoder states into decoder)."""

import keras
from keras import layers


def build():
    e = keras.Input((12, 20), name="enc")
    d = keras.Input((10, 24), name="dec")
    _, h, c = layers.LSTM(32, return_state=True)(e)
    y, _, _ = layers.LSTM(32, return_sequences=True, return_state=True)(d, initial_state=[h, c])
    return keras.Model([e, d], layers.Dense(24, activation="softmax")(y))
