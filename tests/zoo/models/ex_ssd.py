"""SSD-lite (depthwise heads at 3 scales, anchors decoded by exp)."""

import keras
from keras import layers, ops


def sep(x, f, s=1):
    x = layers.DepthwiseConv2D(3, strides=s, padding="same", use_bias=False)(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.Conv2D(f, 1, use_bias=False)(x)
    return layers.ReLU(6.0)(layers.BatchNormalization()(x))


def build():
    i = keras.Input((96, 96, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same")(i)
    x = sep(x, 16, 2)
    a = sep(x, 24, 2)
    b = sep(a, 32, 2)
    c = sep(b, 32, 2)
    cls, box = [], []
    for f in (a, b, c):
        cls.append(layers.Reshape((-1, 4))(layers.Conv2D(12, 1)(sep(f, 16))))
        box.append(layers.Reshape((-1, 4))(layers.Conv2D(12, 1)(sep(f, 16))))
    B = layers.Concatenate(axis=1)(box)
    xy, wh = B[..., :2], B[..., 2:]
    B = ops.concatenate([xy * 0.1, ops.exp(wh * 0.2)], axis=-1)
    return keras.Model(i, {"scores": ops.sigmoid(layers.Concatenate(axis=1)(cls)), "boxes": B})
