"""Weights by hand: their zeros, unique values and entropy, as `inspect` counts them."""

import json
import math

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tflite_by_hand import (
    OPS,
    TYPES,
    build,
    code,
    fully_connected,
    graph,
    one_constant,
    operator,
    tensor,
)

from tfcompress.tflite.inspect import inspect


def test_zeros_of_per_channel_weights_are_their_zero_points():
    values = np.int8([[0, 3, 3], [-2, 3, -2]])
    found = inspect(
        build(
            [],
            [graph([tensor("w", [2, 3], TYPES.INT8, 1, [1, 1], [3, -2])], [], [], [])],
            [values.tobytes()],
        )
    )
    assert found.tensors[0].sparsity == pytest.approx(4 / 6)
    assert found.tensors[0].quantized_dimension == 0
    assert (found.tensors[0].scale, found.tensors[0].zero_point) == (None, None)
    assert found.sparsity == pytest.approx(4 / 6)
    # A constant that no operator reads still takes its bytes.
    assert [(b.layer, b.bytes) for b in found.layer_bytes] == [("", 6)]


def test_shared_constants_count_once():
    weights = np.float32([[0, 1], [0, 2]]).tobytes()
    tensors = [
        tensor("x", [1, 2], TYPES.FLOAT32),
        tensor("w", [2, 2], TYPES.FLOAT32, 1),
        tensor("a", [1, 2], TYPES.FLOAT32),
        tensor("w_again", [2, 2], TYPES.FLOAT32, 1),
        tensor("b", [1, 2], TYPES.FLOAT32),
    ]
    operators = [
        operator(0, [0, 1, -1], [2], *fully_connected()),
        operator(0, [2, 1, -1], [4], *fully_connected()),
        operator(0, [2, 3, -1], [4], *fully_connected()),
    ]
    found = inspect(
        build([code(OPS.FULLY_CONNECTED)], [graph(tensors, operators, [0], [4])], [weights])
    )
    assert found.weights_bytes == 16
    assert [(b.layer, b.bytes) for b in found.layer_bytes] == [("a", 16)]
    assert found.sparsity == 0.5
    assert found.float_ops == ()  # an all-float file has none that stand out


def test_half_zeros_are_one_bit_each():
    found = one_constant("w", [8, 8], TYPES.FLOAT32, np.float32([0, 1.5] * 32).tobytes())
    weights, (layer,) = found.tensors[0], found.layer_bytes
    assert (weights.sparsity, weights.unique, weights.unique_per_channel) == (0.5, 2, None)
    assert weights.entropy_bytes == 64 / 8
    assert weights.coded_bytes == 8 + 2 * 4  # a decoder must know the two values
    assert (layer.dtype, layer.weights, layer.sparsity, layer.unique) == ("float32", 64, 0.5, 2)
    assert (layer.bytes, layer.entropy_bytes, layer.coded_bytes) == (256, 8, 16)
    assert (found.weights, found.entropy_bytes, found.coded_bytes) == (64, 8, 16)


def test_what_does_not_repeat_takes_what_it_takes():
    found = one_constant("w", [16, 16], TYPES.FLOAT32, np.arange(256, dtype=np.float32).tobytes())
    # 8 bits would tell 256 floats apart, but not what they are.
    assert (found.tensors[0].unique, found.tensors[0].entropy_bytes) == (256, 256)
    assert found.coded_bytes == found.weights_bytes == 1024


def test_unique_codes_of_a_tensor_and_of_a_channel():
    values = np.int8([[0, 1], [0, 2], [9, 3], [9, 4]])
    for axis, most in ((0, 2), (1, 4)):
        channels = values.shape[axis]
        scales = {"scale": [1.0] * channels, "zero_point": [0] * channels, "axis": axis}
        found = one_constant("w", [4, 2], TYPES.INT8, values.tobytes(), **scales)
        assert (found.tensors[0].unique, found.tensors[0].unique_per_channel) == (6, most)
        # 2 zeros and 2 nines of 2 bits, 4 others of 3 bits
        assert (found.entropy_bytes, found.coded_bytes) == (math.ceil(20 / 8), 8)
        assert found.layer_bytes[0].unique_per_channel == most
    found = one_constant("w", [4, 2], TYPES.INT8, values.tobytes(), scale=[1.0], zero_point=[0])
    assert (found.tensors[0].unique, found.tensors[0].unique_per_channel) == (6, None)


