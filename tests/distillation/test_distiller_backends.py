"""Distiller in mixed precision, compiled by XLA, on two devices and on JAX."""

import distiller_fits
import keras
import numpy as np
import pytest
from distillation_models import X, Y, as_numpy, assert_same, compiled, fit, mlp, pair
from distiller_fits import LOSSES, make
from pruning_models import run_python

import tfcompress as tfc
from tfcompress import distillation as kd

trained = distiller_fits.trained


@pytest.mark.slow
def test_jit_compile(trained):
    distiller = make(jit_compile=True, run_eagerly=False)
    fit(distiller, X, Y, epochs=2)
    assert_same(distiller, trained[0], 1e-4)


@pytest.mark.slow
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
def test_jax(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    run_python(JAX, tmp_path / "distiller.keras")
