"""Operators in and out of limits, each as a file of its own: what real tools are asked about."""

import numpy as np
import op_shape_cases as shapes
from op_files import Part, bias, constant, integers, op_file, options, plain, real, weight

SAME, VALID = 0, 1
NUMBERS = ("float32", "int8", "uint8", "int16", "int32", "int64")
QUANTIZED = ("float32", "int8", "uint8", "int16")
WEIGHTED = (*QUANTIZED, "float16", "dynamic_int8", "int4", "dynamic_int4")
SOME = ("float32", "int8", "int16")

SHAPE = (1, 8, 8, 4)
_UNARY = """ABS CEIL COS ELU EXP FLOOR HARD_SWISH LOG LOGISTIC NEG RELU RELU6 RELU_N1_TO_1
RELU_0_TO_1 ROUND RSQRT SIGN SIN SQRT SQUARE TANH L2_NORMALIZATION LOG_SOFTMAX ZEROS_LIKE"""
_BINARY = "ADD DIV FLOOR_DIV FLOOR_MOD MAXIMUM MINIMUM MUL POW SQUARED_DIFFERENCE SUB"
_WITH_ACTIVATION = {"ADD": "Add", "DIV": "Div", "MUL": "Mul", "SUB": "Sub"}
_COMPARISON = "EQUAL GREATER GREATER_EQUAL LESS LESS_EQUAL NOT_EQUAL"


def cases():
    """Every case: (label, name of the operator, dtype, bytes of the file)."""
    seen = set()
    computing = (_elementwise, _convolutions, _pools, _dense, _reductions)
    moving = (shapes.padding, shapes.transposing, shapes.reshaping, shapes.joining, shapes.slicing)
    for make in (*computing, *moving, shapes.rest):
        for label, name, dtypes, inputs, outputs, *more in make():
            for dtype in dtypes:
                key = f"{label} {dtype}"
                assert key not in seen, key
                seen.add(key)
                given = [p(dtype) if callable(p) else p for p in inputs]
                found = [p(dtype) if callable(p) else p for p in outputs]
                yield key, name, dtype, op_file(name, dtype, given, found, *more)


def _scales(dtype, axis):
    """Weights have a scale per channel but in uint8."""
    return None if dtype == "uint8" else axis


def _elementwise():
    x = real(*SHAPE)
    for name in _UNARY.split():
        yield name, name, NUMBERS, [x], [x]
    for name in ("RELU", "TANH", "ABS", "LOGISTIC", "EXP"):
        yield f"{name} batch 2", name, SOME, [real(2, 8, 8, 4)], [real(2, 8, 8, 4)]
        yield f"{name} rank 5", name, SOME, [real(1, 2, 4, 4, 4)], [real(1, 2, 4, 4, 4)]
        yield f"{name} rank 2", name, SOME, [real(1, 16)], [real(1, 16)]
    for name in ("RELU", "TANH", "ABS"):
        yield f"{name} unscaled", name, ("int8",), [real(*SHAPE, scale=0)], [real(*SHAPE, scale=0)]
    yield "RELU dynamic", "RELU", SOME, *[[real(*SHAPE, signature=(-1, -1, 8, 4))]] * 2
    yield "GELU", "GELU", NUMBERS, [x], [x], options("Gelu")
    yield "LEAKY_RELU", "LEAKY_RELU", NUMBERS, [x], [x], options("LeakyRelu", alpha=0.1)
    yield "PRELU", "PRELU", NUMBERS, [x, constant(1, 1, 4)], [x]
    yield "PRELU spatial", "PRELU", QUANTIZED, [x, constant(8, 8, 4)], [x]
    for name in _BINARY.split():
        kind = _WITH_ACTIVATION.get(name)
        built = options(kind) if kind else (0, None)
        yield name, name, NUMBERS, [x, x], [x], built
        yield f"{name} constant", name, NUMBERS, [x, constant(1, 1, 1, 4)], [x], built
        yield f"{name} column", name, SOME, [x, real(1, 8, 8, 1)], [x], built
        yield f"{name} ranks", name, SOME, [x, real(4)], [x], built
        both = [real(1, 8, 1, 4), real(1, 1, 8, 4)]
        yield f"{name} both", name, SOME, both, [x], built
        yield f"{name} other scale", name, SOME, [x, x], [real(*SHAPE, scale=0.1)], built
        two = real(2, 8, 8, 4)
        yield f"{name} batch 2", name, SOME, [two, two], [two], built
        wide = real(*SHAPE, scale=20.0)
        yield f"{name} coarse", name, ("int8", "int16"), [wide, x], [x], built
        yield f"{name} unscaled", name, ("int8",), [real(*SHAPE, scale=0), x], [x], built
        if kind:
            for activation in (1, 2, 3, 4):
                built = options(kind, fusedActivationFunction=activation)
                yield f"{name} activation {activation}", name, SOME, [x, x], [x], built
    for name in _COMPARISON.split():
        yield name, name, (*NUMBERS, "bool"), [x, x], [plain(*SHAPE, dtype="bool")]
    for name in ("LOGICAL_AND", "LOGICAL_OR"):
        yield name, name, ("bool",), [x, x], [x]
    yield "LOGICAL_NOT", "LOGICAL_NOT", ("bool",), [x], [x]
    for name in ("SELECT", "SELECT_V2"):
        yield name, name, NUMBERS, [plain(*SHAPE, dtype="bool"), x, x], [x]


