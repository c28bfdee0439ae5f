"""Flat copies in training: the weights, flags and train steps that the model would have."""

import os

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

from tfcompress.compression.compress import quantize_aware
from tfcompress.graph.flatten import flatten
from tfcompress.graph.nodes import Graph

# A fixture of all modules about graphs.
_seeded = graph_models.seeded


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
        lambda self, x, training: self.bn(x) + self.bn(x, training=False),
        {"bn": layers.BatchNormalization(name="bn")},
        normal(4, 8),
    )
    with pytest.raises(ValueError, match=r"'bn'.*training=None in one place and training=False"):
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


class Weighted(keras.Model):
    """Has a loss of its own with settings, in any of three ways to take them."""

    def __init__(self, *args, factor=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.factor, self.seen = factor, keras.metrics.Mean(name="seen")

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return self.factor * ops.mean(ops.square(y - y_pred))


class Required(Weighted):
    def __init__(self, inputs, outputs, factor, name=None):
        super().__init__(inputs, outputs, factor=factor, name=name)


class SetLater(Weighted):
    def __init__(self, inputs, outputs, name=None):
        super().__init__(inputs, outputs, name=name)


@pytest.mark.slow
def test_what_a_model_class_was_made_with_is_kept():
    x = keras.Input((8,))
    for made in (Weighted, Required, SetLater):
        args = (x, sequential(layers.Dense(3))(x))
        model = made(*args) if made is SetLater else made(*args, factor=10.0)
        model.factor = 10.0
        losses = []
        for one in (
            model,
            flatten(model),
            Graph.of(flatten(model)).rebuild(),
            quantize_aware(model),
        ):
            assert type(one) is made
            one.compile("sgd", jit_compile=False)
            losses += one.evaluate(normal(4, 8), normal(4, 3), verbose=0)[:1]
        np.testing.assert_allclose(losses, losses[0], rtol=0.1)
        assert losses[0] == losses[1] == losses[2]


def test_a_model_class_that_holds_its_layers_is_not_made_again():
    class Holding(keras.Model):
        def __init__(self, inputs, outputs, head, name=None):
            super().__init__(inputs, outputs, name=name)
            self.head = head

    x, head = keras.Input((8,)), sequential(layers.Dense(3))
    model = Holding(x, head(x), head)
    with pytest.warns(UserWarning, match="class Holding cannot be made again.*'head' holds layers"):
        flat = flatten(model)
    assert type(flat) is not Holding
    assert difference(flat(normal(4, 8)), model(normal(4, 8))) == 0.0


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


@pytest.mark.parametrize(
    ("layer", "count"),
    [(layers.BatchNormalization(), 1), (layers.MultiHeadAttention(2, 3, dropout=0.1), 2)],
)
def test_layers_that_a_subclassed_model_always_trains(layer, count, tmp_path):
    """They are built by their call, of one argument or of several."""
    x = normal(4, 5, 6)
    model = subclassed(
        lambda self, x, training: self.part(*[x] * count, training=True), {"part": layer}, x
    )
    flat = flatten(model)
    flat.save(tmp_path / "flat.keras")
    loaded = keras.saving.load_model(tmp_path / "flat.keras")
    for one in (flat, loaded):
        pairs = zip(one.weights, model.weights, strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)
    assert flat(x).shape == (4, 5, 6)
