"""keras.io: VAE (subclassed, Sampling layer with SeedGenerator)."""

import keras
from keras import layers, ops


class Sampling(layers.Layer):
    def __init__(self, **k):
        super().__init__(**k)
        self.seed_generator = keras.random.SeedGenerator(1337)

    def call(self, inputs):
        mean, log_var = inputs
        eps = keras.random.normal(shape=ops.shape(mean), seed=self.seed_generator)
        return mean + ops.exp(0.5 * log_var) * eps


class VAE(keras.Model):
    def __init__(self, **k):
        super().__init__(**k)
        i = keras.Input((28, 28, 1))
        x = layers.Conv2D(16, 3, activation="relu", strides=2, padding="same")(i)
        x = layers.Conv2D(32, 3, activation="relu", strides=2, padding="same")(x)
        x = layers.Dense(16, activation="relu")(layers.Flatten()(x))
        m, v = layers.Dense(2, name="z_mean")(x), layers.Dense(2, name="z_log_var")(x)
        self.encoder = keras.Model(i, [m, v, Sampling()([m, v])], name="encoder")
        z = keras.Input((2,))
        x = layers.Reshape((7, 7, 32))(layers.Dense(7 * 7 * 32, activation="relu")(z))
        x = layers.Conv2DTranspose(32, 3, activation="relu", strides=2, padding="same")(x)
        x = layers.Conv2DTranspose(16, 3, activation="relu", strides=2, padding="same")(x)
        self.decoder = keras.Model(
            z, layers.Conv2DTranspose(1, 3, activation="sigmoid", padding="same")(x), name="decoder"
        )

    def call(self, x):
        m, _, _ = self.encoder(x)
        return self.decoder(m)


def build():
    import numpy as np

    m = VAE()
    m(np.zeros((1, 28, 28, 1), "float32"))
    return m


STRUCT = keras.Input((28, 28, 1))
