"""GRU keyword spotter, one step with states in and out."""

import keras
from keras import layers


def build():
    f = keras.Input((1, 20), name="frame")
    s1 = keras.Input((24,), name="s1")
    s2 = keras.Input((24,), name="s2")
    x, n1 = layers.GRU(24, return_sequences=True, return_state=True)(f, initial_state=s1)
    x, n2 = layers.GRU(24, return_state=True)(x, initial_state=s2)
    return keras.Model(
        [f, s1, s2], [layers.Dense(12, activation="softmax", name="word")(x), n1, n2]
    )


def data(n, rng):

    return [
        rng.normal(size=(n, 1, 20)).astype("float32"),
        rng.uniform(-0.9, 0.9, (n, 24)).astype("float32"),
        rng.uniform(-0.9, 0.9, (n, 24)).astype("float32"),
    ]
