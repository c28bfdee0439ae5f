"""Sigmoid and tanh of 16-bit integers, as LiteRT's kernels compute them.

They are those of gemmlowp (https://github.com/google/gemmlowp/blob/master/fixedpoint/fixedpoint.h):
exp by a polynomial on [-1/4, 0) and by products for the rest, then a division by three steps of
Newton's, all in numbers of 16 bits that are rounded after each product. So they are off by some
steps from the functions; here every result is computed once, by NumPy, and looked up.
"""

from __future__ import annotations

import functools

import numpy as np

_ONE = 32767  # nearly, where no bits are for whole numbers


@functools.cache
def sigmoid_table(bits: int) -> np.ndarray:
    """In steps of 2**-15, sigmoid of all int16 codes of which so many bits are whole numbers."""
    codes = np.arange(-(2**15), 2**15)
    positive = _inverse(_exp(-np.abs(codes).clip(max=32767), bits))
    found = np.where(codes > 0, positive, _ONE - positive)
    return np.where(codes == 0, 2**14, found).astype(np.int32)


@functools.cache
def tanh_table(bits: int) -> np.ndarray:
    """In steps of 2**-15, tanh of all int16 codes of which so many bits are whole numbers."""
    codes = np.arange(-(2**15), 2**15)
    # Twice a number is the same code where one bit more is for whole numbers.
    x = _newton(_exp(-np.abs(codes).clip(max=32767), bits + 1))
    positive = _shifted_up(x - 2**13, 2)
    return (np.sign(codes) * positive).astype(np.int32)


def _exp(x: np.ndarray, bits: int) -> np.ndarray:
    """exp of numbers up to 0, in steps of 2**-15."""
    fraction = 15 - bits
    quarter = 1 << (fraction - 2)
    rest = (x & (quarter - 1)) - quarter  # from -1/4 on
    result = _exp_of_little(rest << bits)
    left = rest - x
    for exponent in range(-2, bits):
        factor = _code(np.exp(-(2.0**exponent)))
        taken = (left & (1 << (fraction + exponent))) != 0
        result = np.where(taken, _product(result, factor), result)
    if bits > 5:
        result = np.where(x < -(1 << (fraction + 5)), 0, result)
    return np.where(x == 0, _ONE, result)


def _exp_of_little(x: np.ndarray) -> np.ndarray:
    """exp of numbers in [-1/4, 0), all in steps of 2**-15, by a polynomial about -1/8."""
    x = x + 2**12
    square = _product(x, x)
    cube, fourth = _product(square, x), _product(square, square)
    inner = _product(_halved(fourth, 2) + cube, _code(1 / 3)) + square
    middle = _code(np.exp(-1 / 8))
    return np.minimum(middle + _product(middle, x + _halved(inner, 1)), 32767)


def _newton(x: np.ndarray) -> np.ndarray:
    """2 / (1 + x) of numbers in [0, 1], in steps of 2**-13."""
    total = x + _ONE
    half = (total + 1) // 2  # of one and x
    y = _code(48 / 17, 2) + _product(half, _code(-32 / 17, 2))
    for _ in range(3):
        y = y + _shifted_up(_product(y, 2**13 - _product(half, y)), 2)
    return y


def _inverse(x: np.ndarray) -> np.ndarray:
    """1 / (1 + x) of numbers in [0, 1], in steps of 2**-15."""
    return _shifted_up(_newton(x), 1)


def _code(value: float, bits: int = 0) -> int:
    """A constant in steps of 2**-15, or of more where bits are for whole numbers."""
    return int(np.floor(value * 2.0 ** (15 - bits) + 0.5))


def _product(a, b) -> np.ndarray:
    """The product of fractions of 2**15, halves up."""
    return (np.minimum(np.asarray(a, np.int64) * b, 32767 * 2**15) + 2**14) >> 15


def _halved(x: np.ndarray, times: int) -> np.ndarray:
    """A number halved so many times and rounded, halves away from 0."""
    return np.sign(x) * ((np.abs(x) + (1 << (times - 1))) >> times)


def _shifted_up(x: np.ndarray, times: int) -> np.ndarray:
    """A number doubled so many times, as far as 16 bits go."""
    return np.clip(x << times, -32768, 32767)
