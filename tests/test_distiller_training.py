"""Distiller through Keras: data of all kinds, callbacks, checkpoints, precision and backends."""

import importlib.util

import keras
import numpy as np
import pytest
from distillation_models import (
    WEIGHTS,
    X,
    Y,
    as_numpy,
    assert_same,
    compiled,
    crossentropy,
    divergence,
    fit,
    mlp,
    pair,
    subclassed,
    two_headed,
)
from pruning_models import run_python

import tfcompress as tfc
from tfcompress import distillation as kd

LOSSES = [kd.SoftLabels(2.0), kd.Features("hidden", "hidden", weight=0.5)]


def make(losses=LOSSES, optimizer=None, **settings):
    """Always the same Distiller."""
    distiller = tfc.Distiller(*pair(), losses)
    for layer in distiller.adapters:
        layer.kernel.assign(np.linspace(-1, 1, 32).reshape(4, 8))
    return compiled(distiller, optimizer=optimizer or keras.optimizers.Adam(0.01), **settings)


@pytest.fixture(scope="module")
def trained():
    """Two epochs over X and Y as arrays, without tricks."""
    distiller = make(run_eagerly=False)
    history = fit(distiller, X, Y, epochs=2)
    return distiller, history


def test_student_learns(trained):
    _, history = trained
    assert set(history) == {
        "loss",
        "task_loss",
        "distillation_loss",
        "soft_labels",
        "features",
    }
    assert history["loss"][1] < history["loss"][0]
    parts = np.array([history["task_loss"], history["distillation_loss"]])
    np.testing.assert_allclose(history["loss"], [0.1, 0.9] @ parts, rtol=1e-5)
    sums = np.array(history["soft_labels"]) + history["features"]
    np.testing.assert_allclose(history["distillation_loss"], sums, rtol=1e-5)


def test_predict_is_the_students(trained):
    distiller, _ = trained
    np.testing.assert_array_equal(
        distiller.predict(X, verbose=0), distiller.student.predict(X, verbose=0)
    )


def batches():
    for start in range(0, 32, 8):
        yield X[start : start + 8], Y[start : start + 8]


