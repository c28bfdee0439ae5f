"""DCGAN generator (Conv2DTranspose, LeakyReLU, tanh)."""

import keras
from keras import layers


def build():
    return keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(4 * 4 * 32, use_bias=False),
            layers.BatchNormalization(),
            layers.LeakyReLU(0.2),
            layers.Reshape((4, 4, 32)),
            layers.Conv2DTranspose(32, 5, strides=1, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.LeakyReLU(0.2),
            layers.Conv2DTranspose(16, 4, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.LeakyReLU(0.2),
            layers.Conv2DTranspose(
                3, 4, strides=2, padding="same", use_bias=False, activation="tanh"
            ),
        ]
    )
