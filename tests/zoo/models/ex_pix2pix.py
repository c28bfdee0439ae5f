"""CycleGAN generator (reflection pad, instance norm, residual, Conv2DTranspose)."""

from functools import partial

import keras
from keras import layers


@keras.saving.register_keras_serializable("zoo")
class ReflectPad(layers.Layer):
    def __init__(self, p=1, **k):
        super().__init__(**k)
        self.p = p

    def call(self, x):
        return keras.ops.pad(
            x, [[0, 0], [self.p, self.p], [self.p, self.p], [0, 0]], mode="reflect"
        )

    def get_config(self):
        return {**super().get_config(), "p": self.p}


def build():
    i = keras.Input((32, 32, 3))
    x = ReflectPad(3)(i)
    n = partial(layers.GroupNormalization, groups=-1)
    x = layers.Activation("relu")(n()(layers.Conv2D(16, 7, use_bias=False)(x)))
    for f in (24, 32):
        x = layers.Activation("relu")(
            n()(layers.Conv2D(f, 3, strides=2, padding="same", use_bias=False)(x))
        )
    for _ in range(2):
        y = n()(layers.Conv2D(32, 3)(ReflectPad()(x)))
        y = n()(layers.Conv2D(32, 3)(ReflectPad()(layers.Activation("relu")(y))))
        x = layers.add([x, y])
    for f in (24, 16):
        x = layers.Activation("relu")(
            n()(layers.Conv2DTranspose(f, 3, strides=2, padding="same", use_bias=False)(x))
        )
    return keras.Model(i, layers.Activation("tanh")(layers.Conv2D(3, 7)(ReflectPad(3)(x))))
