"""Codes chosen by second moments: against brute force, least squares and rounding to nearest."""

import itertools

import numpy as np

from tfcompress.post_training.obc import (
    Quadratic,
    choose_codes,
    choose_grid,
    descend,
    gptq_codes,
    nearest_codes,
)


def problem(groups, d, channels, seed=0, free=None, damp=0.01):
    random = np.random.default_rng(seed)
    x = random.normal(size=(groups, 4 * d, d)) @ random.normal(size=(groups, d, d)) + 1
    weights = random.normal(size=(groups, d, channels))
    return Quadratic.of(weights, x.swapaxes(1, 2) @ x / (4 * d), free=free, damp=damp)


def widest(found, top):
    return np.abs(found.target).max(1) / top


def test_the_loss_is_that_of_the_outputs_and_the_target_is_that_of_least_squares():
    random = np.random.default_rng(1)
    x, weights = random.normal(size=(30, 4)), random.normal(size=(4, 3))
    z = (x + 0.3 * random.normal(size=x.shape)) @ weights  # as the trained inputs gave it
    found = Quadratic.of(weights[None], (x.T @ x / 30)[None], (x.T @ z / 30)[None], damp=1e-9)
    best = np.linalg.lstsq(x, z, rcond=None)[0]
    np.testing.assert_allclose(found.target[0], best, rtol=1e-5)
    codes = np.rint(weights)
    lost, least = (np.square(x @ w - z).mean(0) for w in (codes, best))
    np.testing.assert_allclose(found.loss(codes[None])[0], lost - least, rtol=1e-6)
    # Without samples the weights stay: all pull comes from them.
    none = Quadratic.of(weights[None], np.zeros((1, 4, 4)), np.zeros((1, 4, 3)))
    np.testing.assert_allclose(none.target[0], weights)


def test_what_is_rounded_first_is_made_up_for():
    # x2 = x1 / 2, so that (0.4, 0.4) computes 0.6 x1: the first becomes 0 and leaves 0.6 x1 to the
    # second, which is 1.2 x2, of which 1 is taken.
    second = np.array([[[1.0, 0.5], [0.5, 0.25]]])
    found = Quadratic.of(np.array([[[0.4], [0.4]]]), second, damp=1e-6)
    scale = np.ones((1, 1))
    np.testing.assert_array_equal(nearest_codes(found, scale, 7)[0, :, 0], [0, 0])
    np.testing.assert_array_equal(gptq_codes(found, scale, 7)[0, :, 0], [0, 1])
    # From (0, 0) the first alone is best moved to 1, as 0.6 is nearer to 1: no single change
    # improves that.
    np.testing.assert_array_equal(descend(found, np.zeros((1, 2, 1)), scale, 7)[0, :, 0], [1, -1])


def test_codes_are_as_good_as_those_of_brute_force_almost_always():
    found = problem(3, 4, 20)
    scale = widest(found, 3)
    every = itertools.product(range(-3, 4), repeat=4)
    losses = (found.loss(np.array(c)[None, :, None] * scale[:, None]) for c in every)
    least = np.min(list(losses), axis=0)
    ratio = found.loss(choose_codes(found, scale, 3) * scale[:, None]) / least
    assert ratio.min() > 1 - 1e-9
    assert np.mean(ratio < 1 + 1e-9) > 0.7
    rounded = found.loss(nearest_codes(found, scale, 3) * scale[:, None]) / least
    assert np.mean(ratio) < 0.6 * np.mean(rounded)


def test_no_channel_loses_more_than_by_rounding_to_nearest():
    for seed, shape in enumerate([(1, 70, 12), (6, 9, 1), (1, 5, 30)]):
        found = problem(*shape, seed=seed)
        scale = widest(found, 7)
        rounded = found.loss(nearest_codes(found, scale, 7) * scale[:, None])
        codes = choose_codes(found, scale, 4)
        lost = found.loss(codes * scale[:, None])
        assert np.abs(codes).max() <= 7
        assert codes.dtype == np.int8
        assert (lost <= rounded + 1e-9).all()
        assert lost.sum() < 0.8 * rounded.sum()
        better, chosen = choose_grid(found, scale, 4)
        assert found.loss(better * chosen[:, None]).sum() < lost.sum()
        same, one = choose_grid(found, np.full_like(scale, scale.max()), 4, shared=True)
        whole = found.loss(nearest_codes(found, np.full_like(scale, scale.max()), 7) * scale.max())
        assert len(np.unique(one)) == 1
        assert found.loss(same * one[:, None]).sum() < whole.sum()


def test_zeros_and_channels_without_scale_stay():
    free = np.random.default_rng(0).random((2, 9, 4)) < 0.5
    found = problem(2, 9, 4, free=free)
    scale = widest(found, 7)
    scale[0, 1] = 0
    for codes in (choose_codes(found, scale, 4), choose_grid(found, scale, 4)[0]):
        assert not codes[~free].any()
        assert not codes[0, :, 1].any()
        assert codes[0, :, 0].any()
