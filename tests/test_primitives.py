import os

import keras
import numpy as np
import pytest
from keras import layers, ops

from tfcompress.graph import Graph
from tfcompress.layers import Parameter
from tfcompress.primitives import Rsqrt, constant, opener, with_weights

PRIMITIVE = (
    *(layers.Dense, layers.Conv1D, layers.Conv2D, layers.DepthwiseConv1D, layers.DepthwiseConv2D),
    *(layers.Activation, layers.Multiply, layers.ReLU, layers.Softmax, layers.Dropout),
    *(layers.InputLayer, layers.Conv2DTranspose, layers.LeakyReLU, Parameter, Rsqrt),
)


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def open_and_compare(layer, *data, tmp_path=None, **settings):
    """The opened layer as a model, after checks that it computes what the layer does."""
    inputs = [keras.Input(x.shape[1:], dtype=str(x.dtype)) for x in data]
    original = keras.Model(inputs, layer(*inputs, **settings))
    rng = np.random.default_rng(1)
    for v in layer.weights:
        v.assign(rng.uniform(-0.9, 0.9, v.shape))
    opened = keras.Model(inputs, opener(layer)(layer, *inputs, **settings))
    assert layer not in opened.layers
    foreign = [x for x in opened.layers if not isinstance(x, PRIMITIVE)]
    assert not foreign
    wanted = original(list(data))
    assert np.any(np.abs(wanted) > 1e-3)
    np.testing.assert_allclose(opened(list(data)), wanted, atol=1e-5, rtol=1e-5)
    assert opened.count_params() == original.count_params()
    if tmp_path is not None:
        path = os.path.join(tmp_path, "opened.keras")
        opened.save(path)
        again = keras.saving.load_model(path)
        np.testing.assert_allclose(again(list(data)), wanted, atol=1e-5, rtol=1e-5)
    return opened


def kinds(model):
    graph = Graph.of(model)
    return [type(node.operation).__name__ for node in graph.nodes if not node.is_input]


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
        (layers.Conv2D(4, 3, activation=lambda x: ops.sin(x)), (5, 5, 3), "Activation"),
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


@pytest.mark.parametrize(
    ("layer", "settings"),
    [
        (layers.MultiHeadAttention(2, 3), {}),
        (layers.MultiHeadAttention(3, 4, value_dim=5), {"use_causal_mask": True}),
        (layers.MultiHeadAttention(2, 3, output_shape=7, use_bias=False, dropout=0.2), {}),
        (layers.MultiHeadAttention(2, 3, output_shape=(2, 3)), {}),
        (layers.MultiHeadAttention(2, 3), {"attention_mask": np.tri(5, 5)[None] > 0}),
    ],
)
def test_self_attention(layer, settings, tmp_path):
    x = normal(2, 5, 6)
    inputs = keras.Input((5, 6))
    original = keras.Model(inputs, layer(inputs, inputs, **settings))
    rng = np.random.default_rng(1)
    for v in layer.weights:
        v.assign(rng.uniform(-0.9, 0.9, v.shape))
    opened = keras.Model(inputs, opener(layer)(layer, inputs, inputs, **settings))
    np.testing.assert_allclose(opened(x), original(x), atol=1e-5)
    assert kinds(opened).count("Dense") == 4
    assert kinds(opened).count("Matmul") == 2


def test_cross_attention_with_key_and_masks():
    data = normal(2, 4, 6), normal(2, 5, 3), normal(2, 5, 7)
    open_and_compare(layers.MultiHeadAttention(2, 3, value_dim=4), *data)
    mask = np.random.default_rng(2).uniform(size=(2, 4, 5)) > 0.4
    layer = layers.MultiHeadAttention(2, 3)
    query, value, keep = keras.Input((4, 6)), keras.Input((5, 3)), keras.Input((4, 5), dtype="bool")
    original = layer(query, value, attention_mask=keep, use_causal_mask=True)
    for v in layer.weights:
        v.assign(1.5 * np.random.default_rng(1).normal(size=v.shape))  # large scores
    opened = opener(layer)(layer, query, value, attention_mask=keep, use_causal_mask=True)
    both = keras.Model([query, value, keep], [original, opened])
    mask[:, :, 0] = True
    wanted, got = both([*data[:2], mask])
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-4)


