"""Unique values and entropy against numbers worked out by hand."""

import collections
import math

import numpy as np
import pytest

from tfcompress.tflite import statistics
from tfcompress.tflite.statistics import entropy_bits, pattern_counts, unique_per_channel


@pytest.mark.parametrize(
    ("counts", "bits"),
    [
        ([8, 8], 16),  # 1 bit each
        ([4, 2, 2], 12),  # 4 of 1 bit, 4 of 2 bits
        ([9], 0),
        ([1] * 256, 2048),
        ([1, 3], 8 - 3 * math.log2(3)),  # log2(4) + 3 log2(4/3)
    ],
)
def test_entropy(counts, bits):
    assert entropy_bits(np.array(counts)) == pytest.approx(bits, abs=1e-12)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("zeros", [0, 3])
def test_counts_of_every_type(dtype, zeros, monkeypatch):
    monkeypatch.setattr(statistics, "_CHUNK", 7)  # also across chunks
    values = np.array([5, 1, 1, 0, 5, 5, 2, 1, 5, 1, 1, 0, 7], dtype)
    # Patterns of positive numbers are in the order of the numbers.
    assert pattern_counts(values, zeros).tolist() == [2 + zeros, 5, 1, 4, 1]


def test_zeros_besides_values_without_one():
    assert pattern_counts(np.float32([2, 2]), zeros=5).tolist() == [5, 2]
    assert pattern_counts(np.int8([2, 2]), zeros=5).tolist() == [5, 2]


def test_negative_zero_and_nan_are_patterns_of_their_own():
    values = np.array([0, 0x80000000, 0, 0x7FC00000, 0x7FC00000, 0x7FC00001], np.uint32)
    assert pattern_counts(values.view(np.float32)).tolist() == [2, 2, 1, 1]


def test_integers_below_zero_are_told_from_those_above():
    assert len(pattern_counts(np.arange(-128, 128).astype(np.int8))) == 256
    assert pattern_counts(np.int8([-1, 1, -1])).tolist() == [1, 2]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_unique_per_channel(axis):
    values = np.random.default_rng(axis).integers(-9, 9, (3, 4, 5)).astype(np.int8)
    channels = np.moveaxis(values, axis, 0)
    assert unique_per_channel(values, axis) == max(len(set(c.ravel())) for c in channels)


def test_large_constants_agree_with_a_dictionary():
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float16)
    counts = collections.Counter(values.view(np.uint16).tolist())
    found = pattern_counts(values)
    assert found.tolist() == [counts[pattern] for pattern in sorted(counts)]
    expected = -sum(c * math.log2(c / values.size) for c in counts.values())
    assert entropy_bits(found) == pytest.approx(expected, rel=1e-12)
