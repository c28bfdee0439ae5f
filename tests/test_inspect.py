"""What `inspect` says of files built by hand, of real ones, and of damaged ones."""

import io
import json
import math
import random
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from tfcompress.tflite import flatbuffer, inspection
from tfcompress.tflite.inspect import inspect

TYPES, OPS = schema.TensorType, schema.BuiltinOperator


def tensor(name, shape, dtype, buffer=0, scale=None, zero_point=None, axis=0):
    """A tensor; buffer 0 means that it is no constant."""
    quantization = None
    if scale is not None:
        quantization = schema.QuantizationParametersT(
            scale=np.float32(scale), zeroPoint=np.int64(zero_point), quantizedDimension=axis
        )
    return schema.TensorT(
        name=name, shape=shape, type=dtype, buffer=buffer, quantization=quantization
    )


def operator(code, inputs, outputs, kind=0, options=None):
    return schema.OperatorT(
        opcodeIndex=code,
        inputs=inputs,
        outputs=outputs,
        builtinOptionsType=kind,
        builtinOptions=options,
    )


def graph(tensors, operators, inputs, outputs):
    return schema.SubGraphT(tensors=tensors, operators=operators, inputs=inputs, outputs=outputs)


def code(builtin, version=1, custom=None):
    return schema.OperatorCodeT(
        deprecatedBuiltinCode=min(builtin, 127),
        builtinCode=builtin,
        version=version,
        customCode=custom,
    )


def build(codes, graphs, buffers, **fields):
    """The bytes of a file; buffer 0 is empty, as the format asks for."""
    stored = [
        schema.BufferT(data=None if b is None else np.frombuffer(b, np.uint8))
        for b in [None, *buffers]
    ]
    model = schema.ModelT(
        version=3, operatorCodes=codes, subgraphs=graphs, buffers=stored, **fields
    )
    return flatbuffer.write(model)


def fully_connected(activation=0):
    options = schema.FullyConnectedOptionsT()
    options.fusedActivationFunction = activation
    return schema.BuiltinOptions.FullyConnectedOptions, options


@pytest.fixture(scope="module")
def int4_file():
    """QUANTIZE -> FULLY_CONNECTED with packed int4 weights -> DEQUANTIZE -> a float custom op."""
    weights = bytes([0x10, 0xF7, 0x08])  # 0, 1, 7, -1, -8 and 4 bits of padding
    tensors = [
        tensor("x", [1, 5], TYPES.FLOAT32),
        tensor("xq", [1, 5], TYPES.INT8, 0, [0.5], [-3]),
        tensor("w", [1, 5], TYPES.INT4, 1, [0.25], [0]),
        tensor("b", [1], TYPES.INT32, 2, [0.125], [0]),
        tensor("yq", [1, 1], TYPES.INT8, 0, [2.0], [4]),
        tensor("y", [1, 1], TYPES.FLOAT32),
        tensor("z", [1, 1], TYPES.FLOAT32),
    ]
    operators = [
        operator(0, [0], [1]),
        operator(1, [1, 2, 3], [4], *fully_connected(schema.ActivationFunctionType.RELU6)),
        operator(2, [4], [5]),
        operator(3, [5, -1], [6]),
    ]
    codes = [
        code(OPS.QUANTIZE),
        code(OPS.FULLY_CONNECTED, 7),
        code(OPS.DEQUANTIZE, 2),
        code(OPS.CUSTOM, 1, "MyOp"),
    ]
    signature = schema.SignatureDefT(
        signatureKey="serve",
        subgraphIndex=0,
        inputs=[schema.TensorMapT("image", 0)],
        outputs=[schema.TensorMapT("score", 6)],
    )
    return build(
        codes,
        [graph(tensors, operators, [0], [6])],
        [weights, np.int32([9]).tobytes(), b"2.14.0\0\0", b"\x00\x01"],
        description="by hand",
        metadata=[schema.MetadataT("min_runtime_version", 3), schema.MetadataT("other", 4)],
        signatureDefs=[signature],
    )


