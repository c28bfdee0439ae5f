"""keras.io: U-Net (separable, residual), 64 px."""

import keras
from keras import layers


def build():
    i = keras.Input((64, 64, 3))
    x = layers.Conv2D(16, 3, strides=2, padding="same")(i)
    x = layers.BatchNormalization()(x)
    x = layers.Activation("relu")(x)
    p = x
    for f in (24, 32):
        x = layers.Activation("relu")(x)
        x = layers.SeparableConv2D(f, 3, padding="same")(x)
        x = layers.BatchNormalization()(x)
        x = layers.Activation("relu")(x)
        x = layers.SeparableConv2D(f, 3, padding="same")(x)
        x = layers.BatchNormalization()(x)
        x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
        x = layers.add([x, layers.Conv2D(f, 1, strides=2, padding="same")(p)])
        p = x
    for f in (32, 24, 16):
        x = layers.Activation("relu")(x)
        x = layers.Conv2DTranspose(f, 3, padding="same")(x)
        x = layers.BatchNormalization()(x)
        x = layers.Activation("relu")(x)
        x = layers.Conv2DTranspose(f, 3, padding="same")(x)
        x = layers.BatchNormalization()(x)
        x = layers.UpSampling2D(2)(x)
        x = layers.add([x, layers.Conv2D(f, 1, padding="same")(layers.UpSampling2D(2)(p))])
        p = x
    return keras.Model(i, layers.Conv2D(3, 3, activation="softmax", padding="same")(x))
