"""What is measured of operators, against values worked out by hand."""

import numpy as np
import pytest
from op_files import (
    File,
    Part,
    bias,
    constant,
    integers,
    op_file,
    options,
    plain,
    real,
    weight,
)

from tfcompress.targets.measures import (
    MEASURES,
    compare,
    inner_rank,
    is_kept,
    measure,
    measured,
)
from tfcompress.targets.operators import operators
from tfcompress.tflite import flatbuffer

X = real(1, 9, 8, 4)


def last(data):
    return operators(flatbuffer.read(data))[-1]


def conv(dtype="int8", shape=(8, 3, 5, 4), **fields):
    built = options("Conv2D", strideH=1, strideW=2, dilationHFactor=2, dilationWFactor=1)
    for key, value in fields.items():
        setattr(built[1], key, value)
    parts = [X, weight(*shape), bias(shape[0])]
    return last(op_file("CONV_2D", dtype, parts, [real(1, 9, 4, 8)], built, 3))


def reduced(axes, shape=(1, 9, 8, 4)):
    return last(op_file("MEAN", "int8", [real(*shape), integers(axes)], [real(1, 4)],
                        options("Reducer", keepDims=True)))  # fmt: skip


def check_values(op, **expected):
    assert {name: measure(op, name) for name in expected} == expected


def test_inner_rank():
    assert [inner_rank(s) for s in [(), (1,), (3,), (1, 1, 2, 1), (2, 1)]] == [0, 0, 1, 2, 2]


def test_convolution():
    check_values(
        conv(),
        kernel_height=3, kernel_width=5, kernel_area=15, kernel_side=5, dilated_kernel_height=5,
        dilated_kernel_area=25, stride=2, strides=(1, 2), strides_match=False, dilation=2,
        dilations_match=False, padding="SAME", padded=True, input_channels=4, output_channels=8,
        groups=1, weights_dtype="int8", weights_scales=8, weights_zero_points=(0,), weights_rank=4,
        weights_are_constant=True, bias_dtype="int32", bias_is_constant=True, largest_bias=1,
        stride_exceeds_kernel=False, activation="NONE", batch=1, dtype="int8", version=3,
    )  # fmt: skip
    check_values(conv(padding=1, fusedActivationFunction=3), padded=False, activation="RELU6")


def test_padding_that_adds_nothing():
    # 9 rows in steps of 3, 8 columns in steps of 5 with a kernel of 3 are covered.
    built = options("Pool2D", filterHeight=3, filterWidth=3, strideH=3, strideW=5)
    op = last(op_file("MAX_POOL_2D", "int8", [X], [real(1, 3, 2, 4)], built))
    check_values(op, padding="SAME", padded=False, stride_exceeds_kernel=True, kernel_side=3)


def test_weights():
    values = np.zeros((2, 1, 1, 4), int)
    values[1] = [-128, 127, 5, -1]
    part = Part("weight", values.shape, values, axis=0)
    built = options("Conv2D", strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1)
    op = last(op_file("CONV_2D", "int8", [X, part, None], [real(1, 9, 8, 2)], built))
    check_values(op, weight_sum=261, bias_dtype="none", omitted=(2,), bias_is_constant=True)
    op = last(op_file("FULLY_CONNECTED", "int8", [real(1, 16), real(8, 16)], [real(1, 8)],
                      options("FullyConnected")))  # fmt: skip
    check_values(op, weights_are_constant=False, weight_sum=0, computed=(0, 1), kernel_area=1)


def test_weights_that_are_widened_count_as_constants():
    check_values(conv("float16"), weights_are_constant=True, computed=(0, 1), dtype="float32")


def test_transposed_convolution():
    for size, padding, fits in [(8, 0, True), (9, 1, True), (9, 0, False), (8, 1, False)]:
        built = options("TransposeConv", strideH=2, strideW=2, padding=padding)
        parts = [integers([1, size, size, 8]), weight(8, 3, 3, 4), real(1, 4, 4, 4)]
        op = last(op_file("TRANSPOSE_CONV", "int8", parts, [real(1, size, size, 8)], built))
        check_values(op, transposed_shape_fits=fits, input_channels=4, output_channels=8)


