"""keras.io: ESPCN super-resolution (depth to space by reshape/transpose)."""

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable("zoo")
class D2S(layers.Layer):
    def __init__(self, b, **k):
        super().__init__(**k)
        self.b = b

    def call(self, x):
        s = ops.shape(x)
        n, h, w, d = s[0], s[1], s[2], s[3]
        c = d // (self.b**2)
        y = ops.reshape(x, [n, h, w, self.b, self.b, c])
        y = ops.transpose(y, [0, 1, 3, 2, 4, 5])
        return ops.reshape(y, [n, h * self.b, w * self.b, c])

    def get_config(self):
        return {**super().get_config(), "b": self.b}


def build():
    i = keras.Input((32, 32, 1))
    x = layers.Conv2D(16, 5, padding="same", activation="relu")(i)
    for f in (16, 8):
        x = layers.Conv2D(f, 3, padding="same", activation="relu")(x)
    return keras.Model(i, D2S(3)(layers.Conv2D(9, 3, padding="same")(x)))
