"""Pruning and clustering of layers that are shared, that read masks, or that hold others."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from pruning_models import GROWING, RANDOM, X, Y, assert_same, compiled, fit, in_layers

import tfcompress as tfc
from tfcompress import Cluster, Prune, Quantize, Regularize
from tfcompress.layers.compressed import Compressed, effective_weight


def shared(*techniques):
    keras.utils.set_random_seed(0)
    dense, inputs = layers.Dense(4, use_bias=False, name="shared"), keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2, name="logits")(dense(dense(inputs))))
    model = tfc.compress(model, [tfc.Rule("shared", list(techniques))])
    return compiled(model, keras.optimizers.SGD(0.0))


def test_shared_layer_cannot_learn_scores_that_each_call_overwrites():
    with pytest.raises(ValueError, match=r"'shared' is called 2 times.*score='movement'"):
        shared(in_layers(0.5, score="taylor"))
    assert shared(in_layers(0.5, score="movement")).count_params() > 0


def test_shared_layer_is_penalized_once():
    x, y = X[:4, 0, :2].reshape(4, 4), Y[:4]
    model, plain = shared(Regularize(keras.regularizers.L2(0.1))), shared(in_layers(0.0))
    wrapper = next(x for x in model.layers if isinstance(x, Compressed))
    difference = model.evaluate(x, y, verbose=0)[0] - plain.evaluate(x, y, verbose=0)[0]
    assert difference == pytest.approx(0.1 * np.square(wrapper.layer.kernel).sum(), rel=1e-4)


def sequence_model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8, mask_zero=True, name="embedding")(inputs)
    x = layers.Bidirectional(layers.LSTM(5, return_sequences=True), name="both")(x)
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = layers.GRU(6, return_sequences=True, name="gru")(x)
    x = layers.LSTM(4, name="lstm")(x)
    return keras.Model(inputs, layers.Dense(2, name="logits")(x))


TOKENS = RANDOM.integers(1, 20, (64, 6))
TOKENS[:, 4:] *= RANDOM.integers(0, 2, (64, 1))
KERNELS = ("kernel", "recurrent_kernel", "pointwise_kernel", "embeddings")


def test_masks_of_steps_reach_a_recurrent_layer():
    def make_lstm(mask_zero):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,), dtype="int32")
        x = layers.Embedding(20, 8, mask_zero=mask_zero)(inputs)
        return keras.Model(inputs, layers.Dense(2)(layers.LSTM(4)(x)))

    short = np.where(np.arange(6) < 3, TOKENS, 0)
    outputs = []
    for mask_zero in (True, False):
        plain = make_lstm(mask_zero)
        model = tfc.compress(plain, [tfc.Rule("*", [in_layers(0.0)])])
        outputs.append(np.array(model(short)))
        np.testing.assert_allclose(outputs[-1], plain(short), atol=1e-6)
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-4


@pytest.mark.slow
def test_layers_within_layers(tmp_path):
    plain, techniques = sequence_model(), [in_layers(GROWING), Cluster(4)]
    model = compiled(tfc.compress(plain, [tfc.Rule("*", techniques)]))
    # Before training outputs are equal, and steps that are masked away do not count.
    np.testing.assert_allclose(model(TOKENS), plain(TOKENS), atol=1e-6)
    short = np.where(np.arange(6) < 3, TOKENS, 0)
    assert np.abs(np.array(model(short)) - model(np.where(short == 0, 1, short))).max() > 1e-4
    fit(model, x=TOKENS)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(TOKENS), model(TOKENS))
    assert_same(fit(loaded, x=TOKENS), fit(model, x=TOKENS))
    final = tfc.finalize(model)
    np.testing.assert_allclose(final(TOKENS), model(TOKENS), atol=1e-6)
    pruned = [v for v in final.trainable_variables if v.name in KERNELS]
    assert len(pruned) == 14
    for variable in pruned:
        kernel = np.array(variable)
        assert (kernel == 0).sum() == kernel.size - round(kernel.size * 0.4), variable.path
        assert len(np.unique(kernel)) <= 4


@pytest.mark.slow
@pytest.mark.parametrize("dimensions", [1, 2])
def test_separable_convolutions(dimensions):
    kind = (layers.SeparableConv1D, layers.SeparableConv2D)[dimensions - 1]
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 2) if dimensions == 1 else (8, 8, 2))
    x = kind(5, 3, activation="relu", name="separable")(inputs)
    outputs = layers.Dense(2)(layers.Flatten()(x))
    model = keras.Model(inputs, outputs)
    x = X[:, 0] if dimensions == 1 else X
    for depthwise in (False, True):
        techniques = [in_layers(0.5, depthwise=depthwise), Cluster(3, depthwise=depthwise)]
        small = compiled(tfc.compress(model, [tfc.Rule("separable", techniques)]))
        fit(small, x=x, y=Y)
        final = tfc.finalize(small)
        np.testing.assert_allclose(final(x), small(x), atol=1e-6)
        layer = final.get_layer("separable")
        assert np.count_nonzero(layer.pointwise_kernel) == 5
        assert len(np.unique(layer.pointwise_kernel)) <= 3
        free = np.count_nonzero(layer.depthwise_kernel)
        assert free == np.array(layer.depthwise_kernel).size // (2 if depthwise else 1)


@pytest.mark.slow
def test_opened_layers_with_quantize(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), dtype="int32", batch_size=1)
    x = layers.Embedding(20, 8, name="embedding")(inputs)
    x = layers.GRU(5, return_sequences=True, unroll=True, name="gru")(x)
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = layers.SeparableConv1D(6, 3, name="separable")(x)
    plain = keras.Model(inputs, layers.Dense(2, name="logits")(layers.Flatten()(x)))
    recipe = [tfc.Rule("*", [in_layers(GROWING), Cluster(6), Quantize(bits=8)])]
    model = compiled(tfc.compress(plain, recipe))
    model.fit(TOKENS[:32], Y[:32], batch_size=1, verbose=0, callbacks=[tfc.UpdateCompression()])
    targets = [t for x in model.layers if isinstance(x, Compressed) for t in x.bound]
    pruned = [t for t in targets if any(isinstance(k, Prune) for k in t.techniques)]
    assert len(pruned) >= 8
    for target in pruned:
        mask = np.array(target.states[0]["mask"])
        assert (mask == 0).sum() == mask.size - round(mask.size * 0.4), target.variable.path
    path = tmp_path / "model.tflite"
    tfc.convert(model, path, precision="int8")
    assert tfc.verify(model, path, TOKENS[:8]).passed


@keras.saving.register_keras_serializable("tests")
class Mixer(layers.Layer):
    """A layer that computes with a weight of any name."""

    def __init__(self, weight, **kwargs):
        super().__init__(**kwargs)
        self.weight = weight

    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], 8), name=self.weight)
        self.offset = self.add_weight(shape=(8,), name="offset")

    def call(self, x):
        return ops.add(ops.matmul(x, self.matrix), self.offset)

    def get_config(self):
        return {**super().get_config(), "weight": self.weight}


@tfc.register_kernel("matrix")
@keras.saving.register_keras_serializable("tests")
class Declared(Mixer):
    pass


@keras.saving.register_keras_serializable("tests")
class Around(layers.Layer):
    """A layer made of layers, with a weight beside them."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(8)

    def build(self, shape):
        self.dense.build(shape)
        self.table = self.add_weight(shape=(4, 8), name="table")

    def call(self, x):
        return ops.add(self.dense(x), ops.matmul(x, self.table))


