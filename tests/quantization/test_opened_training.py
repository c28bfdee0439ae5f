"""What opened layers take along: losses, rules of their weights, masks, names."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc
from tfcompress.graph.layers import KeepMask

X = np.random.default_rng(0).normal(size=(4, 6, 8)).astype("float32")
TOKENS = np.array([[3, 1, 0, 0], [2, 2, 5, 0]], "int32")


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


def model_of(*parts, shape=(6, 8), **settings):
    return keras.Sequential([keras.Input(shape, **settings), *parts])


@keras.saving.register_keras_serializable("tests")
class Scale(layers.Layer):
    def __init__(self, rules=None, **kwargs):
        super().__init__(**kwargs)
        self.rules = rules or {}

    def build(self, shape):
        self.factor = self.add_weight(
            shape=(shape[-1],), initializer="ones", name="factor", **self.rules
        )

    def get_config(self):
        return {**super().get_config(), "rules": self.rules}

    def call(self, x):
        return ops.multiply(x, self.factor)


ACTIVE = {
    "dense": lambda **k: [layers.Dense(5, activation="relu", **k)],
    "separable": lambda **k: [layers.SeparableConv1D(4, 3, **k), layers.BatchNormalization()],
    "norm": lambda **k: [layers.LayerNormalization(**k)],
    "silu": lambda **k: [layers.Activation("silu", **k)],
    "einsum": lambda **k: [layers.EinsumDense("abc,cde->abde", (6, 2, 3), **k)],
    "lstm": lambda **k: [layers.LSTM(4, unroll=True, **k)],
    "own": lambda **k: [Scale(**k)],
    "fused": lambda **k: [
        layers.Dense(5),
        layers.BatchNormalization(),
        layers.ReLU(**k),
        layers.Dense(2),
    ],
    "batch norm": lambda **k: [layers.Conv1D(4, 3), layers.BatchNormalization(**k)],
}


@pytest.mark.parametrize("name", ACTIVE)
def test_activity_regularizers_count_the_same(name, tmp_path):
    model = model_of(*ACTIVE[name](activity_regularizer=keras.regularizers.L1(0.5)))
    model(X, training=True)
    (wanted,) = model.losses
    assert wanted > 0.1
    copies = {"quantized": tfc.quantize_aware(model)}
    if name == "batch norm":
        copies["pruned"] = tfc.compress(model, [tfc.Rule("*", [tfc.Prune(0.5)])])
    elif name == "separable":  # BatchNormalization is folded all the same
        assert not any("Identity" in type(x).__name__ for x in copies["quantized"].layers)
        path = tmp_path / "model.keras"
        copies["quantized"].save(path)
        copies["loaded"] = keras.saving.load_model(path)
    for copy in copies.values():
        copy(X, training=True)
        (got,) = copy.losses
        np.testing.assert_allclose(got, wanted, rtol=0.02)


# A constraint and a regularizer whose values depend on the shape of the weight.
RULES = {
    "kernel_constraint": keras.constraints.UnitNorm(axis=0),
    "kernel_regularizer": keras.regularizers.OrthogonalRegularizer(0.3),
    "bias_constraint": "non_neg",
    "bias_regularizer": keras.regularizers.L2(0.7),
}
CONSTRAINED = {
    "dense": lambda: layers.Dense(4, activation="relu", **RULES),
    "einsum": lambda: layers.EinsumDense(
        "abc,cde->abde",
        (6, 2, 2),
        bias_axes="de",
        **{**RULES, "kernel_regularizer": keras.regularizers.L1(0.1)},
    ),
    "lstm": lambda: layers.LSTM(4, unroll=True, recurrent_constraint="unit_norm", **RULES),
    "gru": lambda: layers.GRU(4, unroll=True, bias_regularizer="L1"),
    "norm": lambda: layers.LayerNormalization(
        gamma_constraint=keras.constraints.MinMaxNorm(axis=0), gamma_regularizer="L2"
    ),
    "separable": lambda: layers.SeparableConv1D(
        3, 3, depthwise_constraint="unit_norm", pointwise_regularizer="L1"
    ),
    "own": lambda: Scale({"constraint": "unit_norm", "regularizer": "l2"}),
}


@pytest.mark.parametrize("name", CONSTRAINED)
def test_rules_of_weights_hold_in_their_own_shape(name, tmp_path):
    model = model_of(CONSTRAINED[name]())
    layer = model.layers[0]
    rng = np.random.default_rng(1)
    for weight in model.trainable_variables:
        weight.assign(rng.uniform(0.1, 0.9, weight.shape))

    def found(model):
        """Sizes and sorted values of the weights that are constrained, after it; the penalty."""
        held = [v for v in model.trainable_variables if v.constraint is not None]
        values = [np.sort(np.ravel(v.constraint(v))) for v in held]
        return sorted(map(list, values)), [float(sum(model.losses))]

    wanted = found(model)
    quantized = tfc.quantize_aware(model)
    assert not any(type(x) is type(layer) for x in quantized.layers)  # it was opened
    path = tmp_path / "model.keras"
    quantized.save(path)
    for copy in (quantized, keras.saving.load_model(path)):
        for ours, theirs in zip(found(copy), wanted, strict=True):
            assert len(ours) == len(theirs) > 0 or name == "gru"
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_gru_whose_biases_are_constrained_together_stays_whole():
    model = model_of(layers.GRU(3, unroll=True, bias_constraint=keras.constraints.MaxNorm(1.0)))
    with pytest.warns(UserWarning, match="stay float"):
        quantized = tfc.quantize_aware(model)
    (bias,) = [v for v in quantized.trainable_variables if v.constraint is not None]
    assert bias.shape == (2, 9)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("from_logits", [True, False])
def test_losses_of_probabilities_are_computed_from_logits(activation, from_logits):
    losses = {
        "softmax": keras.losses.SparseCategoricalCrossentropy,
        "sigmoid": keras.losses.BinaryCrossentropy,
    }
    labels = np.array([0, 1, 2, 0]) if activation == "softmax" else np.ones((4, 3))
    model = model_of(layers.Dense(3, activation=activation), shape=(8,))
    model.layers[0].kernel.assign(9 * model.layers[0].kernel)  # probabilities that round to 0
    quantized = tfc.quantize_aware(model)
    x = X[:, 0]
    quantized(x, training=True)
    found = []
    for each in (model, quantized):
        each.compile("sgd", losses[activation](from_logits=from_logits), run_eagerly=True)
        found.append(each.evaluate(x, labels, verbose=0))
    assert found[0] > 2
    np.testing.assert_allclose(found[1], found[0], rtol=0.02)


MASKED = {
    "stopped": lambda x: layers.EinsumDense("abc,cd->abd", (None, 6), bias_axes="d")(x),
    "normalized": lambda x: layers.LayerNormalization()(x),
    "activated": lambda x: layers.Activation("hard_sigmoid")(x),
    "averaged": lambda x: layers.Average()([x, layers.Dense(6, activation="relu")(x)]),
    "read": lambda x: MaskedScale()(x),
    "attention": lambda x: (lambda y: layers.MultiHeadAttention(2, 3)(y, y))(
        layers.LayerNormalization()(x)
    ),
}


@keras.saving.register_keras_serializable("tests")
class MaskedScale(Scale):
    supports_masking = True

    def call(self, x, mask=None):
        x = ops.multiply(x, self.factor)
        return x if mask is None else ops.multiply(x, 1.0 + ops.cast(mask, x.dtype)[..., None])


@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask", "ignore:these op")
@pytest.mark.parametrize("name", MASKED)
def test_masks_go_as_far_as_they_went(name, tmp_path):
    tokens = keras.Input((4,), dtype="int32")
    inner = MASKED[name](layers.Embedding(9, 6, mask_zero=True)(tokens))
    pooled = layers.GlobalAveragePooling1D()(inner)
    model = keras.Model(tokens, layers.Dense(2)(pooled))
    rng = np.random.default_rng(1)
    for weight in model.trainable_variables:
        weight.assign(rng.normal(size=weight.shape))
    quantized = tfc.quantize_aware(model, bits=16, activation_bits=16)
    wanted = model(TOKENS)
    path = tmp_path / "model.keras"
    quantized.save(path)
    for copy in (quantized, keras.saving.load_model(path)):
        np.testing.assert_allclose(copy(TOKENS), wanted, atol=2e-3)
    keeps = any(isinstance(x, KeepMask) for x in quantized.layers)
    assert keeps == (name in ("normalized", "activated", "attention"))


@keras.saving.register_keras_serializable("tests")
class Small(layers.Layer):
    """Asks for small outputs by a loss, which is one number for the whole batch."""

    def call(self, x):
        self.add_loss(10.0 * ops.mean(ops.square(x)))
        return x


def test_losses_that_a_layer_adds_count_the_same():
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    model = model_of(layers.Dense(4), Small(), layers.Dense(1), shape=(8,))
    qat = tfc.quantize_aware(model)
    qat(x, training=True)
    for each in (model, qat):
        each.compile("sgd", "mse", jit_compile=False)
    wanted = model.evaluate(x, x[:, :1], verbose=0)
    assert qat.evaluate(x, x[:, :1], verbose=0) == pytest.approx(wanted, rel=0.02)