def _conv(kernel=(3, 3), out=8, **fields):
    built = options("Conv2D", strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1)
    for key, value in fields.items():
        setattr(built[1], key, value)
    return lambda d: weight(out, *kernel, 4, axis=_scales(d, 0)), built


def _convolutions():
    x, y = real(*SHAPE), real(1, 8, 8, 8)
    variants = {
        "": ({}, (8, 8)),
        " stride 2": ({"strideH": 2, "strideW": 2}, (4, 4)),
        " stride 1x2": ({"strideH": 1, "strideW": 2}, (8, 4)),
        " stride 4": ({"strideH": 4, "strideW": 4}, (2, 2)),
        " stride 4 valid": ({"strideH": 4, "strideW": 4, "padding": VALID}, (2, 2)),
        " dilation 2": ({"dilationHFactor": 2, "dilationWFactor": 2}, (8, 8)),
        " dilation 1x2": ({"dilationHFactor": 1, "dilationWFactor": 2}, (8, 8)),
        " relu6": ({"fusedActivationFunction": 3}, (8, 8)),
        " tanh": ({"fusedActivationFunction": 4}, (8, 8)),
    }
    for label, (fields, size) in variants.items():
        w, built = _conv(**fields)
        dtypes = WEIGHTED if label in ("", " stride 2") else SOME
        yield f"CONV_2D{label}", "CONV_2D", dtypes, [x, w, bias(8)], [real(1, *size, 8)], built, 3
    w, built = _conv()
    yield "CONV_2D no bias", "CONV_2D", SOME, [x, w, None], [y], built, 3
    two = [real(2, 8, 8, 4), w, bias(8)]
    yield "CONV_2D batch 2", "CONV_2D", SOME, two, [real(2, 8, 8, 8)], built, 3
    given = [x, real(8, 3, 3, 4), bias_of_real(8)]
    yield "CONV_2D computed weights", "CONV_2D", ("float32", "int8"), given, [y], built, 3
    one = lambda d: weight(8, 3, 3, 4, axis=None)  # noqa: E731
    yield "CONV_2D per-tensor", "CONV_2D", WEIGHTED, [x, one, bias(8)], [y], built, 3
    big = lambda d: weight(2, 70, 1, 4, axis=_scales(d, 0))  # noqa: E731
    tall = [real(1, 80, 4, 4), big, bias(2)]
    yield "CONV_2D tall kernel", "CONV_2D", SOME, tall, [real(1, 80, 4, 2)], built, 3
    dynamic = [real(1, 8, 8, 4, signature=(-1, 8, 8, 4)), w, bias(8)]
    wide = real(1, 8, 8, 8, signature=(-1, 8, 8, 8))
    yield "CONV_2D dynamic batch", "CONV_2D", SOME, dynamic, [wide], built, 3
    dynamic = [real(1, 8, 8, 4, signature=(1, -1, -1, 4)), w, bias(8)]
    wide = real(1, 8, 8, 8, signature=(1, -1, -1, 8))
    yield "CONV_2D dynamic size", "CONV_2D", SOME, dynamic, [wide], built, 3
    stepping = _conv(strideH=4, strideW=4)[1]
    wide = real(1, 9, 9, 4), w, bias(8)
    yield "CONV_2D stride 4 padded", "CONV_2D", SOME, wide, [real(1, 3, 3, 8)], stepping, 3
    yield (
        "CONV_2D unscaled",
        "CONV_2D",
        ("int8",),
        [real(*SHAPE, scale=0), w, bias(8)],
        [y],
        built,
        3,
    )
    given = [x, w, plain(8)]
    yield "CONV_2D computed bias", "CONV_2D", ("int8",), given, [y], built, 3
    given = [real(1, 1, 1, 70000), heavy((2, 1, 1, 70000)), bias(2)]
    yield "CONV_2D heavy", "CONV_2D", ("int8", "int16"), given, [real(1, 1, 1, 2)], built, 3
    for count in (65536, 65537):
        given = [real(1, 1, 1, count), lambda d, n=count: weight(2, 1, 1, n), bias(2)]
        yield (
            f"CONV_2D of {count}",
            "CONV_2D",
            ("int8", "int16"),
            given,
            [real(1, 1, 1, 2)],
            built,
            3,
        )
        given = [real(1, 1, 1, count), lambda d, n=count: weight(1, 1, 1, n, axis=3), bias(count)]
        depthwise = options(
            "DepthwiseConv2D", strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1,
            depthMultiplier=1,
        )  # fmt: skip
        name, found = "DEPTHWISE_CONV_2D", [real(1, 1, 1, count)]
        yield f"{name} of {count}", name, ("int8", "int16"), given, found, depthwise, 3
    for height, width in ((70000, 1), (1, 70000)):
        given, found = [real(1, height, width, 4), w, bias(8)], [real(1, height, width, 8)]
        label = f"CONV_2D of {height} x {width}"
        yield label, "CONV_2D", ("int8", "int16"), given, found, built, 3
    yield from _depthwise()
    yield from _transposed()


