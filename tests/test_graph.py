import os
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from tfcompress.graph import Graph, copy_operation, copy_weights, flatten, is_composite, trace
from tfcompress.layers import Parameter

register = keras.saving.register_keras_serializable("test_graph")


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def shake(model):
    """Gives every float weight a value that is not the initial one."""
    rng = np.random.default_rng(1)
    for v in model.weights:
        if "float" in v.dtype:
            v.assign(rng.uniform(0.2, 1.0, v.shape))
    return model


def difference(a, b) -> float:
    pairs = zip(keras.tree.flatten(a), keras.tree.flatten(b), strict=True)
    return max(
        float(np.max(np.abs(np.asarray(x, "float64") - np.asarray(y, "float64")))) for x, y in pairs
    )


def names(model):
    return [op.name for op in model.operations if not isinstance(op, layers.InputLayer)]


def flat_and_equal(model, x, tmp_path=None, **settings):
    """The flat copy, after checks that it equals the model, which is left as it was."""
    wanted = model(x, training=False)
    before = [v.numpy() for v in model.variables]
    nodes = [len(layer._inbound_nodes) for layer in model._flatten_layers()]
    flat = flatten(model, **settings)
    assert difference(wanted, flat(x, training=False)) == 0.0
    assert difference(wanted, model(x, training=False)) == 0.0
    assert all(np.array_equal(v, old) for v, old in zip(model.variables, before, strict=True))
    assert nodes == [len(layer._inbound_nodes) for layer in model._flatten_layers()]
    assert not any(is_composite(op) for op in flat.operations)
    if tmp_path is not None:
        path = os.path.join(tmp_path, "flat.keras")
        flat.save(path)
        assert difference(wanted, keras.saving.load_model(path)(x, training=False)) == 0.0
    return flat


@register
class Block(layers.Layer):
    """Own weights on both sides of an operator, a constant, and dropout that obeys training."""

    def __init__(self, units=6, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = layers.Dense(units, name="dense")
        self.norm = layers.BatchNormalization(name="norm")
        self.drop = layers.Dropout(0.5, name="drop")

    def build(self, input_shape):
        self.bias = self.add_weight(shape=(self.units,), initializer="normal", name="bias")
        self.dense.build(input_shape)
        self.norm.build((None, self.units))

    def call(self, x, training=None):
        y = self.bias + self.norm(self.dense(x), training=training)
        y = ops.relu(y) * np.float32([2.0]) - self.bias.value
        return self.drop(y, training=training)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def sequential(*parts, size=8, **kwargs):
    return keras.Sequential([keras.Input((size,)), *parts], **kwargs)


def subclassed(call, parts, x, **kwargs):
    """A built subclassed model whose `call(self, x, training)` is given."""

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__(**kwargs)
            for name, part in parts.items():
                setattr(self, name, part)

        def call(self, x, training=None):
            return call(self, x, training)

    model = Subclassed()
    model(x)
    return model


# Kinds of models


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
    other = keras.Model(x, inner(embedded, mask=ops.greater(x, 3)))
    with pytest.raises(ValueError, match=r"'inner' is called with a mask= of its own"):
        flatten(other)


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


# Training


def fit_both(model, x, y, **settings):
    flat = flatten(model)
    for m in (model, flat):
        keras.utils.set_random_seed(3)
        m.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=False)
        m.fit(x, y, batch_size=4, epochs=2, verbose=0, shuffle=False, **settings)
    return flat


def test_fit_gives_the_same_weights_statistics_and_dropout():
    x = keras.Input((8,))
    y = sequential(layers.BatchNormalization(name="bn"), layers.Dropout(0.3, seed=4), name="s")(x)
    model = keras.Model(x, layers.Dense(3, name="top")(Block(8, name="block")(y)))
    flat = fit_both(model, normal(12, 8), normal(12, 3))
    assert difference(model(normal(4, 8)), flat(normal(4, 8))) < 1e-6
    ours, theirs = flat.get_layer("bn"), model.get_layer("s").get_layer("bn")
    assert difference(ours.moving_mean, theirs.moving_mean) < 1e-7
    assert difference(ours.moving_mean, np.zeros(8)) > 0.01


def test_trainable_flags_of_layers_inner_layers_and_weights_are_kept():
    base = sequential(layers.Dense(4, name="a"), Block(4, name="block"), name="base")
    base.trainable = False
    head = layers.Dense(3, name="head")
    model = sequential(base, head)
    head.bias.trainable = False
    flat = fit_both(model, normal(12, 8), normal(12, 3))
    assert [v.path for v in flat.trainable_variables] == ["head/kernel"]
    assert not flat.get_layer("norm").trainable
    assert difference(model(normal(4, 8)), flat(normal(4, 8))) < 1e-6
    x = keras.Input((4, 8))
    attention = layers.MultiHeadAttention(2, 3, name="attention")
    model = keras.Model(x, attention(x, x))
    attention.query_dense.trainable = False
    assert len(flatten(model).trainable_variables) == len(model.trainable_variables) == 6