def test_axes():
    check_values(
        reduced([-1, 1]),
        axes=(1, 3), axes_from_end=(-3, -1), axis_sizes=(9, 4), axis_elements=36, keep_dims=True,
        last_dimension=4, image_area=72, smallest_image_dimension=4, constants=(1,), computed=(0,),
        constant_inputs=1, computed_inputs=1, second_dtype="int32", second_rank=1,
    )  # fmt: skip
    assert measure(reduced([4]), "axes") is None
    check_values(reduced([1], (6, 4)), smallest_image_dimension=1, axes_from_end=(-1,))


def test_axis_of_an_output():
    op = last(op_file("PACK", "int8", [real(8, 4)] * 2, [real(8, 4, 2)],
                      options("Pack", valuesCount=2, axis=-1)))  # fmt: skip
    check_values(op, axes=(2,), inputs=2, outputs=1)


def test_slices_and_pads():
    cut = [integers(v) for v in ([0, 0, 0, 0], [1, 9, 8, 4], [1, 2, -1, 3])]
    op = last(op_file("STRIDED_SLICE", "int8", [X, *cut], [real(1, 5, 8, 2)],
                      options("StridedSlice", shrinkAxisMask=2)))  # fmt: skip
    check_values(op, slice_steps=(1, 2, -1, 3), depth_step=3, shrink_axis_mask=2, ellipsis_mask=0)
    pads = integers([[0, 0], [1, 0], [0, 0], [0, 2]])
    op = last(op_file("PAD", "int8", [X, pads], [real(1, 10, 8, 6)]))
    check_values(op, padded_axes=(1, 3), smallest_padding=0, padding_rows=4, shapes_match=False)
    op = last(op_file("TRANSPOSE", "int8", [X, integers([0, 2, 1, 3])], [real(1, 8, 9, 4)]))
    check_values(op, permutation="0 2 1 3")
    for dims, leading in [([0], True), ([0, 1], True), ([3], False)]:
        op = last(op_file("SQUEEZE", "int8", [real(1, 1, 8, 1)], [real(8)],
                          options("Squeeze", squeezeDims=dims)))  # fmt: skip
        check_values(op, squeezes_leading=leading)


@pytest.mark.parametrize(
    ("size", "fields", "factors", "alike", "powers"),
    [
        ((18, 16), {}, (2.0,), True, True),
        ((27, 16), {}, (2.0, 3.0), False, False),
        ((17, 15), {"alignCorners": True}, (2.0,), True, True),
        ((9, 8), {}, (1.0,), True, True),
    ],
)
def test_resize(size, fields, factors, alike, powers):
    op = last(op_file("RESIZE_BILINEAR", "int8", [X, integers(size)], [real(1, *size, 4)],
                      options("ResizeBilinear", **fields)))  # fmt: skip
    check_values(op, resize_factors=factors, resizes_alike=alike, resizes_by_powers_of_two=powers)
    check_values(op, resizes_nothing=size == (9, 8), align_corners="alignCorners" in fields)


def test_two_inputs():
    for a, b, expected in [
        ((1, 2, 3), (1, 2, 3), "none"), ((1, 2, 3), (3,), "one"), ((1, 2, 1), (1, 1, 3), "both"),
        ((), (4,), "one"),
    ]:  # fmt: skip
        op = last(op_file("MUL", "int8", [real(*a), real(*b)], [real(1, 2, 3)]))
        check_values(op, broadcast=expected, ranks_match=len(a) == len(b))


def test_scales():
    parts = [real(1, 4, scale=0.5), real(1, 4, scale=0.25)]
    op = last(op_file("ADD", "int8", parts, [real(1, 4, scale=0.125)]))
    check_values(op, scales_match=False, scale_ratios=(2.0, 4.0), product_scale_ratio=1.0,
                 smallest_scale=0.125, scales=1, unscaled=0, zero_points=(0,),
                 second_zero_points=(0,))  # fmt: skip
    op = last(op_file("ADD", "uint8", [real(1, 4), real(1, 4)], [real(1, 4)]))
    check_values(op, scales_match=True, zero_points=(128,))
    op = last(op_file("ADD", "int8", [real(1, 4, scale=0)] * 2, [real(1, 4)]))
    check_values(op, unscaled=2, scales_match=False)


