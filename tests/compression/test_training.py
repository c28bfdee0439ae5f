"""Quantization-aware training in every mode of Keras, by its outcome."""

import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from pruning_models import run_python

import tfcompress as tfc
from tfcompress.layers.compressed import Compressed
from tfcompress.layers.fake_quant import FakeQuant

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(64, 8, 8, 2)).astype("float32")
Y = RANDOM.integers(0, 2, 64)
X[Y == 1, 2:6, 2:6] += 1.5


def make_float(**first):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(6, 3, use_bias=False, name="first", **first)(inputs)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, activation="relu", name="second")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(2, dtype="float32", name="logits")(x))


def compiled(model, **kwargs):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    settings = {"weighted_metrics": ["accuracy"], "jit_compile": False, **kwargs}
    model.compile(keras.optimizers.Adam(0.01), loss, **settings)
    return model


def make(**kwargs):
    return compiled(tfc.quantize_aware(make_float()), **kwargs)


def fit(model, **kwargs):
    model.fit(X, Y, batch_size=8, verbose=0, shuffle=False, **kwargs)
    return model


def assert_same(a, b, atol=0.0):
    for v, w in zip(a.variables, b.variables, strict=True):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(v), keras.ops.convert_to_numpy(w), atol=atol, err_msg=v.path
        )


@pytest.fixture(scope="module")
def reference():
    """One epoch of plain `fit`."""
    return fit(make())


@pytest.mark.slow
def test_steps_per_execution(reference):
    assert_same(fit(make(steps_per_execution=4)), reference, 1e-6)


def test_run_eagerly(reference):
    # Float32 sums come in another order, and a value on the edge of two codes may take either.
    assert_same(fit(make(run_eagerly=True)), reference, 0.02)


@pytest.mark.slow
def test_tf_data(reference):
    model = make()
    model.fit(tf.data.Dataset.from_tensor_slices((X, Y)).batch(8), verbose=0)
    assert_same(model, reference, 1e-6)


@pytest.mark.slow
def test_last_batch_may_be_smaller():
    model = make()
    model.fit(X[:13], Y[:13], batch_size=8, verbose=0)
    assert np.isfinite(model(X)).all()


@pytest.mark.slow
def test_class_and_sample_weights():
    by_class, by_sample = make(), make()
    by_class.fit(X, Y, batch_size=8, verbose=0, shuffle=False, class_weight={0: 0.2, 1: 3.0})
    weights = np.where(Y == 1, 3.0, 0.2).astype("float32")
    by_sample.fit(X, Y, batch_size=8, verbose=0, shuffle=False, sample_weight=weights)
    assert_same(by_class, by_sample, 1e-6)


@pytest.mark.slow
def test_train_step_of_a_subclass(reference):
    class Trainer(keras.Model):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def call(self, x, training=False):
            return self.inner(x, training=training)

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            grads = tape.gradient(loss, self.trainable_weights)
            self.optimizer.apply(grads, self.trainable_weights)
            return {"loss": loss}

    inner = tfc.quantize_aware(make_float())
    fit(compiled(Trainer(inner), weighted_metrics=None), callbacks=[tfc.UpdateCompression()])
    assert_same(inner, reference, 1e-6)


def test_custom_loop(reference):
    model, optimizer = tfc.quantize_aware(make_float()), keras.optimizers.Adam(0.01)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        grads = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(grads, model.trainable_variables, strict=True))

    for start in range(0, 64, 8):
        step(X[start : start + 8], Y[start : start + 8])
    assert_same(model, reference, 1e-6)


