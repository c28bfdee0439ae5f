"""gptq: kernels on grids, layer by layer, and what comes out of the model."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.post_training import gptq
from tfcompress.post_training.kernels import is_table, on_grid
from tfcompress.post_training.layerwise import flat_copy
from tfcompress.techniques.scales import weight_scale


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 2), name="image")
    y = layers.Conv2D(12, 3, padding="same", use_bias=False, name="stem")(x)
    y = layers.ReLU()(layers.BatchNormalization(name="bn")(y))
    y = layers.DepthwiseConv2D(3, name="dw")(y)
    y = layers.Conv2D(12, 1, activation="relu", name="pointwise")(y)
    y = layers.Dense(5, name="head")(layers.GlobalAveragePooling2D()(y))
    made = keras.Model(x, y)
    made.get_layer("bn").moving_mean.assign(np.linspace(-0.3, 0.3, 12))
    return made


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(0).normal(size=(64, 8, 8, 2)).astype("float32")


BITS = {"stem": 4, "dw": 8, "pointwise": 4, "head": 3}


def rounded_to_nearest(model, bits):
    for name, width in bits.items():
        kernel = model.get_layer(name).kernel
        axes = (0, 1) if name == "dw" else tuple(range(len(kernel.shape) - 1))
        value = keras.ops.convert_to_numpy(kernel)
        kernel.assign(on_grid(value, weight_scale(value, axes, width), width))


def test_kernels_lie_on_grids_and_outputs_are_nearer_than_by_rounding(model, data):
    seen = []
    found = gptq(model, data, BITS, progress=lambda *done: seen.append(done))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for name, width in BITS.items():
        kernel = keras.ops.convert_to_numpy(found.model.get_layer(name).kernel)
        codes = kernel / found.scales[name]
        np.testing.assert_allclose(codes, np.rint(codes), atol=1e-4)
        assert np.abs(codes).max() < 2 ** (width - 1) - 0.5
        before, after = found.sqnr[name]
        assert after > before - 0.3
    assert found.scales["dw"].shape == (1, 1, 12, 1)
    assert str(found.model.correction_report).startswith("gptq\nstem       int4, SQNR ")
    expected = np.asarray(model(data))
    plain = flat_copy(model)
    rounded_to_nearest(plain, BITS)
    ours, theirs = (np.square(np.asarray(m(data)) - expected).mean() for m in (found.model, plain))
    assert ours < 0.5 * theirs


def test_zeros_of_pruned_kernels_and_values_of_clustered_ones_stay(model, data):
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    stem, pointwise = twin.get_layer("stem").kernel, twin.get_layer("pointwise").kernel
    values = keras.ops.convert_to_numpy(stem)
    pruned = np.where(np.abs(values) > np.median(np.abs(values)), values, 0)
    stem.assign(pruned)
    values = keras.ops.convert_to_numpy(pointwise)
    clustered = np.sign(values) * np.where(np.abs(values) > 0.3, 0.4, 0.1)
    pointwise.assign(clustered)
    found = gptq(twin, data, 4, convolution="per_tensor").model
    assert "pointwise  kept: has few different values" in str(found.correction_report)
    assert not keras.ops.convert_to_numpy(found.get_layer("stem").kernel)[pruned == 0].any()
    np.testing.assert_allclose(found.get_layer("pointwise").kernel, clustered, rtol=1e-6)
    dw = keras.ops.convert_to_numpy(found.get_layer("dw").kernel)
    assert len(np.unique(np.abs(dw))) <= 8
    assert is_table(clustered * np.linspace(0.5, 1, 12), (3,))
    assert not is_table(values, (3,))
    assert not is_table(pruned, (3,))


def test_a_layer_that_is_called_twice_gets_one_kernel(data):
    x = keras.Input((8, 8, 2))
    shared = layers.Conv2D(2, 3, padding="same", name="shared")
    model = keras.Model(x, shared(shared(x)))
    found = gptq(model, data, 8)
    expected = np.asarray(model(data))
    error = np.square(np.asarray(found.model(data)) - expected).mean()
    assert error < 1e-3 * expected.var()


def test_what_is_wrong_is_said_before_work_starts(model, data):
    with pytest.raises(ValueError, match=r"received 'stm'. Did you mean 'stem'"):
        gptq(model, data, {"stm": 4})
    for bits in (1, 9, 4.5, True):
        with pytest.raises(ValueError, match="bits must be whole numbers from 2 to 8"):
            gptq(model, data, bits)
    with pytest.raises(ValueError, match="damp must be a number above 0; received 0"):
        gptq(model, data, damp=0)
    with pytest.raises(ValueError, match="dense must be one of per_channel, per_tensor; received"):
        gptq(model, data, dense="per_row")
    with pytest.raises(ValueError, match="received shape"):
        gptq(model, data[..., :1])
    x = keras.Input((3,))
    with pytest.raises(ValueError, match="one with a Dense layer or a convolution"):
        gptq(keras.Model(x, layers.ReLU()(x)), np.ones((4, 3)))