@pytest.mark.parametrize("quantize", [[], [Quantize()]])
@pytest.mark.parametrize("technique", [in_layers(0.5), Cluster(4)])
@pytest.mark.parametrize("own", [lambda: Mixer("kernel"), lambda: Declared("w")])
def test_kernels_of_own_layers(own, technique, quantize):
    model = keras.Sequential([keras.Input((4,)), own(), layers.Dense(2)])
    small = tfc.compress(model, [tfc.Rule("*", [technique, *quantize])])
    for layer in small.layers:
        if getattr(layer, "scheduled", False):
            layer.advance(0)
    found = {x.name: x for x in small.layers if isinstance(x, Compressed)}
    assert len(found) == 2
    (target,) = next(x for name, x in found.items() if "dense" not in name).bound
    held = np.array(effective_weight(target))
    assert np.mean(held == 0) == 0.5 if isinstance(technique, Prune) else len(np.unique(held)) == 4
    x = RANDOM.normal(size=(3, 4)).astype("float32")
    np.testing.assert_allclose(tfc.finalize(small)(x), small(x))


def test_weights_of_own_layers_that_nothing_tells_of():
    mixer = Mixer("w", name="mix")
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4), Around(name="around"), mixer])
    told = r"Prune leaves .*around_table/table, mix/w\. .*register_kernel\('table'\)"
    with pytest.warns(UserWarning, match=told):
        tfc.compress(model, [tfc.Rule("*", [in_layers(0.5)])])
    compiled(model)
    callback = tfc.PruneCallback(in_layers(0.5))
    callback.set_model(model)
    with pytest.warns(UserWarning, match=r"Prune leaves .*around/table, mix/w"):
        callback.find()
    with pytest.raises(ValueError, match=r"layers without kernels.*register_kernel\('w'\)"):
        tfc.compress(model, [tfc.Rule("mix", [in_layers(0.5)])])


