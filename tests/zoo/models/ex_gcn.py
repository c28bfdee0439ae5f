"""Dense GCN + attention pooling on (nodes, adjacency)."""

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable("zoo")
class GCN(layers.Layer):
    def __init__(self, units, **k):
        super().__init__(**k)
        self.units = units

    def build(self, s):
        self.w = self.add_weight(shape=(s[0][-1], self.units), name="w")
        self.b = self.add_weight(shape=(self.units,), initializer="zeros", name="b")

    def call(self, v):
        x, a = v
        return ops.relu(ops.matmul(a, ops.matmul(x, self.w)) + self.b)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def build():
    x = keras.Input((12, 8), name="x")
    a = keras.Input((12, 12), name="a")
    y = x
    for u in (16, 16):
        y = GCN(u)([y, a])
    s = layers.Softmax(axis=1)(layers.Dense(1)(y))
    return keras.Model([x, a], layers.Dense(3)(ops.sum(y * s, axis=1)))


def data(n, rng):
    import numpy as np

    a = (rng.random((n, 12, 12)) < 0.3) + np.eye(12)
    a = np.minimum(a + a.transpose(0, 2, 1), 1)
    a = a / a.sum(-1, keepdims=True)
    return [rng.normal(size=(n, 12, 8)).astype("float32"), a.astype("float32")]
