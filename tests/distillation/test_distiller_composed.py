"""Distiller together with compression, its callbacks, conversion and LiteRT."""

import keras
import numpy as np
import pytest
from conftest import run_tflite
from distillation_models import (
    IMAGES,
    X,
    Y,
    as_numpy,
    assert_same,
    compiled,
    convnet,
    fit,
    mlp,
    pair,
    weights_of,
)
from keras import layers

import tfcompress as tfc
from tfcompress import Cluster, Prune, Quantize, schedules
from tfcompress import distillation as kd

SPARSE = Prune(schedules.linear(0.0, 0.5, begin=1, end=6), scope="layer")


def kernels(model):
    return [as_numpy(model.get_layer(name).kernel) for name in ("hidden", "top")]


def small_image_net(activation=None):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 2), name="image")
    x = layers.Conv2D(6, 3, use_bias=False, name="first")(inputs)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.Conv2D(8, 3, activation="relu", name="conv")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, activation=activation, name="top")(x))


@pytest.fixture(scope="module")
def pruned_clustered_quantized(tmp_path_factory):
    """A student with three techniques, trained by a Distiller with a hint; and its files."""
    folder = tmp_path_factory.mktemp("student")
    rules = [tfc.Rule("*", [SPARSE, Cluster(4), Quantize(8)])]
    student = tfc.compress(small_image_net("softmax"), rules)
    teacher = convnet(5, "large", 2)
    before = weights_of(teacher)
    losses = [kd.SoftLabels(2.0), kd.Features("conv", "conv", weight=0.1)]
    distiller = compiled(
        tfc.Distiller(student, teacher, losses, alpha=0.3),
        "sparse_categorical_crossentropy",
        keras.optimizers.Adam(0.01),
        run_eagerly=False,
    )
    history = fit(distiller, IMAGES, Y, epochs=4, callbacks=[tfc.UpdateCompression()])
    assert_same(weights_of(teacher), before)
    tfc.convert(distiller.student, folder / "int8.tflite")
    return distiller, history, folder


@pytest.mark.slow
def test_compressed_student_has_what_was_asked_for(pruned_clustered_quantized):
    distiller, history, _ = pruned_clustered_quantized
    assert history["distillation_loss"][-1] < history["distillation_loss"][0]
    final = tfc.finalize(distiller.student)
    for name in ("first", "conv", "top"):
        layer = final.get_layer(name)
        kernel = as_numpy(getattr(layer, "layer", layer).kernel)
        assert (kernel == 0).sum() == kernel.size - round(kernel.size / 2)
        assert len(np.unique(kernel)) <= 4
    outputs = distiller.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(as_numpy(final(IMAGES)), outputs, atol=1e-6)


@pytest.mark.slow
def test_litert_gives_what_the_student_gives(pruned_clustered_quantized):
    distiller, _, folder = pruned_clustered_quantized
    found = run_tflite(folder / "int8.tflite", IMAGES)
    expected = as_numpy(distiller.student(IMAGES))
    assert np.abs(found - expected).max() <= 2 / 256  # of a softmax, in steps of 1/256


@pytest.mark.slow
def test_compressed_student_goes_on_after_loading(tmp_path):
    student = tfc.compress(mlp(4, "small", 1), [tfc.Rule("*", [SPARSE, Cluster(4)])])
    distiller = compiled(
        tfc.Distiller(student, mlp(8, "large", 2)), optimizer=keras.optimizers.Adam(0.01)
    )
    fit(distiller, X, Y, callbacks=[tfc.UpdateCompression()])
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    both = distiller, loaded
    histories = [fit(d, X, Y, epochs=2, callbacks=[tfc.UpdateCompression()]) for d in both]
    assert histories[0] == histories[1]
    assert_same(*both)
    for kernel in kernels(tfc.finalize(loaded.student)):
        assert (kernel == 0).sum() == kernel.size // 2