def test_int4_is_reported_as_int4(int4_file):
    found = inspect(int4_file)
    weights = found.tensors[2]
    assert (weights.dtype, weights.shape, weights.bytes) == ("int4", (1, 5), 3)
    assert weights.is_constant
    assert weights.sparsity == pytest.approx(1 / 5)  # the padding does not count
    assert (weights.scale, weights.zero_point, weights.scale_count) == (0.25, 0, 1)
    model = flatbuffer.read(int4_file)
    values = flatbuffer.tensor_values(model, model.subgraphs[0].tensors[2])
    np.testing.assert_array_equal(values, [[0, 1, 7, -1, -8]])


def test_operators_signatures_and_metadata(int4_file):
    found = inspect(int4_file)
    ops = [(o.name, o.version, o.dtype, o.activation, o.layer) for o in found.operators]
    assert ops == [
        ("QUANTIZE", 1, "int8", None, "xq"),
        ("FULLY_CONNECTED", 7, "int8", "RELU6", "yq"),
        ("DEQUANTIZE", 2, "int8", None, "y"),
        ("MyOp", 1, "float32", None, "z"),
    ]
    assert found.operators[3].inputs == (5, -1)
    assert [op.name for op in found.float_ops] == ["MyOp"]
    assert [(c.name, c.dtype, c.version, c.count) for c in found.op_counts[:2]] == [
        ("DEQUANTIZE", "int8", 2, 1),
        ("FULLY_CONNECTED", "int8", 7, 1),
    ]
    assert (found.description, found.schema_version) == ("by hand", 3)
    assert [(m.name, m.bytes, m.text) for m in found.metadata] == [
        ("min_runtime_version", 8, "2.14.0"),
        ("other", 2, None),
    ]
    (signature,) = found.signatures
    assert (signature.name, signature.inputs, signature.outputs) == (
        ("serve", {"image": 0}, {"score": 6})
    )
    assert [(t.name, t.dtype) for t in found.inputs] == [("x", "float32")]
    assert [(t.name, t.dtype) for t in found.outputs] == [("z", "float32")]


