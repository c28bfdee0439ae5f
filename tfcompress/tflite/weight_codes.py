"""Codes of weights that TFLite Micro decodes while a model runs (its operator TFLM_DECODE).

A weight is two vectors: the encoded values, and a header of 16 bytes with the table that decodes
them. There are three codes: indices of 1 to 7 bits into a table of values, for the tensor or for
each channel; a mask of one bit a value and those that are not 0; and a Huffman code, of int8 alone.
Formats: `decode_state_*.cc` of github.com/tensorflow/tflite-micro.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Iterator, Mapping

import numpy as np

OPERATOR = "TFLM_DECODE"
MOST_BITS = 7  # of an index into a table
_HEADER = 16
_SLOWNESS = {"mask": 10.0, "Huffman": 20.0}
_TABLE, _HUFFMAN, _MASK = 0, 1, 2
_VERSION = 1

# Entries of the tables of a Huffman code: whether it is a value, bits, value or way to go on.
_FOUND, _BITS_AT, _LOW = 0x8000, 11, 0x7FF
_WIDEST = 8  # bits that one such table looks at
_LOOK = 1 / 50  # bytes that a look into a table is worth: 0.3% more are decoded 1.7 times as fast
_DEEPEST = 64  # tables to pass before a value, which no sound code reaches
_CHUNK = 2**18


@dataclasses.dataclass(frozen=True)
class Coded:
    """A weight in a code: its name, the encoded values, and the header with what decodes them."""

    code: str
    stored: bytes
    ancillary: bytes

    @property
    def slowness(self) -> float:
        """How long TFLite Micro takes to decode a value, by that of a table (measured on a PC)."""
        return _SLOWNESS.get(self.code, 1.0)

    @property
    def bytes(self) -> int:
        """What both vectors take."""
        return len(self.stored) + len(self.ancillary)


def smallest_size(counts: Mapping[int, int]) -> tuple[str, int]:
    """The smallest code of int8 values without a table for each channel, and its bytes.

    Args:
        counts: how often each value occurs; those of 0 are zeros.

    Returns:
        (its name, the bytes of both vectors).

    Example:
        >>> smallest_size({-1: 300, 1: 300})
        ('table of 1 bit', 93)
    """
    return min(_sizes(counts), key=lambda found: found[1])


def smallest(values: np.ndarray, axis: int | None = None) -> Coded | None:
    """A weight in the code that takes least; None if none takes less than the values.

    Args:
        values: an array of any shape, of int8, or of another type that tables can hold.
        axis: of the channels, 0 or the last, if the weight has a scale for each; else None.
    """
    return next((_coded(values, code, axis) for code in _smaller(values, axis)), None)


def codings(values: np.ndarray, axis: int | None = None) -> list[Coded]:
    """A weight in each code that takes less than its values, the smallest first; see `smallest`."""
    return [_coded(values, code, axis) for code in _smaller(values, axis)]


def _smaller(values: np.ndarray, axis: int | None) -> list[str]:
    kinds, counts = np.unique(_patterns(values), return_counts=True)
    size = values.dtype.itemsize
    found = list(_sizes(dict(zip(kinds.tolist(), counts.tolist(), strict=True)), size))
    if axis is not None:
        found += _size_by_channel(values, axis)
    found.sort(key=lambda entry: entry[1])
    return [code for code, taken in found if taken < values.nbytes]


def _coded(values: np.ndarray, code: str, axis: int | None) -> Coded:
    if code == "Huffman":
        return huffman(values)
    if code == "mask":
        return mask(values)
    return table(values, axis if code.endswith("a channel") else None)


def _sizes(counts: Mapping[int, int], size: int = 1) -> Iterator[tuple[str, int]]:
    """What the codes take that look at all values alike, if a value takes so many bytes."""
    total = sum(counts.values())
    bits = _bits_for(len(counts))
    if bits <= MOST_BITS:
        yield _table_name(bits), -(-total * bits // 8) + _HEADER + size * len(counts)
    yield "mask", -(-total // 8) + _HEADER + size * (total - counts.get(0, 0))
    if size == 1 and len(counts) > 1:
        tree = _tree(counts)
        length = sum(counts[value] * len(code) for value, code in _codes(tree))
        entries, _ = _tables(tree, counts)
        yield "Huffman", _whole_words(length) + _HEADER + 2 * len(entries)


def _size_by_channel(values: np.ndarray, axis: int) -> list[tuple[str, int]]:
    channels = _by_channel(values, axis)
    most = max(len(np.unique(channel)) for channel in channels)
    bits = _bits_for(most)
    if bits > MOST_BITS:
        return []
    tables = values.dtype.itemsize * len(channels) * most
    return [(f"{_table_name(bits)} a channel", -(-values.size * bits // 8) + _HEADER + tables)]


def _table_name(bits: int) -> str:
    return f"table of {bits} bit{'s' * (bits > 1)}"


def _bits_for(values: int) -> int:
    return max(1, (values - 1).bit_length())


def _patterns(values: np.ndarray) -> np.ndarray:
    """The values as integers that differ wherever their bits do, int8 as they are."""
    return np.ascontiguousarray(values).view(f"i{values.dtype.itemsize}")


def _by_channel(values: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(_patterns(values), axis, 0).reshape(values.shape[axis], -1)


def _header(kind: int, *more: int) -> bytes:
    return bytes([kind, _VERSION, 0, 0, _VERSION, *more]).ljust(_HEADER, b"\0")


def table(values: np.ndarray, axis: int | None = None) -> Coded:
    """Indices into one table, or into one for each channel of an axis.

    One table has stride 0, which also decodes weights with a scale for each channel.
    """
    if axis is None:
        kinds, indices = np.unique(_patterns(values), return_inverse=True)
        bits, stride, tables = _bits_for(len(kinds)), 0, kinds
    else:
        channels = [np.unique(c, return_inverse=True) for c in _by_channel(values, axis)]
        stride = max(len(kinds) for kinds, _ in channels)
        bits = _bits_for(stride)
        tables = np.stack([np.pad(kinds, (0, stride - len(kinds))) for kinds, _ in channels])
        moved = np.moveaxis(values, axis, 0).shape
        indices = np.moveaxis(np.stack([i for _, i in channels]).reshape(moved), 0, axis)
    flat = indices.ravel().astype(np.uint8)[:, None]
    stored = np.packbits((flat >> np.arange(bits - 1, -1, -1, dtype=np.uint8)) & 1).tobytes()
    ancillary = _header(_TABLE, bits, stride) + np.ascontiguousarray(tables).tobytes()
    return Coded(_table_name(bits) + " a channel" * (axis is not None), stored, ancillary)


def mask(values: np.ndarray) -> Coded:
    """A bit for each value, and those that are not 0, for weights whose zero point is 0."""
    flat = _patterns(values).ravel()
    return Coded(
        "mask", np.packbits(flat != 0).tobytes(), _header(_MASK) + flat[flat != 0].tobytes()
    )


def huffman(values: np.ndarray) -> Coded:
    """A Huffman code of int8 values, of which there are two or more different ones."""
    kinds, counts = np.unique(values, return_counts=True)
    counted = dict(zip(kinds.tolist(), counts.tolist(), strict=True))
    tree = _tree(counted)
    words, lengths = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for value, code in _codes(tree):
        words[value & 255], lengths[value & 255] = int(code, 2), len(code)
    flat = values.ravel().view(np.uint8)
    parts = [flat[i : i + _CHUNK] for i in range(0, len(flat), _CHUNK)]
    bits = np.concatenate([_bits(words[part], lengths[part]) for part in parts])
    stored = np.packbits(bits).tobytes().ljust(_whole_words(len(bits)), b"\0")
    entries, first = _tables(tree, counted)
    ancillary = _header(_HUFFMAN, (first - 1) << 4) + np.array(entries, "<u2").tobytes()
    return Coded("Huffman", stored, ancillary)


def _whole_words(bits: int) -> int:
    """Bytes of a stream: whole words of 4, up to where the decoder of its last value looks."""
    return -(-(bits + _WIDEST) // 32) * 4


def _bits(words: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The bits of numbers of these lengths, one after another, the highest first."""
    ends = np.cumsum(lengths)
    after = np.repeat(ends, lengths) - np.arange(ends[-1]) - 1
    return ((np.repeat(words, lengths) >> after) & 1).astype(np.uint8)


