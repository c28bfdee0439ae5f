"""keras.io: English-Spanish transformer (causal mask from ops.shape, padding masks)."""

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable("zoo")
class Pos(layers.Layer):
    def __init__(self, n, v, d, **k):
        super().__init__(**k)
        self.n, self.v, self.d = n, v, d
        self.tok = layers.Embedding(v, d)
        self.pos = layers.Embedding(n, d)

    def build(self, shape):
        self.tok.build(shape)
        self.pos.build((self.n,))
        self.built = True

    def call(self, x):
        length = ops.shape(x)[-1]
        return self.tok(x) + self.pos(ops.arange(0, length, 1))

    def compute_mask(self, x, mask=None):
        return ops.not_equal(x, 0)

    def get_config(self):
        return {**super().get_config(), "n": self.n, "v": self.v, "d": self.d}


@keras.saving.register_keras_serializable("zoo")
class Enc(layers.Layer):
    def __init__(self, d, f, h, **k):
        super().__init__(**k)
        self.d, self.f, self.h = d, f, h
        self.supports_masking = True
        self.att = layers.MultiHeadAttention(h, d)
        self.p = keras.Sequential([layers.Dense(f, activation="relu"), layers.Dense(d)])
        self.n1 = layers.LayerNormalization()
        self.n2 = layers.LayerNormalization()

    def build(self, s):
        self.att.build(s, s)
        self.p.build(s)
        self.n1.build(s)
        self.n2.build(s)
        self.built = True

    def call(self, x, mask=None):
        pm = ops.cast(mask[:, None, :], "int32") if mask is not None else None
        y = self.n1(x + self.att(query=x, value=x, key=x, attention_mask=pm))
        return self.n2(y + self.p(y))

    def get_config(self):
        return {**super().get_config(), "d": self.d, "f": self.f, "h": self.h}


@keras.saving.register_keras_serializable("zoo")
class Dec(layers.Layer):
    def __init__(self, d, f, h, **k):
        super().__init__(**k)
        self.d, self.f, self.h = d, f, h
        self.supports_masking = True
        self.a1 = layers.MultiHeadAttention(h, d)
        self.a2 = layers.MultiHeadAttention(h, d)
        self.p = keras.Sequential([layers.Dense(f, activation="relu"), layers.Dense(d)])
        self.n = [layers.LayerNormalization() for _ in range(3)]

    def build(self, shape):
        s = shape[0]
        self.a1.build(s, s)
        self.a2.build(s, s)
        self.p.build(s)
        [n.build(s) for n in self.n]
        self.built = True

    def call(self, inputs, mask=None):
        x, e = inputs
        n = ops.shape(x)[1]
        b = ops.shape(x)[0]
        i = ops.arange(n)[:, None]
        j = ops.arange(n)
        m = ops.cast(i >= j, "int32")
        m = ops.reshape(m, (1, n, n))
        m = (
            ops.tile(
                m, ops.concatenate([ops.expand_dims(b, -1), ops.convert_to_tensor([1, 1])], axis=0)
            )
            if False
            else ops.repeat(m, 1, axis=0)
        )
        pm = None
        if mask is not None and mask[0] is not None:
            pm = ops.cast(mask[0][:, None, :], "int32")
            m = ops.minimum(pm, m)
        y = self.n[0](x + self.a1(query=x, value=x, key=x, attention_mask=m))
        z = self.n[1](y + self.a2(query=y, value=e, key=e))
        return self.n[2](z + self.p(z))

    def get_config(self):
        return {**super().get_config(), "d": self.d, "f": self.f, "h": self.h}


def build():
    a = keras.Input((12,), dtype="int32", name="enc")
    b = keras.Input((10,), dtype="int32", name="dec")
    e = Enc(24, 32, 2, name="encoder")(Pos(12, 60, 24, name="pe")(a))
    d = Dec(24, 32, 2, name="decoder")([Pos(10, 60, 24, name="pd")(b), e])
    return keras.Model(
        {"enc": a, "dec": b}, layers.Dense(60, activation="softmax")(layers.Dropout(0.5)(d))
    )


def data(n, rng):
    import numpy as np

    def f(k):
        lengths = rng.integers(5, k + 1, (n, 1))
        return (rng.integers(1, 60, (n, k)) * (np.arange(k) < lengths)).astype("int32")

    return {"dec": f(10), "enc": f(12)}
