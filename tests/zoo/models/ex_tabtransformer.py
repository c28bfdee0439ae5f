"""TabTransformer (column embeddings, MHA, numeric concat)."""

import keras
from keras import layers, ops


def build():
    c = keras.Input((5,), dtype="int32", name="cat")
    n = keras.Input((6,), name="num")
    x = ops.stack([layers.Embedding(20, 16)(c[:, k]) for k in range(5)], axis=1)
    x = x + layers.Embedding(5, 16)(ops.arange(5))
    for _ in range(2):
        a = layers.MultiHeadAttention(2, 16, dropout=0.1)(x, x)
        x = layers.LayerNormalization(epsilon=1e-6)(layers.Add()([a, x]))
        f = layers.Dense(16, activation="gelu")(x)
        x = layers.LayerNormalization(epsilon=1e-6)(layers.Add()([f, x]))
    y = layers.concatenate([layers.Flatten()(x), layers.LayerNormalization(epsilon=1e-6)(n)])
    for u in (32, 16):
        y = layers.Dense(u, activation="selu")(layers.BatchNormalization()(y))
    return keras.Model([c, n], layers.Dense(1, activation="sigmoid")(y))


INTS = {"cat": 20}
