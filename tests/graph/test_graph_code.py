"""What users' code does to masks, losses and weights, the flat copy does, too."""

import warnings

import graph_models
import keras
import numpy as np
import pytest
from graph_models import difference, flat_and_equal, normal, register, shake, subclassed
from keras import layers, ops

from tfcompress.graph.flatten import flatten
from tfcompress.graph.nodes import Graph
from tfcompress.graph.tracing import trace

_seeded = graph_models.seeded

TOKENS = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 0, 0, 0, 0]], "int32")


@register
class Tokens(layers.Layer):
    """Makes a mask, and looks positions up by constants."""

    def __init__(self, positions=False, **kwargs):
        super().__init__(**kwargs)
        self.words = layers.Embedding(10, 4, name="words")
        self.places = layers.Embedding(6, 4, name="places")
        self.positions = positions

    def build(self, shape):
        self.words.build(shape)
        if self.positions:
            self.places.build((6,))

    def call(self, x):
        y = self.words(x)
        return y + self.places(ops.arange(6)) if self.positions else y

    def compute_mask(self, x, mask=None):
        return ops.not_equal(x, 0)


@register
class Attention(layers.Layer):
    """Hands masks on, and reads them by `read`."""

    def __init__(self, read="tensor", **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.attention = layers.MultiHeadAttention(2, 4, name="attention")
        self.read = read

    def build(self, shape):
        self.attention.build(shape, shape)

    def call(self, x, mask=None):
        if self.read == "tensor" or mask is None:
            return x + self.attention(x, x)
        if self.read == "argument":
            return x + self.attention(x, x, attention_mask=mask[:, None])
        return x + self.attention(x, x, key_mask=mask)


@pytest.mark.parametrize("read", ["tensor", "argument", "key_mask"])
@pytest.mark.parametrize("positions", [False, True])
def test_masks_that_opened_layers_make_and_hand_on(positions, read, tmp_path):
    x = keras.Input((6,), dtype="int32")
    y = Attention(read, name="first")(Tokens(positions, name="tokens")(x))
    pooled = layers.GlobalAveragePooling1D()(Attention(read, name="second")(y))
    model = shake(keras.Model(x, layers.Dense(2)(pooled)))
    flat = flat_and_equal(model, TOKENS, tmp_path)
    assert len(flat.trainable_weights) == len(model.trainable_weights)
    longer = np.where(TOKENS, TOKENS, 9)
    assert difference(flat(longer), flat(TOKENS)) > 1e-3


def test_masks_reach_the_loss_and_unread_ones_are_left_out():
    x = keras.Input((6,), dtype="int32")
    model = keras.Model(x, Attention(name="b")(Tokens(name="a")(x)))
    flat, y = flatten(model), np.zeros((2, 6, 4))
    losses = []
    for one in (model, flat):
        one.compile("sgd", "mse", jit_compile=False)
        losses.append(one.evaluate(TOKENS, y, verbose=0))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] != pytest.approx(float(np.mean(model(TOKENS) ** 2)), rel=1e-3)
    first = keras.Model(x, layers.Flatten(name="c")(ops.relu(Tokens(name="a")(x))))
    kinds = [type(operation).__name__ for operation in flatten(first).operations]
    assert kinds == ["InputLayer", "Embedding", "Relu", "Flatten"]


@register
class Latent(layers.Layer):
    """Adds a loss of what it gives, under a regularizer of its own."""

    def __init__(self, beta=10.0, **kwargs):
        super().__init__(**kwargs)
        self.beta = beta
        self.dense = layers.Dense(4, name="dense", kernel_constraint="non_neg")

    def call(self, x):
        z = self.dense(x)
        self.add_loss(self.beta * ops.mean(ops.square(z)))
        return z