def heavy(shape):
    """Weights of 127 throughout."""
    return Part("weight", shape, np.full(shape, 127), axis=0)


def bias_of_real(count):
    """A bias for weights that are no constant: one scale."""
    return lambda d: bias(count) if d == "float32" else integers(np.ones(count))


def _depthwise():
    variants = {
        "": ({}, (8, 8), 1, SHAPE),
        " stride 2": ({"strideH": 2, "strideW": 2}, (4, 4), 1, SHAPE),
        " stride 1x2": ({"strideH": 1, "strideW": 2}, (8, 4), 1, SHAPE),
        " stride 4": ({"strideH": 4, "strideW": 4}, (2, 2), 1, SHAPE),
        " dilation 2": ({"dilationHFactor": 2, "dilationWFactor": 2}, (8, 8), 1, SHAPE),
        " dilation 1x2": ({"dilationHFactor": 1, "dilationWFactor": 2}, (8, 8), 1, SHAPE),
        " tanh": ({"fusedActivationFunction": 4}, (8, 8), 1, SHAPE),
        " multiplier 2": ({}, (8, 8), 2, SHAPE),
        " of one channel": ({}, (8, 8), 4, (1, 8, 8, 1)),
    }
    for label, (fields, size, multiplier, shape) in variants.items():
        out = shape[3] * multiplier
        built = options(
            "DepthwiseConv2D", strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1,
            depthMultiplier=multiplier,
        )  # fmt: skip
        for key, value in fields.items():
            setattr(built[1], key, value)
        w = lambda d, out=out: weight(1, 3, 3, out, axis=_scales(d, 3))  # noqa: E731
        dtypes = WEIGHTED if label == "" else SOME
        given = [real(*shape), w, bias(out)]
        name = "DEPTHWISE_CONV_2D"
        yield f"{name}{label}", name, dtypes, given, [real(1, *size, out)], built, 3


