"""keras-rs: DotInteraction in a DLRM."""

import keras
import keras_rs
from keras import layers


def build():
    d = keras.Input((13,), name="num")
    c = keras.Input((6,), dtype="int32", name="cat")
    x = layers.Dense(16, activation="relu")(layers.Dense(32, activation="relu")(d))
    embs = [layers.Embedding(100, 16, name=f"emb{i}")(c[:, i]) for i in range(6)]
    z = keras_rs.layers.DotInteraction()([x, *embs])
    z = layers.Concatenate()([x, z])
    for k in (32, 16):
        z = layers.Dense(k, activation="relu")(z)
    return keras.Model({"num": d, "cat": c}, layers.Dense(1, activation="sigmoid")(z))


INTS = {"cat": 100}
