"""keras.io: ViT (Patches by ops.image.extract_patches, PatchEncoder)."""

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable("zoo")
class Patches(layers.Layer):
    def __init__(self, p, **k):
        super().__init__(**k)
        self.p = p

    def call(self, x):
        s = ops.shape(x)
        b, h, w, c = s[0], s[1], s[2], s[3]
        y = keras.ops.image.extract_patches(x, size=self.p)
        return ops.reshape(y, (b, (h // self.p) * (w // self.p), self.p * self.p * c))

    def get_config(self):
        return {**super().get_config(), "p": self.p}


@keras.saving.register_keras_serializable("zoo")
class Enc(layers.Layer):
    def __init__(self, n, d, **k):
        super().__init__(**k)
        self.n, self.d = n, d
        self.proj = layers.Dense(d)
        self.pos = layers.Embedding(n, d)

    def build(self, s):
        self.proj.build(s)
        self.pos.build((self.n,))
        self.built = True

    def call(self, x):
        return self.proj(x) + self.pos(ops.expand_dims(ops.arange(0, self.n, 1), 0))

    def get_config(self):
        return {**super().get_config(), "n": self.n, "d": self.d}


def build():
    i = keras.Input((36, 36, 3))
    x = Enc(36, 32)(Patches(6)(i))
    for _ in range(2):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        a = layers.MultiHeadAttention(2, 16, dropout=0.1)(y, y)
        x2 = layers.Add()([a, x])
        y = layers.LayerNormalization(epsilon=1e-6)(x2)
        for u in (64, 32):
            y = layers.Dropout(0.1)(layers.Dense(u, activation=keras.activations.gelu)(y))
        x = layers.Add()([y, x2])
    x = layers.Dropout(0.5)(layers.Flatten()(layers.LayerNormalization(epsilon=1e-6)(x)))
    return keras.Model(i, layers.Dense(10)(layers.Dense(32, activation="gelu")(x)))