@pytest.mark.slow
def test_losses_regularizers_and_constraints_of_opened_layers_are_kept(tmp_path):
    @register
    class Own(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.norm = layers.LayerNormalization(name="norm")

        def build(self, shape):
            made = {"regularizer": keras.regularizers.L2(0.5), "constraint": "non_neg"}
            self.factor = self.add_weight(shape=(4,), initializer="ones", name="factor", **made)
            self.norm.build(shape)

        def call(self, x):
            return self.norm(x) * self.factor

    x = keras.Input((8,))
    y = Own(name="own")(Latent(name="latent", activity_regularizer="l2")(x))
    model = keras.Model(x, layers.Dense(1)(y))
    flat = flat_and_equal(model, normal(4, 8), tmp_path)
    flat.save(tmp_path / "flat.keras")
    copies = [model, flat, keras.saving.load_model(tmp_path / "flat.keras")]
    data, results = normal(32, 8), []
    for one in copies:
        keras.utils.set_random_seed(0)
        assert sum(v.constraint is not None for v in one.trainable_variables) == 2
        one.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=False)
        loss = one.evaluate(data, data[:, :1], verbose=0)
        one.fit(data, data[:, :1], verbose=0, shuffle=False)
        results.append((loss, np.asarray(one(data))))
    assert difference(results[0], results[1]) < 1e-5
    assert difference(results[0], results[2]) < 1e-5
    assert results[0][0] > 10


def test_a_loss_of_weights_alone_is_named():
    class Penalty(Latent):
        def build(self, shape):
            self.dense.build(shape)

        def call(self, x):
            self.add_loss(ops.sum(ops.square(self.dense.kernel)))
            return self.dense(x)

    x = keras.Input((8,))
    with pytest.warns(UserWarning, match="'penal'.*does not depend on its inputs.*regularizer"):
        flatten(keras.Model(x, Penalty(name="penal")(x)))


