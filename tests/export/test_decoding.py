"""Files with weights in codes: where they are decoded, what is left out, what is told of them."""

import numpy as np
import pytest
from coded_files import coded, file_of, weights
from tflite_by_hand import TYPES

from tfcompress.export.microcontroller.c_array import examine
from tfcompress.export.microcontroller.decoding import weights_of
from tfcompress.export.microcontroller.parting import with_parts
from tfcompress.targets.check import check
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.benchmark import benchmark
from tfcompress.tflite.flatbuffer import op_name, scales_of, tensor_values
from tfcompress.tflite.inspect import inspect
from tfcompress.tflite.plain_weights import plain_twin, with_plain_weights
from tfcompress.tflite.run import Runner
from tfcompress.tflite.weight_codes import OPERATOR


def test_each_operator_has_its_weight_decoded_in_front():
    first, second = weights((64, 64), 0), weights((64, 64), 1)
    model = flatbuffer.read(coded(file_of(first, second)))
    (main,) = model.subgraphs
    names = [op_name(model, op) for op in main.operators]
    assert names == [OPERATOR, "FULLY_CONNECTED"] * 3
    decoders, dense = main.operators[::2], main.operators[1::2]
    assert [op.outputs[0] for op in decoders] == [op.inputs[1] for op in dense]
    # Both decode the same two constants, each to a tensor of its own.
    assert decoders[0].inputs == decoders[1].inputs
    assert decoders[0].outputs != decoders[1].outputs
    assert flatbuffer.stored_size(main.tensors[decoders[0].inputs[0]].shape, "uint8") == 1024
    plain, codes = with_plain_weights(model)
    assert set(codes.values()) == {"table of 2 bits"}
    for op, wanted in zip(dense, (first, first, second), strict=True):
        found = tensor_values(plain, plain.subgraphs[0].tensors[op.inputs[1]])
        assert np.array_equal(found, wanted)


def test_what_tflite_micro_does_not_read_is_left_out():
    data = file_of(weights((64, 64), 0), weights((64, 64), 1), scales=64)
    model = flatbuffer.read(coded(data))
    tensors = model.subgraphs[0].tensors
    made = [t for t in tensors if t.name]
    assert [flatbuffer.text(t.name) for t in made] == ["x", "dense", "dense", "net/last_1/MatMul;c"]
    assert not model.description
    points = {len(scales_of(t)[0]): len(scales_of(t)[1]) for t in tensors}
    assert points == {0: 0, 1: 1, 64: 1}
    twin = plain_twin(model)
    runs = [
        Runner(found, flatbuffer.write(found), "the file", reference=True)
        for found in (flatbuffer.read(data), twin)
    ]
    image = {"x": np.linspace(-20, 20, 64, dtype=np.float32).reshape(1, 64)}
    ours, theirs = (runner.run(image)[0] for runner in runs)
    assert np.any(ours)
    assert np.array_equal(ours, theirs)


def test_int4_is_decoded_as_int8():
    first, second = weights((64, 64), 0, kinds=3), weights((64, 64), 1)
    model = flatbuffer.read(coded(file_of(first, second, kind=TYPES.INT4)))
    plain, _ = with_plain_weights(model)
    op = plain.subgraphs[0].operators[0]
    found = plain.subgraphs[0].tensors[op.inputs[1]]
    assert flatbuffer.dtype_name(found) == "int8"
    assert np.array_equal(tensor_values(plain, found), first)


def test_outputs_and_weights_with_zero_points_stay_plain():
    data = file_of(weights((64, 64), 0), weights((64, 64), 1))
    model = flatbuffer.read(data)
    main = model.subgraphs[0]
    main.outputs = [6, 2]
    assert {w.values.shape for w in weights_of(model)} == {(64, 64)}
    assert len(weights_of(model)) == 1
    main.tensors[1].quantization.zeroPoint = np.int64([3])
    assert weights_of(model) == []


