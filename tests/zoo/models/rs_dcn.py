"""keras-rs: FeatureCross (DCN v2)."""

import keras
import keras_rs
from keras import layers


def build():
    d = keras.Input((24,))
    x = d
    for _ in range(3):
        x = keras_rs.layers.FeatureCross(projection_dim=12)(d, x)
    for k in (32, 16):
        x = layers.Dense(k, activation="relu")(x)
    return keras.Model(d, layers.Dense(1)(x))
