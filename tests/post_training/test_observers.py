"""Scales of weights against hand-computed arrays, a fine search, and litert-quantizer's."""

import numpy as np
import pytest
from litert_quantizer.algorithms.uniform_quantize import octav

from tfcompress.post_training.kernels import on_grid
from tfcompress.post_training.observers import weight_scale

RNG = np.random.default_rng(0)


def test_the_greatest_value_gets_the_greatest_code():
    weight = np.array([[1.0, -7.0, 0.0], [-3.5, 2.0, 0.0]], np.float32)
    scale = weight_scale(weight, (0,), 4, "max")
    np.testing.assert_array_equal(scale, np.float32([[0.5, 1.0, 0.0]]))
    assert scale.dtype == np.float32
    np.testing.assert_array_equal(weight_scale(weight, (1,), 4, "max")[:, 0], [1.0, 0.5])
    assert weight_scale(weight, (0, 1), 8, "max") == np.float32(7 / 127)


@pytest.mark.parametrize("method", ["max", "mse", "octav"])
def test_scales_follow_the_axes_and_zeros_have_none(method):
    weight = RNG.normal(size=(3, 2, 5, 4)).astype("float32")
    weight[:, 0, :, 1] = 0
    scale = weight_scale(weight, (0, 2), 4, method)
    assert scale.shape == (1, 2, 1, 4)
    assert scale[0, 0, 0, 1] == 0
    assert np.count_nonzero(scale) == 7
    alone = weight_scale(weight[:, 1, :, 2], (0, 1), 4, method)
    np.testing.assert_allclose(scale[0, 1, 0, 2], alone.item(), rtol=1e-6)
    np.testing.assert_allclose(weight_scale(8 * weight, (0, 2), 4, method), 8 * scale, rtol=1e-6)


def test_mse_finds_the_scale_of_least_error():
    # One outlier among 6 values of +-1, in codes -1 to 1: a clipped 2 costs 1; a step of 2 costs
    # 6 of 1 rounded to 0 (or up). Least squares: (6 + 2) / 7, error 10 - 64 / 7.
    weight = np.array([1, -1, 1, -1, 1, -1, 2], np.float32)
    scale = weight_scale(weight, (0,), 2, "mse")
    np.testing.assert_allclose(scale, [8 / 7], rtol=1e-6)

    weight = RNG.standard_t(3, size=(200, 6)).astype("float32")
    found = weight_scale(weight, (0,), 4, "mse")
    largest = np.abs(weight).max(axis=0) / 7
    tried = np.linspace(0.1, 1.1, 1500)[:, None] * largest
    error = [np.square(on_grid(weight, s, 4) - weight).sum(axis=0) for s in tried]
    ours = np.square(on_grid(weight, found, 4) - weight).sum(axis=0)
    assert np.all(ours <= 1.02 * np.min(error, axis=0))
    assert np.all(ours < 0.9 * error[-150])


def test_mse_leaves_what_lies_on_a_grid():
    codes = RNG.integers(-7, 8, size=(30, 5))
    codes[0] = 7
    scale = np.float32([0.5, 0.1, 3, 0.7, 0.01])
    found = weight_scale((codes * scale).astype("float32"), (0,), 4, "mse")
    np.testing.assert_allclose(found[0], scale, rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_octav_is_that_of_litert_quantizer(bits):
    weight = RNG.standard_t(4, size=(16, 500)).astype("float32")
    theirs = octav._guess_clipping_with_octav(weight, bits, 1, 50, 3.0)
    ours = weight_scale(weight, (1,), bits, "octav") * (2 ** (bits - 1) - 1)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    # By hand: of 1, 1, 1, 5 in 2 bits the limit s > 1 solves s = 5 / (3 / 48 + 1).
    limit = weight_scale(np.float32([1, -1, 1, 5]), (0,), 2, "octav")
    np.testing.assert_allclose(limit, [5 / (1 + 3 / 48)], rtol=1e-6)
    np.testing.assert_allclose(weight_scale(np.float32([3, -3]), (0,), 2, "octav"), [3])


def test_a_method_that_is_none_is_named():
    with pytest.raises(ValueError, match=r"method must be one of max, mse, octav; received 'kl'"):
        weight_scale(np.ones((2, 2)), (0,), 8, "kl")
