"""keras.io: captcha CRNN (conv + BiLSTM, CTC outside of the served model)."""

import keras
from keras import layers


def build():
    i = keras.Input((64, 32, 1))
    x = layers.Conv2D(16, 3, activation="relu", padding="same")(i)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Conv2D(32, 3, activation="relu", padding="same")(x)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Reshape((16, 8 * 32))(x)
    x = layers.Dense(32, activation="relu")(x)
    x = layers.Dropout(0.2)(x)
    x = layers.Bidirectional(layers.LSTM(24, return_sequences=True, dropout=0.25))(x)
    x = layers.Bidirectional(layers.LSTM(16, return_sequences=True, dropout=0.25))(x)
    return keras.Model(i, layers.Dense(20, activation="softmax")(x))
