"""What `inspect` says of the operators, tensors and sizes of files built by hand."""

import io
import json
import math
import zipfile

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

from tfcompress.tflite import flatbuffer
from tfcompress.tflite.inspect import inspect


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