def test_sizes(int4_file, tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(int4_file)
    found = inspect(path)
    assert found.path == str(path)
    assert found.file_bytes == path.stat().st_size
    assert found.dtype_bytes == {"int32": 4, "int4": 3}
    assert found.weights_bytes == 7  # metadata is not a weight
    assert [(b.layer, b.operator, b.bytes) for b in found.layer_bytes] == [
        ("yq", "FULLY_CONNECTED", 7)
    ]
    with zipfile.ZipFile(tmp_path / "m.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as z:
        z.write(path, "model.tflite")
    assert found.zipped_bytes == (tmp_path / "m.zip").stat().st_size


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


@pytest.mark.parametrize(
    ("weights", "dtype"),
    [(tensor("w", [2, 2], TYPES.INT8, 1, [0.5], [0]), "dynamic_int8"), (None, "float32")],
)
def test_dynamic_range_operators_are_told_from_float_ones(weights, dtype):
    tensors = [
        tensor("x", [1, 2], TYPES.FLOAT32),
        weights or tensor("w", [2, 2], TYPES.FLOAT32),
        tensor("y", [1, 2], TYPES.FLOAT32),
        tensor("z", [1, 2], TYPES.FLOAT32),
        tensor("i", [1], TYPES.INT64),
    ]
    operators = [
        operator(0, [0, 1, -1], [2], *fully_connected()),
        operator(1, [2], [3]),
        operator(2, [3], [4]),
    ]
    codes = [code(OPS.FULLY_CONNECTED), code(OPS.SOFTMAX), code(OPS.ARG_MAX)]
    found = inspect(build(codes, [graph(tensors, operators, [0], [4])], [bytes(4)]))
    # ARG_MAX gives integers but compares floats.
    assert [op.dtype for op in found.operators] == [dtype, "float32", "float32"]
    float_ops = [] if weights is None else ["SOFTMAX", "ARG_MAX"]
    assert [op.name for op in found.float_ops] == float_ops


def test_narrow_constants_belong_to_the_layer_behind_their_dequantize():
    tensors = [
        tensor("x", [1, 2], TYPES.FLOAT32),
        tensor("half", [2, 2], TYPES.FLOAT16, 1),
        tensor("wide", [2, 2], TYPES.FLOAT32),
        tensor("y", [1, 2], TYPES.FLOAT32),
    ]
    operators = [operator(1, [1], [2]), operator(0, [0, 2, -1], [3], *fully_connected())]
    codes = [code(OPS.FULLY_CONNECTED), code(OPS.DEQUANTIZE)]
    found = inspect(build(codes, [graph(tensors, operators, [0], [3])], [bytes(8)]))
    assert [(b.layer, b.operator, b.bytes) for b in found.layer_bytes] == [
        ("y", "FULLY_CONNECTED", 8)
    ]
    assert [op.dtype for op in found.operators] == ["float16", "float32"]
    assert found.float_ops == ()


def test_all_subgraphs_are_covered():
    main = graph(
        [tensor("x", [2], TYPES.FLOAT32), tensor("y", [2], TYPES.FLOAT32)],
        [operator(0, [0], [1])],
        [0],
        [1],
    )
    body = graph(
        [
            tensor("x", [2], TYPES.FLOAT32),
            tensor("c", [2], TYPES.FLOAT32, 1),
            tensor("s", [2], TYPES.FLOAT32),
        ],
        [operator(1, [0, 1], [2])],
        [0],
        [2],
    )
    found = inspect(build([code(OPS.WHILE), code(OPS.ADD)], [main, body], [bytes(8)]))
    assert [(t.subgraph, t.index) for t in found.tensors] == [(0, 0), (0, 1)] + [
        (1, i) for i in range(3)
    ]
    assert [(o.subgraph, o.name) for o in found.operators] == [(0, "WHILE"), (1, "ADD")]
    assert [(b.subgraph, b.layer, b.bytes) for b in found.layer_bytes] == [(1, "s", 8)]


def test_blockwise_scales_come_from_their_own_tensor():
    quantization = schema.QuantizationParametersT(
        detailsType=schema.QuantizationDetails.BlockwiseQuantization,
        details=schema.BlockwiseQuantizationT(scales=2, blockSize=32),
    )
    weights = tensor("w", [1, 64], TYPES.INT4, 1)
    weights.quantization = quantization
    tensors = [
        tensor("x", [1, 64], TYPES.FLOAT32),
        weights,
        tensor("scales", [1, 2], TYPES.FLOAT16, 2),
        tensor("y", [1, 1], TYPES.FLOAT32),
    ]
    found = inspect(
        build(
            [code(OPS.FULLY_CONNECTED)],
            [graph(tensors, [operator(0, [0, 1, -1], [3], *fully_connected())], [0], [3])],
            [bytes(32), np.float16([0.5, 0.25]).tobytes()],
        )
    )
    assert found.tensors[1].scales == (0.5, 0.25)
    assert found.tensors[1].block_size == 32
    # The scales have two dimensions, too, but are no weights.
    assert (found.weights, found.tensors[2].unique) == (64, None)
    assert [(b.layer, b.bytes) for b in found.layer_bytes] == [("y", 36)]
    assert found.operators[0].dtype == "dynamic_int4"


def one_constant(name, shape, dtype, data, **quantization):
    constant = tensor(name, shape, dtype, 1, **quantization)
    return inspect(build([], [graph([constant], [], [], [])], [data]))


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


def test_int4_is_counted_unpacked(int4_file):
    found = inspect(int4_file)
    weights, bias = found.tensors[2:4]
    assert (weights.unique, weights.unique_per_channel) == (5, None)  # 0, 1, 7, -1, -8
    assert weights.entropy_bytes == math.ceil(5 * math.log2(5) / 8)
    assert weights.coded_bytes == weights.bytes == 3
    packed = bytes([0x11, 0x1F]) * 50  # 1, 1, -1, 1: 150 and 50
    found_packed = one_constant("w", [10, 20], TYPES.INT4, packed, scale=[1.0], zero_point=[0])
    assert found_packed.tensors[0].unique == 2
    bits = 150 * math.log2(4 / 3) + 50 * 2
    assert found_packed.entropy_bytes == math.ceil(bits / 8) == 21
    assert found_packed.coded_bytes == math.ceil((bits + 2 * 4) / 8) == 22
    # A bias is no weight, but its bytes are the layer's.
    assert (bias.unique, bias.entropy_bytes, bias.coded_bytes) == (None, None, None)
    (layer,) = found.layer_bytes
    assert (layer.dtype, layer.weights, layer.unique) == ("int32", 5, 5)
    assert (layer.bytes, layer.entropy_bytes, layer.coded_bytes) == (7, 2, 7)


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


def test_clustered_weights_of_a_real_file_keep_their_count(clustered_file):
    path, kernels = clustered_file
    found = {layer.operator: layer for layer in inspect(path).layer_bytes}
    for operator_name, kernel in kernels.items():
        layer = found[operator_name]
        values, counts = np.unique(kernel, return_counts=True)
        assert (layer.weights, layer.unique) == (kernel.size, len(values))
        assert layer.sparsity == np.mean(kernel == 0)
        bits = -np.sum(counts * np.log2(counts / kernel.size))
        assert layer.entropy_bytes == math.ceil(bits / 8)


@pytest.mark.parametrize("width", [80, 120])
def test_tables_keep_numbers_whole(real_files, width):
    from rich.console import Console

    target = io.StringIO()
    found = inspect(real_files[1])
    found.render(Console(file=target, width=width))
    lines = target.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(target.getvalue().split())
    assert f"{found.file_bytes:,} bytes, {found.zipped_bytes:,} zipped" in text
    assert f"{found.weights_bytes:,} bytes, {found.coded_bytes:,} entropy-coded" in text
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    for layer in (layer for layer in found.layer_bytes if layer.weights):
        per_channel = layer.unique_per_channel
        numbers = [
            f"{layer.weights:,}",
            f"{layer.sparsity:.1%}",
            f"{layer.unique} ({per_channel})" if per_channel else f"{layer.unique}",
            f"{layer.bytes:,}",
            f"{layer.coded_bytes:,}",
        ]
        (row,) = (row for row in rows if row[-5:] == numbers)
        assert row[1:-5] == ([layer.operator, layer.dtype] if width == 120 else [])
        if width == 80:
            assert rows[rows.index(row) + 1] == [f"{layer.operator} {layer.dtype}", *[""] * 5]


def test_layers_are_named_by_what_tells_them_apart():
    fused = "m/conv/Relu;m/conv/convolution;m/bias/Read"
    short = inspection._short_names([fused, "m/dense/MatMul", ""])
    assert short == ["conv/Relu", "dense/MatMul", ""]
    for names in (["dense/MatMul", "dense/Add"], ["a/dense/MatMul", "b/dense/MatMul"], ["", "y"]):
        assert inspection._short_names(names) == names


def test_json_and_tables(int4_file):
    found = inspect(int4_file)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["tensors"][2]["dtype"] == "int4"
    assert plain["tensors"][1]["scale"] == 0.5
    assert plain["op_counts"][1] == (
        {"name": "FULLY_CONNECTED", "dtype": "int8", "version": 7, "count": 1}
    )
    assert "FULLY_CONNECTED" in str(found)
    from rich.console import Console

    target = io.StringIO()
    found.render(Console(file=target, width=200), details=True)
    assert "int4" in target.getvalue()


def test_constants_are_written_aligned_and_the_model_stays_as_it_is(int4_file):
    model = flatbuffer.read(int4_file)
    again = flatbuffer.write(model)
    assert inspect(again).to_dict() == inspect(int4_file).to_dict()
    assert again == int4_file
    start = np.frombuffer(again, np.uint8).ctypes.data
    stored = [b.data for b in flatbuffer.read(again).buffers if b.data is not None]
    assert [len(data) for data in stored] == [3, 4, 8, 2]
    assert [(data.ctypes.data - start) % 16 for data in stored] == [0, 0, 0, 0]
    assert isinstance(model.buffers[1], schema.BufferT)


def test_weights_after_the_flatbuffer_are_found(int4_file):
    model = flatbuffer.read(int4_file)
    values = model.buffers[1].data.tobytes()
    packed = 0
    for _ in range(2):  # the offset is known only once the file has been packed
        model.buffers[1] = schema.BufferT(offset=packed or 2, size=len(values))
        builder = flatbuffer.flatbuffers.Builder()
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        packed = len(builder.Output())
    data = bytes(builder.Output())
    assert inspect(data + values).tensors[2].bytes == 3
    with pytest.raises(ValueError, match=r"buffer 1 ends at byte \d+, after the end of the file"):
        inspect(data + values[:-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m, "version", 2), "schema version is 2 instead of 3"),
        (lambda m: setattr(m, "subgraphs", []), "there is no graph"),
        (lambda m: setattr(m.subgraphs[0].tensors[2], "buffer", 99), "'w' refers to buffer 99"),
        (lambda m: setattr(m.subgraphs[0], "inputs", [-1]), "a graph refers to tensor -1 of 7"),
        (lambda m: setattr(m.subgraphs[0].operators[1], "inputs", [7]), "refers to tensor 7 of 7"),
        (lambda m: setattr(m.subgraphs[0].operators[1], "opcodeIndex", 4), "operator code 4 of 4"),
        (lambda m: setattr(m.metadata[0], "buffer", 5), "a metadata entry refers to buffer 5"),
        (lambda m: setattr(m.signatureDefs[0], "subgraphIndex", 1), "'serve' refers to graph 1"),
        (lambda m: setattr(m.subgraphs[0].tensors[2], "shape", [2, 5]), "3 bytes instead of 5"),
    ],
)
def test_indices_outside_of_the_file_are_named(int4_file, change, message):
    model = flatbuffer.read(int4_file)
    change(model)
    with pytest.raises(ValueError, match=message):
        flatbuffer.read(flatbuffer.write(model))


