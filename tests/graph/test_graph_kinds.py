"""Flat copies of every kind of model and layer compute what the models compute."""

import graph_models
import keras
import numpy as np
import pytest
import tensorflow as tf
from graph_models import (
    Block,
    difference,
    flat_and_equal,
    names,
    normal,
    register,
    sequential,
    shake,
    subclassed,
)
from keras import layers, ops

from tfcompress.graph.flatten import flatten
from tfcompress.graph.layers import Parameter

# A fixture of all modules about graphs.
_seeded = graph_models.seeded


def test_sequential(tmp_path):
    model = shake(
        sequential(layers.Dense(5, "relu", name="a"), layers.BatchNormalization(name="b"))
    )
    flat = flat_and_equal(model, normal(4, 8), tmp_path)
    assert names(flat) == ["a", "b"]


def test_functional_with_two_named_inputs_and_outputs(tmp_path):
    a, b = keras.Input((8,), name="a"), keras.Input((5,), name="b")
    h = layers.Concatenate(name="join")([layers.Dense(3, name="d")(a), b])
    model = keras.Model({"a": a, "b": b}, {"sum": h + 1.0, "h": h})
    x = {"a": normal(4, 8), "b": normal(4, 5)}
    flat = flat_and_equal(model, x, tmp_path)
    assert set(flat(x)) == {"sum", "h"}
    assert sorted(flat.input) == ["a", "b"]


@pytest.mark.parametrize("kind", [list, tuple])
def test_functional_with_a_sequence_of_inputs_and_outputs(kind, tmp_path):
    a, b = keras.Input((8,), name="a"), keras.Input((8,), name="b")
    model = keras.Model(kind([a, b]), kind([layers.Dense(3)(b), layers.Add()([a, b]), a]))
    flat = flat_and_equal(model, kind([normal(4, 8), 2 * normal(4, 8)]), tmp_path)
    assert isinstance(flat.output, kind)


def test_nested_functional_and_sequential_take_their_own_name_where_layers_clash(tmp_path):
    def branch(name):
        x = keras.Input((8,))
        y = layers.Dense(8, name="dense")(x)
        return keras.Model(x, layers.Dense(8, name=f"only_{name}")(y), name=name)

    x = keras.Input((8,))
    y = layers.Add(name="add")([branch("left")(x), branch("right")(x)])
    y = sequential(layers.Dense(3, name="top"), name="head")(y)
    model = shake(keras.Model(x, layers.Dense(2, name="dense")(y)))
    flat = flat_and_equal(model, normal(4, 8), tmp_path)
    assert set(names(flat)) == {
        *("left_dense", "only_left", "right_dense", "only_right", "add", "top", "dense")
    }


def test_a_nested_model_called_twice_keeps_one_set_of_weights(tmp_path):
    twin = sequential(layers.Dense(3, name="d"), Block(3, name="block"), name="twin")
    a, b = keras.Input((8,), name="a"), keras.Input((8,), name="b")
    model = shake(keras.Model([a, b], layers.Subtract()([twin(a), twin(b)])))
    flat = flat_and_equal(model, [normal(4, 8), 2 * normal(4, 8)], tmp_path)
    assert flat.count_params() == model.count_params()
    flat.get_layer("d").kernel.assign(flat.get_layer("d").kernel + 1.0)
    changed = flat([normal(4, 8), normal(4, 8)])
    assert difference(changed, np.zeros((4, 3))) == 0.0


def test_sequential_inside_functional_inside_subclassed(tmp_path):
    inner = sequential(Block(8, name="block"), name="inner")
    x = keras.Input((8,))
    middle = keras.Model(x, inner(x) + ops.tanh(x), name="middle")
    model = subclassed(
        lambda self, x, training: {"out": self.middle(x, training=training) @ self.eye},
        {"middle": middle, "eye": 3 * np.eye(8, dtype="float32")},
        normal(4, 8),
    )
    flat = flat_and_equal(shake(model), normal(4, 8), tmp_path)
    assert len(flat.trainable_variables) == len(model.trainable_variables)
    assert difference(flat(normal(4, 8), training=True)["out"], flat(normal(4, 8))["out"]) > 0


