"""keras-tcn: TCN, ECG-like 128x2."""

import keras
from tcn import TCN


def build():
    i = keras.Input((128, 2))
    x = TCN(
        nb_filters=16, kernel_size=3, dilations=(1, 2, 4, 8), use_batch_norm=True, dropout_rate=0.1
    )(i)
    return keras.Model(i, keras.layers.Dense(5, activation="softmax")(x))
