"""Two-tower with StringLookup on string inputs."""

import keras
from keras import layers

W = [f"w{i}" for i in range(40)]


def build():
    u = keras.Input((1,), dtype="string", name="user")
    m = keras.Input((1,), dtype="string", name="movie")
    ue = layers.Flatten()(layers.Embedding(41, 16)(layers.StringLookup(vocabulary=W)(u)))
    me = layers.Flatten()(layers.Embedding(41, 16)(layers.StringLookup(vocabulary=W)(m)))
    ue = layers.Dense(16)(ue)
    me = layers.Dense(16)(me)
    return keras.Model({"user": u, "movie": m}, layers.Dot(axes=1, normalize=True)([ue, me]))


def data(n, rng):
    import tensorflow as tf

    return {"movie": tf.constant(rng.choice(W, (n, 1))), "user": tf.constant(rng.choice(W, (n, 1)))}