def test_subclassed_with_dict_and_list_inputs(tmp_path):
    x = {"a": normal(4, 8), "b": [normal(4, 3), normal(4, 8)]}
    model = subclassed(
        lambda self, x, training: self.dense(x["a"] + x["b"][1]) * x["b"][0][:, :1],
        {"dense": layers.Dense(8)},
        x,
    )
    flat = flat_and_equal(model, x)
    again = flatten(flat)
    assert difference(flat(x), again(x)) == 0.0


def test_subclassed_with_several_arguments():
    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(8)

        def call(self, left, right, training=None):
            return self.dense(left) - right

    model = Two()
    a, b = normal(4, 8), 2 * normal(4, 8)
    wanted = model(a, b)
    with pytest.raises(ValueError, match=r"takes left, right.*inputs=\(keras.Input\(shape"):
        flatten(model)
    inputs = keras.Input((8,), name="left"), keras.Input((8,), name="right")
    flat = flatten(model, inputs=inputs)
    assert [t.name for t in flat.inputs] == ["left", "right"]
    assert difference(wanted, flat([a, b])) == 0.0


def test_integer_inputs():
    tokens = np.arange(12).reshape(3, 4)
    model = subclassed(
        lambda self, x, training: self.table(x) * ops.cast(x, "float32")[..., None],
        {"table": layers.Embedding(20, 5)},
        tokens,
    )
    flat = flat_and_equal(model, tokens, inputs=keras.Input((4,), dtype="int32", name="tokens"))
    assert flat.input.dtype == "int32"
    assert flat.input.name == "tokens"


def token_by(mode):
    def call(self, x, training):
        x = self.dense(x)
        batch = ops.shape(x)[0]
        token = {
            "tile": lambda: ops.tile(self.token, (batch, 1, 1)),
            "repeat": lambda: ops.repeat(self.token, batch, axis=0),
            "broadcast_to": lambda: ops.broadcast_to(self.token, (batch, 1, 6)),
            "zeros_like": lambda: self.token + ops.zeros_like(x[:, :1]),
        }[mode]()
        x = ops.concatenate([token, x], axis=1)
        x = self.position + x
        return ops.reshape(x, (batch, -1, 3))

    return call


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["tile", "repeat", "broadcast_to", "zeros_like"])
def test_class_token_and_positions_train_and_the_batch_size_may_be_read(mode, tmp_path):
    class Vit(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(6)

        def build(self, shape):
            self.token = self.add_weight(shape=(1, 1, 6), initializer="normal", name="token")
            self.position = self.add_weight(shape=(1, 5, 6), initializer="normal", name="position")
            self.dense.build(shape)

        def call(self, x, training=None):
            return token_by(mode)(self, x, training)

    model = Vit()
    model(normal(3, 4, 8))
    flat = flat_and_equal(model, normal(3, 4, 8), tmp_path)
    assert flat(normal(7, 4, 8)).shape == (7, 10, 3)
    for m in (model, flat):
        m.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
        m.fit(normal(3, 4, 8), np.ones((3, 10, 3)), batch_size=3, epochs=3, verbose=0)
    assert difference(model(normal(3, 4, 8)), flat(normal(3, 4, 8))) < 1e-6


def test_a_list_of_weights_is_kept():
    @register
    class Scales(layers.Layer):
        def build(self, shape):
            self.scales = [self.add_weight(shape=(8,), initializer="normal") for _ in range(2)]

        def call(self, x):
            return x * self.scales[0] + x * self.scales[1]

    inner = subclassed(lambda self, x, t: self.s(x), {"s": Scales()}, normal(4, 8))
    assert flat_and_equal(inner, normal(4, 8)).count_params() == 16

    class Model(keras.Model):
        def build(self, shape):
            self.scales = [self.add_weight(shape=(8,), initializer="normal") for _ in range(2)]

        def call(self, x):
            return x * self.scales[0] + x * self.scales[1] + x * self.scales[1]

    model = Model()
    model(normal(4, 8))
    flat = flat_and_equal(model, normal(4, 8))
    assert [type(x) for x in flat.layers[1:]] == [Parameter, Parameter]


def test_lambda_and_python_function_as_activation():
    model = shake(
        sequential(
            layers.Dense(5, activation=lambda x: ops.sin(x) + 1.0, name="a"),
            layers.Dense(5, activation=tf.nn.relu, name="b"),
            layers.Lambda(lambda x, k: k * x, arguments={"k": 3.0}, output_shape=(5,), name="c"),
        )
    )
    assert names(flat_and_equal(model, normal(4, 8))) == ["a", "b", "c"]


@pytest.mark.slow
def test_masks_and_rnns(tmp_path):
    tokens = np.array([[3, 4, 0, 0], [5, 6, 7, 0]])
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Embedding(9, 5, mask_zero=True), layers.LSTM(3, name="lstm")]
    )
    x = keras.Input((4,), dtype="int32")
    y = layers.Embedding(9, 5, mask_zero=True)(x)
    y = layers.Bidirectional(layers.GRU(3, return_sequences=True), name="both")(y)
    y = layers.Concatenate()([layers.LSTM(3)(y), inner(x)])
    flat = flat_and_equal(shake(keras.Model(x, y)), tokens, tmp_path)
    assert {"lstm", "both"} <= set(names(flat))
    more = np.array([[3, 4, 0, 0], [5, 6, 7, 0]]) * [[1, 1, 0, 0]]
    assert difference(flat(more), flat(tokens)) > 0

    sums = subclassed(
        lambda self, x, training: self.lstm(self.mask(x)),
        {"mask": layers.Masking(), "lstm": layers.LSTM(3)},
        normal(2, 4, 5),
    )
    data = normal(2, 4, 5)
    data[:, 2:] = 0.0
    flat = flat_and_equal(sums, data, tmp_path)
    assert difference(flat(data), sums.lstm(data[:, :2])) < 1e-6