@pytest.mark.parametrize(
    "policy", ["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)]
)
def test_mixed_precision(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    try:
        model = make()
        history = model.fit(X, Y, batch_size=8, epochs=8, verbose=0).history["loss"]
        assert np.isfinite(history).all()
        assert history[-1] < 0.8 * history[0]
        assert model.output.dtype == "float32"
        for layer in model.layers:
            if isinstance(layer, FakeQuant):
                assert layer.range.dtype == "float32"
            if isinstance(layer, Compressed):
                for target in layer.bound:  # rounded in float32, cast afterwards
                    assert layer.effective(target.variable).dtype == "float32"
        model.save(tmp_path / "model.keras")
    finally:
        keras.config.set_dtype_policy("float32")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(model(X), loaded(X))


@pytest.mark.slow
def test_jit_compile(reference):
    assert_same(fit(make(jit_compile=True)), reference, 0.02)


@pytest.mark.slow
def test_mirrored_strategy_on_two_devices():
    run_python("""
        import numpy as np, tensorflow as tf
        cpus = tf.config.list_physical_devices("CPU")
        halves = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpus[0], halves)
        import keras, tfcompress as tfc
        from test_training import X, Y, compiled, make_float
        with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
            model = compiled(tfc.quantize_aware(make_float(), delay=3, freeze=12))
        history = model.fit(X, Y, batch_size=16, epochs=5, verbose=0,
                            callbacks=[tfc.UpdateCompression()]).history["loss"]
        assert history[-1] < history[0], history
        copy = keras.models.clone_model(model)
        copy.set_weights(model.get_weights())
        outputs = [m(X) for m in (copy, model)]
        np.testing.assert_allclose(*outputs, atol=0.02)
        assert all(float(r.limits()[1]) > 0 for r in model.layers if hasattr(r, "limits"))
    """)


@pytest.mark.slow
def test_frozen_base():
    source = make_float(trainable=False)
    model = compiled(tfc.quantize_aware(source))
    kernel = np.array(source.get_layer("first").kernel)
    fit(model)
    layer = next(x for x in model.layers if x.name == "first")
    assert layer.trainable_variables == []
    np.testing.assert_array_equal(layer.layer.kernel, kernel)
    changed = next(x for x in model.layers if x.name == "logits").layer
    assert np.abs(changed.kernel - source.get_layer("logits").kernel).max() > 0
    layer.trainable = True  # thawed for fine-tuning
    fit(compiled(model))
    assert np.abs(layer.layer.kernel - kernel).max() > 0


@pytest.mark.slow
def test_another_optimizer_midway():
    model = fit(make())
    loss, before = model.loss, np.array(model(X))
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, jit_compile=False)
    np.testing.assert_array_equal(model(X), before)
    history = model.fit(X, Y, batch_size=8, epochs=4, verbose=0).history["loss"]
    assert history[-1] < history[0]


@pytest.mark.slow
def test_save_midway_and_continue(tmp_path):
    model = fit(make())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(model(X), loaded(X))
    assert_same(fit(model), fit(loaded))


def test_weights_and_clone(tmp_path, reference):
    reference.save_weights(tmp_path / "model.weights.h5")
    for other in (make(), keras.models.clone_model(reference)):
        other.load_weights(tmp_path / "model.weights.h5")
        assert_same(other, reference)
        np.testing.assert_array_equal(other(X), reference(X))


@pytest.mark.slow
def test_backup_and_restore(tmp_path):
    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def run(model, *callbacks):
        return fit(model, epochs=4, callbacks=[tfc.UpdateCompression(), *callbacks])

    def start():
        return compiled(tfc.quantize_aware(make_float(), delay=12, freeze=28))

    backup = [keras.callbacks.BackupAndRestore(tmp_path / "a")]
    with pytest.raises(KeyboardInterrupt):
        run(start(), *backup, Kill())
    resumed = run(start(), keras.callbacks.BackupAndRestore(tmp_path / "a"))
    assert int(resumed.optimizer.iterations) == 32
    assert_same(resumed, run(start()))


@pytest.mark.slow
def test_learns_digits():
    """int8 keeps at least 0.97 of the float accuracy on real data."""
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    x = (x / 16).astype("float32").reshape(-1, 8, 8, 1)
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 1))
    h = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(12, 3, padding="same")(inputs)))
    h = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(h)
    model = compiled(keras.Model(inputs, layers.Dense(10)(layers.Flatten()(h))))
    settings = {"batch_size": 32, "verbose": 0}
    model.fit(x[:1000], y[:1000], epochs=4, **settings)
    qat = compiled(tfc.quantize_aware(model))
    qat.fit(x[:1000], y[:1000], epochs=2, **settings)
    accuracies = [m.evaluate(x[1400:], y[1400:], verbose=0)[1] for m in (model, qat)]
    assert accuracies[0] > 0.85
    assert accuracies[1] >= 0.97 * accuracies[0], accuracies


@pytest.mark.slow
def test_jax_backend():
    code = """
        import keras, numpy as np, tfcompress as tfc
        x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
        inputs = keras.Input((6,))
        hidden = keras.layers.Dense(8, activation="relu")(inputs)
        model = tfc.quantize_aware(keras.Model(inputs, keras.layers.Dense(1)(hidden)), delay=3)
        model.compile("adam", "mse")
        model.fit(x, x[:, 0], epochs=3, batch_size=8, callbacks=[tfc.UpdateCompression()])
        assert all(int(r.phase) == 1 for r in model.layers if hasattr(r, "phase"))
        kernel = next(r for r in model.layers if r.name.startswith("dense")).layer.kernel
        assert np.isfinite(np.array(kernel)).all()
    """
    env = {**os.environ, "KERAS_BACKEND": "jax"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=env, check=True, timeout=300)