def _transposed():
    for stride, padding, kernel in [(1, 0, 3), (2, 0, 3), (2, 1, 2), (3, 0, 3), (4, 1, 4)]:
        size = 4 * stride if padding == 0 else 4 * stride + max(kernel - stride, 0)
        built = options("TransposeConv", strideH=stride, strideW=stride, padding=padding)
        w = lambda d, k=kernel: weight(8, k, k, 4, axis=_scales(d, 0))  # noqa: E731
        label = f"TRANSPOSE_CONV stride {stride} {'valid' if padding else 'same'}"
        given = [integers([1, size, size, 8]), w, real(1, 4, 4, 4), bias(8)]
        dtypes = WEIGHTED if stride == 2 and not padding else SOME
        yield label, "TRANSPOSE_CONV", dtypes, given, [real(1, size, size, 8)], built, 3
    for high, rows in ((1, 4), (2, 4), (1, 1), (2, 1)):
        wide, kernel = 3 - high, min(rows, 3)
        built = options("TransposeConv", strideH=high, strideW=wide, padding=0)
        w = lambda d, k=kernel: weight(8, k, 3, 4, axis=_scales(d, 0))  # noqa: E731
        made = (1, rows * high, 4 * wide, 8)
        given = [integers(made), w, real(1, rows, 4, 4), bias(8)]
        label = f"TRANSPOSE_CONV strides {high} {wide} of {rows} rows"
        yield label, "TRANSPOSE_CONV", SOME, given, [real(*made)], built, 3


