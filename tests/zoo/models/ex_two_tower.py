"""Two-tower retrieval with StringLookup/IntegerLookup + embeddings."""

import keras
from keras import layers


def build():
    u = keras.Input((1,), dtype="int32", name="user")
    m = keras.Input((1,), dtype="int32", name="movie")
    ul = layers.IntegerLookup(vocabulary=list(range(1, 50)))
    ml = layers.IntegerLookup(vocabulary=list(range(1, 80)))
    ue = layers.Flatten()(layers.Embedding(51, 16)(ul(u)))
    me = layers.Flatten()(layers.Embedding(81, 16)(ml(m)))
    for k in (32, 16):
        ue = layers.Dense(k, activation="relu")(ue)
        me = layers.Dense(k, activation="relu")(me)
    ue = layers.UnitNormalization()(ue)
    me = layers.UnitNormalization()(me)
    return keras.Model({"user": u, "movie": m}, layers.Dot(axes=1)([ue, me]))


INTS = {"user": 60, "movie": 90}
