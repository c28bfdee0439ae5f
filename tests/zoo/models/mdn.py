"""keras-mdn-layer: MDN."""

import keras


def build():
    from keras_mdn_layer import MDN

    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(32, activation="relu"),
            MDN(2, 4),
        ]
    )


STRUCT = keras.Input((6,))
