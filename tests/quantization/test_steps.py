"""Recurrent layers opened step by step: they compute and learn what Keras's own layers do."""

import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from step_models import Made, Own, loops, net, normal, steps_off

import tfcompress as tfc
from tfcompress.graph.flatten import flatten
from tfcompress.quantization.opening import EVERYWHERE, open_with
from tfcompress.quantization.unrolling import unrolled

SEQUENCES = {"return_sequences": True}
STATES = {"return_state": True}
BACK = {"go_backwards": True}


def opened(model):
    """The model over loops of steps."""
    made = open_with(model, EVERYWHERE)[0]
    assert loops(made)
    return made


def spread(model):
    rng = np.random.default_rng(0)
    for v in model.weights:
        v.assign(rng.uniform(-0.7, 0.7, v.shape))
    return model


def compare(model, *data):
    """Checks a model over steps, and one without a loop, against it; returns the first."""
    wanted = keras.tree.flatten(spread(model)(data[0] if len(data) == 1 else list(data)))
    made = opened(flatten(model))
    for other in (made, unrolled(made)[0]):
        found = keras.tree.flatten(other(data[0] if len(data) == 1 else list(data)))
        for one, two in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, two, atol=2e-6)
    assert np.abs(wanted[0]).max() > 1e-3
    return made


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.GRU(3),
        lambda: layers.GRU(3, **SEQUENCES, **BACK),
        lambda: layers.GRU(3, reset_after=False, activation="relu", use_bias=False),
        lambda: layers.GRU(3, reset_after=False, **SEQUENCES),
        lambda: layers.SimpleRNN(3, activation="relu", **BACK),
        lambda: layers.LSTM(3, recurrent_activation="hard_sigmoid", **SEQUENCES),
        lambda: layers.RNN([layers.GRUCell(3), layers.LSTMCell(4)], **SEQUENCES),
        lambda: layers.RNN(Own(3), **SEQUENCES),
        lambda: layers.RNN(Made(3), **BACK),
        lambda: layers.Bidirectional(layers.GRU(3, **SEQUENCES)),
        lambda: layers.Bidirectional(layers.SimpleRNN(3), merge_mode="ave"),
    ],
)
def test_steps_compute_what_layers_do(layer):
    compare(net(layer()), normal(2, 5, 4))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: layers.ConvLSTM1D(3, 3, strides=2, **SEQUENCES), (4, 8, 2)),
        (lambda: layers.ConvLSTM2D(2, 3, padding="same", use_bias=False), (3, 5, 4, 2)),
    ],
)
def test_convolutional_steps(layer, shape):
    compare(net(layer(), shape=shape), normal(2, *shape))


MASKED = {
    "gru": lambda **k: layers.GRU(3, **k),
    "own": lambda **k: layers.RNN(Own(3), **k),
    "both": lambda **k: layers.Bidirectional(layers.LSTM(3, **k)),
}


@pytest.mark.parametrize("kind", MASKED)
@pytest.mark.parametrize("settings", [{}, {**SEQUENCES, "zero_output_for_mask": True}, SEQUENCES])
def test_masks_of_several_lengths(kind, settings):
    data = normal(3, 5, 4)
    data[0, 3:] = data[1, :2] = data[2] = 0.0
    compare(net(layers.Masking(), MASKED[kind](**settings)), data)


def test_states_go_in_and_out():
    x, h, c = keras.Input((5, 4)), keras.Input((3,)), keras.Input((3,))
    mask = keras.Input((5,), dtype="bool")
    lstm = layers.LSTM(3, **STATES, **SEQUENCES)
    data = [normal(2, 5, 4), normal(2, 3, seed=1), normal(2, 3, seed=2)]
    seen = np.array([[False, False, True, True, True], [True, True, True, False, False]])
    given = lstm(x, initial_state=[h, c], mask=mask)  # an output is kept that is no state
    compare(keras.Model([x, h, c, mask], given), *data, seen)
    # A mask that tensors carry reaches no layer that is given states.
    data[0][0, :2] = 0.0
    lost = lstm(layers.Masking()(x), initial_state=[h, c])
    compare(keras.Model([x, h, c], lost), *data)
    stacked = layers.RNN([layers.GRUCell(2), layers.LSTMCell(3)], **STATES)(x)
    compare(keras.Model(x, stacked), data[0])


