"""MACs of every kind of layer and operation against numbers worked out by hand."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tfcompress.bench import models
from tfcompress.graph.flatten import flatten
from tfcompress.graph.nodes import Graph
from tfcompress.surgery.macs import count, known_macs_of, macs_of
from tfcompress.surgery.shapes import input_shapes, specs_of


def macs(function, *shapes, **settings):
    """MACs of one function of inputs of these shapes."""
    inputs = [keras.Input(shape, **settings) for shape in shapes]
    return count(keras.Model(inputs, function(*inputs)))[0]


def only(layer, *shape, **settings):
    return macs(layer, shape, **settings)


FIRST = {"data_format": "channels_first"}


@pytest.mark.parametrize(
    ("layer", "shape", "wanted"),
    [
        (layers.Dense(5), (7,), 7 * 5),
        (layers.Dense(5, use_bias=False), (3, 2, 7), 3 * 2 * 7 * 5),
        (layers.EinsumDense("abc,cde->abde", (None, 3, 4)), (6, 5), 6 * 5 * 3 * 4),
        (layers.EinsumDense("...x,xy->...y", 4), (9, 5), 9 * 5 * 4),
        (layers.Conv1D(4, 3), (10, 2), 8 * 3 * 2 * 4),
        (layers.Conv1D(4, 3, padding="causal", dilation_rate=2), (10, 2), 10 * 3 * 2 * 4),
        (layers.Conv2D(8, 3, strides=2, padding="same"), (9, 7, 4), 5 * 4 * 9 * 4 * 8),
        (layers.Conv2D(8, (3, 2), dilation_rate=2), (9, 9, 4), 5 * 7 * 6 * 4 * 8),
        (layers.Conv2D(8, 3, groups=2), (6, 6, 4), 4 * 4 * 9 * 2 * 8),
        (layers.Conv2D(8, 3, **FIRST), (4, 6, 9), 4 * 7 * 9 * 4 * 8),
        (layers.Conv3D(5, 2), (4, 5, 6, 3), 3 * 4 * 5 * 8 * 3 * 5),
        (layers.Conv1DTranspose(4, 3, strides=2), (10, 2), 10 * 3 * 2 * 4),
        (layers.Conv2DTranspose(4, 3, strides=2, padding="same"), (5, 6, 2), 30 * 9 * 2 * 4),
        (layers.Conv2DTranspose(4, 2, **FIRST), (2, 5, 6), 30 * 4 * 2 * 4),
        (layers.Conv3DTranspose(4, 2), (2, 3, 4, 5), 24 * 8 * 5 * 4),
        (layers.DepthwiseConv1D(3, depth_multiplier=2), (10, 4), 8 * 3 * 4 * 2),
        (layers.DepthwiseConv2D(3, depth_multiplier=2), (6, 7, 4), 4 * 5 * 9 * 4 * 2),
        (layers.SeparableConv1D(5, 3), (10, 4), 8 * (3 * 4 + 4 * 5)),
        (
            layers.SeparableConv2D(5, 3, depth_multiplier=2, strides=2),
            (7, 7, 4),
            9 * (9 * 4 * 2 + 4 * 2 * 5),
        ),
        (layers.LSTM(5), (6, 3), 6 * (3 * 20 + 5 * 20)),
        (layers.GRU(5, reset_after=False), (6, 3), 6 * (3 * 15 + 5 * 15)),
        (layers.SimpleRNN(5, return_sequences=True), (6, 3), 6 * (3 * 5 + 5 * 5)),
        (layers.Bidirectional(layers.LSTM(5)), (6, 3), 2 * 6 * (3 * 20 + 5 * 20)),
        (
            layers.RNN(layers.StackedRNNCells([layers.GRUCell(4), layers.LSTMCell(5)])),
            (6, 3),
            6 * (3 * 12 + 4 * 12 + 4 * 20 + 5 * 20),
        ),
        (layers.TimeDistributed(layers.Conv2D(4, 3)), (3, 5, 6, 2), 3 * 3 * 4 * 9 * 2 * 4),
        (layers.ConvLSTM1D(4, 3), (3, 8, 2), 3 * 6 * 3 * (2 + 4) * 16),
        (
            layers.ConvLSTM2D(4, 3, strides=2, padding="same", return_sequences=True),
            (3, 8, 6, 2),
            3 * 4 * 3 * 9 * (2 + 4) * 16,
        ),
        (layers.SpectralNormalization(layers.Dense(5)), (7,), 7 * 5),
        (layers.BatchNormalization(), (6, 6, 4), 0),
        (layers.Embedding(9, 4), (6,), 0),
        (layers.GlobalAveragePooling2D(), (6, 6, 4), 0),
    ],
)
def test_layers(layer, shape, wanted):
    assert only(layer, *shape) == wanted


def test_attention_counts_projections_scores_and_values():
    query, value = (6, 10), (4, 12)  # time, features
    projections = 6 * 10 * 3 * 5 + 4 * 12 * 3 * 5 + 4 * 12 * 3 * 7 + 6 * 3 * 7 * 10
    wanted = projections + 3 * 6 * 4 * 5 + 3 * 6 * 4 * 7
    heads = layers.MultiHeadAttention(3, 5, value_dim=7)
    assert macs(heads, query, value) == wanted
    heads = layers.MultiHeadAttention(3, 5, value_dim=7)
    assert macs(lambda q, v: heads(value=v, query=q), query, value) == wanted
    grouped = layers.GroupQueryAttention(5, 4, 2)  # 4 heads of queries read 2 of keys
    projections = 6 * 10 * 20 + 2 * (4 * 10 * 10) + 6 * 20 * 10
    assert macs(grouped, query, (4, 10)) == projections + 2 * (4 * 6 * 4 * 5)


def test_attention_over_one_of_two_axes():
    heads = layers.MultiHeadAttention(2, 3, attention_axes=2)
    places = 5 * 4  # each of 5 rows attends to its own 4 places
    wanted = 4 * places * 8 * 6 + 2 * (places * 4 * 6)
    assert macs(lambda x: heads(x, x), (5, 4, 8)) == wanted


def test_attention_without_weights():
    query, value = (6, 10), (4, 10)
    assert macs(lambda q, v: layers.Attention()([q, v]), query, value) == 2 * 6 * 4 * 10
    assert macs(lambda q, v: layers.AdditiveAttention()([q, v]), query, value) == 6 * 4 * 10
    flash = ops.dot_product_attention
    assert macs(lambda q, v: flash(q, v, v), (6, 3, 5), (4, 3, 5)) == 2 * 3 * 6 * 4 * 5


def test_operations():
    assert macs(ops.matmul, (4, 3), (3, 5)) == 4 * 3 * 5
    assert macs(lambda x: ops.matmul(x, np.ones((3, 5), "float32")), (4, 3)) == 4 * 3 * 5
    assert macs(lambda x: ops.matmul(x, np.ones(3, "float32")), (4, 3)) == 4 * 3
    assert macs(lambda x: ops.tensordot(x, np.ones((3, 2, 5)), axes=[[2], [0]]), (4, 3)) == 120
    assert macs(lambda x: ops.dot(x, np.ones((3, 5))), (4, 3)) == 60
    assert macs(lambda a, b: layers.Dot((2, 1))([a, b]), (4, 3), (3, 5)) == 60
    assert macs(lambda a, b: layers.Dot(1)([a, b]), (7,), (7,)) == 7
    assert macs(lambda a, b: ops.einsum("bij,bkj->bik", a, b), (4, 3), (5, 3)) == 60
    assert macs(lambda a, b: ops.einsum("...ij,...jk", a, b), (2, 4, 3), (2, 3, 5)) == 120
    # (bij, jk) first: 4*3*5, then (bik, bkl): 4*5*6.
    chain = "bij,bjk,bkl->bil"
    assert macs(lambda a, b, c: ops.einsum(chain, a, b, c), (4, 3), (3, 5), (5, 6)) == 60 + 120
    kernel = np.ones((3, 3, 2, 4), "float32")
    assert macs(lambda x: ops.conv(x, kernel), (6, 7, 2)) == 4 * 5 * 9 * 2 * 4
    back = np.ones((3, 3, 4, 2), "float32")
    assert macs(lambda x: ops.conv_transpose(x, back, 2), (6, 7, 2)) == 42 * 9 * 8
    assert macs(lambda x: ops.relu(x) * 3 + x, (6, 7, 2)) == 0


def test_merged_batch_axes_are_known():
    """Windows of a Swin transformer: (batch, 8, 8, c) -> (batch * 4, 16, c)."""

    def windows(x):
        x = ops.reshape(x, (-1, 2, 4, 2, 4, 6))
        return layers.Dense(5)(ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 16, 6)))

    assert only(windows, 8, 8, 6) == 64 * 6 * 5


def test_a_fixed_batch_counts_as_one_sample():
    x = keras.Input(batch_shape=(8, 4, 3))
    assert count(keras.Model(x, layers.Dense(5)(x))) == (4 * 3 * 5, 20)
    y = ops.reshape(x, (8, 12))  # written into the model, it cannot be told from other axes
    assert count(keras.Model(x, layers.Dense(5)(y)))[0] == 8 * 60


def test_shared_layers_count_their_weights_once_and_their_macs_always():
    a, b = keras.Input((4,)), keras.Input((4,))
    dense = layers.Dense(3)
    assert count(keras.Model([a, b], dense(a) + dense(b))) == (2 * 12, 15)


def test_models_inside_of_models_and_layers():
    inner = keras.Sequential([keras.Input((6, 6, 2)), layers.Conv2D(4, 3), layers.Flatten()])
    nested = keras.Sequential([keras.Input((6, 6, 2)), inner, layers.Dense(3)])
    assert count(nested) == (16 * 72 + 64 * 3, 72 + 4 + 195)
    assert only(layers.TimeDistributed(inner), 5, 6, 6, 2) == 5 * 16 * 72


@keras.saving.register_keras_serializable("test_macs")
class Projection(layers.Layer):
    """A user's layer with a weight of its own and no layer inside."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 5))

    def call(self, x):
        return ops.relu(ops.matmul(x, self.kernel))