class Sequence(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return list(batches())[index]


@pytest.mark.parametrize("kind", ["tf.data", "PyDataset", "generator"])
def test_data_of_other_kinds(trained, kind):
    import tensorflow as tf

    def forever():
        while True:
            yield from batches()

    data, options = {
        "tf.data": lambda: (tf.data.Dataset.from_tensor_slices((X, Y)).batch(8), {}),
        "PyDataset": lambda: (Sequence(), {}),
        "generator": lambda: (forever(), {"steps_per_epoch": 4}),
    }[kind]()
    distiller = make(run_eagerly=kind != "tf.data")
    fit(distiller, data, epochs=2, batch_size=None, **options)
    assert_same(distiller, trained[0], 1e-6)


def test_steps_per_execution_and_eager_runs(trained):
    for settings in ({"steps_per_execution": 4, "run_eagerly": False}, {"run_eagerly": True}):
        distiller = make(**settings)
        fit(distiller, X, Y, epochs=2)
        assert_same(distiller, trained[0], 1e-6)


def test_custom_loop(trained):
    import tensorflow as tf

    distiller = make()
    for _ in range(2):
        for x, y in batches():
            with tf.GradientTape() as tape:
                outputs = distiller(x, training=True)
                loss = distiller.compute_loss(x, y, outputs)
            variables = distiller.trainable_variables
            gradients = tape.gradient(loss, [v.value for v in variables])
            distiller.optimizer.apply(gradients, variables)
    for ours, theirs in zip(distiller.student.variables, trained[0].student.variables, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_compute_loss_without_outputs_runs_the_student_itself():
    distiller = make()
    given = distiller.compute_loss(X, Y, distiller(X, training=True))
    assert float(distiller.compute_loss(X, Y)) == pytest.approx(float(given), rel=1e-6)
    # What another batch gave must not be taken for this one's.
    outputs = distiller.student(X[:8])
    distiller(X[8:16])
    other = float(distiller.compute_loss(X[:8], Y[:8], outputs))
    again = float(distiller.compute_loss(X[:8], Y[:8], distiller(X[:8])))
    assert other == pytest.approx(again, rel=1e-6)


def test_validation_and_metrics():
    distiller = compiled(
        tfc.Distiller(*pair(), alpha=0.5),
        metrics=["accuracy"],
        weighted_metrics=["sparse_categorical_crossentropy"],
    )
    data = X[:9], Y[:9], WEIGHTS[:9]
    history = fit(distiller, X, Y, epochs=1, validation_data=data)
    student, teacher = (as_numpy(m(data[0])) for m in (distiller.student, distiller.teachers[0]))
    task = (data[2] * crossentropy(data[1], student)).mean()
    soft = (data[2] * divergence(teacher, student, 4.0)).mean()
    assert history["val_task_loss"][0] == pytest.approx(task, rel=1e-4)
    assert history["val_distillation_loss"][0] == pytest.approx(soft, rel=1e-4)
    assert history["val_loss"][0] == pytest.approx((task + soft) / 2, rel=1e-4)
    accuracy = (student.argmax(-1) == data[1]).mean()
    assert history["val_accuracy"][0] == pytest.approx(accuracy)
    assert 0 <= history["accuracy"][0] <= 1
    split = fit(distiller, X, Y, validation_split=0.25)
    assert split["val_loss"][0] > 0


def test_unlabelled_data():
    student, teacher = pair()
    distiller = compiled(tfc.Distiller(student, teacher, alpha=0), loss=None)
    history = fit(distiller, X, epochs=3, validation_data=(X,))
    expected = divergence(as_numpy(teacher(X)), as_numpy(student(X)), 4.0).mean()
    assert history["val_loss"][-1] == pytest.approx(expected, rel=1e-4)
    assert history["loss"][-1] < history["loss"][0]
    assert history["task_loss"] == [0, 0, 0]
    labelled = compiled(tfc.Distiller(*pair(), alpha=0))
    fit(labelled, X, Y, epochs=3)
    assert_same(labelled.student, student, 1e-6)


def test_labels_alone():
    """alpha=1 is training without a teacher."""
    distiller, alone = compiled(tfc.Distiller(*pair(), alpha=1)), compiled(pair()[0])
    fit(distiller, X, Y, epochs=2)
    fit(alone, X, Y, epochs=2)
    assert_same(distiller.student, alone, 1e-6)


def test_missing_labels_and_missing_loss():
    distiller = compiled(tfc.Distiller(*pair(), alpha=0.5), run_eagerly=False)
    with pytest.raises(ValueError, match=r"data have no labels, which alpha=0\.5.*alpha=0"):
        fit(distiller, X)
    distiller = compiled(tfc.Distiller(*pair(), alpha=0.5), loss=None)
    with pytest.raises(ValueError, match=r"compile got no loss .*alpha=0\.5.*compile\(optimizer"):
        fit(distiller, X, Y)


def test_no_memory_of_a_batch_is_kept():
    distiller = make()
    distiller.train_on_batch(X, Y)
    assert distiller._read.last == (None, {})


@pytest.mark.parametrize(
    "kind", ["functional", "subclassed", pytest.param("two outputs", marks=pytest.mark.slow)]
)
def test_saved_in_the_middle_of_training(tmp_path, kind):
    if kind == "functional":
        distiller = make()
    elif kind == "subclassed":
        models = subclassed(4, seed=1, name="a"), subclassed(8, seed=2, name="b")
        losses = [kd.SoftLabels(), kd.Features("inner", "inner"), kd.Contrastive("inner", "inner")]
        distiller = compiled(
            tfc.Distiller(*models, losses, alpha=0.3), optimizer=keras.optimizers.Adam(0.01)
        )
    else:
        models = two_headed(4, "a", 1), two_headed(8, "b", 2)
        distiller = tfc.Distiller(
            *models, {"kind": kd.SoftLabels(1.5), "size": "mse"}, teacher_weights=[2.0], alpha=0
        )
        distiller.compile(keras.optimizers.Adam(0.01), jit_compile=False)
    labels = [Y] if kind != "two outputs" else []
    fit(distiller, X, *labels)
    distiller.save(tmp_path / "distiller.keras")
    distiller.save_weights(tmp_path / "distiller.weights.h5")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    assert loaded.compiled
    assert_same(loaded, distiller)
    assert_same(loaded.optimizer.variables, distiller.optimizer.variables)
    for config in (loaded.get_config(), distiller.get_config()):
        assert config["alpha"] == distiller.alpha
        assert config["temperature"] == distiller.temperature
        assert config["teacher_weights"] == [1.0]
    twin = tfc.Distiller.from_config(distiller.get_config())
    twin.load_weights(tmp_path / "distiller.weights.h5")
    assert_same(twin, distiller)
    next_epoch = fit(distiller, X, *labels)
    assert fit(loaded, X, *labels) == next_epoch
    assert_same(loaded, distiller)


def test_saved_student_needs_no_distiller(tmp_path):
    distiller = make()
    fit(distiller, X, Y)
    distiller.student.save(tmp_path / "student.keras")
    student = keras.models.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(as_numpy(student(X)), as_numpy(distiller(X)))


def test_backup_and_restore(tmp_path, trained):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(KeyboardInterrupt):
        fit(make(), X, Y, epochs=2, callbacks=[backup, Stop()])
    distiller = make()
    distiller.student.set_weights([w * 0 for w in distiller.student.get_weights()])
    fit(
        distiller, X, Y, epochs=2, callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "backup")]
    )
    assert_same(distiller, trained[0], 1e-6)


