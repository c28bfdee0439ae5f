"""Functions of TensorFlow in users' layers, as operations of Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfcompress.graph.flatten import flatten

register = keras.saving.register_keras_serializable("test_raw")
PLACES = np.random.default_rng(0).integers(0, 4, (1, 3, 5))


@register
class Raw(layers.Layer):
    def __init__(self, function=None, **kwargs):
        super().__init__(**kwargs)
        self.function, self.dense = function, layers.Dense(4)

    def call(self, x):
        return self.function(self.dense(x))


FUNCTIONS = {
    "gather": lambda x: tf.gather(x, [2, 0], axis=2),
    "gather first": lambda x: tf.gather(tf.transpose(x, (1, 0, 2)), tf.constant([1, 1])),
    "gather in batches": lambda x: tf.gather(
        x, indices=tf.broadcast_to(PLACES, (tf.shape(x)[0], 3, 5)), batch_dims=2
    ),
    "gather rows": lambda x: tf.gather(
        x, tf.cast(tf.reduce_sum(x, -1) > 0.0, "int32"), axis=1, batch_dims=1
    ),
    "reshape": lambda x: tf.reshape(x, (-1, tf.shape(x)[1] * 4)),
    "reshape by array": lambda x: tf.reshape(x, tf.constant([-1, 2, 6]), name="r"),
    "transpose": lambda x: tf.transpose(x, perm=tf.constant([0, 2, 1])),
    "concat": lambda x: tf.concat([x, tf.identity(x)], axis=-1),
    "stack": lambda x: tf.stack([x, x], axis=1),
    "split": lambda x: tf.concat(tf.split(x, 2, axis=-1)[::-1], 1),
    "split sizes": lambda x: tf.split(x, [1, 3], -1)[1],
    "squeeze": lambda x: tf.squeeze(tf.expand_dims(x, 1), [1]),
    "tile": lambda x: tf.tile(x, [1, 2, 1]),
    "pad": lambda x: tf.pad(x, [[0, 0], [1, 0], [0, 2]], constant_values=2.0),
    "pad reflected": lambda x: tf.pad(x, tf.constant([[0, 0], [1, 0], [0, 2]]), "REFLECT"),
    "where": lambda x: tf.where(x > 0, x, tf.square(x)),
    "matmul": lambda x: tf.matmul(x, x, transpose_b=True),
    "einsum": lambda x: tf.einsum("bij,bkj->bik", x, x),
    "reduce": lambda x: (
        tf.reduce_mean(x, axis=[1, 2], keepdims=True)
        + tf.reduce_sum(x, -1, keepdims=True)
        + tf.reduce_max(x, axis=1, keepdims=True) * tf.reduce_min(x)
    ),
    "arithmetic": lambda x: tf.divide(
        tf.subtract(tf.multiply(x, 2.0), 1.0), tf.add(tf.abs(x), tf.constant(1.0))
    ),
    "limits": lambda x: tf.maximum(x, 0.5) - tf.minimum(0.1, x) + tf.clip_by_value(x, -0.5, 0.5),
    "roots": lambda x: tf.sqrt(tf.exp(x)) + tf.math.rsqrt(tf.exp(x)) + tf.math.log(tf.exp(x) + 1.0),
    "bounded": lambda x: tf.tanh(x) + tf.sigmoid(x) + tf.nn.softmax(x),
    "relu": lambda x: tf.nn.relu(x) + tf.nn.relu6(x) * tf.nn.leaky_relu(x),
    "smooth": lambda x: tf.nn.gelu(x) + tf.nn.gelu(x, approximate=True) + tf.nn.silu(x),
    "elu": lambda x: tf.nn.elu(x) + tf.nn.softplus(x),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_layer_is_opened_that_calls_tensorflow(name):
    keras.utils.set_random_seed(0)
    x = keras.Input((3, 4))
    model = keras.Model(x, Raw(FUNCTIONS[name])(x))
    flat = flatten(model)
    assert not any(isinstance(layer, Raw) for layer in flat.layers)
    data = np.random.default_rng(0).normal(size=(7, 3, 4)).astype("float32")
    np.testing.assert_allclose(flat(data), model(data), atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: tf.nn.crelu(x),  # in no table
        lambda x: tf.divide(tf.cast(x * 9.0, "int32"), 2),  # in TensorFlow a float64
        lambda x: tf.gather(x, [[[1, 0]] * 3] * 2, batch_dims=1)[:, 0],
    ],
)
def test_what_keras_computes_in_another_way_stays_whole(function):
    x = keras.Input((3, 4), batch_size=2)
    model = keras.Model(x, Raw(function)(x))
    with pytest.warns(UserWarning, match="stays one node"):
        flat = flatten(model)
    assert any(isinstance(layer, Raw) for layer in flat.layers)
    data = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    np.testing.assert_allclose(flat(data), model(data), atol=1e-5)


def test_tensorflow_takes_no_symbolic_tensors_elsewhere():
    x = keras.Input((3, 4))
    flatten(keras.Model(x, Raw(FUNCTIONS["relu"])(x)))
    with pytest.raises(ValueError, match="KerasTensor"):
        tf.nn.relu(x)