@keras.saving.register_keras_serializable("test_macs")
class Products(layers.Layer):
    """A user's layer of a list of tensors."""

    def call(self, pair):
        return ops.matmul(pair[0], pair[1])


@keras.saving.register_keras_serializable("test_macs")
class Cell(layers.Layer):
    """A user's cell, whose steps are not looked into."""

    state_size = 3

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 3))

    def call(self, x, states, training=None):
        y = ops.matmul(x, self.kernel) + states[0]
        return y, [y]


def test_code_of_the_user_is_traced():
    assert macs(lambda a, b: Products()([a, b]), (4, 3), (3, 5)) == 4 * 3 * 5
    assert only(Projection(), 4, 3) == 4 * 3 * 5
    assert only(layers.Lambda(lambda x: ops.matmul(x, ops.ones((3, 5)))), 4, 3) == 60


def test_code_that_cannot_be_traced_is_unknown():
    def opaque(x):
        import tensorflow as tf

        return tf.math.bessel_i0e(x)

    layer = layers.Lambda(opaque, output_shape=(3,))
    shapes = [(None, 3)]
    assert known_macs_of(layer, lambda v: tuple(v.shape), shapes, shapes) is None
    assert macs_of(layer, lambda v: tuple(v.shape), shapes, shapes) == 0
    rnn = layers.RNN(Cell())
    rnn.build((None, 6, 3))
    assert known_macs_of(rnn, lambda v: tuple(v.shape), [(None, 6, 3)], [(None, 3)]) is None


