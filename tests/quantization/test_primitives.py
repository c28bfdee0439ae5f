"""Layers opened into primitives, layers that are left as they are, and primitives by hand."""

import keras
import numpy as np
import opened_layers
import pytest
from keras import layers, ops
from opened_layers import kinds, normal, open_and_compare

from tfcompress.graph.layers import Parameter
from tfcompress.graph.nodes import Graph
from tfcompress.quantization.openers import Rsqrt, opener
from tfcompress.quantization.opening import open_layers
from tfcompress.quantization.pieces import constant, with_weights

_seeded = opened_layers.seeded


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.SeparableConv1D(5, 3, padding="same", activation="relu"), (7, 4)),
        (layers.SeparableConv1D(5, 3, dilation_rate=2, use_bias=False), (9, 4)),
        (layers.SeparableConv2D(5, 3, strides=2, depth_multiplier=2, activation="silu"), (9, 9, 3)),
        (layers.SeparableConv2D(5, (1, 3), padding="same"), (5, 6, 3)),
    ],
)
def test_separable_convolutions(layer, shape, tmp_path):
    opened = open_and_compare(layer, normal(2, *shape), tmp_path=tmp_path)
    assert [kind.rstrip("12D") for kind in kinds(opened)[:2]] == ["DepthwiseConv", "Conv"]


@pytest.mark.parametrize(
    ("layer", "shape", "last"),
    [
        (layers.Dense(5, "tanh"), (4,), "Activation"),
        (layers.Conv1D(5, 3, activation="silu"), (7, 4), "Multiply"),
        (layers.Conv2D(4, 3, activation="hard_sigmoid"), (5, 5, 3), "Multiply"),
        (layers.Conv2D(4, 3, activation=lambda x: ops.sin(x)), (5, 5, 3), "Sin"),
        (layers.DepthwiseConv2D(3, activation="relu"), (5, 5, 3), "Activation"),
        (layers.Conv2DTranspose(4, 3, activation="relu6"), (5, 5, 3), "Activation"),
        (layers.Dense(5, activation=layers.LeakyReLU(0.3)), (4,), "LeakyReLU"),
        (layers.Activation("silu"), (4,), "Multiply"),
        (layers.Activation("hard_sigmoid"), (4,), "Multiply"),
    ],
)
def test_activations(layer, shape, last):
    assert kinds(open_and_compare(layer, normal(2, *shape)))[-1] == last


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.LayerNormalization(), (5, 4)),
        (layers.LayerNormalization(axis=1, epsilon=0.1), (5, 4)),
        (layers.LayerNormalization(axis=[1, 2]), (5, 4)),
        (layers.LayerNormalization(axis=[-1, 1]), (5, 6, 4)),
        (layers.LayerNormalization(scale=False), (5, 4)),
        (layers.LayerNormalization(center=False), (4,)),
        (layers.RMSNormalization(), (5, 4)),
        (layers.RMSNormalization(axis=[1, 2], epsilon=0.1), (5, 4)),
        (layers.GroupNormalization(2), (5, 6, 4)),
        (layers.GroupNormalization(-1, scale=False), (5, 4)),
        (layers.GroupNormalization(1, center=False), (4,)),
    ],
)
def test_normalizations(layer, shape, tmp_path):
    open_and_compare(layer, 3.0 + 2.0 * normal(2, *shape), tmp_path=tmp_path)


def test_average():
    data = normal(2, 4), 3.0 * normal(2, 4), 1.0 + normal(2, 4)
    inputs = [keras.Input((4,)) for _ in data]
    layer = layers.Average()
    model = keras.Model(inputs, [layer(inputs), opener(layer)(layer, inputs)])
    np.testing.assert_allclose(*model(list(data)), atol=1e-6)


class Scaled(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="normal", name="scale")
        self.shifts = [self.add_weight(shape=(1,), initializer="normal") for _ in range(2)]

    def call(self, x, factor=2.0):
        x = ops.reshape(x, (ops.shape(x)[0], -1, 2))
        x = ops.reshape(x, (-1, 4)) + self.shifts[1]
        return self.scale * ops.tanh(x) * factor