def test_bad_paths_say_what_is_expected(tmp_path):
    with pytest.raises(ValueError, match=r"no file at .*nothing.tflite'; expected the path"):
        inspect(tmp_path / "nothing.tflite")
    with pytest.raises(ValueError, match=r"is a folder\. Name the file itself"):
        inspect(tmp_path)
    (tmp_path / "empty.tflite").touch()
    with pytest.raises(ValueError, match=r"empty.tflite' is not a .tflite file: received 0 bytes"):
        inspect(tmp_path / "empty.tflite")
    (tmp_path / "m.keras").write_bytes(b"PK\x03\x04" + bytes(40))
    with pytest.raises(ValueError, match=r"identifier 'TFL3'.*tfcompress\.convert first"):
        inspect(tmp_path / "m.keras")
    with pytest.raises(ValueError, match="received list"):
        inspect([])
    with pytest.raises(ValueError, match="is damaged: received 48 bytes in which"):
        inspect(b"\x00\x00\xff\xffTFL3" + bytes(40))


def test_a_table_behind_a_million_offsets_is_refused_at_once():
    # A small file that would unpack to a million graphs: the weights are read as their list.
    count = 1_000_000
    data = bytearray(build([], [graph([], [], [], [])], [b"\1" * 4 * (count + 1)]))
    model = schema.Model.GetRootAs(data, 0)
    target = model.Subgraphs(0)._tab.Pos
    field = model._tab.Pos + model._tab.Offset(6)
    start = data.index(b"\1" * 100)
    offsets = target - np.arange(start + 4, start + 4 * (count + 1), 4, np.int64)
    data[start : start + 4 * (count + 1)] = np.uint32([count, *offsets]).tobytes()
    data[field : field + 4] = (start - field).to_bytes(4, "little")
    begin = time.perf_counter()
    with pytest.raises(ValueError, match="tables lie on top of one another"):
        inspect(bytes(data))
    assert time.perf_counter() - begin < 2