def test_a_layer_of_several_weights_adds_them_up():
    first, second = np.int8([[0, 0, 1, 1]] * 8), np.int8([[0, 1, 2, 3]] * 8)
    quantized = {"scale": [1.0], "zero_point": [0]}
    tensors = [
        tensor("x", [1, 4], TYPES.INT8, 0, **quantized),
        tensor("a", [8, 4], TYPES.INT8, 1, **quantized),
        tensor("b", [8, 4], TYPES.INT8, 2, **quantized),
        tensor("y", [1, 8], TYPES.INT8, 0, **quantized),
    ]
    data = build(
        [code(OPS.CUSTOM, 1, "Two")],
        [graph(tensors, [operator(0, [0, 1, 2], [3])], [0], [3])],
        [first.tobytes(), second.tobytes()],
    )
    (layer,) = inspect(data).layer_bytes
    assert (layer.weights, layer.sparsity, layer.unique) == (64, 24 / 64, 4)
    assert layer.entropy_bytes == 32 * 1 // 8 + 32 * 2 // 8
    assert layer.coded_bytes == (4 + 2) + (8 + 4)


@pytest.mark.parametrize("bias_first", [True, False])
def test_a_bias_in_the_buffer_of_a_weight_does_not_hide_it(bias_first):
    tensors = [
        tensor("x", [1, 4], TYPES.FLOAT32),
        tensor("w", [1, 4], TYPES.FLOAT32, 1),
        tensor("b", [4], TYPES.FLOAT32, 1),
        tensor("y", [1, 4], TYPES.FLOAT32),
    ]
    operators = [operator(0, [0, 2 if bias_first else 1], [3])]
    operators.append(operator(0, [3, 1 if bias_first else 2], [3]))
    data = build([code(OPS.ADD)], [graph(tensors, operators, [0], [3])], [bytes(16)])
    found = inspect(data)
    assert (found.weights, found.weights_bytes, found.sparsity) == (4, 16, 1.0)
    assert (found.entropy_bytes, found.coded_bytes) == (0, 4)  # all there is to know is the value


def test_values_that_a_sparse_constant_leaves_out_are_zeros():
    constant = tensor("w", [4, 8], TYPES.FLOAT32, 1)
    constant.sparsity = schema.SparsityParametersT()
    for stored, unique, entropy in (
        ([3.0] * 16, 2, 4),  # 16 zeros and 16 threes: 1 bit each
        ([3.0] * 15 + [0.0], 2, math.ceil((17 * math.log2(32 / 17) + 15 * math.log2(32 / 15)) / 8)),
        ([3.0] * 40, 1, 0),  # more than there can be
    ):
        data = build([], [graph([constant], [], [], [])], [np.float32(stored).tobytes()])
        weights = inspect(data).tensors[0]
        assert weights.sparsity == pytest.approx(1 - min(np.count_nonzero(stored), 32) / 32)
        assert (weights.unique, weights.entropy_bytes) == (unique, entropy)
        # The same in a dense constant.
        dense = np.resize(np.float32([*stored, *[0.0] * 16]), 32)
        same = one_constant("w", [4, 8], TYPES.FLOAT32, dense.tobytes()).tensors[0]
        assert (same.unique, same.entropy_bytes) == (unique, entropy)


def test_absurd_shapes_of_sparse_constants_count_nothing():
    constant = tensor("w", [2**31 - 1] * 40, TYPES.FLOAT32, 1)
    constant.sparsity = schema.SparsityParametersT()
    found = inspect(build([], [graph([constant], [], [], [])], [bytes(8)]))
    assert (found.weights, found.sparsity, found.tensors[0].unique) == (0, None, None)
    json.dumps(found.to_dict(), allow_nan=False)


def test_constants_without_elements_count_nothing():
    empty = tensor("w", [0, 4], TYPES.FLOAT32, 1)
    found = inspect(build([], [graph([empty], [], [], [])], [b""]))
    assert (found.weights, found.entropy_bytes, found.coded_bytes) == (0, 0, 0)
    assert (found.sparsity, found.layer_bytes, found.tensors[0].unique) == (None, (), None)
    assert "0 bytes, 0 entropy-coded" in str(found)


@pytest.mark.parametrize("axis", [-2, -1, 2, 1])
def test_a_channel_dimension_that_does_not_fit_is_left_out(axis):
    quantized = {"scale": [1.0] * 2, "zero_point": [0] * 2, "axis": axis}
    found = one_constant("w", [2, 3], TYPES.INT8, bytes(6), **quantized)
    assert (found.tensors[0].unique, found.tensors[0].unique_per_channel) == (1, None)
    assert found.tensors[0].sparsity == 1.0
