"""Rounding as LiteRT's integer kernels do it, against hand-computed values."""

import keras
import numpy as np
from keras import layers

from tfcompress.conversion import convert, grids
from tfcompress.conversion.ranges import Range, constant
from tfcompress.techniques.quantize import round_activation, ties_away
from tfcompress.tflite.flatbuffer import op_name


def test_halves_are_rounded_away_from_code_zero():
    # Range [-128, 127]: a step of 1, and code 0 means 0.
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.25, -2.25], "float32")
    result = round_activation(ties_away(x, -128.0, 127.0), -128.0, 127.0)
    np.testing.assert_array_equal(result, [-3, -2, -1, 1, 2, 2, -2])
    # Range [0, 255]: code 0 means 128, and halves below it go down.
    x = np.array([1.5, 127.5, 128.5, 200.5], "float32")
    result = round_activation(ties_away(x, 0.0, 255.0), 0.0, 255.0)
    np.testing.assert_array_equal(result, [1, 127, 129, 201])


def test_a_bias_moves_by_a_quarter_of_the_first_rounding():
    inputs = keras.Input((2, 2, 1))
    conv = layers.Conv2D(2, 1)
    model = keras.Model(inputs, conv(inputs))
    conv.set_weights([np.array([[[[1.27, -2.54]]]], "float32"), np.array([0.5, 0.25], "float32")])
    parsed, _, _ = convert.float_file(model)
    (op,) = [o for o in parsed.subgraphs[0].operators if op_name(parsed, o) == "CONV_2D"]
    # Scales: 1 of the input, 0.01 and 0.02 of the weights, 0.1 of the output, so that the
    # multipliers are 0.1 = 0.8 * 2**-3 and 0.2 = 0.8 * 2**-2.
    known = {op.inputs[0]: Range(-128.0, 127.0), op.outputs[0]: Range(-12.8, 12.7)}
    grids.center(parsed, op, known, np.array([0.01, 0.02]))
    expected = [0.5 - 0.25 * 0.01 / 0.8, 0.25 - 0.25 * 0.02 / 0.8]
    np.testing.assert_allclose(constant(parsed, op.inputs[2]), expected, rtol=1e-5)
