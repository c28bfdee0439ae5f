"""Centroids of weights: how they start, and which one is nearest: pure functions on arrays."""

import numpy as np

INITS = ("kmeans++", "linear", "density", "random")
# k-means needs no more weights than this to find where they are dense.
_SAMPLE = 2**17
_ROUNDS = 25
_FEW = 2**12
_STARTS = 3
_PIECE = 2**15


def initial(
    values: np.ndarray, clusters: int, init: str, random: np.random.Generator
) -> np.ndarray:
    """Centroids of some values.

    Args:
        values: 1-D float array.
        clusters: how many centroids.
        init: "kmeans++" (Arthur and Vassilvitskii 2007, then Lloyd's rounds), "linear" (evenly
            spaced from the least to the greatest), "density" (evenly spaced in the cumulative
            distribution) or "random" (uniform).
        random: the source of random numbers.

    Returns:
        A sorted float32 array of length `clusters`.

    Example:
        >>> initial(np.arange(11.0), 5, "linear", np.random.default_rng(0))
        array([ 0. ,  2.5,  5. ,  7.5, 10. ], dtype=float32)
    """
    if values.size == 0 or clusters == 0:
        return np.zeros(clusters, np.float32)
    low, high = float(values.min()), float(values.max())
    if init == "linear":
        found = np.linspace(low, high, clusters)
    elif init == "random":
        found = random.uniform(low, high, clusters)
    elif init == "density":
        found = _density(values, clusters, 0.01)
    else:
        found = _kmeans(values, clusters, random)
    return np.sort(found).astype(np.float32)


def initial_without_zero(
    values: np.ndarray, clusters: int, init: str, random: np.random.Generator
) -> np.ndarray:
    """Centroids of the values that are not zero: negative and positive ones by their numbers.

    Args:
        values: 1-D float array; zeros in it are left out.
        clusters, init, random: see `initial`.

    Returns:
        A sorted float32 array of length `clusters`.

    Example:
        >>> initial_without_zero(np.arange(11.0), 4, "linear", np.random.default_rng(0))
        array([ 1.,  4.,  7., 10.], dtype=float32)
    """
    sides = values[values < 0], values[values > 0]
    total = sides[0].size + sides[1].size
    negative = round(clusters * sides[0].size / total) if total else 0
    if clusters > 1 and all(side.size for side in sides):
        negative = min(max(negative, 1), clusters - 1)
    if init == "kmeans++":  # needs no split: it finds both sides by itself
        return initial(values[values != 0], clusters, init, random)
    counts = negative, clusters - negative
    parts = []
    for side, count in zip(sides, counts, strict=True):
        if init == "density" and side.size and count:
            gap = min(0.01, abs(side.min()) / 2, abs(side.max()) / 2)
            parts.append(np.sort(_density(side, count, gap)).astype(np.float32))
        else:
            parts.append(initial(side, count, init, random))
    return np.concatenate(parts)


def nearest(values: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The index of the nearest centroid of each value; halfway between two the greater.

    Args:
        values: float array (n, channels).
        centroids: float array (k, channels), sorted along its first axis.

    Returns:
        An int array (n, channels).

    Example:
        >>> nearest(np.array([[0.1], [0.9]]), np.array([[0.0], [1.0]])).ravel()
        array([0, 1], dtype=uint8)
    """
    middles = (centroids[:-1] + centroids[1:]) / 2
    if centroids.shape[1] == 1 and len(middles) > 64:
        found = np.searchsorted(middles[:, 0], values.ravel(), side="right")
        return found.reshape(values.shape)
    found = np.zeros(values.shape, np.uint8 if len(middles) < 256 else np.uint16)
    # By pieces that stay in the cache, comparing with every limit is quicker than searching.
    rows = max(1, _PIECE // max(1, values.shape[1]))
    for start in range(0, len(values), rows):
        piece = values[start : start + rows]
        for middle in middles.astype(values.dtype):
            found[start : start + rows] += piece >= middle
    return found


def _density(values: np.ndarray, clusters: int, gap: float) -> np.ndarray:
    """Evenly spaced in the cumulative distribution, which is looked up at 30 points as in TFMOT."""
    grid = np.linspace(values.min() - gap, values.max() + gap, 30)
    cumulative = np.searchsorted(np.sort(values), grid, side="right") / values.size
    wanted = np.linspace(0.01, 1, clusters)
    return grid[np.minimum(np.searchsorted(cumulative, wanted, side="right"), len(grid) - 1)]


def _kmeans(values: np.ndarray, clusters: int, random: np.random.Generator) -> np.ndarray:
    if values.size > _SAMPLE:
        values = random.choice(values, _SAMPLE, replace=False)
    values = np.sort(values.astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    # Seeds need fewer values still; of several starts the best counts, as each may go astray.
    few = values[:: max(1, values.size // max(_FEW, 4 * clusters))]
    tries = [_lloyd(values, sums, _seeds(few, clusters, random)) for _ in range(_STARTS)]
    return max(tries, key=lambda found: found[1])[0]


def _lloyd(values: np.ndarray, sums: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, float]:
    """Centroids after Lloyd's rounds, and how much of the sum of squares they explain."""
    centroids = np.sort(seeds)
    for _ in range(_ROUNDS):
        # Values are sorted, so that each cluster is one stretch of them.
        edges = np.searchsorted(values, (centroids[:-1] + centroids[1:]) / 2)
        edges = np.concatenate([[0], edges, [values.size]])
        counts = np.diff(edges)
        means = np.diff(sums[edges]) / np.maximum(counts, 1)
        new = np.sort(np.where(counts > 0, means, centroids))
        if np.array_equal(new, centroids):
            break
        centroids = new
    return centroids, float((counts * np.square(means)).sum())


def _seeds(values: np.ndarray, clusters: int, random: np.random.Generator) -> np.ndarray:
    """k-means++: each seed is drawn with a chance that grows with the distance to the others."""
    seeds = [random.choice(values)]
    distance = np.square(values - seeds[0])
    for _ in range(clusters - 1):
        total = distance.sum()
        drawn = np.searchsorted(np.cumsum(distance), random.random() * total, side="right")
        seeds.append(values[min(drawn, values.size - 1)] if total > 0 else values[0])
        distance = np.minimum(distance, np.square(values - seeds[-1]))
    return np.array(seeds)
