"""wav2vec2-like (strided Conv1D + GroupNorm + GELU, grouped positional Conv1D, MHA)."""

import keras
from keras import layers


def build():
    i = keras.Input((640,))
    x = layers.Reshape((640, 1))(i)
    for n, (k, s) in enumerate([(10, 5), (3, 2), (3, 2)]):
        x = layers.Conv1D(32, k, strides=s, use_bias=False)(x)
        if n == 0:
            x = layers.GroupNormalization(groups=32)(x)
        x = layers.Activation("gelu")(x)
    x = layers.LayerNormalization()(x)
    x = layers.Dense(32)(x)
    p = layers.Conv1D(32, 16, padding="same", groups=4, activation="gelu")(x)
    x = layers.LayerNormalization()(x + p)
    for _ in range(2):
        a = layers.MultiHeadAttention(2, 16)(x, x)
        x = layers.LayerNormalization()(x + a)
        f = layers.Dense(32)(layers.Dense(64, activation="gelu")(x))
        x = layers.LayerNormalization()(x + f)
    return keras.Model(i, layers.Dense(20)(x))