Tree = int | tuple["Tree", "Tree"]


def _tree(counts: Mapping[int, int]) -> Tree:
    """Huffman's tree (1952), the same for equal counts."""
    heap: list[tuple[int, int, Tree]] = [(n, value, value) for value, n in counts.items()]
    heapq.heapify(heap)
    for order in range(1000, 1000 + len(heap) - 1):
        (few, _, one), (more, _, other) = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (few + more, order, (one, other)))
    return heap[0][2]


def _codes(tree: Tree, code: str = "") -> Iterator[tuple[int, str]]:
    if isinstance(tree, int):
        yield tree, code
    else:
        yield from _codes(tree[0], code + "0")
        yield from _codes(tree[1], code + "1")


def _below(tree: Tree, bits: int, code: int = 0, depth: int = 0) -> Iterator[tuple[int, int, Tree]]:
    """What a table that looks at so many bits finds: (the code, its bits, a value or a tree)."""
    if depth == bits or isinstance(tree, int):
        yield code, depth, tree
    else:
        yield from _below(tree[0], bits, 2 * code, depth + 1)
        yield from _below(tree[1], bits, 2 * code + 1, depth + 1)


def _tables(tree: Tree, counts: Mapping[int, int]) -> tuple[list[int], int]:
    """The tables that decode a tree, as entries; and the bits that the first looks at."""
    for worth in (_LOOK, 0.0):
        entries, plan = list[int](), _Plan(counts, worth)
        plan.cost(tree)
        first = _place(tree, plan.bits, entries)
        if len(entries) <= _LOW:
            break
    return entries, first