def test_masks_of_nested_models(tmp_path):
    tokens = np.array([[3, 4, 0, 0], [5, 6, 7, 0]])
    x, words = keras.Input((4,), dtype="int32"), keras.Input((4, 5))
    inner = keras.Model(words, layers.LSTM(3)(words), name="inner")
    embedded = layers.Embedding(9, 5, mask_zero=True)(x)
    model = shake(keras.Model(x, inner(layers.Dropout(0.1)(embedded))))
    flat = flat_and_equal(model, tokens, tmp_path)
    table, lstm = flat.get_layer(index=1), flat.layers[-1]
    assert difference(flat(tokens)[:1], lstm(table(tokens)[:1, :2])) < 1e-6
    flat_and_equal(keras.Model(x, inner(embedded, mask=ops.greater(x, 3))), tokens, tmp_path)


def test_layers_that_read_their_mask():
    @register
    class Pool(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = layers.Dense(2)
            self.supports_masking = True

        def build(self, shape):
            self.dense.build(shape)

        def call(self, x, mask=None):
            weight = ops.cast(mask, "float32")[..., None]
            return ops.sum(self.dense(x) * weight, axis=1)

    x = keras.Input((4,), dtype="int32")
    model = keras.Model(x, Pool()(layers.Embedding(9, 5, mask_zero=True)(x)))
    flat_and_equal(model, np.array([[3, 4, 0, 0], [5, 6, 7, 0]]))


def test_mixed_precision_is_kept(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = subclassed(
            lambda self, x, training: self.head(self.block(x) + x),
            {"block": Block(8), "head": layers.Dense(3, dtype="float32")},
            normal(4, 8),
        )
    finally:
        keras.config.set_dtype_policy("float32")
    flat = flat_and_equal(model, normal(4, 8), tmp_path)
    assert [layer.compute_dtype for layer in flat.layers if isinstance(layer, layers.Dense)] == [
        "float16",
        "float32",
    ]


def test_adapted_normalization(tmp_path):
    norm = layers.Normalization()
    norm.adapt(10.0 + 3.0 * normal(50, 8))
    flat_and_equal(sequential(norm, layers.Dense(3)), normal(4, 8), tmp_path)


@pytest.mark.parametrize(
    "layer",
    [
        layers.StringLookup(),
        layers.StringLookup(output_mode="tf_idf"),
        layers.IntegerLookup(num_oov_indices=2, mask_token=-1),
        layers.TextVectorization(output_sequence_length=3),
        layers.TextVectorization(output_mode="tf_idf", ngrams=2),
        layers.Discretization(num_bins=4),
    ],
    ids=lambda layer: f"{type(layer).__name__}-{getattr(layer, 'output_mode', '')}",
)
def test_adapted_vocabularies(layer, tmp_path):
    if isinstance(layer, layers.IntegerLookup | layers.Discretization):
        data = np.array([[3], [3], [7], [5], [3], [9]])
    else:
        data = tf.constant([["red"], ["green blue"], ["red"], ["blue red"], ["red"], ["green"]])
    layer.adapt(data[:5])
    x = keras.Input((1,), dtype=data.dtype.name)
    model = keras.Model(x, ops.cast(layer(x), "float32") * 2.0)
    flat = flat_and_equal(flatten(model), data)
    assert difference(flat(data), model(data)) == 0.0
    assert len(np.unique(flat(data))) > 1
    flat.save(tmp_path / "flat.keras")
    loaded = keras.saving.load_model(tmp_path / "flat.keras")
    assert difference(loaded(data), model(data)) == 0.0


def test_user_layers_stay_leaves_and_keep_their_classes():
    @register
    class Cell(layers.Layer):
        state_size = 3

        def build(self, shape):
            self.kernel = self.add_weight(shape=(shape[-1], 3), name="kernel")

        def call(self, x, states):
            h = ops.tanh(x @ self.kernel) + states[0]
            return h, [h]

    class MyLSTM(layers.LSTM):
        pass

    x = keras.Input((4, 8))
    y = layers.RNN(Cell(), return_sequences=True)(MyLSTM(4, return_sequences=True)(x))
    flat = flat_and_equal(keras.Model(x, y), normal(2, 4, 8))
    assert [type(layer) for layer in flat.layers[1:]] == [MyLSTM, layers.RNN]


def test_nested_call_with_reordered_dict_other_rank_and_other_dtype():
    a, b = keras.Input((8,), name="a"), keras.Input((1,), name="b")
    inner = keras.Model([b, a], a * b, name="inner")
    x, y = keras.Input((8,), dtype="int32"), keras.Input(())
    model = keras.Model([x, y], inner({"a": x, "b": y}))
    flat_and_equal(model, [np.arange(32).reshape(4, 8), normal(4)])


@pytest.mark.parametrize("is_subclassed", [False, True])
def test_a_layer_that_remembers_what_it_saw(is_subclassed):
    """A normalization that a second call undoes."""

    class Instance(layers.Layer):
        def call(self, x, mode="norm"):
            if mode == "undo":
                return x * self.scale + self.mean
            self.mean = ops.mean(x, axis=1, keepdims=True)
            self.scale = ops.std(x, axis=1, keepdims=True) + 0.1
            return (x - self.mean) / self.scale

    class Whole(keras.Model):
        def __init__(self):
            super().__init__()
            self.normalize, self.dense = Instance(), layers.Dense(3)

        def call(self, x):
            return self.normalize(self.dense(self.normalize(x)), mode="undo")

    whole, inputs = Whole(), keras.Input((6, 3))
    x = normal(4, 6, 3)
    expected = whole(x)
    model = whole if is_subclassed else keras.Model(inputs, whole.call(inputs))
    flat = flatten(model)
    np.testing.assert_allclose(flat(x), expected, atol=1e-6)
    assert not any(isinstance(layer, Instance) for layer in flat.layers)
    again = flatten(flat)
    np.testing.assert_array_equal(again(x), flat(x))