@pytest.mark.parametrize(
    "wrong", [lambda: tfc.register_kernel(Mixer), lambda: tfc.register_kernel("w")(Mixer("w"))]
)
def test_wrong_declarations(wrong):
    with pytest.raises(TypeError, match="register_kernel"):
        wrong()


TECHNIQUES = {
    "prune": [in_layers(0.8)],
    "movement": [in_layers(0.8, score="movement")],
    "cluster": [Cluster(4)],
    "delayed": [Quantize(delay=2)],
}


@pytest.mark.parametrize("techniques", TECHNIQUES.values(), ids=TECHNIQUES)
def test_tensorflow_checkpoints_hold_all_states(techniques, tmp_path):
    def make():
        inputs = keras.Input((6, 4))
        model = keras.Model(inputs, layers.Bidirectional(layers.LSTM(5))(inputs))
        return tfc.compress(model, [tfc.Rule("*", techniques)])

    trained, fresh = make(), make()
    rng = np.random.default_rng(0)
    for variable in trained.variables:  # as if trained
        if "seed" not in variable.path:
            variable.assign(rng.integers(0, 2, variable.shape))
    path = tf.train.Checkpoint(model=trained).save(str(tmp_path / "checkpoint"))
    tf.train.Checkpoint(model=fresh).restore(path).assert_existing_objects_matched()
    assert_same(trained, fresh)


STATEFUL = {
    "lstm": lambda **k: layers.LSTM(4, **k),
    "gru": lambda **k: layers.GRU(4, unroll=True, **k),
    "both": lambda **k: layers.Bidirectional(layers.LSTM(3, **k)),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_states_go_from_batch_to_batch(name):
    inputs = keras.Input((6, 4), batch_size=2)
    model = keras.Model(inputs, STATEFUL[name](stateful=True)(inputs))
    x = RANDOM.normal(size=(3, 2, 6, 4)).astype("float32")
    small = tfc.compress(model, [tfc.Rule("*", [in_layers(0.0)])])
    wanted = [np.array(model(batch)) for batch in x]
    assert np.abs(wanted[1] - model.layers[1](x[1])).max() > 1e-3  # which depends on the first
    for _ in range(2):
        got = [small(batch) for batch in x]
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
        for layer in small.layers:
            if getattr(layer, "stateful", False):
                layer.reset_states()