def _pools():
    for name in ("AVERAGE_POOL_2D", "MAX_POOL_2D", "L2_POOL_2D"):
        for size, stride, padding, activation in [
            (2, 2, 0, 0), (2, 2, 1, 0), (1, 2, 0, 0), (9, 1, 0, 0), (9, 1, 1, 0), (2, 4, 0, 0),
            (2, 4, 1, 0), (2, 2, 0, 3), (2, 2, 0, 4), (257, 1, 1, 0), (6, 4, 0, 0),
        ]:  # fmt: skip
            built = options(
                "Pool2D", filterHeight=size, filterWidth=min(size, 20), strideH=stride,
                strideW=stride, padding=padding, fusedActivationFunction=activation,
            )  # fmt: skip
            high = 260 if size > 20 else 12
            wide = 24 if size > 20 else 12
            out = [
                -(-high // stride) if padding == 0 else (high - size) // stride + 1,
                -(-wide // stride) if padding == 0 else (wide - min(size, 20)) // stride + 1,
            ]
            label = f"{name} {size} stride {stride} padding {padding} activation {activation}"
            dtypes = NUMBERS if (size, stride, padding, activation) == (2, 2, 0, 0) else SOME
            yield label, name, dtypes, [real(1, high, wide, 4)], [real(1, *out, 4)], built


def _dense():
    name, built = "FULLY_CONNECTED", options("FullyConnected")
    for label, shape in {"": (1, 16), " batch 2": (2, 16), " of rank 4": (1, 2, 2, 4)}.items():
        rows = shape[0]
        for axis, kind in ((None, "per-tensor"), (0, "per-channel")):
            w = lambda d, axis=axis: weight(8, 16, axis=_scales(d, axis))  # noqa: E731
            dtypes = WEIGHTED if label == "" else SOME
            given = [real(*shape), w, bias(8)]
            yield f"{name} {kind}{label}", name, dtypes, given, [real(rows, 8)], built, 4
    w = lambda d: weight(8, 16, axis=None)  # noqa: E731
    yield f"{name} no bias", name, WEIGHTED, [real(1, 16), w, None], [real(1, 8)], built, 4
    keep = options("FullyConnected", keepNumDims=True)
    yield f"{name} keep", name, SOME, [real(1, 3, 16), w, bias(8)], [real(1, 3, 8)], keep, 4
    for activation in (1, 2, 3, 4):
        fused = options("FullyConnected", fusedActivationFunction=activation)
        label = f"{name} activation {activation}"
        yield label, name, SOME, [real(1, 16), w, bias(8)], [real(1, 8)], fused, 4
    given = [real(1, 16), real(8, 16), None]
    yield f"{name} computed weights", name, SOME, given, [real(1, 8)], built, 4
    for count in (65536, 65537):
        given = [real(1, count), weight(2, count), bias(2)]
        yield f"{name} of {count}", name, ("int8", "int16"), given, [real(1, 2)], built, 4
    given = [real(1, 70000), heavy((2, 70000)), bias(2)]
    yield f"{name} heavy", name, ("int8", "int16"), given, [real(1, 2)], built, 4
    name, built = "BATCH_MATMUL", options("BatchMatMul")
    yield name, name, QUANTIZED, [real(2, 4, 8), real(2, 8, 5)], [real(2, 4, 5)], built
    given = [real(2, 4, 8), constant(2, 8, 5)]
    yield f"{name} constant", name, QUANTIZED, given, [real(2, 4, 5)], built
    given = [real(2, 4, 8), constant(8, 5)]
    yield f"{name} ranks", name, SOME, given, [real(2, 4, 5)], built
    given = [real(2, 4, 8), constant(2, 8, 5, dtype="int8")]
    yield f"{name} constant of int8", name, ("int16",), given, [real(2, 4, 5)], built
    turned = options("BatchMatMul", adjX=True)
    given = [real(2, 8, 4), real(2, 8, 5)]
    yield f"{name} adj_x", name, SOME, given, [real(2, 4, 5)], turned
    turned = options("BatchMatMul", adjY=True)
    given = [real(2, 4, 8), real(2, 5, 8)]
    yield f"{name} adj_y", name, SOME, given, [real(2, 4, 5)], turned


def _reductions():
    for name in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD"):
        for axes, keep, shape in [
            ([1, 2], False, SHAPE), ([1, 2], True, SHAPE), ([3], False, SHAPE), ([1], False, SHAPE),
            ([0], False, SHAPE), ([1, 2, 3], False, SHAPE), ([1], True, (1, 6, 4)),
            ([1, 2], False, (2, 8, 8, 4)), ([3], False, (1, 1, 8, 4)), ([3], False, (1, 8, 8, 6)),
            ([1], False, (1, 4100, 1, 2)), ([1, 2], False, (1, 300, 300, 1)),
            ([2, 3], False, SHAPE), ([1, 3], False, SHAPE), ([1], False, (8, 4)),
            ([2], False, (1, 8, 4)),
        ]:  # fmt: skip
            left = [1 if i in axes else d for i, d in enumerate(shape) if keep or i not in axes]
            label = f"{name} {axes} of {shape}{' keep' if keep else ''}"
            built = options("Reducer", keepDims=keep)
            given = [real(*shape), integers(axes)]
            dtypes = NUMBERS if axes == [1, 2] and shape == SHAPE else SOME
            yield label, name, dtypes, given, [real(*left)], built, 2
        given = [real(*SHAPE), plain(2)]
        built = options("Reducer")
        yield f"{name} computed axes", name, SOME, given, [real(1, 4)], built, 2
    for name in ("REDUCE_ALL", "REDUCE_ANY"):
        given = [real(*SHAPE), integers([1, 2])]
        yield name, name, ("bool",), given, [real(1, 4)], options("Reducer")
    for name, kind in (("ARG_MAX", "ArgMax"), ("ARG_MIN", "ArgMin")):
        built = options(kind, outputType=2)
        given = [real(*SHAPE), integers([3])]
        yield name, name, NUMBERS, given, [plain(1, 8, 8)], built
        given = [real(*SHAPE), integers([1])]
        yield f"{name} of rows", name, SOME, given, [plain(1, 8, 4)], built
        given = [real(1, 2, 2, 200), integers([3])]
        yield f"{name} of 200", name, SOME, given, [plain(1, 2, 2)], built
    built = options("Cumsum")
    yield "CUMSUM", "CUMSUM", NUMBERS, [real(*SHAPE), integers(1)], [real(*SHAPE)], built
