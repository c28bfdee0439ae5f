"""to_separable against NumPy's SVD and against the convolutions that it splits."""

import math

import keras
import numpy as np
import pytest
from conftest import run_tflite
from graph_models import difference, normal, seeded, sequential, shake
from keras import layers

import tfcompress as tfc
from tfcompress.surgery.macs import count
from tfcompress.surgery.separable import separate, to_separable

__all__ = ["seeded"]


def conv_model(layer, *shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, layers.ReLU()(layer(inputs)))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Conv1D(5, 3, name="conv"), (9, 2)),
        (layers.Conv1D(5, 3, padding="causal", dilation_rate=2, name="conv"), (9, 2)),
        (layers.Conv1D(5, 3, strides=2, padding="same", activation="tanh", name="conv"), (9, 2)),
        (layers.Conv1D(5, 3, data_format="channels_first", name="conv"), (2, 9)),
        (layers.Conv2D(9, 3, padding="same", use_bias=False, name="conv"), (7, 8, 3)),
        (layers.Conv2D(4, (3, 2), strides=2, padding="same", name="conv"), (7, 8, 3)),
        (layers.Conv2D(4, (1, 3), name="conv"), (7, 8, 3)),
        (layers.Conv2D(4, 3, dilation_rate=(1, 2), activation="relu", name="conv"), (7, 8, 3)),
        (layers.Conv2D(4, 3, data_format="channels_first", name="conv"), (3, 7, 8)),
    ],
)
def test_full_rank_is_exact(layer, shape):
    model = shake(conv_model(layer, *shape))
    x = normal(2, *shape)
    full = min(math.prod(layer.kernel_size), layer.filters)
    new = to_separable(model, "conv", depth_multiplier=full)
    wanted = np.array(model(x))
    assert difference(wanted, new(x)) <= 1e-5 * np.abs(wanted).max()
    assert difference(new(x), to_separable(model, "conv", depth_multiplier=99)(x)) == 0.0
    depthwise, pointwise = new.get_layer("conv_depthwise"), new.get_layer("conv")
    assert depthwise.kernel.shape[-1] == full
    assert set(pointwise.kernel_size) == {1}
    assert pointwise.use_bias == layer.use_bias
    assert pointwise.activation is layer.activation
    assert "100.0% of the energy" in str(new.surgery_report)
    assert difference(wanted, model(x)) == 0.0


