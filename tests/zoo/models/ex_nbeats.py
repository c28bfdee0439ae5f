"""N-BEATS (trend, seasonality and generic blocks as Lambda-free Dense with fixed bases)."""

import keras
import numpy as np
from keras import layers, ops


@keras.saving.register_keras_serializable("zoo")
class Basis(layers.Layer):
    def __init__(self, kind, k, length, **kw):
        super().__init__(**kw)
        self.kind, self.k, self.length = kind, k, length
        t = np.arange(length) / length
        self.basis = np.stack(
            [t**j for j in range(k)]
            if kind == "trend"
            else [f(2 * np.pi * (j + 1) * t) for j in range(k // 2) for f in (np.cos, np.sin)]
        ).astype("float32")

    def call(self, theta):
        return ops.matmul(theta, self.basis)

    def get_config(self):
        return {**super().get_config(), "kind": self.kind, "k": self.k, "length": self.length}


def build():
    i = keras.Input((24,))
    x, y = i, None
    for kind in ("trend", "season", "generic"):
        h = x
        for _ in range(2):
            h = layers.Dense(32, activation="relu")(h)
        k = 4
        if kind == "generic":
            b, f = layers.Dense(24)(layers.Dense(8)(h)), layers.Dense(6)(layers.Dense(8)(h))
        else:
            th = layers.Dense(k, use_bias=False)(h)
            b, f = Basis(kind, k, 24)(th), Basis(kind, k, 6)(th)
        x = layers.Subtract()([x, b])
        y = f if y is None else layers.Add()([y, f])
    return keras.Model(i, y)
