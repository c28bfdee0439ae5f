"""Regularize and GroupLasso: penalties and gradients by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from tfcompress import GroupLasso, Regularize

RANDOM = np.random.default_rng(0)


def penalty_and_gradient(regularizer, weight):
    weight = tf.constant(weight, "float32")
    with tf.GradientTape() as tape:
        tape.watch(weight)
        penalty = regularizer(weight)
    return float(penalty), np.array(tape.gradient(penalty, weight))


def test_filters_by_hand():
    weight = np.array([[3.0, 0.0, 1.0], [4.0, 0.0, 0.0]])
    penalty, gradient = penalty_and_gradient(GroupLasso(0.5), weight)
    assert penalty == pytest.approx(0.5 * np.sqrt(2) * (5 + 0 + 1))
    # The gradient is strength * sqrt(size) * w / norm, and 0 where the group is gone.
    expected = 0.5 * np.sqrt(2) * np.array([[0.6, 0, 1], [0.8, 0, 0]])
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("pattern", "penalty"),
    [("channels", np.sqrt(3) * (np.sqrt(10) + 4)), ("2x2", 2 * 5 + np.sqrt(2) * 1)],
)
def test_channels_and_blocks_by_hand(pattern, penalty):
    weight = np.array([[3.0, 0.0, 1.0], [4.0, 0.0, 0.0]])
    assert penalty_and_gradient(GroupLasso(1.0, pattern), weight)[0] == pytest.approx(penalty)


@pytest.mark.parametrize(("pattern", "axes"), [("filters", (0, 1, 2)), ("channels", (0, 1, 3))])
def test_of_a_convolution(pattern, axes):
    weight = RANDOM.normal(size=(3, 3, 4, 5)).astype("float32")
    penalty, gradient = penalty_and_gradient(GroupLasso(0.1, pattern), weight)
    norms = np.sqrt(np.square(weight).sum(axes, keepdims=True))
    size = np.sqrt(weight.size / norms.size)
    assert penalty == pytest.approx(0.1 * size * norms.sum(), rel=1e-5)
    np.testing.assert_allclose(gradient, 0.1 * size * weight / norms, rtol=1e-4)


def test_all_zero():
    penalty, gradient = penalty_and_gradient(GroupLasso(1.0, "1x2"), np.zeros((3, 5)))
    assert penalty == 0
    np.testing.assert_array_equal(gradient, 0)


def test_is_a_keras_regularizer():
    dense = layers.Dense(3, kernel_regularizer=GroupLasso(0.5, "channels"))
    dense.build((None, 4))
    copy = layers.Dense.from_config(dense.get_config())
    config = copy.kernel_regularizer.get_config()
    assert (config["strength"], config["pattern"]) == (0.5, "channels")
    assert float(dense.losses[0]) == pytest.approx(float(GroupLasso(0.5, "channels")(dense.kernel)))


def make(*techniques, own=None, run_eagerly=True):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, kernel_regularizer=own, name="conv")(inputs)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    outputs = layers.Dense(3, name="dense")(layers.Flatten()(x))
    model = keras.Model(inputs, outputs)
    if techniques:
        model = tfc.compress(model, [tfc.Rule("*", list(techniques))])
    settings = {"jit_compile": False, "run_eagerly": run_eagerly}
    model.compile(keras.optimizers.SGD(0.1), "mse", **settings)
    return model


X = RANDOM.normal(size=(8, 6, 6, 2)).astype("float32")
Y = RANDOM.normal(size=(8, 3)).astype("float32")


def kernels(model):
    found = [model.get_layer(name) for name in ("conv", "depthwise", "dense")]
    return [np.array(getattr(x, "layer", x).kernel) for x in found]


def test_the_loss_grows_by_exactly_the_penalty():
    plain = make()
    model = make(Regularize(keras.regularizers.L1(0.01)))
    penalty = 0.01 * sum(np.abs(kernel).sum() for kernel in kernels(plain))
    difference = model.evaluate(X, Y, verbose=0) - plain.evaluate(X, Y, verbose=0)
    assert difference == pytest.approx(penalty, rel=1e-4)
    np.testing.assert_array_equal(model(X), plain(X))
    assert len(model.losses) == 3


def test_two_penalties_and_the_layers_own_add_up():
    own = keras.regularizers.L2(0.02)
    plain, bare = make(own=own), make()
    model = make(Regularize(GroupLasso(0.01)), Regularize(keras.regularizers.L1(0.03)), own=own)
    of_kernel = [float(GroupLasso(0.01)(k)) + 0.03 * np.abs(k).sum() for k in kernels(plain)]
    losses = [m.evaluate(X, Y, verbose=0) for m in (model, plain, bare)]
    assert losses[1] - losses[2] == pytest.approx(0.02 * np.square(kernels(bare)[0]).sum(), 1e-4)
    assert losses[0] - losses[1] == pytest.approx(sum(of_kernel), rel=1e-3)  # float32 losses


def test_training_equals_that_of_a_keras_regularizer():
    """One SGD step moves a weight by the gradient of the penalty more."""
    plain, model = make(run_eagerly=False), make(Regularize("l2"), run_eagerly=False)
    before = kernels(plain)
    for each in (plain, model):
        each.fit(X, Y, batch_size=8, verbose=0)
    for a, b, start in zip(kernels(plain), kernels(model), before, strict=True):
        np.testing.assert_allclose(a - b, 0.1 * 2 * 0.01 * start, atol=1e-6)


def test_survives_saving_and_is_gone_after_finalize(tmp_path):
    model = make(Regularize(GroupLasso(0.5, "1x2")))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.evaluate(X, Y, verbose=0) == pytest.approx(model.evaluate(X, Y, verbose=0))
    final = tfc.finalize(model)
    assert final.losses == []
    np.testing.assert_array_equal(final(X), model(X))


def test_drives_groups_to_zero():
    # Outputs depend on one input of four alone: the others' rows shrink, as a penalty of each
    # weight alone would not make them do together.
    x = RANDOM.normal(size=(64, 4)).astype("float32")
    y = np.stack([x[:, 0], -x[:, 0]], 1)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2, use_bias=False, name="dense")(inputs))
    model = tfc.compress(model, [tfc.Rule("*", [Regularize(GroupLasso(0.05, "channels"))])])
    model.compile(keras.optimizers.SGD(0.2), "mse", jit_compile=False)
    model.fit(np.tile(x, (40, 1)), np.tile(y, (40, 1)), batch_size=64, shuffle=False, verbose=0)
    norms = np.linalg.norm(model.get_layer("dense").layer.kernel, axis=1)
    assert norms[0] > 1
    assert norms[1:].max() < 0.03


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: GroupLasso(-1), "strength must be 0 or more; received -1"),
        (lambda: GroupLasso(0.1, "2:4"), "'filters', 'channels' or a block"),
        (lambda: GroupLasso(0.1, "unstructured"), "'filters', 'channels' or a block"),
        (lambda: Regularize(None), r"Keras regularizer .* received None"),
        (lambda: Regularize("nonsense"), "nonsense"),
    ],
)
def test_errors(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()


def test_filters_of_a_transposed_convolution():
    layer = keras.layers.Conv2DTranspose(2, 1)
    layer.build((None, 4, 4, 3))
    kernel = np.zeros((1, 1, 2, 3), "float32")  # outputs, then inputs
    kernel[0, 0, 1] = [3.0, 0.0, 4.0]
    bound = Regularize(GroupLasso(0.5)).bind(layer, "kernel")
    np.testing.assert_allclose(bound.penalty(kernel), 0.5 * np.sqrt(3) * 5, rtol=1e-6)
    again = keras.regularizers.deserialize(keras.regularizers.serialize(bound.regularizer))
    np.testing.assert_allclose(again(kernel), bound.penalty(kernel))
