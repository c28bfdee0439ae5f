"""ChannelPruning in every mode of Keras, in several fits, and on models of every kind."""

import importlib.util
import warnings

import keras
import numpy as np
import pytest
from callback_models import X, Y, compiled
from channel_pruning_models import (
    Watch,
    assert_follows,
    assert_removable,
    callback,
    counts,
    fit,
    in_order,
    make,
    plain,
)  # fmt: skip
from end_to_end.models import BUILDERS
from keras import layers
from pruning_models import run_python

import tfcompress as tfc
from tfcompress import schedules
from tfcompress.surgery.pruning.dead import remove_dead_channels
from tfcompress.surgery.pruning.in_training import ChannelPruning


@pytest.mark.parametrize(
    "settings",
    [{}, pytest.param({"jit_compile": True}, marks=pytest.mark.slow)],
    ids=str,
)
def test_modes_of_compile(settings):
    model, watch = make(run_eagerly=False, **settings), Watch()
    fit(model, 8, callback(), watch)
    assert_follows(watch)
    assert_removable(model)


@pytest.mark.slow
def test_masks_hold_within_an_execution():
    """Weights that were not held at zero between steps would give other outputs."""
    once = schedules.one_shot(1.0)
    together, single = make(run_eagerly=False, steps_per_execution=8), make()
    for model in (together, single):
        fit(model, 8, callback(schedule=once, score=in_order))
    for a, b in zip(together.get_weights(), single.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_penalty_within_an_execution():
    model = make(run_eagerly=False, steps_per_execution=2)
    fit(model, 8, callback(method="group_lasso"))
    assert counts(model) == [4, 6]


@pytest.mark.slow
def test_use_ema():
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9)
    model, watch = make(optimizer, run_eagerly=False), Watch()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(model, 8, callback(), watch)
    assert_follows(watch)
    assert counts(model) == [4, 6]
    assert_removable(model)