def test_constants():
    zeros = Part("real", (1, 4), np.zeros((1, 4)))
    for part, expected in [(zeros, True), (constant(1, 4), False)]:
        op = last(op_file("ADD", "int8", [real(1, 4), part], [real(1, 4)]))
        check_values(op, constants_are_zero=expected, constants=(1,))


def test_dtypes_and_shapes():
    op = last(op_file("CAST", "float32", [plain(2, 3)], [real(2, 3)], options("Cast")))
    check_values(op, input_dtype="int32", output_dtype="float32", dtypes=("float32", "int32"),
                 real_dtypes=("float32",), dtypes_match=False, float_tensors=1, batches=(2, 2),
                 elements=6, rank=2, output_rank=2, ranks_kept=True)  # fmt: skip
    part = real(1, 8, 4, signature=(-1, 8, -1))
    op = last(op_file("RELU", "int8", [part], [real(1, 8, 4)]))
    check_values(op, dynamic_dimensions=2, dynamic_inner_dimensions=1)
    op = last(op_file("QUANTIZE", "int8", [real(2, dtype="uint8")], [real(2)]))
    check_values(op, requantizes=False)


def test_options_by_name():
    op = last(op_file("SOFTMAX", "int8", [X], [X], options("Softmax", beta=0.5)))
    assert measure(op, "beta") == 0.5
    assert measure(op, "block_size") is None
    with pytest.raises(KeyError):
        measure(op, "bta")


def test_nothing_is_measured_of_an_operator_without_tensors():
    file = File()
    file.op("CONV_2D", [], [])
    file.op("SPLIT", [-1, -1], [-1])
    for op in operators(flatbuffer.read(file.bytes([], []))):
        values = {name: measure(op, name) for name in MEASURES}
        assert values["kernel_height"] is values["rank"] is values["axes"] is None
        assert values["inputs"] == 0


@pytest.mark.parametrize(
    ("value", "comparison", "expected", "kept"),
    [
        (3, "equals", 3, True), (3, "equals", 4, False), ("SAME", "equals", "SAME", True),
        ((1, 1), "equals", 1, True), ((1, 2), "equals", 1, False), ((), "equals", 1, True),
        (3, "min", 3, True), (2.5, "min", 3, False), ((3, 2), "min", 3, False),
        ("a", "max", 3, False), (3, "max", 3, True), ((3, 4), "max", 3, False),
        (0, "multiple_of", 4, True), (17, "multiple_of", 16, False),
        ("int8", "in", ["int8", "uint8"], True), ((1, 3), "in", [1, 2], False),
        ((1, 3), "includes", [3, 4], True), ((), "includes", [3], False),
        ((1, 3), "excludes", [3, 4], False), ((), "excludes", [3], True),
        (0, "excludes", [0], False),
    ],
)  # fmt: skip
def test_comparisons(value, comparison, expected, kept):
    assert compare(value, comparison, expected) == kept


def test_conditions():
    op = conv()
    limit = {"value": "stride", "max": 1}
    assert is_kept(op, limit) is False
    assert is_kept(op, {**limit, "when": {"value": "padded", "equals": False}}) is True
    assert is_kept(op, {**limit, "when": {"value": "padded", "equals": True}}) is False
    assert is_kept(op, {**limit, "when": {"value": "axes", "includes": [0]}}) is None
    assert is_kept(op, {"value": "axes", "max": 1}) is None
    assert measured(op, limit) == "stride 2"
    assert measured(op, {"value": "strides"}) == "strides 1, 2"
    assert measured(op, {"value": "omitted"}) == "omitted none"
    assert measured(op, {"value": "axes"}) == "axes is not known"