class _Plan:
    """How many bits the table of each inner node of a tree looks at, by the node's identity.

    Wide tables are fast, and hold what is found early many times: a look into a table is worth so
    many bytes. Of equal ones the widest.
    """

    def __init__(self, counts: Mapping[int, int], worth: float):
        self.counts, self.worth = counts, worth
        self.bits: dict[int, int] = {}
        self._costs: dict[int, float] = {}

    def cost(self, tree: Tree) -> float:
        """Bytes of the tables of a tree, and what the looks into them are worth."""
        if isinstance(tree, int):
            return 0.0
        if id(tree) not in self._costs:
            looks = self.worth * self._count(tree)
            ways = (
                (2 * 2**bits + looks + sum(self.cost(n) for _, _, n in _below(tree, bits)), -bits)
                for bits in range(1, _WIDEST + 1)
            )
            self._costs[id(tree)], bits = min(ways)
            self.bits[id(tree)] = -bits
        return self._costs[id(tree)]

    def _count(self, tree: Tree) -> int:
        if isinstance(tree, int):
            return self.counts[tree]
        return self._count(tree[0]) + self._count(tree[1])


def _place(tree: Tree, widths: Mapping[int, int], entries: list[int]) -> int:
    """Put a tree's tables behind those that are there; returns the bits that the first looks at."""
    bits, start = widths[id(tree)], len(entries)
    entries += [0] * 2**bits
    for code, depth, node in list(_below(tree, bits)):
        if isinstance(node, int):
            first, count = code << (bits - depth), 2 ** (bits - depth)
            found = _FOUND | depth << _BITS_AT | node & 255
            entries[start + first : start + first + count] = [found] * count
        else:
            onward = len(entries) - start - code
            entries[start + code] = (widths[id(node)] - 1) << _BITS_AT | onward
            _place(node, widths, entries)
    return bits


def code_of(ancillary: bytes) -> str:
    """The name of the code that a header tells."""
    if len(ancillary) < _HEADER or ancillary[1] != _VERSION or ancillary[4] != _VERSION:
        raise ValueError("a header of TFLM_DECODE is not of version 1")
    if ancillary[0] == _TABLE:
        return _table_name(ancillary[5] & 7) + " a channel" * (ancillary[6] > 0)
    if ancillary[0] not in (_HUFFMAN, _MASK):
        raise ValueError(f"TFLM_DECODE has no code of type {ancillary[0]}")
    return "Huffman" if ancillary[0] == _HUFFMAN else "mask"


def restored(
    stored: bytes, ancillary: bytes, shape: tuple[int, ...], dtype: str, axis: int | None = None
) -> np.ndarray:
    """The values of a weight, as TFLite Micro restores them.

    Args:
        stored, ancillary: see `Coded`.
        shape, dtype: of the weight, of which the file holds no more.
        axis: of its channels if it has a scale for each.

    Raises:
        ValueError: the vectors are too short, or refer to what is not there.
    """
    kind, count = code_of(ancillary), math.prod(shape)
    if kind == "mask":
        found = _unmasked(stored, ancillary[_HEADER:], count, dtype)
    elif kind == "Huffman":
        if dtype != "int8" or ancillary[5] & 1:
            raise ValueError(f"a Huffman code of {dtype} is not known here")
        found = _unhuffed(stored, ancillary, count)
    else:
        found = _looked_up(stored, ancillary, shape, dtype, axis)
    return found.reshape(shape)


