"""Rounding as LiteRT's integer kernels do it, against hand-computed values."""

import keras
import numpy as np
from keras import layers, ops

import tfcompress as tfc
from tfcompress.techniques.quantize import round_activation, ties_away


def test_halves_are_rounded_away_from_code_zero():
    # Range [-128, 127]: a step of 1, and code 0 means 0.
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.25, -2.25], "float32")
    result = round_activation(ties_away(x, -128.0, 127.0), -128.0, 127.0)
    np.testing.assert_array_equal(result, [-3, -2, -1, 1, 2, 2, -2])
    # Range [0, 255]: code 0 means 128, and halves below it go down.
    x = np.array([1.5, 127.5, 128.5, 200.5], "float32")
    result = round_activation(ties_away(x, 0.0, 255.0), 0.0, 255.0)
    np.testing.assert_array_equal(result, [1, 127, 129, 201])


class Placed(layers.Layer):
    """Adds to each position a row of a table, whose numbers are constants."""

    def build(self, shape):
        self.table = layers.Embedding(shape[1] + 3, shape[2])

    def call(self, x):
        return x + self.table(ops.arange(x.shape[1]))


def test_the_file_gives_the_bits_of_the_simulation(tmp_path):
    keras.utils.set_random_seed(0)
    data = np.random.default_rng(0).normal(size=(96, 8, 8, 3)).astype("float32")
    x = keras.Input((8, 8, 3))
    y = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x)))
    y = layers.ReLU()(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(y)))
    # Averages of values whose range is fixed: halves.
    y = layers.AveragePooling2D(2)(layers.Conv2D(8, 1, activation="tanh")(y))
    y = layers.Dense(8)(Placed()(layers.Reshape((16, 8))(y)))
    root = ops.sqrt(layers.ReLU()(y) + 0.1)  # whose kernel rounds down
    qat = tfc.quantize_aware(keras.Model(x, [y, root]))
    qat(data, training=True)
    qat(data, training=True)
    file = tmp_path / "model.tflite"
    assert tfc.convert(qat, file, precision="int8").float_ops == []
    found = tfc.verify(qat, file, data).outputs
    assert [output.keras.max_lsb < 1e-3 for output in found] == [True, True]
