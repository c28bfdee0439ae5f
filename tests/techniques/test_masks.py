"""Masks: which weights are pruned, by hand."""

import numpy as np
import pytest

from tfcompress.techniques.masks import Pattern, group, keep_n_of_m, pruned_count, smallest

RANDOM = np.random.default_rng(0)
MATRIX = (0,), (1,)  # input and output axes of a Dense kernel
CONV = (2,), (3,)


def kept(scores, text, count, axes=MATRIX, largest=False):
    """The mask that prunes `count` groups."""
    groups = group(scores.shape, Pattern.parse(text), *axes)
    return groups.mask(smallest(groups.reduce(scores, largest), count))


def test_smallest_by_hand():
    scores = np.array([3.0, 1.0, 2.0, 1.0, 0.5])
    assert smallest(scores, 0).tolist() == [False] * 5
    assert smallest(scores, 1).tolist() == [False, False, False, False, True]
    assert smallest(scores, 2).tolist() == [False, False, False, True, True]
    assert smallest(scores, 3).tolist() == [False, True, False, True, True]
    assert smallest(scores, 5).tolist() == smallest(scores, 9).tolist() == [True] * 5


@pytest.mark.parametrize("values", [1, 2, 3, 1000])
def test_smallest_is_exact_whatever_is_equal(values):
    scores = RANDOM.integers(0, values, 997).astype("float32")
    for count in (0, 1, 500, 996, 997):
        found = smallest(scores, count)
        assert np.count_nonzero(found) == count
        # As a stable sort that puts the later of equal ones first.
        expected = (len(scores) - 1 - np.argsort(scores[::-1], kind="stable"))[:count]
        assert set(np.flatnonzero(found)) == set(expected)


def test_smallest_of_zeros():
    assert smallest(np.zeros(6), 2).tolist() == [False] * 4 + [True] * 2


def test_counts():
    assert [pruned_count(100, s) for s in (0, 0.1, 0.5, 0.994, 0.996, 0.9999)] == [
        0, 10, 50, 99, 99, 99,
    ]  # fmt: skip
    assert [pruned_count(10, 0.2), pruned_count(3, 0.5), pruned_count(1, 0.9)] == [2, 1, 0]
    assert pruned_count(0, 0.5) == 0


def test_unstructured_by_hand():
    mask = kept(np.arange(1, 11.0), "unstructured", pruned_count(10, 0.2), ((), ()))
    assert mask.astype(int).tolist() == [0, 0] + [1] * 8


def test_patterns_are_read():
    assert Pattern.parse("2:4") == Pattern("n:m", 2, 4)
    assert Pattern.parse("1x4") == Pattern("block", 1, 4)
    assert Pattern.parse("filters") == Pattern("filters")
    assert (Pattern.parse("3:4").sparsity, Pattern.parse("1x4").sparsity) == (0.25, None)


@pytest.mark.parametrize("text", ["2:", "4:2", "2:2", "0:4", "0x4", "4x0", "blocks", "2*4", "", 4])
def test_patterns_that_are_none(text):
    with pytest.raises(ValueError, match="received"):
        Pattern.parse(text)


def test_n_of_m_by_hand():
    dense = np.array([[0.74, 0.68], [-0.89, -0.45], [-1.68, 1.24], [0.31, -0.6]])
    expected = [[0, 1], [1, 0], [1, 1], [0, 0]]
    assert keep_n_of_m(np.abs(dense), 2, 4, 0).astype(int).tolist() == expected
    row = np.abs([1.71, -0.27, -0.3, -0.61, -0.19])
    assert keep_n_of_m(row, 3, 5, 0).astype(int).tolist() == [1, 0, 1, 1, 0]
    assert keep_n_of_m(row, 2, 5, 0).astype(int).tolist() == [1, 0, 0, 1, 0]
    assert keep_n_of_m(np.ones(8), 2, 4, 0).astype(int).tolist() == [1, 1, 0, 0] * 2


@pytest.mark.parametrize("length", [4, 5, 6, 7, 8, 11])
def test_n_of_m_where_m_does_not_divide_the_axis(length):
    scores = RANDOM.random((3, length, 2))
    mask = keep_n_of_m(scores, 2, 4, 1)
    for start in range(0, length, 4):
        part, values = mask[:, start : start + 4], scores[:, start : start + 4]
        assert set(part.sum(1).ravel()) == {min(2, part.shape[1])}
        # What is kept is greater than all that is not.
        least = np.where(part, values, np.inf).min(1)
        assert (np.where(part, -np.inf, values).max(1) < least).all()


def test_blocks_by_hand():
    weight = np.array([[0.1, 0.1, 0.2, 0.2]] * 2 + [[0.3, 0.3, 0.4, 0.4]] * 2)
    assert kept(weight, "2x2", 2).astype(int).tolist() == [[0] * 4] * 2 + [[1] * 4] * 2
    # The mean counts, or the largest of a block.
    weight = np.array([[5.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]])
    assert kept(weight, "2x2", 1).astype(int).tolist() == [[0, 0, 1, 1]] * 2
    assert kept(weight, "2x2", 1, largest=True).astype(int).tolist() == [[1, 1, 0, 0]] * 2
    assert kept(weight, "2x2", 1, ((1,), (0,))).astype(int).tolist() == [[0, 0, 1, 1]] * 2


def test_blocks_are_cut_off_at_the_edge():
    groups = group((3, 5), Pattern.parse("2x4"), *MATRIX)
    number = groups.expand(np.arange(groups.count))
    assert number.tolist() == [[0, 0, 0, 0, 1]] * 2 + [[2, 2, 2, 2, 3]]
    assert groups.sizes.tolist() == [8, 2, 4, 1]
    scores = np.ones((3, 5))
    scores[:, 4] = 0.9  # a small block's mean is that of what is in it
    assert kept(scores, "2x4", 2).astype(int).tolist() == [[1, 1, 1, 1, 0]] * 3


def test_blocks_of_a_convolution_lie_in_positions_times_inputs_by_outputs():
    scores = RANDOM.random((3, 3, 4, 6))
    mask = kept(scores, "4x2", 20, CONV)
    matrix = kept(scores.reshape(36, 6), "4x2", 20)
    np.testing.assert_array_equal(mask.reshape(36, 6), matrix)
    assert np.count_nonzero(~mask) == 20 * 8


@pytest.mark.parametrize(("text", "axis"), [("filters", 3), ("channels", 2)])
def test_filters_and_channels_of_a_convolution(text, axis):
    scores = RANDOM.random((3, 3, 4, 6))
    means = scores.mean(tuple({0, 1, 2, 3} - {axis}))
    found = kept(scores, text, 2, CONV)
    gone = np.argsort(means)[:2]
    expected = np.ones(scores.shape, bool)
    np.moveaxis(expected, axis, 0)[gone] = False
    np.testing.assert_array_equal(found, expected)


def test_filters_over_several_axes():
    # As the kernel "cde" of attention: 2 heads of 3 numbers are 6 outputs.
    scores = RANDOM.random((5, 2, 3))
    mask = kept(scores, "filters", 4, ((0,), (1, 2)))
    means = scores.mean(0).ravel()
    np.testing.assert_array_equal(mask[0].ravel(), means >= np.sort(means)[4])
    assert (mask == mask[:1]).all()


def test_a_weight_without_the_axes_of_a_pattern():
    with pytest.raises(ValueError, match=r"'channels' needs .* received one of shape \(3, 3, 4, 1"):
        group((3, 3, 4, 1), Pattern.parse("channels"), (), (2, 3))