def _unmasked(stored: bytes, rest: bytes, count: int, dtype: str) -> np.ndarray:
    if len(stored) * 8 < count:
        raise ValueError("a mask of TFLM_DECODE is too short")
    kept = np.unpackbits(np.frombuffer(stored, np.uint8), count=count).astype(bool)
    values = np.frombuffer(rest, dtype, len(rest) // np.dtype(dtype).itemsize)
    if len(values) < kept.sum():
        raise ValueError("a mask has more bits set than values behind it")
    found = np.zeros(count, dtype)
    found[kept] = values[: kept.sum()]
    return found


def _looked_up(
    stored: bytes, ancillary: bytes, shape: tuple[int, ...], dtype: str, axis: int | None
) -> np.ndarray:
    count, bits, stride = math.prod(shape), ancillary[5] & 7, ancillary[6]
    if not bits or len(stored) * 8 < count * bits:
        raise ValueError("indices into a table of TFLM_DECODE are too few")
    flat = np.unpackbits(np.frombuffer(stored, np.uint8), count=count * bits)
    indices: np.ndarray = np.zeros(shape, np.uint8)
    for column in flat.reshape(-1, bits).T:
        indices = 2 * indices + column.reshape(shape)
    if axis is not None and stride:
        channels = [-1 if i == axis % len(shape) else 1 for i in range(len(shape))]
        indices = indices + stride * np.arange(shape[axis], dtype=np.int32).reshape(channels)
    rest = ancillary[_HEADER:]
    values = np.frombuffer(rest, dtype, len(rest) // np.dtype(dtype).itemsize)
    if count and indices.max() >= len(values):
        raise ValueError("an index lies outside of its table of TFLM_DECODE")
    return values[indices]


def _unhuffed(stored: bytes, ancillary: bytes, count: int) -> np.ndarray:
    """At each bit the value that begins there, and then only those that follow one another."""
    entries = np.frombuffer(ancillary[_HEADER:], "<u2", (len(ancillary) - _HEADER) // 2)
    first = (ancillary[5] >> 4) + 1
    if len(stored) * 8 < count:
        raise ValueError("a Huffman code of TFLM_DECODE is too short")
    found, place, total = np.zeros(count, np.int8), 0, 8 * len(stored)
    done, start, steps, values = 0, 0, b"", np.zeros(0, np.int8)
    while done < count:
        if place >= start + len(steps):  # the next part of the stream
            start = place
            steps, values = _values_at(stored, start, min(_CHUNK, total - start), entries, first)
        places, at, end = list[int](), place - start, len(steps)
        while at < end and done + len(places) < count:
            places.append(at)
            at += steps[at]
        found[done : done + len(places)] = values[places]
        done, place = done + len(places), start + at
    return found


def _values_at(
    stored: bytes, start: int, count: int, entries: np.ndarray, first: int
) -> tuple[bytes, np.ndarray]:
    """Bits and values of the words that begin at each of some bits of a stream."""
    if count <= 0:
        raise ValueError("a Huffman code of TFLM_DECODE ends before its last value")
    from_byte = start // 8
    data = np.frombuffer(stored[from_byte : from_byte + count // 8 + 2 * _DEEPEST], np.uint8)
    data = np.pad(data, (0, 2 * _DEEPEST + 8)).astype(np.uint32)
    windows = data[:-3] << 24 | data[1:-2] << 16 | data[2:-1] << 8 | data[3:]
    at = np.arange(start - 8 * from_byte, start - 8 * from_byte + count)
    table, width, used = np.zeros(count, np.int64), np.full(count, first), np.zeros(count, int)
    values, lengths, open_ = np.zeros(count, np.int8), np.zeros(count, int), np.arange(count)
    for _ in range(_DEEPEST):
        bit = np.minimum(at[open_] + used[open_], 8 * (len(windows) - 1))
        looked = windows[bit >> 3].astype(np.int64) << (bit & 7) & 0xFFFFFFFF
        index = table[open_] + (looked >> (32 - width[open_]))
        if (index >= len(entries)).any():
            raise ValueError("a Huffman code of TFLM_DECODE goes on outside of its tables")
        entry = entries[index].astype(np.int64)
        is_found, bits = (entry & _FOUND) > 0, (entry >> _BITS_AT) & 15
        ended = open_[is_found]
        values[ended] = (entry[is_found] & 255).astype(np.uint8).view(np.int8)
        lengths[ended] = used[ended] + bits[is_found]
        used[open_] += width[open_]
        table[open_] = index + (entry & _LOW)
        width[open_] = bits + 1
        open_ = open_[~is_found]
        if not len(open_):
            break
    if len(open_) or not lengths.all():
        raise ValueError("a Huffman code of TFLM_DECODE has words without an end")
    return lengths.clip(1, 255).astype(np.uint8).tobytes(), values
