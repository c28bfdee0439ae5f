"""Patches: their products with a kernel's matrix are what the layer gives; their moments."""

import numpy as np
import pytest
from keras import layers, ops

from tfcompress.post_training import hessians
from tfcompress.post_training.hessians import Patches, kernel_of, matrix_of, moments_of

LAYERS = {
    "dense": (lambda: layers.Dense(5), (6,)),
    "dense of rank 3": (lambda: layers.Dense(5), (7, 6)),
    "causal": (lambda: layers.Conv1D(4, 3, padding="causal", dilation_rate=2), (9, 3)),
    "strided": (lambda: layers.Conv1D(4, 3, strides=2, padding="same"), (9, 3)),
    "strided 2D": (lambda: layers.Conv2D(6, 3, strides=2, padding="same"), (8, 9, 4)),
    "dilated": (lambda: layers.Conv2D(6, (3, 2), dilation_rate=(2, 1)), (8, 9, 4)),
    "groups": (lambda: layers.Conv2D(6, (3, 2), padding="same", groups=2), (8, 9, 4)),
    "depthwise": (
        lambda: layers.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2),
        (9, 8, 4),
    ),
    "depthwise 1D": (lambda: layers.DepthwiseConv1D(3), (9, 4)),
    "transposed": (lambda: layers.Conv2DTranspose(5, 3, strides=2, padding="same"), (4, 5, 3)),
    "transposed valid": (lambda: layers.Conv2DTranspose(5, (3, 4), strides=(2, 1)), (4, 5, 3)),
    "transposed with gaps": (lambda: layers.Conv1DTranspose(5, 2, strides=3), (4, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_products_of_patches_are_what_the_layer_gives(name):
    make, shape = LAYERS[name]
    layer, random = make(), np.random.default_rng(0)
    x = random.normal(size=(2, *shape)).astype("float32")
    layer.build(x.shape)
    layer.bias.assign(random.normal(size=layer.bias.shape))
    expected, kernel = ops.convert_to_numpy(layer(x)), ops.convert_to_numpy(layer.kernel)
    matrix, patches = matrix_of(layer, kernel), Patches(layer, x)
    np.testing.assert_array_equal(kernel_of(layer, matrix, kernel.shape), kernel)
    found = np.moveaxis(patches.take() @ matrix, 0, 1).reshape(patches.count, -1)
    found = found.reshape(expected.shape) + ops.convert_to_numpy(layer.bias)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    some = patches.take(np.array([1, patches.count - 1]))
    np.testing.assert_array_equal(some, patches.take()[:, [1, -1]])


def test_moments_are_those_of_numpy_and_the_bias_takes_the_means(monkeypatch):
    random = np.random.default_rng(0)
    x = random.normal(2, 1, size=(40, 3)).astype("float32")
    y = x + random.normal(0, 0.1, size=x.shape).astype("float32")
    layer = layers.Dense(2)
    layer.build(x.shape)
    kernel = ops.convert_to_numpy(layer.kernel)
    found = moments_of(layer, [x[:25], x[25:]], [y[:25], y[25:]])
    np.testing.assert_allclose(found.second[0], np.cov(x.T, bias=True), rtol=1e-4, atol=1e-6)
    other = kernel + 0.1
    shift = found.shift(other[None])
    error = y @ kernel - x @ other
    np.testing.assert_allclose(shift[0], error.mean(0), rtol=1e-4)
    np.testing.assert_allclose(found.noise(other[None])[0], error.var(0), rtol=1e-3)
    # Few of many positions tell about the same.
    layer = layers.Dense(2, use_bias=False)
    layer.build(x.shape)
    whole = moments_of(layer, [x], [x])
    np.testing.assert_allclose(whole.second[0], x.T @ x / 40, rtol=1e-5)
    monkeypatch.setattr(hessians, "_WORK", 30 * 9)
    part = moments_of(layer, [x], [x])
    assert not np.allclose(part.second, whole.second, rtol=1e-5)
    np.testing.assert_allclose(part.second, whole.second, rtol=0.3)