def test_inspection_tells_stored_and_decoded_bytes():
    first = weights((64, 64), 0)
    found = inspect(coded(file_of(first, weights((64, 64), 1, kinds=2))))
    layers = {layer.layer: layer for layer in found.layer_bytes}
    dense = layers["dense"]
    assert (dense.code, dense.decoded_bytes, dense.weights) == ("table of 2 bits", 4096, 4096)
    assert dense.bytes == 1024 + 16 + 4 + 256  # indices, header, table; the bias
    assert dense.unique == 4
    assert dense.sparsity == np.mean(first == 0)
    assert dense.precision == "int8 (table of 2 bits)"
    assert layers["net/last_1/MatMul;c"].code == "table of 1 bit"
    assert "of 2 layers: 8,192 bytes decoded, 4,096 at once" in " ".join(str(found).split())


def test_checks_and_litert_say_who_decodes():
    data = coded(file_of(weights((64, 64), 0), weights((64, 64), 1)))
    assert check(data, "microcontroller").passed
    mend = "Convert again without compressed_weights: TFLite Micro alone decodes weights in codes."
    for target in ("edge_tpu", "ethos_u55", "mobile_cpu"):
        found = check(data, target)
        assert not found.passed
        assert mend in found.mends
    with pytest.raises(ValueError, match="LiteRT cannot run the file: its weights are in codes"):
        Runner(flatbuffer.read(data), data, "the file", reference=False)
    assert "AddDecode" in examine(data, "model", "the file").ops


def test_benchmark_says_it_in_one_line(tmp_path):
    path = tmp_path / "coded.tflite"
    path.write_bytes(coded(file_of(weights((64, 64), 0), weights((64, 64), 1))))
    with pytest.raises(ValueError, match="its weights are in codes") as error:
        benchmark(path)
    assert "\n" not in str(error.value)


def test_damaged_codes_are_told():
    model = flatbuffer.read(coded(file_of(weights((64, 64), 0), weights((64, 64), 1))))
    main = model.subgraphs[0]
    header = main.tensors[main.operators[0].inputs[1]]
    short = np.frombuffer(bytes([0, 1, 0, 0, 1, 2] + [0] * 11), np.uint8)
    model.buffers[header.buffer].data = short
    for other in main.tensors:
        other.shape = [17] if other.buffer == header.buffer else other.shape
    with pytest.raises(ValueError, match="in codes cannot be decoded: an index lies outside"):
        inspect(flatbuffer.write(model))


@pytest.mark.parametrize(("scales", "kind"), [(1, TYPES.INT8), (64, TYPES.INT8), (64, TYPES.INT4)])
def test_parts_of_dense_layers_give_the_same_bits(scales, kind):
    data = file_of(weights((64, 64), 0), weights((64, 64), 1), scales=scales)
    model = flatbuffer.read(data)
    last = model.subgraphs[0].tensors[2]
    if kind == TYPES.INT4:
        codes = flatbuffer.packed(weights((64, 64), 1), 4)
        last.type, last.buffer = kind, flatbuffer.add_buffer(model, codes)
        model = flatbuffer.read(flatbuffer.write(model))
        last = model.subgraphs[0].tensors[2]
    parted = with_parts(model, 1500, {last.buffer, model.subgraphs[0].tensors[1].buffer})
    names = [op_name(parted, op) for op in parted.subgraphs[0].operators]
    # The first weight is read twice, so that parts of it would be decoded twice as often.
    assert names == ["FULLY_CONNECTED"] * 5 + ["CONCATENATION"]
    runs = [
        Runner(found, flatbuffer.write(found), "the file", reference=True)
        for found in (model, parted)
    ]
    image = {"x": np.linspace(-20, 20, 64, dtype=np.float32).reshape(1, 64)}
    ours, theirs = (runner.run(image)[0] for runner in runs)
    assert np.any(ours)
    assert np.array_equal(ours, theirs)