def test_calls_take_and_return_what_python_does(tmp_path):
    """None, caches, flags and structures pass between opened layers."""

    class Inner(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = layers.Dense(8)

        def build(self, shape):
            self.dense.build(shape)

        def call(self, x, cache=None, mask=None, back=False):
            y = self.dense(x)
            if cache is not None:
                y = y + cache["last"]
            return (y * 3.0 if back else y), None, {"last": y, "first": None}

    class MyAttention(layers.MultiHeadAttention):
        def call(self, query, value, key=None, extra=None):
            return super().call(query, value, key) + extra

    inner = Inner()

    def call(self, x, training):
        y, nothing, cache = self.inner(x)
        assert nothing is None
        z, _, _ = self.inner(y, cache=cache, back=True)
        return self.attention(z, z, extra=y)

    parts = {"inner": inner, "attention": MyAttention(2, 4)}
    model = subclassed(call, parts, normal(2, 6, 8))
    flat = flat_and_equal(shake(model), normal(2, 6, 8))
    assert len(flat.trainable_weights) == len(model.trainable_weights)


def test_constants_spread_over_the_batch(tmp_path):
    """A causal mask, as decoders have it, and a start that a layer makes of ones."""

    def call(self, x, training):
        batch, length = ops.shape(x)[0], ops.shape(x)[1]
        i = ops.arange(length)
        mask = ops.broadcast_to((i[:, None] >= i)[None], (batch, length, length))
        start = self.start(ops.ones((batch, 1, 8)))
        x = ops.concatenate([start, x[:, :-1]], axis=1)
        return self.attention(x, x, attention_mask=mask)

    attention = layers.MultiHeadAttention(2, 4, name="attention")
    parts = {"attention": attention, "start": layers.Dense(8)}
    model = subclassed(call, parts, normal(2, 6, 8))
    flat = flat_and_equal(shake(model), normal(2, 6, 8), tmp_path)
    assert len(flat.trainable_weights) == len(model.trainable_weights)
    assert flat.input_shape == (None, 6, 8)
    assert flat(normal(5, 6, 8)).shape == (5, 6, 8)


def test_what_depends_on_the_batch_otherwise_is_named():
    def call(self, x, training):
        return self.dense(x) / ops.shape(x)[0]

    model = subclassed(call, {"dense": layers.Dense(3)}, normal(4, 8), name="batches")
    with pytest.raises(ValueError, match=r"'batches'.*the size of the batch in a way of its own"):
        flatten(model)


def test_a_trial_batch_leaves_no_trace():
    class Pairs(layers.Layer):
        def call(self, x):
            return ops.reshape(ops.matmul(x, ops.transpose(x, (0, 2, 1))), (ops.shape(x)[0], -1))

    graph = trace(Pairs(), (keras.Input((3, 5)),), {})
    shapes = [tuple(t.shape) for node in graph.nodes for t in node.outputs]
    assert shapes == [(None, 3, 5), (None, 5, 3), (None, 3, 3), (None, 9)]


def test_layers_made_in_a_call_do_not_look_like_other_code():
    def call(self, x, training):
        y = self.drop(self.norm(self.dense(x)))
        return layers.add([x, y])

    parts = {"dense": layers.Dense(8), "norm": layers.BatchNormalization()}
    model = subclassed(call, {**parts, "drop": layers.Dropout(0.5)}, normal(4, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flat = flat_and_equal(model, normal(4, 8))
    assert difference(flat(normal(4, 8), training=True), flat(normal(4, 8))) > 0


def test_a_number_times_a_tensor_is_not_sparse():
    @register
    class Norm(layers.Layer):
        def call(self, x):
            return x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + 1e-6)

    class Block(layers.Layer):
        def __init__(self):
            super().__init__()
            self.norm, self.dense = Norm(), layers.Dense(8)

        def build(self, shape):
            self.dense.build(shape)

        def call(self, x):
            return self.dense(self.norm(x * ops.sqrt(8.0)))

    x = keras.Input((6, 8))
    model = keras.Model(x, Block()(x))
    flat_and_equal(model, normal(2, 6, 8))


def test_the_operations_of_the_model_stay_as_they_were():
    x = keras.Input((8,))
    inner = keras.Model(x, ops.relu(layers.Dense(8)(x)) + x)
    model = keras.Model(x, layers.Dense(2)(inner(x) * 2.0))
    parts = [*inner.operations, *model.operations]
    before = [(len(x._inbound_nodes), len(x._outbound_nodes)) for x in parts]
    flatten(model)
    assert before == [(len(x._inbound_nodes), len(x._outbound_nodes)) for x in parts]
    assert len(Graph.of(model).nodes) == 4


def test_open_lengths_that_the_code_reads_are_named_and_can_be_given():
    class Causal(layers.Layer):
        def __init__(self):
            super().__init__()
            self.attention = layers.MultiHeadAttention(2, 4)

        def build(self, shape):
            self.attention.build(shape, shape)

        def call(self, x):
            i = ops.arange(ops.shape(x)[1])
            return self.attention(x, x, attention_mask=(i[:, None] >= i)[None])

        def compute_output_shape(self, shape):
            return shape

    x = keras.Input((None, 8))
    model = keras.Model(x, Causal()(x))
    with pytest.raises(ValueError, match=r"'causal'.*reads the size of an axis.*inputs="):
        flatten(model)
    flat = flatten(model, inputs=keras.Input((6, 8), name="x"))
    assert difference(flat(normal(2, 6, 8)), model(normal(2, 6, 8))) == 0.0


def test_types_that_a_layer_does_not_tell():
    class Positive(layers.Layer):
        def call(self, x):
            return x > 0.0

        def compute_output_shape(self, shape):
            return shape

    x = keras.Input((4,))
    model = keras.Model(x, ops.where(Positive()(x), x, -1.0))
    flat = flatten(model)
    assert [n.outputs[0].dtype for n in Graph.of(flat).nodes] == ["float32", "bool", "float32"]
    assert difference(flat(normal(2, 4)), model(normal(2, 4))) == 0.0


def test_axes_moved_from_one_place_to_two():
    def call(self, x, training):
        return ops.moveaxis(x, 1, 2), ops.moveaxis(self.dense(x), 1, 3)

    model = subclassed(call, {"dense": layers.Dense(3)}, normal(2, 4, 5, 6))
    flat = flat_and_equal(model, normal(2, 4, 5, 6))
    assert [tuple(y.shape) for y in flat.outputs] == [(None, 5, 4, 6), (None, 5, 3, 4)]