@pytest.mark.parametrize("place", ["layer", "model"])
def test_training_fixed_by_a_call_stays_fixed_after_reloading(place, tmp_path):
    inner = sequential(
        layers.Dense(8, name="first"),
        layers.BatchNormalization(name="norm"),
        layers.Dropout(0.9, name="drop"),
        layers.Dense(8, name="second"),
        name="inner",
    )
    parts = {
        "inner": inner,
        "norm": layers.BatchNormalization(name="outer_norm"),
        "always": layers.GaussianNoise(1.0, name="always"),
        "head": layers.Dense(2, name="head"),
    }

    def call(self, x, training):
        x = self.inner(x, training=False)
        x = self.norm(x, training=training if place == "model" else False)
        return self.head(self.always(x, training=place == "layer"))

    model = shake(subclassed(call, parts, normal(4, 8)))
    flat = flatten(model)
    assert "drop" not in names(flat)
    path = os.path.join(tmp_path, "flat.keras")
    flat.save(path)
    again = keras.saving.load_model(path)
    for copy in (flat, again):
        copy.compile(keras.optimizers.SGD(1e-4), "mse", jit_compile=False)
        copy.fit(normal(8, 8), normal(8, 2), verbose=0, epochs=2)
        norm, outer = copy.get_layer("norm"), copy.get_layer("outer_norm")
        assert isinstance(norm, layers.BatchNormalization)
        assert difference(norm.moving_mean, inner.get_layer("norm").moving_mean) == 0.0
        assert difference(norm.gamma, inner.get_layer("norm").gamma) > 0.0
        moved = difference(outer.moving_mean, model.norm.moving_mean)
        assert (moved > 0) == (place == "model")
        random = difference(copy(normal(4, 8), training=False), copy(normal(4, 8), training=False))
        assert (random > 0) == (place == "layer")


def test_training_default_of_a_functional_model_is_overridden_by_fit_as_in_keras():
    x = keras.Input((8,))
    y = sequential(layers.BatchNormalization(name="bn"), name="inner")(x, training=True)
    model = keras.Model(x, layers.Dropout(0.5)(layers.Dense(3)(y)))
    flat = flatten(model)
    data = 5.0 + normal(6, 8)
    trained = model(data), flat(data)  # both move the statistics
    assert difference(*trained) == 0.0
    wanted = model(data, training=False)
    assert difference(trained[0], wanted) > 0
    assert difference(wanted, flat(data, training=False)) == 0.0


def test_one_layer_with_two_fixed_trainings_is_refused():
    model = subclassed(
        lambda self, x, training: self.bn(x, training=False) + self.bn(x),
        {"bn": layers.BatchNormalization(name="bn")},
        normal(4, 8),
    )
    with pytest.raises(ValueError, match=r"'bn'.*training=False in one place and training=None"):
        flatten(model)


def test_code_that_branches_on_training_warns_and_follows_inference():
    model = subclassed(
        lambda self, x, training: self.drop(self.dense(x)) if training else self.dense(x),
        {"dense": layers.Dense(3), "drop": layers.Dropout(0.5)},
        normal(4, 8),
        name="brancher",
    )
    with pytest.warns(UserWarning, match="'brancher'.*if `training` is true"):
        flat = flatten(model)
    assert difference(model(normal(4, 8)), flat(normal(4, 8))) == 0.0


@pytest.mark.parametrize("transpose", [ops.transpose, lambda x: x])
def test_weights_tied_by_code_warn(transpose):
    tokens = np.arange(8).reshape(2, 4)
    model = subclassed(
        lambda self, x, training: ops.matmul(self.table(x), transpose(self.table.embeddings)),
        {"table": layers.Embedding(8, 8, name="table")},
        tokens,
    )
    with pytest.warns(UserWarning, match=r"table/embeddings, a weight of another layer"):
        flat = flatten(model, inputs=keras.Input((4,), dtype="int32"))
    assert difference(flat(tokens), model(tokens)) == 0.0


@register
class Doubled(keras.Model):
    def call(self, inputs, training=None, mask=None):
        return 2.0 * super().call(inputs, training=training)


