"""Which activation functions are known to take each value alone."""

import keras
import pytest
import tensorflow as tf
from keras import layers, ops

from tfcompress.channels.operations import has_clear_activations, is_pointwise, mixes_channels

ALONE = [
    keras.activations.relu,
    keras.activations.hard_silu,
    keras.activations.get("mish"),
    ops.gelu,
    tf.nn.relu,
    tf.math.tanh,
    layers.LeakyReLU(0.1),
    lambda x: ops.relu(x) ** 2,
    lambda x: x * ops.sigmoid(1.7 * x),
]
TOGETHER = [
    keras.activations.softmax,
    keras.activations.sparsemax,
    keras.activations.glu,
    tf.nn.softmax,
    layers.PReLU(),
    layers.Softmax(),
    lambda x: x - ops.mean(x, axis=-1, keepdims=True),
    lambda x: ops.softmax(x),
    lambda x: ops.flip(x, axis=-1),
]


@pytest.mark.parametrize("function", ALONE)
def test_functions_of_each_value(function):
    assert is_pointwise(function)


@pytest.mark.parametrize("function", TOGETHER)
def test_functions_of_several_values(function):
    assert not is_pointwise(function)


@pytest.mark.parametrize(
    ("layer", "mixes", "clear"),
    [
        (layers.Dense(3, activation="relu"), False, True),
        (layers.Dense(3, activation="softmax"), True, True),
        (layers.Dense(3, activation=TOGETHER[6]), True, False),
        (layers.LSTM(3), False, True),
        (layers.LSTM(3, recurrent_activation="softmax"), True, True),
        (layers.Bidirectional(layers.GRU(3, activation="softmax")), True, True),
        (layers.Conv2D(3, 1), False, True),
        (layers.Softmax(), True, True),
    ],
)
def test_layers(layer, mixes, clear):
    assert mixes_channels(layer) == mixes
    assert has_clear_activations(layer) == clear