class Noisy(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed = keras.random.SeedGenerator(0)

    def call(self, x):
        return x + keras.random.normal(ops.shape(x), seed=self.seed)


class Raw(layers.Layer):
    def call(self, x):
        import tensorflow as tf

        return tf.nn.crelu(x)


def test_user_layers_written_with_keras_ops(tmp_path):
    layer = Scaled()
    x = keras.Input((4,))
    original = layer(x, factor=3.0)
    opened = keras.Model(x, opener(layer)(layer, x, factor=3.0))
    model = keras.Model(x, original)
    np.testing.assert_allclose(opened(normal(2, 4)), model(normal(2, 4)), atol=1e-6)
    assert len(opened.trainable_variables) == 2
    layer.trainable = False
    frozen = keras.Model(x, opener(layer)(layer, x))
    assert not frozen.trainable_variables
    layer.scale.assign(layer.scale * 0)
    assert np.any(np.asarray(opened(normal(2, 4))))


def test_user_layers_that_are_left():
    x = keras.Input((4,))
    noisy, raw = Noisy(), Raw()
    noisy(x), raw(x)
    assert opener(noisy) is None
    assert opener(raw)(raw, x)._keras_history.operation is raw
    assert opener(layers.Dropout(0.5)) is None


def test_frozen_weights_stay_frozen():
    x = keras.Input((4, 6))
    makers = {
        2: layers.LayerNormalization(),
        8: layers.MultiHeadAttention(2, 3),
        3: layers.SeparableConv1D(3, 2, activation="relu"),
        4: layers.LSTM(3, unroll=True),
    }
    for layer in makers.values():
        args = (x, x) if isinstance(layer, layers.MultiHeadAttention) else (x,)
        layer(*args)
        layer.trainable = False
        model = keras.Model(x, opener(layer)(layer, *args))
        assert not model.trainable_variables
        assert model.non_trainable_variables
    dense = layers.Dense(3, "relu")
    dense(x)
    dense.bias.trainable = False
    model = keras.Model(x, opener(dense)(dense, x))
    assert [v.name for v in model.trainable_variables] == ["kernel"]


def test_regularizers_and_constraints_are_handed_on():
    dense = layers.Dense(3, "relu", kernel_regularizer="l2", kernel_constraint="non_neg")
    norm = layers.LayerNormalization(gamma_regularizer="l1")
    x = keras.Input((4,))
    dense(x), norm(x)
    model = keras.Model(x, opener(dense)(dense, x))
    np.testing.assert_allclose(model.losses[0], dense.losses[0], rtol=1e-6)
    assert model.trainable_variables[0].constraint is not None
    model = keras.Model(x, opener(norm)(norm, x))
    np.testing.assert_allclose(model.losses[0], norm.losses[0], rtol=1e-6)


def test_a_shared_layer_opens_into_shared_pieces():
    layer, a, b = layers.LayerNormalization(), keras.Input((4,)), keras.Input((4,))
    layer(a)
    layer.gamma.assign([1.0, 2.0, 3.0, 4.0])
    first = opener(layer)(layer, a)
    pieces = Graph([a], first)
    second = pieces.run(
        [b], lambda node, *x, **k: x[0] if node.is_input else node.operation(*x, **k)
    )
    model = keras.Model([a, b], [first, second])
    assert model.count_params() == 8
    y = model([normal(2, 4), 5.0 + 2.0 * normal(2, 4)])
    np.testing.assert_allclose(y[0], layer(normal(2, 4)), atol=1e-5)
    np.testing.assert_allclose(y[1], layer(5.0 + 2.0 * normal(2, 4)), atol=1e-5)


class Scale(layers.Layer):
    """Divides where it multiplied before, by 3 or by a weight."""

    def __init__(self, weighted, **kwargs):
        super().__init__(**kwargs)
        self.weighted = weighted

    def build(self, shape):
        self.factor = self.add_weight(shape=(), initializer="ones") if self.weighted else 3.0

    def call(self, x, back=False):
        return x / self.factor if back else x * self.factor

    def get_config(self):
        return {**super().get_config(), "weighted": self.weighted}


@pytest.mark.parametrize("weighted", [False, True])
def test_a_shared_layer_that_is_called_in_two_ways(weighted):
    scale, x = Scale(weighted), keras.Input((4,))
    model = keras.Model(x, scale(layers.Dense(4)(scale(x)), back=True))
    if weighted:
        scale.factor.assign(5.0)
    opened = open_layers(model)
    assert opened.count_params() == model.count_params()
    np.testing.assert_allclose(opened(normal(3, 4)), model(normal(3, 4)), atol=1e-5)


def test_a_shared_head_on_maps_of_two_sizes():
    head, norm = layers.Conv2D(3, 3, activation="relu"), layers.GroupNormalization(1)
    a, b = keras.Input((6, 6, 2)), keras.Input((4, 4, 2))
    model = keras.Model([a, b], [norm(head(a)), norm(head(b))])
    opened = open_layers(model)
    assert opened.count_params() == model.count_params()
    x = [normal(2, 6, 6, 2), normal(2, 4, 4, 2)]
    for ours, theirs in zip(opened(x), model(x), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert sum(type(x) is layers.Conv2D for x in opened.layers) == 1


def test_a_shared_projection_of_sequences_of_two_lengths():
    heads = layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de")
    a, b = keras.Input((6, 4)), keras.Input((5, 4))
    model = keras.Model([a, b], [heads(a), heads(b)])
    heads.bias.assign(normal(2, 3))
    opened = open_layers(model)
    assert opened.count_params() == model.count_params()
    x = [normal(2, 6, 4), normal(2, 5, 4)]
    for ours, theirs in zip(opened(x), model(x), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert sum(type(x) is layers.Dense for x in opened.layers) == 1


def test_primitives_and_things_that_are_not_layers_have_no_opener():
    x = keras.Input((4, 4, 3))
    operation = ops.relu(x)._keras_history.operation
    nested = keras.Sequential([keras.Input((4,)), layers.Dense(3, "relu")])
    wrapper = layers.TimeDistributed(layers.BatchNormalization())
    wrapper(keras.Input((5, 4)))
    for thing in (
        *(operation, nested, wrapper, layers.Dense(3), layers.Activation("relu"), layers.ReLU()),
        *(layers.BatchNormalization(), layers.Embedding(3, 4), layers.Concatenate(), Rsqrt()),
        *(Parameter((3,)), layers.GroupNormalization(3, axis=1)),
        *(layers.LayerNormalization(dtype="mixed_float16"), None, "x"),
    ):
        assert opener(thing) is None


def test_rsqrt_by_hand():
    y = Rsqrt()(np.float32([[4.0, 0.25, 0.0, 1.0]]))
    np.testing.assert_allclose(y, [[0.5, 2.0, 2.0, 1.0]], rtol=1e-6)


def test_constant_and_with_weights_by_hand():
    x = keras.Input((2,))
    c = constant(np.float32([[1.0, 2.0]]), x, "c", trainable=False)
    y = with_weights(layers.Dense(2), x, kernel=np.eye(2), bias=np.float32([10.0, 20.0]))
    model = keras.Model(x, y + c)
    np.testing.assert_allclose(model(np.float32([[1.0, 1.0]])), [[12.0, 23.0]])
    assert [v.name for v in model.non_trainable_variables] == ["value"]