def test_model_checkpoint(tmp_path, trained):
    path = tmp_path / "best.keras"
    save = keras.callbacks.ModelCheckpoint(path, monitor="val_loss", save_best_only=True)
    distiller = make()
    fit(distiller, X, Y, epochs=2, callbacks=[save], validation_data=(X, Y))
    assert_same(keras.models.load_model(path), trained[0], 1e-6)


@pytest.mark.slow
def test_early_stopping_restores_the_student():
    distiller = make()
    watch = keras.callbacks.EarlyStopping("val_loss", patience=0, restore_best_weights=True)
    distiller.optimizer.learning_rate = 5.0
    before = float(distiller.evaluate(X, Y, verbose=0, return_dict=True)["loss"])
    history = fit(distiller, X, Y, epochs=3, callbacks=[watch], validation_data=(X, Y))
    best = min(history["val_loss"])
    assert distiller.evaluate(X, Y, verbose=0, return_dict=True)["loss"] == pytest.approx(
        best, 1e-4
    )
    assert before != best


@pytest.mark.slow
def test_jit_compile(trained):
    distiller = make(jit_compile=True, run_eagerly=False)
    fit(distiller, X, Y, epochs=2)
    assert_same(distiller, trained[0], 1e-4)


def test_mixed_precision():
    student, teacher = pair()
    plain = make(LOSSES)
    expected = float(plain.compute_loss(X, Y, plain(X)))
    keras.config.set_dtype_policy("mixed_float16")
    try:
        half = tfc.Distiller(*pair(), LOSSES)
        half.adapters[0].kernel.assign(np.linspace(-1, 1, 32).reshape(4, 8))
        half.student.set_weights(student.get_weights())
        half.teachers[0].set_weights(teacher.get_weights())
        compiled(half, optimizer=keras.optimizers.Adam(0.01), run_eagerly=False)
        outputs = half(X)
        assert outputs.dtype == "float16"
        value = half.compute_loss(X, Y, outputs)
        assert value.dtype == "float32"
        assert float(value) == pytest.approx(expected, rel=0.01)
        history = fit(half, X, Y, epochs=4)
        assert history["loss"][-1] < history["loss"][0]
        assert all(v.dtype == "float32" for v in half.trainable_variables)
        assert as_numpy(half.optimizer.iterations) == 16
    finally:
        keras.config.set_dtype_policy("float32")


def test_teacher_of_half_precision_and_student_of_full():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        teacher = mlp(8, "large", 2)
    finally:
        keras.config.set_dtype_policy("float32")
    student, exact = pair()
    losses = [kd.SoftLabels(), kd.Features("hidden", "hidden", projection=True)]
    half = compiled(tfc.Distiller(student, teacher, losses))
    full = compiled(tfc.Distiller(student, exact, losses))
    half.adapters[0].kernel.assign(full.adapters[0].kernel)
    values = [float(d.compute_loss(X, Y, d(X))) for d in (half, full)]
    assert values[0] == pytest.approx(values[1], rel=0.01)


def test_dropout_of_the_teacher_is_off_and_the_students_is_on():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = keras.layers.Dropout(0.5, name="drop")(inputs)
    teacher = keras.Model(inputs, keras.layers.Dense(3, name="top")(x))
    student = keras.models.clone_model(teacher)
    student.set_weights(teacher.get_weights())
    distiller = compiled(tfc.Distiller(student, teacher, "mse", alpha=0))
    assert distiller.evaluate(X, Y, verbose=0, return_dict=True)["loss"] == 0
    found = distiller.train_on_batch(X, Y, return_dict=True)
    assert found["loss"] > 0.01
    np.testing.assert_array_equal(as_numpy(teacher(X)), as_numpy(distiller.teachers[0](X)))