def test_functional_class_with_its_own_call(tmp_path):
    x = keras.Input((8,), name="x")
    flat = flat_and_equal(Doubled(x, layers.Dense(3)(x)), normal(4, 8), tmp_path)
    assert type(flat) is not Doubled
    assert flat.input.name == "x"


@register
class Counting(keras.Model):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = 2.0 * self.compute_loss(y=y, y_pred=self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"twice": loss}


def test_own_train_step_of_a_functional_class_is_kept():
    x = keras.Input((8,))
    model = Counting(x, sequential(layers.Dense(3))(x))
    flat = flatten(model)
    assert type(flat) is Counting
    flat.compile("sgd", "mse")
    assert "twice" in flat.fit(normal(4, 8), normal(4, 3), verbose=0).history
    assert type(Graph.of(flat).rebuild()) is Counting


def test_own_train_step_that_cannot_be_kept_warns():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, x):
            return self.dense(x)

        def train_step(self, data):
            return {}

    model = Own()
    model(normal(4, 8))
    with pytest.warns(UserWarning, match="its own train_step, which its flat copy has not"):
        flatten(model)


# The user's model, errors, size


def test_the_model_keeps_its_graph_its_compilation_and_can_be_saved(tmp_path):
    x = keras.Input((8,))
    middle = layers.Dense(4, name="middle")
    model = keras.Model(x, sequential(layers.Dense(3), size=4)(middle(x)))
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(normal(4, 8), normal(4, 3), verbose=0)
    output, config = middle.output, model.get_config()
    first, second = flatten(model), flatten(model)
    assert middle.output is output
    assert model.get_config() == config
    assert model.compiled
    assert int(model.optimizer.iterations) == 1
    assert difference(first(normal(4, 8)), second(normal(4, 8))) == 0.0
    model.evaluate(normal(4, 8), normal(4, 3), verbose=0)
    model.save(os.path.join(tmp_path, "model.keras"))
    first.layers[1].kernel.assign(first.layers[1].kernel * 0)
    assert difference(second(normal(4, 8)), model(normal(4, 8))) == 0.0


def test_not_a_model():
    for wrong, words in (
        ("model.keras", r"received builtins.str.*load_model\('model.keras'\)"),
        (type("Model", (), {"__module__": "tf_keras.src"})(), "tf_keras.*tfcompress migrate"),
        (None, "received builtins.NoneType"),
    ):
        with pytest.raises(TypeError, match=words):
            flatten(wrong)


def test_not_built():
    with pytest.raises(ValueError, match=r"'empty'.*is not built.*Call it once on a batch"):
        flatten(keras.Sequential([layers.Dense(3)], name="empty"))

    class Unbuilt(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match=r"Unbuilt.*is not built"):
        flatten(Unbuilt(), inputs=keras.Input((3,)))


@register
class Raw(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(8)

    def call(self, x):
        return tf.nn.relu(self.dense(x))


@register
class Branch(Raw):
    def call(self, x):
        x = self.dense(x)
        return x if ops.sum(x) > 0 else -x


@pytest.mark.parametrize("kind", [Raw, Branch])
def test_untraceable_layers_are_named_with_the_ways_out(kind):
    layer = kind(name="culprit")
    layer(normal(4, 8))
    model = subclassed(lambda self, x, t: self.layer(x), {"layer": layer}, normal(4, 8))
    with pytest.raises(ValueError, match=r"'culprit'.*cannot be traced.*keras.ops") as caught:
        flatten(model)
    assert "Ways out" in str(caught.value)


def test_keep_leaves_an_untraceable_layer_as_one_node(tmp_path):
    model = sequential(Raw(name="raw"), layers.Dense(3, name="top"))
    wanted = model(normal(4, 8))
    flat = flatten(model, keep=["raw"])
    assert names(flat) == ["raw", "top"]
    assert difference(wanted, flat(normal(4, 8))) == 0.0


class Incomplete(layers.Layer):
    def __init__(self, units, factor=1.0, size=8, **kwargs):
        super().__init__(**kwargs)
        self.units, self.factor, self.size = units, factor, size

    def build(self, shape):
        self.w = self.add_weight(shape=(self.size,), name="w")

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return {"name": self.name}


class Defaults(Incomplete):
    def __init__(self, factor=1.0, size=8, **kwargs):
        super().__init__(3, factor, size, **kwargs)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (Incomplete(3), r"'incomplete\w*' \(Incomplete\) cannot be copied.*get_config"),
        (Defaults(factor=3.0), r"'defaults\w*' \(Defaults\) has factor=3.0, but its copy.*1.0"),
        (Defaults(size=4), r"has 1 variables of shapes \[\(4,\)\].*\[\(8,\)\].*get_config"),
    ],
)
def test_incomplete_get_config_is_named(layer, words):
    x = keras.Input((8,))
    with pytest.raises(ValueError, match=words):
        flatten(keras.Model(x, layer(x)))


