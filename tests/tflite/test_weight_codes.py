"""Codes of weights: their bytes, by hand and against what they decode to, and damaged ones."""

import numpy as np
import pytest

from tfcompress.techniques.technique import TABLE_BITS
from tfcompress.tflite.weight_codes import (
    MOST_BITS,
    code_of,
    codings,
    huffman,
    mask,
    restored,
    smallest,
    smallest_size,
    table,
)


def back(coded, values, axis=None):
    return restored(coded.stored, coded.ancillary, values.shape, str(values.dtype), axis)


def first(values, axis=None):
    found = codings(values, axis)
    assert found == sorted(found, key=lambda coded: coded.bytes)
    assert smallest(values, axis) == (found[0] if found else None)
    return found[0] if found else None


def weights(kinds, shape, seed=0):
    """Values spread like those of trained weights."""
    spread = np.random.default_rng(seed).normal(0, kinds / 5, shape)
    return np.clip(np.round(spread), -(kinds // 2), (kinds - 1) // 2).astype(np.int8)


def test_a_table_by_hand():
    coded = table(np.array([2, -4, -4, 10, 1, 7], np.int8))
    # Values in their order are -4, 1, 2, 7, 10: indices 2, 0, 0, 4, 1, 3 of three bits each.
    assert coded.stored == bytes([0b01000000, 0b01000010, 0b11000000])
    assert coded.ancillary == bytes([0, 1, 0, 0, 1, 3, 0, *[0] * 9, 252, 1, 2, 7, 10])
    assert (coded.code, coded.bytes) == ("table of 3 bits", 24)


def test_tables_of_channels_by_hand():
    values = np.array([[5, 6, 5, 6], [9, 9, 9, -1]], np.int8)
    coded = table(values, 0)
    assert coded.stored == bytes([0b01011110])
    assert coded.ancillary[4:] == bytes([1, 1, 2, *[0] * 9, 5, 6, 255, 9])
    last = table(values.T, 1)
    assert last.ancillary == coded.ancillary
    assert last.stored == bytes([0b01110110])
    assert np.array_equal(back(last, values.T, 1), values.T)


def test_a_mask_by_hand():
    coded = mask(np.array([0, 0, 3, 0, -2, 0, 0, 0, 1], np.int8))
    assert coded.stored == bytes([0b00101000, 0b10000000])
    assert coded.ancillary == bytes([2, 1, 0, 0, 1, *[0] * 11, 3, 254, 1])


def test_a_huffman_code_by_hand():
    coded = huffman(np.array([0, 0, 0, 0, -1, 7], np.int8))
    # -1: 00, 7: 01, 0: 1. One table of two bits, of which 0 needs one.
    assert coded.stored == bytes([0b11110001, 0, 0, 0])
    assert coded.ancillary[:6] == bytes([1, 1, 0, 0, 1, 1 << 4])
    entries = np.frombuffer(coded.ancillary[16:], "<u2")
    assert entries.tolist() == [0x8000 | 2 << 11 | 255, 0x8000 | 2 << 11 | 7, *[0x8800] * 2]


@pytest.mark.parametrize("kinds", [1, 2, 3, 16, 17, 128, 255])
@pytest.mark.parametrize(("shape", "axis"), [((8, 3, 3, 5), 0), ((1, 3, 3, 64), 3), ((90, 70), 0)])
def test_all_codes_restore_what_they_took(kinds, shape, axis):
    values = weights(kinds, shape)
    found, counts = np.unique(values, return_counts=True)
    made = [mask(values)]
    made += [table(values)] if len(found) <= 128 else []
    made += [huffman(values)] if len(found) > 1 else []
    for coded in made:
        assert np.array_equal(back(coded, values, axis), values), coded.code
        assert code_of(coded.ancillary) == coded.code
    least = min(made, key=lambda coded: coded.bytes)
    told = smallest_size(dict(zip(found.tolist(), counts.tolist(), strict=True)))
    assert told[1] == least.bytes
    chosen = first(values, axis)
    if least.bytes < values.size:
        assert chosen.bytes <= least.bytes
        assert np.array_equal(back(chosen, values, axis), values)


def test_few_values_in_each_channel_take_tables_of_channels():
    values = np.arange(-60, 60, dtype=np.int8).reshape(60, 2).repeat(40, axis=1)
    coded = first(values, 0)
    assert (coded.code, coded.bytes) == ("table of 1 bit a channel", 60 * 80 // 8 + 16 + 120)
    assert np.array_equal(back(coded, values, 0), values)
    # With one scale for all a table for each channel would decode to something else.
    assert first(values).code == "table of 7 bits"


def test_weights_without_a_code_that_helps():
    assert first(np.arange(-128, 127, dtype=np.int8)) is None
    assert first(np.zeros((3, 4), np.int8)) is None


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_wider_types_take_tables_and_masks(dtype):
    values = np.random.default_rng(0).choice([0, 3, -5, 1000], (40, 30)).astype(dtype)
    assert first(values).code == "table of 2 bits"
    assert np.array_equal(back(table(values), values), values)
    pruned = np.where(np.arange(1200).reshape(40, 30) % 8, 0, np.arange(1200).reshape(40, 30))
    pruned = pruned.astype(dtype)
    assert first(pruned).code == "mask"
    assert np.array_equal(back(mask(pruned), pruned), pruned)


def test_a_long_skewed_code_is_read_in_parts():
    counts = np.array([2**i for i in range(18)])
    values = np.repeat(np.arange(18, dtype=np.int8), counts)
    np.random.default_rng(0).shuffle(values)
    coded = huffman(values)
    assert np.array_equal(back(coded, values), values)
    assert coded.bytes == smallest_size(dict(enumerate(counts.tolist())))[1]


def test_damaged_codes_are_errors():
    values = weights(40, (30, 20))
    rng = np.random.default_rng(1)
    for coded in (table(values), mask(values), huffman(values)):
        for part in range(2):
            for _ in range(60):
                both = [bytearray(coded.stored), bytearray(coded.ancillary)]
                if rng.random() < 0.5:
                    both[part] = both[part][: rng.integers(len(both[part]))]
                else:
                    both[part][rng.integers(len(both[part]))] ^= 1 << int(rng.integers(8))
                try:
                    found = restored(bytes(both[0]), bytes(both[1]), (30, 20), "int8")
                except ValueError:
                    continue
                assert found.shape == (30, 20)


def test_techniques_know_the_widest_table():
    assert TABLE_BITS["microcontroller"] == MOST_BITS
