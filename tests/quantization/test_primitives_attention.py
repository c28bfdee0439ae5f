"""Attention, einsums and recurrent layers: opened into primitives, or left as they are."""

import keras
import numpy as np
import opened_layers
import pytest
from keras import layers
from opened_layers import kinds, normal, open_and_compare

from tfcompress.layers.integer_lstm import IntegerLSTM
from tfcompress.quantization.openers import opener

_seeded = opened_layers.seeded


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


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_attention_with_masks_of_its_inputs(dropout):
    """Padded queries and keys; what is left of a row that is masked as a whole, too."""
    layer = layers.MultiHeadAttention(2, 3, dropout=dropout)
    tokens = keras.Input((5,), dtype="int32")
    x = layers.Embedding(4, 6, mask_zero=True)(tokens)
    keep = keras.Input((5, 5), dtype="int32")
    original = layer(x, x, attention_mask=keep)
    x = layers.Embedding(4, 6, mask_zero=True, weights=x._keras_history.operation.get_weights())(
        tokens
    )
    opened = opener(layer)(layer, x, x, attention_mask=keep)
    data = np.array([[1, 2, 0, 3, 0], [3, 1, 2, 2, 0]]), np.tri(5, dtype="int32")[None].repeat(2, 0)
    wanted, got = keras.Model([tokens, keep], [original, opened])(data)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert opened._keras_history.operation is not layer


def test_softmax_with_a_mask():
    layer = layers.Softmax()
    for mask in (np.array([[True, False, True], [False] * 3]), np.array([[2, 0, -1], [0, 0, 1]])):
        x, m = keras.Input((3,)), keras.Input((3,), dtype=str(mask.dtype))
        opened = keras.Model([x, m], opener(layer)(layer, x, mask=m))
        values = normal(2, 3)
        np.testing.assert_allclose(opened([values, mask]), layer(values, mask=mask), atol=1e-6)
    constant = opener(layer)(layer, x, mask=np.array([[True, False, True]]))
    wanted = layer(values, mask=np.array([[True, False, True]]))
    np.testing.assert_allclose(keras.Model(x, constant)(values), wanted, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"is_causal": True}, {"scale": 0.3}])
def test_dot_product_attention(settings):
    q, k, v = keras.Input((5, 4, 3)), keras.Input((5, 2, 3)), keras.Input((5, 2, 3))
    mask = keras.Input((1, 5, 5), dtype="bool")
    original = keras.ops.dot_product_attention(q, k, v, mask=mask, **settings)
    operation = original._keras_history.operation
    scale = settings.get("scale")
    opened = opener(operation)(operation, q, k, v, mask=mask, scale=scale)
    keep = np.random.default_rng(0).uniform(size=(2, 1, 5, 5)) > 0.4
    keep[..., 0] = True
    data = [normal(2, 5, 4, 3), normal(2, 5, 2, 3), 2 * normal(2, 5, 2, 3), keep]
    wanted, got = keras.Model([q, k, v, mask], [original, opened])(data)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert opened._keras_history.operation is not operation


def test_attention_that_needs_scores_is_left():
    layer = layers.MultiHeadAttention(2, 3)
    x = keras.Input((5, 6))
    layer(x, x)
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
def test_other_einsums_multiply_with_a_weight(equation, output_shape, bias_axes, shape):
    layer = layers.EinsumDense(equation, output_shape, bias_axes=bias_axes)
    opened = open_and_compare(layer, normal(2, *shape))
    assert kinds(opened).count("Matmul") == 1


def test_grouped_attention():
    layer = layers.GroupQueryAttention(3, 4, 2, dropout=0.1)
    for settings in ({}, {"use_causal_mask": True}):
        opened = open_and_compare(layer, normal(2, 5, 6), normal(2, 4, 6), **settings)
        assert kinds(opened).count("Dense") == 4


@pytest.mark.parametrize("settings", [{}, {"use_scale": True}])
def test_attention_of_one_head(settings):
    layer = layers.Attention(**settings)
    x, y = keras.Input((5, 6)), keras.Input((4, 6))
    data = [normal(2, 5, 6), 2.0 * normal(2, 4, 6)]
    for call in ({}, {"use_causal_mask": True}):
        model = keras.Model([x, y], layer([x, y], **call))
        opened = keras.Model([x, y], opener(layer)(layer, [x, y], **call))
        np.testing.assert_allclose(opened(data), model(data), atol=1e-5)
        assert kinds(opened).count("Matmul") == 2
    scores = opener(layer)(layer, [x, y], return_attention_scores=True)
    assert scores[0]._keras_history.operation is layer


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


LSTMS = {
    "last": lambda: layers.LSTM(3),
    "all": lambda: layers.LSTM(3, return_sequences=True, unroll=True),
    "backwards": lambda: layers.LSTM(3, return_sequences=True, go_backwards=True),
    "no bias": lambda: layers.LSTM(3, use_bias=False, dropout=0.2),
    "both ways": lambda: layers.Bidirectional(layers.LSTM(3)),
    "all both ways": lambda: layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
    "sums": lambda: layers.Bidirectional(layers.LSTM(3), merge_mode="sum"),
    "products": lambda: layers.Bidirectional(layers.LSTM(3), merge_mode="mul"),
    "means": lambda: layers.Bidirectional(layers.LSTM(3), merge_mode="ave"),
}


@pytest.mark.parametrize("name", LSTMS)
@pytest.mark.parametrize("steps", [4, 70])  # which are a loop
def test_lstms(name, steps, tmp_path):
    opened = open_and_compare(LSTMS[name](), normal(2, steps, 5), tmp_path=tmp_path)
    assert sum(isinstance(x, IntegerLSTM) for x in opened.layers) in (1, 2)
