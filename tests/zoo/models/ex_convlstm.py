"""keras.io: next-frame ConvLSTM."""

import keras
from keras import layers


def build():
    i = keras.Input((4, 16, 16, 1))
    x = layers.ConvLSTM2D(8, 5, padding="same", return_sequences=True, activation="relu")(i)
    x = layers.BatchNormalization()(x)
    x = layers.ConvLSTM2D(8, 3, padding="same", return_sequences=True, activation="relu")(x)
    return keras.Model(i, layers.Conv3D(1, 3, activation="sigmoid", padding="same")(x))
