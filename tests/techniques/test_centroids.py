"""Centroids: where they start and which is nearest, by hand and by brute force."""

import numpy as np
import pytest

from tfcompress.techniques.cluster import INITS, initial, initial_without_zero, nearest

RANDOM = np.random.default_rng(0)


def start(values, clusters, init, seed=0):
    return initial(np.asarray(values, "float32"), clusters, init, np.random.default_rng(seed))


def without_zero(values, clusters, init, seed=0):
    values = np.asarray(values, "float32")
    return initial_without_zero(values, clusters, init, np.random.default_rng(seed))


def inertia(values, centroids):
    return np.square(values[:, None] - centroids[None]).min(1).sum()


def test_linear():
    assert start(range(11), 5, "linear").tolist() == [0, 2.5, 5, 7.5, 10]
    assert without_zero(range(11), 4, "linear").tolist() == [1, 4, 7, 10]
    assert without_zero([-3, -2, -1, 0, 2, 4, 6], 4, "linear").tolist() == [-3, -1, 2, 6]


def test_density():
    values = [0.0, 1.0, 2.0, 3.0, 3.1, 3.2, 3.3, 3.4, 3.5]
    np.testing.assert_allclose(start(values, 3, "density"), [0.11137931, 3.145862, 3.51], rtol=1e-6)


def test_random_lies_between_the_extremes_and_repeats():
    values = RANDOM.normal(size=500)
    found = start(values, 50, "random")
    assert values.min() <= found.min() < found.max() <= values.max()
    assert len(np.unique(found)) == 50
    np.testing.assert_array_equal(found, start(values, 50, "random"))
    assert (found != start(values, 50, "random", seed=1)).any()


def test_kmeans_finds_clusters_that_are_there():
    centers = np.array([-5.0, -1.0, 0.5, 4.0])
    parts = [center + 0.1 * RANDOM.normal(size=100) for center in centers]
    found = start(np.concatenate(parts), 4, "kmeans++")
    np.testing.assert_allclose(found, [part.mean() for part in parts], atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_kmeans_is_a_fixed_point_better_than_even_spacing(seed):
    values = np.random.default_rng(seed).normal(size=3000).astype("float32")
    found = start(values, 8, "kmeans++", seed)
    assert inertia(values, found) < 0.9 * inertia(values, start(values, 8, "linear"))
    index = nearest(values[:, None], found[:, None]).ravel()
    means = [values[index == i].mean() for i in range(8)]
    np.testing.assert_allclose(found, means, atol=0.02)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize(
    "values",
    [
        np.zeros(7),
        np.full(7, -0.3),
        np.array([2.0]),
        np.array([0.0, 0.0, 1.0, -1.0]),
        np.array([]),
        np.array([0.0, 0.0, -1e-30, 1e-30]),
        RANDOM.normal(size=20) * 1e20,
    ],
    ids=str,
)
def test_odd_values_give_finite_sorted_centroids(init, values):
    for make in (start, without_zero):
        for clusters in (1, 2, 16):
            found = make(values, clusters, init)
            assert found.shape == (clusters,)
            assert found.dtype == np.float32
            assert np.isfinite(found).all()
            assert (np.diff(found) >= 0).all()


@pytest.mark.parametrize("init", INITS)
def test_without_zero_both_signs_get_their_share(init):
    random = np.random.default_rng(0)  # the same values, whatever tests ran before
    values = np.concatenate([np.zeros(500), -random.random(100) - 0.5, random.random(300) + 0.5])
    found = without_zero(values, 8, init)
    assert 2 <= (found < 0).sum() <= 3 if init == "kmeans++" else (found < 0).sum() == 2
    assert (found != 0).all()
    few = np.concatenate([np.zeros(50), [-100.0], random.random(300) + 0.5])
    assert (without_zero(few, 4, init) < 0).sum() == 1


@pytest.mark.parametrize(("count", "channels"), [(2, 1), (16, 1), (65, 1), (300, 1), (16, 5)])
def test_nearest_is_that_of_brute_force(count, channels):
    values = RANDOM.normal(size=(2000, channels)).astype("float32")
    centroids = np.sort(RANDOM.normal(size=(count, channels)).astype("float32"), axis=0)
    found = nearest(values, centroids)
    distances = np.abs(values[:, None].astype("float64") - centroids[None])
    chosen = np.take_along_axis(distances, found[:, None].astype(int), 1)[:, 0]
    np.testing.assert_allclose(chosen, distances.min(1), atol=2e-7)


@pytest.mark.parametrize("count", [3, 3 + 100])
def test_halfway_goes_to_the_greater(count):
    centroids = np.concatenate([[0.0, 1.0, 2.0], 3 + np.arange(count - 3)])[:, None]
    values = np.array([[-9.0], [0.5], [1.0], [1.5], [0.49], [2.0]])
    assert nearest(values, centroids).ravel().tolist() == [0, 1, 1, 2, 0, 2]


def test_equal_centroids():
    values, centroids = np.array([[0.0], [1.0], [2.0]]), np.ones((4, 1))
    found = np.take_along_axis(centroids, nearest(values, centroids).astype(int), 0)
    assert found.ravel().tolist() == [1, 1, 1]