@pytest.mark.slow
def test_gradient_accumulation():
    optimizer = keras.optimizers.Adam(0.02, gradient_accumulation_steps=2)
    model, watch = make(optimizer, run_eagerly=False), Watch()
    fit(model, 12, callback(), watch)
    assert [step for step, _ in watch.seen] == [i // 2 for i in range(1, 13)]
    assert_follows(watch)
    default = ChannelPruning(sparsity=0.5, round_to=1)
    fit(model := make(keras.optimizers.Adam(0.02, gradient_accumulation_steps=2)), 8, default)
    assert (default._followed.begin, default._followed.end) == (0, 2)
    assert sum(counts(model)) == 10


def test_unknown_number_of_steps():
    def batches():
        while True:
            yield X[:4], Y[:4]

    model, ours = make(), ChannelPruning(sparsity=0.5, round_to=1)
    with pytest.raises(ValueError, match="steps of the training must be known"):
        model.fit(batches(), verbose=0, callbacks=[ours])
    model.fit(batches(), steps_per_epoch=4, verbose=0, callbacks=[ours])
    assert sum(counts(model)) == 10


@pytest.mark.slow
def test_students_are_pruned():
    student, teacher = plain(), keras.models.clone_model(plain())
    distiller = tfc.Distiller(student, teacher)
    start = teacher.get_weights()
    compiled(distiller)
    fit(distiller, 8, callback())
    assert counts(student) == [4, 6]
    assert all(np.array_equal(a, b) for a, b in zip(start, teacher.get_weights(), strict=True))
    assert_removable(student)
    pair = compiled(tfc.MutualDistiller([plain(), plain()]))
    with pytest.raises(ValueError, match=r"prunes one model.*trains 2"):
        fit(pair, 1, callback())


def samples(model):
    def array(tensor):
        shape = (16, *(size or 4 for size in tensor.shape[1:]))
        values = np.random.default_rng(0).normal(size=shape)
        return np.abs(values * 9).astype("int32") if "int" in tensor.dtype else values

    inputs = getattr(model, "inputs", None)
    return [array(t) for t in inputs] if inputs else [array(keras.KerasTensor((None, 16, 16, 3)))]


KINDS = {
    "subclassed": "masks", "nested": "group_lasso", "two_inputs_two_outputs": "masks",
    "squeeze_and_excite": "masks", "gru": "masks", "transformer": "group_lasso",
    "separable": "group_lasso", "unet": "masks", "embedding": "masks",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_models(name):
    keras.utils.set_random_seed(0)
    model = BUILDERS[name]()
    x = samples(model)
    x = x if len(x) > 1 else x[0]
    zeros = keras.tree.map_structure(np.zeros_like, model(x))
    model.compile(keras.optimizers.Adam(0.003), "mse", jit_compile=False)
    ours = ChannelPruning(sparsity=0.5, round_to=1, method=KINDS[name])
    history = model.fit(x, zeros, batch_size=4, epochs=2, verbose=0, callbacks=[ours]).history
    small = remove_dead_channels(model)
    pairs = zip(*map(keras.tree.flatten, (model(x), small(x))), strict=True)
    for wanted, found in pairs:
        np.testing.assert_allclose(found, wanted, atol=1e-5 * float(np.abs(wanted).max()))
    before, after = small.surgery_report.macs
    assert history["macs"][-1] == pytest.approx(after / before)
    assert history["channel_sparsity"][-1] == pytest.approx(0.5, abs=0.07)


def test_normalization_without_scale():
    """Nothing but the moving mean could make a channel other than zero."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(8, 3, use_bias=False, name="first")(x)
    x = layers.ReLU()(layers.BatchNormalization(scale=False, center=False, name="norm")(x))
    x = layers.Conv2D(12, 3, name="second")(x)
    model = make(model=keras.Model(inputs, layers.Dense(3)(layers.GlobalMaxPooling2D()(x))))
    fit(model, 8, callback())
    mean = np.array(model.get_layer("norm").moving_mean)
    assert (mean == 0).sum() == 4
    assert assert_removable(model).get_layer("norm").moving_mean.shape == (4,)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("method", ["masks", "group_lasso"])
def test_mixed_precision(policy, method):
    keras.config.set_dtype_policy(policy)
    try:
        model, watch = make(), Watch()
        fit(model, 8, callback(method=method), watch)
    finally:
        keras.config.set_dtype_policy("float32")
    assert counts(model) == [4, 6]
    assert all(np.isfinite(w).all() for w in model.get_weights())


@pytest.mark.slow
def test_an_activation_that_is_not_zero_at_zero():
    """A channel that is gone adds no constant to what reads it."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(8, 3, activation="sigmoid", name="first")(inputs)
    x = layers.Conv2D(12, 3, activation="softplus", name="second")(x)
    model = compiled(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))))
    fit(model, 8, callback())
    small = assert_removable(model)
    assert (small.get_layer("first").filters, small.get_layer("second").filters) == (4, 6)


ON_ANOTHER_BACKEND = """
    import keras, numpy as np
    from channel_pruning_models import Watch, assert_follows, assert_removable, callback
    from channel_pruning_models import counts, fit, make

    compiles = {"run_eagerly": False, "jit_compile": keras.backend.backend() == "jax"}
    model, watch = make(**compiles), Watch()
    fit(model, 8, callback(), watch)
    assert_follows(watch)
    assert_removable(model)
    model = make(**compiles)
    try:
        fit(model, 8, callback(method="group_lasso"))
    except ValueError as error:
        assert keras.backend.backend() == "jax" and "compiles does not see" in str(error)
    else:
        assert counts(model) == [4, 6]
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends(backend, monkeypatch):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    monkeypatch.setenv("KERAS_BACKEND", backend)
    run_python(ON_ANOTHER_BACKEND)


@pytest.mark.slow
def test_mirrored_strategy_on_two_devices():
    run_python("""
        import numpy as np, tensorflow as tf
        cpus = tf.config.list_physical_devices("CPU")
        halves = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpus[0], halves)
        import keras
        from channel_pruning_models import assert_follows, callback, counts, fit, make, plain, Watch

        for method in ("masks", "group_lasso"):
            with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
                model, watch = make(run_eagerly=False), Watch()
            fit(model, 8, callback(method=method), watch)
            if method == "masks":
                assert_follows(watch)
            assert counts(model) == [4, 6]
    """)