def test_attention_that_needs_masks_or_scores_is_left():
    layer = layers.MultiHeadAttention(2, 3)
    x = layers.Masking()(keras.Input((5, 6)))
    layer(x, x)
    assert opener(layer)(layer, x, x)._keras_history.operation is layer
    assert len(opener(layer)(layer, x, x, return_attention_scores=True)) == 2
    unknown = keras.Input((None, 6))
    assert opener(layer)(layer, unknown, unknown)._keras_history.operation is layer
    image = layers.MultiHeadAttention(2, 3, attention_axes=(1, 2))
    x = keras.Input((4, 4, 6))
    image(x, x)
    assert opener(image) is None


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.EinsumDense("ab,bc->ac", 5, bias_axes="c", activation="relu"), (4,)),
        (layers.EinsumDense("abc,cd->abd", (3, 5), bias_axes="d"), (3, 4)),
        (layers.EinsumDense("abc,cde->abde", (3, 5, 2), bias_axes="de"), (3, 4)),
        (layers.EinsumDense("abcd,cde->abe", (3, 5), bias_axes="e", activation="silu"), (3, 4, 2)),
        (layers.EinsumDense("...x,xy->...y", 5), (3, 4)),
    ],
)
def test_einsum_dense(layer, shape, tmp_path):
    opened = open_and_compare(layer, normal(2, *shape), tmp_path=tmp_path)
    assert kinds(opened).count("Dense") == 1


@pytest.mark.parametrize(
    ("equation", "output_shape", "bias_axes", "shape"),
    [
        ("abc,bd->adc", (5, 4), None, (3, 4)),
        ("abc,cd->adb", (5, 3), None, (3, 4)),
        ("abc,bcd->abd", (3, 5), None, (3, 4)),
        ("abc,cd->abd", (3, 5), "bd", (3, 4)),
        ("abc,dc->abd", (3, 5), None, (3, 4)),
        ("abc,cde->abde", (3, 5, 2), "e", (3, 4)),
    ],
)
def test_einsums_that_are_no_plain_matrix_product_are_left(
    equation, output_shape, bias_axes, shape
):
    layer = layers.EinsumDense(equation, output_shape, bias_axes=bias_axes)
    layer.build((None, *shape))
    assert opener(layer) is None


def test_einsum_over_an_axis_of_unknown_length():
    layer = layers.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d")
    x = keras.Input((None, 4))
    layer.build((None, None, 4))
    wanted = layer(normal(2, 3, 4))
    opened = keras.Model(x, opener(layer)(layer, x))
    np.testing.assert_allclose(opened(normal(2, 3, 4)), wanted, atol=1e-5)
    layer = layers.EinsumDense("abc,cde->abde", (None, 5, 2))
    layer(x)
    assert opener(layer)(layer, x)._keras_history.operation is layer


@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU])
@pytest.mark.parametrize(
    "settings",
    [{}, {"return_sequences": True}, {"go_backwards": True, "return_sequences": True},
     {"use_bias": False, "go_backwards": True}],
)  # fmt: skip
def test_unrolled_rnns(kind, settings):
    opened = open_and_compare(kind(3, unroll=True, **settings), normal(2, 4, 5))
    assert sum(isinstance(layer, layers.Dense) for layer in opened.layers) == 2


def test_rnns_that_are_left():
    x = keras.Input((4, 5))
    for layer in (
        layers.LSTM(3),
        layers.LSTM(3, unroll=True, dropout=0.1),
        layers.LSTM(3, unroll=True, activation="relu"),
        layers.GRU(3, unroll=True, reset_after=False),
        layers.SimpleRNN(3, unroll=True),
    ):
        layer(x)
        assert opener(layer) is None
    layer, masked = layers.LSTM(3, unroll=True), layers.Masking()(x)
    layer(masked)
    assert opener(layer)(layer, masked)._keras_history.operation is layer
    state = [keras.Input((3,)), keras.Input((3,))]
    assert opener(layer)(layer, x, initial_state=state)._keras_history.operation is layer


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

        return tf.nn.relu(x)


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


def test_primitives_and_things_that_are_not_layers_have_no_opener():
    x = keras.Input((4, 4, 3))
    operation = ops.relu(x)._keras_history.operation
    nested = keras.Sequential([keras.Input((4,)), layers.Dense(3, "relu")])
    wrapper = layers.TimeDistributed(layers.Dense(3, "relu"))
    wrapper(keras.Input((5, 4)))
    for thing in (
        *(operation, nested, wrapper, layers.Dense(3), layers.Activation("relu"), layers.ReLU()),
        *(layers.BatchNormalization(), layers.Embedding(3, 4), layers.Concatenate(), Rsqrt()),
        *(
            Parameter((3,)),
            layers.GroupNormalization(3, axis=1),
            layers.Bidirectional(layers.LSTM(3)),
        ),
        *(layers.Lambda(lambda x: x), layers.LayerNormalization(dtype="mixed_float16"), None, "x"),
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