def test_shapes_that_weights_would_have():
    layer = layers.Conv2D(8, 3)
    layer.build((None, 6, 6, 4))
    smaller = {id(layer.kernel): (3, 3, 3, 5)}

    def shape_of(variable):
        return smaller.get(id(variable), tuple(variable.shape))

    assert macs_of(layer, shape_of, [(None, 6, 6, 3)], [(None, 4, 4, 5)]) == 16 * 9 * 3 * 5


def test_inputs_come_in_the_order_of_the_arguments():
    q, v = keras.Input((6, 10)), keras.Input((4, 12))
    heads = layers.MultiHeadAttention(3, 5)
    graph = Graph.of(keras.Model([q, v], heads(value=v, query=q)))
    assert input_shapes(graph.nodes[-1]) == [(None, 6, 10), (None, 4, 12)]
    specs = specs_of(graph)
    assert [tuple(specs[id(t)].shape) for t in graph.nodes[-1].outputs] == [(1, 6, 10)]


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        # mlcommons/tiny, as its reference models are published.
        (models.resnet8, (12_501_632, 78_666)),
        (models.ds_cnn, (2_656_768, 24_908)),
        (models.mobilenet_v1, (7_489_664, 221_794)),
        (models.autoencoder, (264_192, 269_992)),
    ],
)
def test_mlperf_tiny(make, wanted):
    model = make()
    assert count(model) == wanted
    assert count(flatten(model)) == wanted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "millions"),
    [("MobileNet", 569), ("MobileNetV2", 301), ("ResNet50", 3858), ("VGG16", 15470)],
)
def test_published_macs(name, millions):
    model = getattr(keras.applications, name)(weights=None)
    found, params = count(model)
    assert round(found / 1e6) == millions
    assert params == model.count_params()
