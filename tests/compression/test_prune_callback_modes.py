"""PruneCallback in every mode of Keras, and with models that cannot be flattened."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from callback_models import (
    GROWING,
    Watch,
    X,
    assert_follows,
    compiled,
    fit,
    kernels,
    make,
    plain,
    wanted,
    zeros,
)
from keras import layers, ops
from pruning_models import in_layers

import tfcompress as tfc
from tfcompress import PruneCallback, schedules


@keras.saving.register_keras_serializable("test_prune_callback")
class Branching(keras.Model):
    """Python control flow on values: cannot be flattened."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(5, 3, activation="relu", name="conv")
        self.dense = layers.Dense(3, name="dense")
        self.rare = layers.Dense(3, name="rare")

    def call(self, x):
        x = self.conv(x)
        x = ops.reshape(x, (-1, 80))
        if not tf.is_symbolic_tensor(x) and float(ops.sum(x)) < -1e9:
            return self.rare(x)
        return self.dense(x) + 0.01 * self.rare(x)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"steps_per_execution": 4}, {"run_eagerly": True}])
def test_modes_of_compile(settings):
    schedule = schedules.constant(0.6, begin=4, frequency=4)
    model, watch, reference = make(**settings), Watch(), make()
    fit(model, 12, PruneCallback(in_layers(schedule)), watch)
    assert_follows(model, watch.seen, schedule)
    fit(reference, 12, PruneCallback(in_layers(schedule)))
    for a, b in zip(kernels(model), kernels(reference), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_masks_hold_within_an_execution():
    """Weights that were not held at zero between steps would give other outputs."""
    together, single = make(steps_per_execution=8), make()
    prune = in_layers(schedules.one_shot(0.6))
    for model in (together, single):
        fit(model, 8, PruneCallback(prune))
    for a, b in zip(kernels(together), kernels(single), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_jit_compile():
    model, watch = make(jit_compile=True), Watch()
    fit(model, 12, PruneCallback(in_layers(GROWING, score="taylor")), watch)
    assert_follows(model, watch.seen, GROWING)


@pytest.mark.parametrize("eager", [False, True])
def test_a_model_that_cannot_be_flattened(eager):
    keras.utils.set_random_seed(0)
    model, watch = Branching(), Watch()
    model(X[:1])
    with pytest.raises(Exception, match=r"flatten|trace|symbolic"):
        tfc.flatten(model, inputs=keras.Input((6, 6, 2)))
    fit(compiled(model, run_eagerly=eager), 12, PruneCallback(in_layers(GROWING)), watch)
    assert len(watch.seen[-1][1]) == 3
    assert_follows(model, watch.seen, GROWING)


@pytest.mark.slow
def test_use_ema():
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9)
    model, watch = make(optimizer), Watch()
    fit(model, 12, PruneCallback(in_layers(GROWING)), watch)
    assert_follows(model, watch.seen, GROWING)
    assert zeros(model) == wanted(model, 0.7)
    often = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=5)
    model, watch = make(often), Watch()
    fit(model, 12, PruneCallback(in_layers(GROWING)), watch)
    assert_follows(model, watch.seen, GROWING)


@pytest.mark.parametrize(
    ("policy", "score"),
    [
        ("mixed_float16", "taylor"),
        pytest.param("mixed_float16", "movement", marks=pytest.mark.slow),
        pytest.param("mixed_float16", "magnitude", marks=pytest.mark.slow),
        pytest.param("mixed_bfloat16", "taylor", marks=pytest.mark.slow),
    ],
)
def test_mixed_precision(policy, score):
    keras.config.set_dtype_policy(policy)
    try:
        model, watch = make(), Watch()
        # The first steps overflow with this loss scale, and are skipped.
        if policy == "mixed_float16":
            inner = keras.optimizers.Adam(0.02)
            optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**22)
            model = compiled(plain(), optimizer)
        callback = PruneCallback(in_layers(GROWING, score=score))
        fit(model, 16, callback, watch)
    finally:
        keras.config.set_dtype_policy("float32")
    assert_follows(model, watch.seen, GROWING)
    if score != "magnitude":
        for weight in callback._weights:
            assert np.isfinite(weight.scores).all()
            # Not scaled as the loss is.
            assert 0 < np.abs(weight.scores).max() < 100
    assert all(np.isfinite(kernel).all() for kernel in kernels(model))


@pytest.mark.parametrize("score", [pytest.param("magnitude", marks=pytest.mark.slow), "taylor"])
def test_gradient_accumulation(score):
    optimizer = keras.optimizers.Adam(0.02, gradient_accumulation_steps=2)
    model, watch = make(optimizer), Watch()
    schedule = schedules.linear(0.1, 0.7, end=6, frequency=2)
    fit(model, 16, PruneCallback(in_layers(schedule, score=score)), watch)
    assert [step for step, _ in watch.seen] == [i // 2 for i in range(1, 17)]
    assert_follows(model, watch.seen, schedule)


@pytest.mark.parametrize("score", [pytest.param("magnitude", marks=pytest.mark.slow), "taylor"])
def test_own_train_step(score):
    class Own(keras.Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            grads = tape.gradient(loss, self.trainable_weights)
            pairs = zip(grads, self.trainable_weights, strict=True)
            self.optimizer.apply_gradients(pairs)
            return {"loss": loss}

    source = plain()
    model, watch, reference = Own(source.inputs, source.outputs), Watch(), make()
    fit(compiled(model), 12, PruneCallback(in_layers(GROWING, score=score)), watch)
    assert_follows(model, watch.seen, GROWING)
    fit(reference, 12, PruneCallback(in_layers(GROWING, score=score)))
    for a, b in zip(kernels(model), kernels(reference), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
