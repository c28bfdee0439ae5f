"""Rounding as LiteRT's integer kernels do it, against hand-computed values."""

import numpy as np

from tfcompress.techniques.quantize import round_activation, ties_away


def test_halves_are_rounded_away_from_code_zero():
    # Range [-128, 127]: a step of 1, and code 0 means 0.
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.25, -2.25], "float32")
    result = round_activation(ties_away(x, -128.0, 127.0), -128.0, 127.0)
    np.testing.assert_array_equal(result, [-3, -2, -1, 1, 2, 2, -2])
    # Range [0, 255]: code 0 means 128, and halves below it go down.
    x = np.array([1.5, 127.5, 128.5, 200.5], "float32")
    result = round_activation(ties_away(x, 0.0, 255.0), 0.0, 255.0)
    np.testing.assert_array_equal(result, [1, 127, 129, 201])