@pytest.mark.slow
def test_mirrored_strategy_on_two_devices():
    run_python("""
        import contextlib
        import numpy as np, tensorflow as tf
        cpus = tf.config.list_physical_devices("CPU")
        halves = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpus[0], halves)
        import keras, tfcompress as tfc
        from tfcompress import distillation as kd
        from distillation_models import WEIGHTS, X, Y, compiled, fit, mlp

        mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        losses = [kd.SoftLabels(2.0), kd.Features("hidden", "hidden")]

        def run(two):
            with mirrored.scope() if two else contextlib.nullcontext():
                student = mlp(4, "small", 1, kernel_regularizer="l2")
                distiller = tfc.Distiller(student, mlp(8, "large", 2), losses, alpha=0.3)
                distiller.adapters[0].kernel.assign(np.linspace(-1, 1, 32).reshape(4, 8))
                compiled(distiller, run_eagerly=False)
            history = fit(distiller, X, Y, sample_weight=WEIGHTS, epochs=3)
            return history, student.get_weights(), distiller.evaluate(X, Y, verbose=0)

        one, two = run(False), run(True)
        assert set(one[0]) == set(two[0])
        for name, values in one[0].items():
            np.testing.assert_allclose(values, two[0][name], rtol=1e-4, err_msg=name)
        for a, b in zip(one[1], two[1], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        np.testing.assert_allclose(one[2], two[2], rtol=1e-4)
    """)


JAX = """
    import numpy as np, keras, sys
    assert keras.backend.backend() == "jax"
    import tfcompress as tfc
    from tfcompress import distillation as kd
    from distillation_models import IMAGES, WEIGHTS, X, Y, as_numpy, assert_same, compiled
    from distillation_models import convnet, crossentropy, divergence, fit, mlp, weights_of
    import functools
    compiled = functools.partial(compiled, run_eagerly=False)
    student = mlp(4, "small", 1, kernel_regularizer="l2")
    teacher = mlp(8, "large", 2)
    losses = [kd.SoftLabels(2.0), kd.Features("hidden", "hidden")]
    losses += [kd.Relational("hidden", "hidden")]
    distiller = compiled(tfc.Distiller(student, teacher, losses, alpha=0.3))
    before = weights_of(teacher)
    t, s = as_numpy(teacher(X)), as_numpy(student(X))
    found = distiller.train_on_batch(X, Y, WEIGHTS, return_dict=True)
    np.testing.assert_allclose(
        found["soft_labels"], (WEIGHTS * divergence(t, s, 2.0)).mean(), rtol=1e-4)
    np.testing.assert_allclose(found["task_loss"], (WEIGHTS * crossentropy(Y, s)).mean(), rtol=1e-4)
    history = fit(distiller, X, Y, epochs=3)
    assert history["loss"][-1] < history["loss"][0]
    assert_same(weights_of(teacher), before)
    distiller.save(sys.argv[1])
    loaded = keras.models.load_model(sys.argv[1])
    assert fit(loaded, X, Y) == fit(distiller, X, Y)
    net = compiled(tfc.Distiller(convnet(3, "a"), convnet(5, "b", 1), kd.Features("conv", "conv")))
    teacher = weights_of(net.teachers[0])
    ours = weights_of(net.student)
    fit(net, IMAGES, Y)
    assert_same(weights_of(net.teachers[0]), teacher)
    for old, new in zip(ours, weights_of(net.student), strict=True):
        assert np.abs(old - new).max() > 1e-5
    cached, plain = (
        compiled(tfc.Distiller(mlp(4, "s", 1), mlp(8, "t", 2), alpha=0.3, cache=cache))
        for cache in ("memory", None))
    histories = [fit(d, X, Y, epochs=3) for d in (cached, plain)]
    np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], rtol=1e-4)
    mutual = compiled(tfc.MutualDistiller([mlp(4, "s", 1), mlp(8, "t", 2)]))
    history = fit(mutual, X, Y, epochs=3)
    assert history["loss"][-1] < history["loss"][0]
    own = compiled(tfc.SelfDistiller(mlp(4, "s", 1), ["hidden"]))
    history = fit(own, X, Y, epochs=3)
    assert history["loss"][-1] < history["loss"][0]
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
def test_jax(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    run_python(JAX, tmp_path / "distiller.keras")