def test_deep_models_do_not_reach_the_recursion_limit():
    blocks = [
        sequential(*(layers.Rescaling(1.0, 0.5) for _ in range(125)), name=f"part_{i}")
        for i in range(8)
    ]
    limit = sys.getrecursionlimit()
    flat = flatten(sequential(*blocks))
    assert len(flat.layers) == 1 + 8 * 125
    assert sys.getrecursionlimit() == limit
    assert difference(flat(normal(1, 8)), normal(1, 8) + 500.0) < 1e-3


# The parts


def test_neighbours_and_rebuild():
    x = keras.Input((8,), name="x")
    a = layers.Dense(8, name="a")(x)
    b = layers.ReLU(name="b")(a)
    model = keras.Model(x, [layers.Add(name="c")([a, b]), b])
    graph = Graph.of(model)
    by_name = {node.name: node for node in graph.nodes}
    assert [node.name for node in graph.nodes] == ["x", "a", "b", "c"]
    out = {name: node.outputs[0] for name, node in by_name.items()}
    assert graph.producer(out["b"]) is by_name["b"]
    assert graph.consumers(out["a"]) == [by_name["b"], by_name["c"]]
    assert graph.only_consumer(out["x"]) is by_name["a"]
    assert graph.only_consumer(out["a"]) is None
    assert graph.only_consumer(out["b"]) is None
    assert graph.is_output(out["b"])

    def negated(node, *args, **kwargs):
        y = args[0] if node.is_input else node.operation(*args, **kwargs)
        return -y if node.name == "a" else y

    new = Graph.of(model).rebuild(negated, batch_size=4)
    assert new.input_shape == (4, 8)
    h = -model.get_layer("a")(normal(4, 8))
    assert difference(new(normal(4, 8)), [h + ops.relu(h), ops.relu(h)]) == 0.0


def test_rebuilding_numbers_new_operations_whose_names_are_taken():
    x = keras.Input((8,))
    model = keras.Model(x, layers.ReLU(name="multiply")(x))
    keras.backend.clear_session()  # as in a new process: names are given from the start

    def scaled(node, *args):
        return args[0] if node.is_input else ops.multiply(node.operation(*args) * 2.0, 3.0)

    new = Graph.of(model).rebuild(scaled)
    assert names(new) == ["multiply", "multiply_2", "multiply_1"]
    assert difference(new(normal(4, 8)), 6.0 * np.maximum(normal(4, 8), 0.0)) == 0.0


def test_a_graph_between_inner_tensors_starts_there():
    x = keras.Input((8,))
    a = layers.Dense(8, name="a")(x)
    b = layers.Dense(8, name="b")(a)
    piece = Graph([a], ops.relu(b) + a)
    assert next(node.name for node in piece.nodes) == "b"
    other = layers.Dense(8)(x)
    again = piece.run([other], lambda node, *args, **kwargs: node.operation(*args, **kwargs))
    assert again.shape == (None, 8)


def test_trace_and_copies():
    block = Block(8, name="block")
    block(normal(4, 8))
    graph = trace(block, (keras.Input((8,)),), {})
    kinds = [type(node.operation).__name__ for node in graph.nodes if not node.is_input]
    assert kinds == [
        "Parameter",
        "Dense",
        "BatchNormalization",
        "Add",
        "Relu",
        "Multiply",
        "Subtract",
        "Dropout",
    ]
    dense = layers.Dense(3, name="head")
    dense.build((None, 8))
    twin = copy_operation(dense)
    twin.build((None, 8))
    copy_weights([(dense, twin)])
    assert twin.name == "head"
    assert difference(twin.kernel, dense.kernel) == 0.0
    twin.kernel.assign(twin.kernel + 1.0)
    assert difference(twin.kernel, dense.kernel) > 0.5
    with pytest.raises(ValueError, match=r"'head'.*variables of shapes"):
        copy_weights([(dense, layers.Dense(3))])


def application(name, size):
    return getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=7)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("MobileNetV3Small", 32),
        pytest.param("EfficientNetB0", 32, marks=pytest.mark.slow),
        pytest.param("ConvNeXtTiny", 32, marks=pytest.mark.slow),
        pytest.param("NASNetMobile", 32, marks=pytest.mark.slow),
    ],
)
def test_applications(name, size, tmp_path):
    flat_and_equal(application(name, size), 100 * normal(1, size, size, 3), tmp_path)