@pytest.mark.parametrize("layer", [lambda: layers.GRU(3), lambda: layers.RNN(Own(3))])
def test_gradients_are_those_of_the_layer(layer):
    model, data = net(layer()), normal(2, 5, 4)
    made = compare(model, data)
    found = []
    for each in (model, made):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(each(data) ** 2)
        slopes = tape.gradient(loss, [v.value for v in each.trainable_variables])
        found.append(np.sort(np.concatenate([np.ravel(x) for x in slopes])))
    np.testing.assert_allclose(*found, atol=1e-5)


def test_dropout_is_one_mask_for_all_steps():
    x, state = keras.Input((4, 2)), keras.Input((64,))
    layer = layers.SimpleRNN(64, recurrent_dropout=0.5, activation="linear", **SEQUENCES)
    made = opened(keras.Model([x, state], layer(x, initial_state=[state])))
    (loop,) = loops(made)
    next(x for x in loop.step.layers if x.weights).kernel.assign(
        np.eye(64)
    )  # which only dropout tells from what it was
    given = [np.zeros((1, 4, 2), "float32"), np.ones((1, 64), "float32")]
    found = np.asarray(made(given, training=True))[0]
    assert 10 < np.count_nonzero(found[0]) < 54
    np.testing.assert_allclose(found, (found[0] > 0) * 2.0 ** np.arange(1, 5)[:, None])
    np.testing.assert_allclose(made(given), np.ones((1, 4, 64)))
    plain = opened(flatten(net(layers.GRU(3, dropout=0.5))))
    noise = [x.noise_shape for x in plain.layers if isinstance(x, layers.Dropout)]
    assert noise == [(None, 1, None)]


def test_layers_that_stay_loops():
    x = keras.Input((None, 4))
    for layer in (layers.GRU(3), layers.Bidirectional(layers.LSTM(3))):
        assert not loops(open_with(keras.Model(x, layer(x)), EVERYWHERE)[0])


@pytest.mark.slow
def test_jax_trains_steps(tmp_path):
    code = """
        import sys, keras, numpy as np, tfcompress as tfc
        from keras import layers
        keras.utils.set_random_seed(0)
        x = np.random.default_rng(0).normal(size=(32, 6, 4)).astype("float32")
        x[:8, 4:] = 0
        inputs = keras.Input((6, 4))
        both = layers.Bidirectional(layers.GRU(5, dropout=0.1, recurrent_dropout=0.1))
        model = keras.Model(inputs, layers.Dense(1)(both(layers.Masking()(inputs))))
        rules = [tfc.Rule("*", [tfc.Prune(0.5), tfc.Quantize(delay=3)])]
        small = tfc.compress(model, rules)
        small.compile("adam", "mse")
        small.fit(x, x[:, 0, :1], epochs=3, batch_size=8, callbacks=[tfc.UpdateCompression()])
        final = tfc.finalize(small)
        np.testing.assert_allclose(final(x), small(x), atol=1e-6)
        final.save(sys.argv[1] + "/jax.keras")
        np.savez(sys.argv[1] + "/jax.npz", x=x, y=final(x))
    """
    env = {**os.environ, "KERAS_BACKEND": "jax"}
    run = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    subprocess.run(run, env=env, check=True, timeout=300)
    model, seen = keras.saving.load_model(tmp_path / "jax.keras"), np.load(tmp_path / "jax.npz")
    np.testing.assert_allclose(model(seen["x"]), seen["y"], atol=1e-5)
    assert len(loops(model)) == 2
    path = tmp_path / "m.tflite"
    assert tfc.convert(model, path, precision="int8").float_ops == []
    assert steps_off(model, path, seen["x"]) < 1.01
