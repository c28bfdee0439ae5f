"""Conformer block on log-mel frames (GLU, depthwise Conv1D, MHA)."""

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable("zoo")
class ConformerBlock(layers.Layer):
    def __init__(self, dim=32, heads=2, kernel=7, **k):
        super().__init__(**k)
        self.dim = dim
        self.heads = heads
        self.kernel = kernel
        self.ff = [
            [
                layers.LayerNormalization(),
                layers.Dense(dim * 2, activation="swish"),
                layers.Dropout(0.1),
                layers.Dense(dim),
            ]
            for _ in range(2)
        ]
        self.ln1 = layers.LayerNormalization()
        self.mha = layers.MultiHeadAttention(heads, dim // heads, dropout=0.1)
        self.ln2 = layers.LayerNormalization()
        self.pw1 = layers.Conv1D(2 * dim, 1)
        self.dw = layers.DepthwiseConv1D(kernel, padding="same")
        self.bn = layers.BatchNormalization()
        self.pw2 = layers.Conv1D(dim, 1)
        self.ln3 = layers.LayerNormalization()

    def build(self, shape):
        s = tuple(shape)
        for f in self.ff:
            f[0].build(s)
            f[1].build(s)
            f[3].build((*s[:-1], self.dim * 2))
        for part in (self.ln1, self.ln2, self.ln3, self.pw1, self.dw, self.bn, self.pw2):
            part.build(s)
        self.mha.build(s, s)

    def call(self, x, training=None):
        def run(f, y):
            y = f[1](f[0](y))
            y = f[2](y, training=training)
            return f[3](y)

        x = x + 0.5 * run(self.ff[0], x)
        y = self.ln1(x)
        x = x + self.mha(y, y, training=training)
        a, g = ops.split(self.pw1(self.ln2(x)), 2, axis=-1)
        y = self.dw(a * ops.sigmoid(g))
        y = ops.silu(self.bn(y, training=training))
        x = x + self.pw2(y)
        return self.ln3(x + 0.5 * run(self.ff[1], x))

    def get_config(self):
        return {**super().get_config(), "dim": self.dim, "heads": self.heads, "kernel": self.kernel}


def build():
    i = keras.Input((32, 40))
    x = layers.Reshape((32, 40, 1))(i)
    x = layers.Conv2D(8, 3, strides=2, activation="relu", padding="same")(x)
    x = layers.Reshape((16, 160))(x)
    x = layers.Dense(32)(x)
    for n in range(2):
        x = ConformerBlock(name=f"conformer_{n}")(x)
    return keras.Model(i, layers.Dense(30, activation="softmax")(x))