def test_best_approximation_of_every_channel():
    """The error is what the singular values that were cut hold, and no other is smaller."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 7))
    depthwise, pointwise, energy = separate(kernel, 2)
    assert depthwise.shape == (3, 3, 4, 2)
    assert pointwise.shape == (1, 1, 8, 7)
    near = np.einsum("hwim,imo->hwio", depthwise, pointwise.reshape(4, 2, 7))
    cut = [np.linalg.svd(kernel[:, :, c].reshape(9, 7))[1][2:] for c in range(4)]
    assert np.square(near - kernel).sum() == pytest.approx(np.square(cut).sum())
    assert energy == pytest.approx(1 - np.square(cut).sum() / np.square(kernel).sum())
    assert np.allclose(separate(np.zeros((3, 3, 1, 2)), 1)[0], 0)


def test_a_separable_kernel_is_found_again():
    rng = np.random.default_rng(0)
    conv = layers.Conv2D(6, 3, name="conv")
    model = conv_model(conv, 8, 8, 5)
    conv.kernel.assign(rng.normal(size=(3, 3, 5, 1)) * rng.normal(size=(1, 1, 5, 6)))
    x = normal(2, 8, 8, 5)
    wanted = np.array(model(x))
    new = to_separable(model)
    assert difference(wanted, new(x)) <= 1e-5 * np.abs(wanted).max()
    assert (
        new.surgery_report.macs == (36 * 9 * 5 * 6, 36 * 5 * (9 + 6)) == (*count(model)[:1], 2700)
    )
    assert new.surgery_report.params == (9 * 30 + 6, 45 + 30 + 6)


def test_which_layers_are_split(float_cnn):
    names = lambda model: {x.layer for x in model.surgery_report.changes}  # noqa: E731
    first = float_cnn.layers[1].name
    assert names(to_separable(float_cnn)) == {first}
    for layers_ in (first, "conv2d*", layers.Conv2D, [first], lambda layer: layer.name == first):
        assert names(to_separable(float_cnn, layers_)) == {first}
    kept = to_separable(float_cnn, layers.Conv2D).surgery_report.kept
    assert ("pointwise", "is pointwise already") in [(x.layer, x.detail) for x in kept]


def test_what_stays_is_named_with_the_reason():
    inputs = keras.Input((8, 8, 4))
    y = layers.Conv2D(4, 3, groups=2, name="groups")(inputs)
    y = layers.Conv2D(4, 3, strides=(1, 2), name="strides")(y)
    y = layers.Conv2D(1, 2, name="thin")(y)
    model = keras.Model(inputs, y)
    kept = {x.layer: x.detail for x in to_separable(model).surgery_report.kept}
    assert kept == {
        "groups": "has 2 groups",
        "strides": "strides (1, 2) differ, which depthwise kernels do not take",
        "thin": "would not take fewer MACs",
    }
    # Asked for, it is split whatever it costs.
    report = to_separable(model, "thin").surgery_report
    assert report.macs[1] > report.macs[0]


def test_a_shared_layer_is_split_once():
    a, b = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    conv = layers.Conv2D(6, 3, name="conv")
    model = keras.Model([a, b], layers.Add()([conv(a), conv(b)]))
    new = to_separable(model, depth_multiplier=6, layers="conv")
    x = [normal(2, 8, 8, 3), 2 * normal(2, 8, 8, 3)]
    assert difference(model(x), new(x)) < 1e-4
    assert sum(isinstance(x, layers.DepthwiseConv2D) for x in new.layers) == 1


def test_settings_of_the_layer_are_kept():
    conv = layers.Conv2D(
        6, 3, kernel_regularizer="l2", bias_constraint="non_neg", trainable=False, name="conv"
    )
    new = to_separable(conv_model(conv, 8, 8, 3))
    pointwise = new.get_layer("conv")
    assert isinstance(pointwise.kernel_regularizer, keras.regularizers.L2)
    assert isinstance(pointwise.bias_constraint, keras.constraints.NonNeg)
    assert new.trainable_weights == []


@pytest.mark.slow
def test_trains_saves_and_converts(tmp_path, float_cnn, images):
    new = to_separable(float_cnn, depth_multiplier=2)
    x = images[0][:32]
    new.save(tmp_path / "new.keras")
    loaded = keras.saving.load_model(tmp_path / "new.keras")
    assert difference(new(x), loaded(x)) == 0.0
    tfc.convert(loaded, tmp_path / "new.tflite", precision="float32")
    assert difference(new(x), run_tflite(tmp_path / "new.tflite", x)) < 1e-5
    loaded.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    losses = loaded.fit(*images, epochs=2, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_bad_input():
    model = conv_model(layers.Conv2D(6, 3, name="conv"), 8, 8, 3)
    with pytest.raises(ValueError, match=r"'con': it matches no layer\. Did you mean 'conv'\?"):
        to_separable(model, "con")
    with pytest.raises(ValueError, match="it matches ReLU, which cannot be split"):
        to_separable(model, ["conv", layers.ReLU])
    with pytest.raises(ValueError, match="of which the model has none"):
        to_separable(sequential(layers.Dense(3)), "dense")
    with pytest.raises(TypeError, match="layers must be a pattern"):
        to_separable(model, 3)
    with pytest.raises(ValueError, match="at least 1; received 0"):
        to_separable(model, depth_multiplier=0)
    for wrong in (True, 1.5, None):
        with pytest.raises(TypeError, match="must be an integer"):
            to_separable(model, depth_multiplier=wrong)
    with pytest.raises(ValueError, match="Finalize it first"):
        to_separable(tfc.quantize_aware(model))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["VGG16", "ResNet50", "DenseNet121"])
def test_architectures(name):
    shape = (32, 32, 3)
    model = getattr(keras.applications, name)(weights=None, input_shape=shape, classes=10)
    asked = [x for x in model.layers if isinstance(x, layers.Conv2D) and x.kernel_size != (1, 1)]
    saved = 0
    for layer in asked:
        places = math.prod(layer.output.shape[1:3])
        area, into = math.prod(layer.kernel_size), layer.kernel.shape[2]
        saved += places * into * (area * layer.filters - area - layer.filters)
    new = to_separable(model)
    assert len(new.surgery_report.changes) == len(asked)
    assert new.surgery_report.macs == (count(model)[0], count(model)[0] - saved)
    assert new.surgery_report.macs[1] == count(new)[0]
    x = normal(2, *shape)
    wanted = np.array(model(x, training=False))
    exact = to_separable(model, [layer.name for layer in asked], depth_multiplier=49)
    assert difference(wanted, exact(x, training=False)) <= 1e-5 * np.abs(wanted).max()
