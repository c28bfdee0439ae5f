"""Scales of weights and ranges of activations: hand-computed arrays, searches, the quantizer's."""

import numpy as np
import pytest
from litert_quantizer.algorithms.uniform_quantize import octav

from tfcompress.post_training.kernels import on_grid
from tfcompress.post_training.observers import Histogram, _divergence, activation_range
from tfcompress.techniques.scales import weight_scale

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


def seen(values):
    values = np.asarray(values, np.float32)
    return Histogram(min(values.min(), 0.0), max(values.max(), 0.0)).add(values)


def test_a_histogram_counts_all_but_zeros_and_merges():
    empty = Histogram(-1.0, 4.096)
    one = empty.add(np.float32([[0.0005, 0.0015], [-0.0005, 0.0]]))
    other = empty.add(np.float32([4.096, -1.0, 0.0017, 0.0]))
    expected = np.zeros(8192)
    expected[[4095, 4096, 4097]] = 1
    np.testing.assert_array_equal(one.counts, expected)
    expected[[3096, 8191, 4097]] += 1
    np.testing.assert_array_equal(one.merge(other).counts, expected)
    assert one.counts.dtype == np.float64
    np.testing.assert_allclose(one.centers[[3096, 4096]], [-0.9995, 0.0005])


def test_limits_of_what_keeps_all_values():
    for method in ("min_max", "moving_average"):
        assert activation_range(seen([-1.0, 3.0]), method) == (-1.0, 3.0)
    for method in ("percentile", "mse", "kl", "octav"):
        assert activation_range(Histogram(0.0, 0.0).add(np.zeros(5)), method) == (0.0, 0.0)


def test_percentile_by_hand():
    # 19,999 values in the first of 4096 bins of 1, one far out, and zeros, which do not count.
    values = np.concatenate([np.full(19_999, 0.5), [4096.0], np.zeros(10**5)])
    np.testing.assert_allclose(
        activation_range(seen(values), "percentile"), [0, 19_998 / 19_999], rtol=1e-5
    )
    uniform = RNG.uniform(-1, 3, 10**6)
    np.testing.assert_allclose(
        activation_range(seen(uniform), "percentile"), [-0.9996, 2.9996], atol=2e-4
    )


def rounding_error(values, low, high, bits):
    step = (high - low) / (2**bits - 1)
    zero = np.rint(-low / step)
    codes = np.clip(np.rint(values / step) + zero, 0, 2**bits - 1)
    return np.square((codes - zero) * step - values).sum()


def test_mse_by_hand_and_by_search():
    # In 2 bits: steps of 1 leave 36 of the 9, steps of 3 lose 1 of each 1 and each 2.
    values = np.concatenate([np.repeat([1.0, 2.0, 3.0], 300), [9.0]])
    low, high = activation_range(seen(values), "mse", bits=2)
    assert low == 0
    assert 2.98 < high < 3.05

    values = RNG.laplace(size=20_000) + 0.3
    ends = activation_range(seen(values), "mse", bits=4)
    parts = np.linspace(0.1, 1, 40)
    all_of = [
        rounding_error(values, a * values.min(), b * values.max(), 4) for a in parts for b in parts
    ]
    assert rounding_error(values, *ends, 4) < 1.02 * min(all_of)
    assert rounding_error(values, *ends, 4) < 0.8 * all_of[-1]


def test_octav_of_activations():
    # By hand, in 2 bits from 0: of 1, 1, 1 and 5 the limit s > 1 solves s = 5 / (1 + 3 / 192).
    low, high = activation_range(seen([1.0, 1.0, 1.0, 5.0]), "octav", bits=2)
    assert low == 0
    np.testing.assert_allclose(high, 5 / (1 + 3 / 192), rtol=1e-3)
    # About 0 it is the formula of signed codes.
    values = np.concatenate([x := RNG.laplace(size=50_000), -x]).astype("float32")
    signed = 7 * weight_scale(values, (0,), 4, "octav").item()
    np.testing.assert_allclose(
        activation_range(seen(values), "octav", bits=4), (-signed, signed), rtol=5e-3
    )
    # Otherwise, it is where the expected error is the least.
    values = RNG.laplace(size=20_000) + 0.5

    def expected(low, high):
        out = np.maximum(values - high, 0) + np.maximum(low - values, 0)
        inside = (high - low) ** 2 / 12 / 4**4
        return np.where(out > 0, out**2, inside).sum()

    low, high = activation_range(seen(values), "octav", bits=4)
    least = expected(low, high)
    for a, b in ((1.03, 1), (0.97, 1), (1, 1.03), (1, 0.97)):
        assert expected(a * low, b * high) > 0.9999 * least


def test_entropy_by_hand():
    counts = np.array([4.0, 2, 0, 2, 1, 0, 0, 0])
    # Two codes: 4 and 2 become 3 each, 0 and 2 stay as 0 has no value; the 1 is clipped into the 2.
    p, q = np.array([4, 2, 3]) / 9, np.array([3, 3, 2]) / 8
    np.testing.assert_allclose(_divergence(counts, 4, 2), np.sum(p * np.log(p / q)))
    assert _divergence(counts, 3, 2) == np.inf  # nothing is where the rest would be clipped to
    assert _divergence(counts, 8, 8) == 0


def test_entropy_clips_what_is_far_and_rare():
    near = np.abs(RNG.normal(size=10**5))
    limits = activation_range(seen(near), "kl")
    assert limits[0] == 0
    assert 3 < limits[1] <= near.max()
    assert activation_range(seen(np.append(near, 30.0)), "kl")[1] < 5
    both = activation_range(seen(np.concatenate([near, -near / 2, [30.0]])), "kl")
    assert both[0] == np.float32(-near.max() / 2)
    assert both[1] < 8
