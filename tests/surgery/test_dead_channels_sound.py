"""Channels whose effect is easily overlooked are not removed."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from surgery_models import relative_error, samples_of

from tfcompress.surgery.pruning.dead import remove_dead_channels
from tfcompress.surgery.pruning.groups import Structure


def weighted(inputs, outputs):
    """A model whose weights are all away from zero, the variances positive."""
    model = keras.Model(inputs, outputs)
    rng = np.random.default_rng(0)
    for variable in model.weights:
        signs = 1 if "variance" in variable.path else rng.choice([-1, 1], variable.shape)
        variable.assign(signs * rng.uniform(0.3, 1.0, variable.shape))
    return model


def cleared(model, layer, places):
    """The model with zeros in weights of a layer: {number of the weight: index}."""
    layer = model.get_layer(layer)
    values = [np.array(v.value) for v in layer.weights]
    for number, at in places.items():
        values[number][at] = 0
    layer.set_weights(values)
    return model


def hidden(make, shape=(5, 3), *, made=False, read=True):
    """Four channels, what is made of them, and a head that does not read channel 1."""
    inputs = keras.Input(shape)
    x = make(layers.Dense(4, name="made")(inputs))
    model = weighted(inputs, layers.Dense(2, name="head")(x))
    if made:
        cleared(model, "made", {0: (slice(None), 1), 1: 1})
    return cleared(model, "head", {0: 1}) if read else model


def gram(x):
    return ops.matmul(ops.swapaxes(x, 1, 2), x)


def swapped(layer):
    """The layer called on channels as positions."""
    return lambda x: layers.Permute((2, 1))(layer(layers.Permute((2, 1))(x)))


def centred(x):
    return x - ops.mean(x, axis=-1, keepdims=True)


def attended(x):
    x = layers.Permute((2, 1))(x)
    return layers.Permute((2, 1))(layers.MultiHeadAttention(2, 3)(x, x))


def correlated(x):
    return x + ops.einsum("btc,bsc->bts", x, ops.relu(x))[..., :1]


READ_INSIDE = {
    "multiplied by an equation": correlated,
    "attended to": lambda x: layers.Attention()([ops.relu(x), x]),
    "cosines": lambda x: x + layers.Dot(2, normalize=True)([x, ops.relu(x)])[..., :1],
    "sums of those before": swapped(layers.Lambda(lambda x: ops.cumsum(x, axis=1))),
    "divided by their norm": lambda x: x / ops.norm(x, axis=-1, keepdims=True),
    "summed over and kept": lambda x: ops.matmul(x, gram(x)),
    "a recurrent layer's steps": swapped(layers.GRU(3, return_sequences=True)),
    "attention over them": attended,
    "group norm over positions": swapped(layers.GroupNormalization(1)),
    "layer norm of each step": layers.TimeDistributed(layers.LayerNormalization(axis=1)),
    "unit norm": layers.UnitNormalization(),
    "a user's activation": layers.Activation(centred),
    "a user's activation of a layer": layers.Dense(4, activation=centred),
    "softmax over positions": swapped(layers.Softmax(axis=1)),
}


@pytest.mark.parametrize("name", READ_INSIDE)
def test_channels_that_the_head_ignores_but_others_see(name):
    model = hidden(READ_INSIDE[name])
    x = samples_of(model)
    assert relative_error(model(x), remove_dead_channels(model)(x)) < 1e-5


TAKEN_TOGETHER = {
    "pooled as positions": lambda x: layers.GlobalAveragePooling1D()(layers.Permute((2, 1))(x)),
    "pooled as channels first": layers.GlobalMaxPooling1D(data_format="channels_first"),
    "the last step": lambda x: layers.GRU(3)(layers.Permute((2, 1))(x)),
    "the last step, both ways": lambda x: layers.Bidirectional(layers.GRU(3))(
        layers.Permute((2, 1))(x)
    ),
    "mean of a gram matrix": lambda x: ops.mean(gram(x), axis=-1),
    "summed by an equation": layers.EinsumDense("abn,bc->ac", (3,)),
}


@pytest.mark.parametrize("name", TAKEN_TOGETHER)
@pytest.mark.parametrize("made", [False, True])
def test_channels_of_which_one_value_is_made(name, made):
    model = hidden(TAKEN_TOGETHER[name], made=made, read=False)
    x = samples_of(model)
    assert relative_error(model(x), remove_dead_channels(model)(x)) < 1e-5


def test_a_recurrent_layer_reads_its_own_channels():
    """Channel 1 is zero where it comes in, but not in what the recurrent layer adds."""
    lstm = layers.LSTM(4, return_sequences=True)
    model = hidden(lambda x: x + lstm(x), made=True)
    x = samples_of(model)
    assert relative_error(model(x), remove_dead_channels(model)(x)) < 1e-5


def test_keys_of_attention_are_read():
    queries, inputs = keras.Input((6, 5)), keras.Input((3, 4))
    tokens = layers.Permute((2, 1))(layers.Dense(6)(inputs))
    y = layers.MultiHeadAttention(2, 3)(queries, tokens)
    model = weighted([queries, inputs], layers.Dense(2)(y))
    x = samples_of(model)
    assert relative_error(model(x), remove_dead_channels(model)(x)) < 1e-5


def test_masking_by_another_value_than_zero():
    """A channel of zeros keeps a step from being masked."""
    inputs = keras.Input((6, 5))
    x = layers.Dense(4, activation="relu", name="made")(inputs)
    x = layers.Masking(1.0)(ops.minimum(x, 1.0))
    model = weighted(inputs, layers.Dense(2)(x))
    made = model.get_layer("made")
    kernel, bias = np.full((5, 4), 0.05), np.ones(4)
    kernel[:, 1] = bias[1] = 0
    made.set_weights([kernel, bias])
    x = samples_of(model)
    assert relative_error(model(x), remove_dead_channels(model)(x)) < 1e-5


def test_a_constant_that_is_divided_by_a_norm_is_none():
    inputs = keras.Input((5,))
    x = layers.UnitNormalization()(layers.Dense(4, name="made")(inputs))
    x = layers.Dense(4, activation="relu", name="next")(x)
    model = weighted(inputs, layers.Dense(2)(x))
    kernel, bias = (np.array(v.value) for v in model.get_layer("made").weights)
    kernel[:, 1], bias[:] = 0, [0, 1, 0, 0]
    model.get_layer("made").set_weights([kernel, bias])
    kernel, bias = (np.array(v.value) for v in model.get_layer("next").weights)
    kernel[:, 2], bias[2] = [0, -1, 0, 0], 0.5  # above zero where the norm is above 2
    model.get_layer("next").set_weights([kernel, bias])
    x = 5 * samples_of(model, 16)
    assert relative_error(model(x), remove_dead_channels(model)(x)) < 1e-5


def test_a_sum_over_an_open_length_is_not_constant():
    inputs = keras.Input((None, 3))
    x = ops.sum(layers.Dense(4, name="made")(inputs), axis=1)
    model = weighted(inputs, layers.Dense(2)(layers.Dense(4, activation="relu", name="next")(x)))
    cleared(model, "made", {0: (slice(None), 1)})
    model.get_layer("made").bias.assign([0.1, 1, 0.1, 0.1])
    kernel, bias = (np.array(v.value) for v in model.get_layer("next").weights)
    kernel[:, 2], bias[2] = [0, 1, 0, 0], -9  # above zero from 10 steps on
    model.get_layer("next").set_weights([kernel, bias])
    x = np.ones((2, 12, 3), "float32")
    assert relative_error(model(x), remove_dead_channels(model)(x)) < 1e-5


class DropsAlways(keras.Model):
    def __init__(self):
        super().__init__()
        self.made = layers.Dense(4, kernel_initializer="zeros", bias_initializer="ones")
        self.norm = layers.BatchNormalization()
        self.drop = layers.Dropout(0.999, seed=0)
        self.head = layers.Dense(2)

    def call(self, x):
        return self.head(self.drop(self.norm(self.made(x), training=True), training=True))


def test_what_is_drawn_at_random_is_not_constant():
    model = DropsAlways()
    model(np.zeros((1, 3), "float32"))
    model.norm.beta.assign(np.ones(4))
    small = remove_dead_channels(model)
    assert small.surgery_report.changes == ()
    means = [v for v in small.variables if v.name == "moving_mean"]
    assert np.array_equal(means[0].value, model.norm.moving_mean.value)  # nor written down


def test_a_weight_of_another_layer_is_a_constant():
    class Tied(keras.Model):
        def __init__(self):
            super().__init__()
            self.words, self.hidden = layers.Embedding(7, 8), layers.Dense(8)

        def call(self, x):
            return ops.matmul(self.hidden(self.words(x)), ops.transpose(self.words.embeddings))

    model = Tied()
    x = np.arange(6).reshape(2, 3)
    y = model(x)
    with pytest.warns(UserWarning, match="weight of another layer"):
        small = remove_dead_channels(model)
    assert relative_error(y, small(x)) < 1e-5


def test_a_stateful_model_with_its_batch():
    inputs = keras.Input((5, 3), batch_size=2)
    x = layers.LSTM(4, stateful=True, return_sequences=True, name="made")(inputs)
    model = weighted(inputs, layers.Dense(2)(layers.GRU(4, stateful=True)(x)))
    x = samples_of(model)
    small = remove_dead_channels(model)
    assert relative_error(model(x), small(x)) < 1e-5
    assert Structure(model).groups["made"].size == 4


@pytest.mark.parametrize(
    ("layer", "known"),
    [
        (layers.UnitNormalization(), True),
        (layers.Masking(), True),
        (layers.Activation(lambda x: ops.relu(x) * 2.0), True),
        (layers.Activation(centred), False),
    ],
)
def test_zeros_are_still_followed(layer, known):
    model = hidden(layer, made=True)
    small = remove_dead_channels(model)
    x = samples_of(model)
    assert relative_error(model(x), small(x)) < 1e-5
    assert bool(small.surgery_report.changes) == known