def test_forgotten_callback_is_noticed():
    student = tfc.compress(mlp(4, "small", 1), [tfc.Rule("*", [SPARSE])])
    distiller = compiled(tfc.Distiller(student, mlp(8, "large", 2)))
    with pytest.raises(ValueError, match=r"callbacks=\[tfcompress\.UpdateCompression\(\)\]"):
        fit(distiller, X, Y)
    plain = compiled(tfc.Distiller(*pair()))
    with pytest.raises(ValueError, match="UpdateCompression found nothing to update"):
        fit(plain, X, Y, callbacks=[tfc.UpdateCompression()])


def test_prune_callback_prunes_the_student_alone():
    student, teacher = pair()
    losses = [kd.SoftLabels(), kd.Features("hidden", "hidden")]
    distiller = compiled(
        tfc.Distiller(student, teacher, losses), optimizer=keras.optimizers.Adam(0.01)
    )
    before = weights_of(teacher)
    fit(distiller, X, Y, epochs=2, callbacks=[tfc.PruneCallback(SPARSE)])
    for kernel in kernels(student):
        assert (kernel == 0).sum() == kernel.size // 2
    assert_same(weights_of(teacher), before)
    assert (as_numpy(distiller.adapters[0].kernel) != 0).all()


def test_compression_logger_measures_the_student_alone():
    student = tfc.compress(mlp(4, "small", 1), [tfc.Rule("*", [SPARSE])])
    distiller = compiled(tfc.Distiller(student, mlp(8, "large", 2)))
    callbacks = [tfc.UpdateCompression(), tfc.CompressionLogger()]
    history = fit(distiller, X, Y, epochs=2, callbacks=callbacks)
    assert history["sparsity"][-1] == pytest.approx(0.5)
    pruned = compiled(tfc.Distiller(*pair()))
    callbacks = [tfc.PruneCallback(SPARSE), tfc.CompressionLogger()]
    history = fit(pruned, X, Y, epochs=2, callbacks=callbacks)
    zeros = [(kernel == 0).sum() for kernel in kernels(pruned.student)]
    size = sum(kernel.size for kernel in kernels(pruned.student))
    assert history["sparsity"][-1] == pytest.approx(sum(zeros) / size)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_soft_labels_reach_a_student_whose_outputs_are_rounded(activation):
    """A rounded probability of 0 has no gradient: logits are taken before the activation."""
    import tensorflow as tf

    student = mlp(4, "small", 1, activation)
    student.get_layer("top").bias.assign([30.0, -30.0, -30.0])  # sure, and wrong
    teacher = mlp(8, "large", 2, activation)
    rounded = tfc.quantize_aware(student)
    distiller = compiled(tfc.Distiller(rounded, teacher, alpha=0, temperature=1.0))
    distiller.train_on_batch(X)
    with tf.GradientTape() as tape:
        loss = distiller.compute_loss(X, None, distiller(X, training=True))
    bias = next(v for v in rounded.trainable_variables if "top" in v.path and v.shape == (3,))
    gradient = as_numpy(tape.gradient(loss, bias.value))
    plain = compiled(tfc.Distiller(student, teacher, alpha=0, temperature=1.0))
    with tf.GradientTape() as tape:
        loss = plain.compute_loss(X, None, plain(X, training=True))
    expected = as_numpy(tape.gradient(loss, student.get_layer("top").bias.value))
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(gradient, expected, atol=0.05)


@pytest.mark.slow
def test_quantize_aware_student_from_tflite(tmp_path):
    student = tfc.quantize_aware(mlp(4, "small", 1))
    distiller = compiled(
        tfc.Distiller(student, mlp(8, "large", 2), alpha=0.5),
        optimizer=keras.optimizers.Adam(0.01),
    )
    fit(distiller, X, Y, epochs=3, callbacks=[tfc.UpdateCompression()])
    path = tmp_path / "student.tflite"
    tfc.convert(distiller.student, path)
    found, expected = run_tflite(path, X), as_numpy(student(X))
    step = np.ptp(expected) / 255
    assert np.abs(found - expected).max() < 2.5 * step