def test_importing_needs_neither_tensorflow_nor_keras():
    program = (
        "import sys, tfcompress.tflite.inspect, tfcompress.tflite.benchmark\n"
        "sys.exit(' '.join({'tensorflow', 'keras'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def real_files(tmp_path_factory):
    """A float and an int8 file from TFLiteConverter."""
    import keras
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("real")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(5, activation="softmax", name="scores")(x)
    model = keras.Model(inputs, outputs)
    model.export(folder / "saved", verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved"))
    (folder / "float.tflite").write_bytes(converter.convert())
    data = np.random.default_rng(0).random((8, 1, 8, 8, 3), np.float32)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([x] for x in data)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    (folder / "int8.tflite").write_bytes(converter.convert())
    return folder / "float.tflite", folder / "int8.tflite"


@pytest.fixture(scope="session")
def clustered_file(tmp_path_factory):
    """A float file of clustered and pruned layers, and their kernels by operator."""
    import keras

    import tfcompress as tfc

    rng = np.random.default_rng(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(5),
        ]
    )
    centroids = np.float32([0, 0, 0, -0.5, 0.25, 0.75, 1.5])
    kernels = {}
    for layer, name in ((model.layers[0], "CONV_2D"), (model.layers[2], "FULLY_CONNECTED")):
        kernels[name] = rng.choice(centroids[: 5 if name == "CONV_2D" else 7], layer.kernel.shape)
        layer.kernel.assign(kernels[name])
    path = tmp_path_factory.mktemp("clustered") / "model.tflite"
    tfc.convert(model, path, precision="float32")
    return path, kernels


def interpreter(data):
    runner = Interpreter(
        model_content=data, experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )
    runner.allocate_tensors()
    return runner


def test_a_real_file_agrees_with_the_interpreter(real_files):
    for path in real_files:
        found = inspect(path)
        details = {d["index"]: d for d in interpreter(path.read_bytes()).get_tensor_details()}
        for t in found.tensors:
            detail = details[t.index]
            assert t.name == detail["name"]
            assert t.dtype == np.dtype(detail["dtype"]).name
            assert list(t.shape) == list(detail["shape"])
            assert t.shape_signature == (tuple(detail["shape_signature"]) or t.shape)
            quantization = detail["quantization_parameters"]
            np.testing.assert_array_equal(np.float32(t.scales), quantization["scales"])
            np.testing.assert_array_equal(t.zero_points, quantization["zero_points"])
    conv = next(op for op in found.operators if op.name == "CONV_2D")
    assert (conv.dtype, conv.activation) == ("int8", "RELU")
    assert found.tensors[conv.inputs[1]].scale_count == 4
    assert found.float_ops == ()
    assert found.inputs[0].shape_signature[1:] == (8, 8, 3)
    assert found.signatures[0].inputs == {"image": found.inputs[0].index}


def test_a_real_file_computes_the_same_after_read_and_write(real_files):
    for path in real_files:
        outputs = []
        for data in (path.read_bytes(), flatbuffer.write(flatbuffer.read(path))):
            runner = interpreter(data)
            detail = runner.get_input_details()[0]
            values = np.random.default_rng(1).integers(0, 100, detail["shape"])
            runner.set_tensor(detail["index"], values.astype(detail["dtype"]))
            runner.invoke()
            outputs.append(runner.get_tensor(runner.get_output_details()[0]["index"]))
        np.testing.assert_array_equal(*outputs)


def test_damaged_files_give_a_result_or_a_value_error(real_files):
    rng = random.Random(0)
    whole = real_files[1].read_bytes()
    refused = []
    for turn in range(300):
        data = bytearray(whole)
        if turn % 3 == 0:
            del data[rng.randrange(len(data)) :]
        else:
            for _ in range(rng.choice([1, 1, 8])):
                data[rng.randrange(len(data))] = rng.choice([0, 0xFF, rng.randrange(256)])
        try:
            json.dumps(inspect(bytes(data)).to_dict(), allow_nan=False)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 100  # every truncation, at least
    assert all("expected" in message for message in refused)
