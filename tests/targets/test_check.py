"""What `check` finds, on files built by hand."""

import json

import pytest
from op_files import (
    File,
    constant,
    integers,
    lstm,
    op_file,
    options,
    plain,
    real,
    weight,
    with_variable,
)

from tfcompress.targets.check import check
from tfcompress.targets.targets import load_target
from tfcompress.tflite import flatbuffer

SHAPE = (1, 8, 8, 16)


def board(tmp_path, base="ethos_u55", **values):
    path = tmp_path / "board.json"
    path.write_text(json.dumps({"extends": base, "name": "board", **values}))
    return load_target(path)


def made(names, dtype="int8", shape=SHAPE, **more):
    """A file of operators one behind the other; CONV_2D or what takes one input."""
    file = File()
    first = last = file.part(real(*shape), dtype)
    for name in names.split():
        last = (
            file.conv(last, dtype, **more) if name == "CONV_2D" else file.unary(name, last, dtype)
        )
    return file.bytes([first], [last])


def parts(found):
    return [(part.mapped, part.count) for part in found.parts]


def statuses(found):
    return [op.status for op in found.operators]


def only(found):
    (op,) = found.operators
    return op


def test_all_mapped():
    found = check(made("CONV_2D RELU CONV_2D"), "edge_tpu")
    assert found.passed
    assert statuses(found) == ["Mapped to Edge TPU"] * 3
    assert parts(found) == [(True, 3)]
    assert found.findings == found.mends == ()
    # Two live tensors of 8 * 8 * 16; two kernels of 16 * 9 * 16 and biases of 16 int32.
    assert found.activation_bytes == 2048
    assert found.constant_bytes == 2 * (2304 + 64)


def test_edge_tpu_sends_all_later_operators_to_the_cpu():
    found = check(made("CONV_2D HARD_SWISH CONV_2D RELU"), "edge_tpu")
    more = "More than one subgraph is not supported"
    assert statuses(found) == ["Mapped to Edge TPU", "Operation not supported", more, more]
    assert parts(found) == [(True, 1), (False, 3)]
    assert found.mends == ("Replace hard_swish by relu6 before training.",)
    assert "operator 1 (HARD_SWISH)" in found.operators[3].reason
    assert found.operators[1].source.startswith("https://coral.ai/docs/")
    assert found.operators[1].date == "2026-11"
    assert (found.passed, found.mapped) == (False, 1)


def test_delegates_leave_out_only_what_they_do_not_take():
    found = check(made("CONV_2D SQRT CONV_2D"), "ethos_u55")
    assert statuses(found) == ["NPU", "Unsupported opType", "NPU"]
    assert parts(found) == [(True, 1), (False, 1), (True, 1)]


def test_compiler_that_fails_on_the_whole_file():
    found = check(made("CONV_2D HARD_SWISH", "int16"), "ethos_u55")
    assert [op.fatal for op in found.operators] == [False, True]
    assert not found.runs_in_parts
    assert "vela refuses the whole file" in str(found)
    found = check(made("CONV_2D SQRT"), "ethos_u55")
    assert [op.fatal for op in found.operators] == [False, False]
    assert found.runs_in_parts
    w = weight(8, 16)
    data = op_file("FULLY_CONNECTED", "int4", [real(1, 16), w, None], [real(1, 8)],
                   options("FullyConnected"))  # fmt: skip
    assert only(check(data, "ethos_u55")).fatal
    assert only(check(data, "ethos_u55")).status == "Weight tensors must be 8-bit precision"


def test_microcontroller_does_not_load_a_file_with_an_unknown_operator():
    found = check(made("CONV_2D SIGN"), "microcontroller")
    assert found.partition == "none"
    assert found.operators[1].status == "Didn't find op for builtin opcode 'SIGN'"
    assert "the file does not load" in str(found)


def with_float_io():
    file = File()
    taken = file.part(real(*SHAPE), "float32")
    inside = file.unary("QUANTIZE", taken)
    inside = file.conv(inside)
    given = file.unary("DEQUANTIZE", inside, "float32")
    return file.bytes([taken], [given])


@pytest.mark.parametrize("target", ["edge_tpu", "ethos_u55", "ethos_u65", "ethos_u85"])
def test_float_inputs_and_outputs_stay_on_the_cpu(target):
    found = check(with_float_io(), target)
    # QUANTIZE in front does not end the mapped part.
    assert parts(found) == [(False, 1), (True, 1), (False, 1)]
    assert found.mends[0] == "Convert with io_dtype='int8' (--io-dtype int8)."
    assert [f.kind for f in found.findings if f.fatal] == ["io_dtype", "io_dtype"]


@pytest.mark.parametrize("target", ["mobile_cpu", "mobile_gpu", "web"])
def test_float_inputs_and_outputs_are_fine(target):
    assert check(with_float_io(), target).passed


def test_web_and_mediapipe_refuse_int8_inputs():
    for target in ("web", "mediapipe"):
        found = check(made("CONV_2D"), target)
        assert found.mapped == 1
        assert not found.passed
        assert "input 't0' is int8" in found.findings[0].text
        assert found.findings[0].source
        assert found.mends[0] == "Convert with io_dtype='float32' (--io-dtype float32)."


def test_second_float_input_does_not_end_the_mapped_part_either():
    file = File()
    taken = [file.part(real(*SHAPE), "float32") for _ in range(2)]
    first = file.conv(file.unary("QUANTIZE", taken[0]))
    second = file.conv(file.unary("QUANTIZE", taken[1]))
    found = check(file.bytes(taken, [first, second]), "edge_tpu")
    assert parts(found) == [(False, 1), (True, 1), (False, 1), (True, 1)]


@pytest.mark.parametrize(("dtype", "io"), [("int8", "int8"), ("int16", "int16")])
def test_io_dtype_that_the_precision_of_the_file_can_have(dtype, io):
    file = File()
    taken = file.part(real(*SHAPE), "float32")
    inside = file.conv(file.unary("QUANTIZE", taken, dtype), dtype)
    found = check(file.bytes([taken], [inside]), "ethos_u55")
    assert found.mends[0] == f"Convert with io_dtype='{io}' (--io-dtype {io})."


def test_wrong_dtype():
    op = only(check(made("CONV_2D", "float32"), "edge_tpu"))
    assert op.status == "Operation is working on an unsupported data type"
    assert op.reason == "it computes in float32; mapped are int8, uint8"
    assert op.mend == (
        "Convert with precision='int8' and io_dtype='int8' (--precision int8 --io-dtype int8)."
    )


def test_wrong_dtype_of_what_no_precision_changes():
    data = op_file("ADD", "int32", [plain(1, 5), plain(1, 5)], [plain(1, 5)], options("Add"))
    op = only(check(data, "edge_tpu"))
    assert op.mend == "Compute ADD of int32 outside of the model, and feed it the result."


def test_hybrid_files_on_microcontrollers():
    w = weight(8, 16)
    data = op_file("FULLY_CONNECTED", "dynamic_int8", [real(1, 16), w, None], [real(1, 8)],
                   options("FullyConnected"))  # fmt: skip
    assert only(check(data, "microcontroller")).status == (
        "Hybrid models are not supported on TFLite Micro."
    )
    assert check(data, "mobile_cpu").passed


@pytest.mark.parametrize(("version", "mapped"), [(5, True), (6, False)])
def test_version(version, mapped):
    op = only(check(made("CONV_2D", version=version), "edge_tpu"))
    assert op.mapped == mapped
    if not mapped:
        assert op.status == "Operation version not supported"
        assert "version 6; the highest known to be mapped is 5" in op.reason


def test_version_that_litert_does_not_have():
    op = only(check(made("CONV_2D", "float32", version=9), "mobile_cpu"))
    assert op.status == "Didn't find op for builtin opcode 'CONV_2D' version '9'"


def test_dynamic_dimension():
    part = real(1, 8, 8, 4, signature=(-1, 8, 8, 4))
    found = check(op_file("RELU", "int8", [part], [part]), "edge_tpu")
    assert "shapes must be static; dynamic dimensions 2" in only(found).reason
    assert only(found).mend == (
        "Convert with batch_size=1 (--batch-size 1); where that is not enough, give the model a "
        "fixed input size."
    )
    # Vela takes a dynamic batch, but no other dimension.
    assert check(op_file("RELU", "int8", [part], [part]), "ethos_u55").passed
    part = real(1, 8, 8, 4, signature=(1, -1, 8, 4))
    op = only(check(op_file("RELU", "int8", [part], [part]), "ethos_u55"))
    assert op.status == "Only the first dimension of tensors can be dynamic"


@pytest.mark.parametrize(("shape", "mapped"), [((1, 1, 4, 4, 4), True), ((2, 4, 4, 4), False)])
def test_rank(shape, mapped):
    op = only(check(made("RELU", shape=shape), "edge_tpu"))
    assert op.mapped == mapped
    if not mapped:
        assert op.status == "Tensor has unsupported rank (up to 3 innermost dimensions mapped)"
        assert op.reason.endswith("inner rank 4")
        assert op.mend.startswith("Convert with batch_size=1")


def test_too_many_dimensions_for_the_gpu():
    op = only(check(made("RELU", "float32", shape=(1, 1, 1, 2, 3)), "mobile_gpu"))
    assert op.reason == "tensors have at most 4 dimensions; rank 5"


def test_advice_on_the_batch_only_where_the_batch_is_another():
    def dense(batch):
        parts = [real(batch, 4, 16), weight(8, 16), None]
        built = options("FullyConnected", keepNumDims=True)
        data = op_file("FULLY_CONNECTED", "int8", parts, [real(batch, 4, 8)], built)
        return only(check(data, "edge_tpu")).mend

    assert dense(1) == "Flatten in front of the dense layer."
    assert dense(2) == (
        "Convert with batch_size=1 (--batch-size 1); where that is not enough, flatten in front of "
        "the dense layer."
    )


def test_limit():
    fields = {"dilationHFactor": 1, "dilationWFactor": 2}
    op = only(check(made("CONV_2D", **fields), "edge_tpu"))
    assert op.reason == "dilations in height and width are the same (dilations match False)"
    assert op.mend == "Use one dilation_rate for both."
    assert check(made("CONV_2D", **fields), "ethos_u55").passed


def test_prelu_per_pixel():
    data = op_file("PRELU", "int8", [real(*SHAPE), constant(8, 8, 16)], [real(*SHAPE)])
    assert only(check(data, "edge_tpu")).mend == "Use PReLU(shared_axes=[1, 2])."
    data = op_file("PRELU", "int8", [real(*SHAPE), constant(1, 1, 16)], [real(*SHAPE)])
    assert check(data, "edge_tpu").passed


def test_computed_parameter():
    data = op_file("PAD", "int8", [real(*SHAPE), plain(4, 2)], [real(*SHAPE)])
    op = only(check(data, "ethos_u55"))
    assert op.status == "Parameter tensors must be constant"
    assert op.reason.endswith("(computed 0, 1)")


def test_condition_of_a_limit():
    for count, axes, mapped in [(8, [3], True), (6, [3], False), (6, [1, 2], True)]:
        shape = [d for i, d in enumerate((1, 4, 4, count)) if i not in axes]
        data = op_file("MEAN", "int8", [real(1, 4, 4, count), integers(axes)], [real(*shape)],
                       options("Reducer"))  # fmt: skip
        assert only(check(data, "edge_tpu")).mapped == mapped, (count, axes)


def test_what_cannot_be_measured_is_not_mapped():
    model = flatbuffer.read(made("CONV_2D"))
    model.subgraphs[0].operators[0].builtinOptions = None
    model.subgraphs[0].operators[0].builtinOptionsType = 0
    op = only(check(flatbuffer.write(model), "edge_tpu"))
    assert op.reason == "dilations in height and width are the same (dilations match is not known)"


def test_custom_operator_that_bears_a_builtin_name():
    model = flatbuffer.read(made("RELU"))
    code = model.operatorCodes[0]
    code.deprecatedBuiltinCode = code.builtinCode = 32
    code.customCode = b"RELU"
    data = flatbuffer.write(model)
    assert only(check(data, "edge_tpu")).status == "Operation not supported"
    assert only(check(data, "web")).mend.startswith("Convert without select_tf_ops (")
    code.customCode = b"edgetpu-custom-op"
    assert check(flatbuffer.write(model), "edge_tpu").passed


def test_advice_keeps_nothing_from_being_mapped():
    w = weight(8, 16)
    data = op_file("FULLY_CONNECTED", "int8", [real(1, 16), w, None], [real(1, 8)],
                   options("FullyConnected"))  # fmt: skip
    found = check(data, "edge_tpu")
    assert found.passed
    (note,) = found.findings
    assert (note.kind, note.fatal) == ("advice", False)
    assert "one scale per tensor is the safe choice (weights scales 8)" in note.text


def test_channels_that_fill_no_group():
    found = check(made("CONV_2D CONV_2D", channels=17), "ethos_u55")
    assert found.passed
    (note,) = found.findings
    assert note.kind == "channels"
    assert "t3 (17), t6 (17)" in note.text
    assert "16 at a time" in note.text


def test_other_precision_than_recommended():
    found = check(made("RELU", "float32"), "mobile_cpu")
    assert found.passed
    assert found.findings[0].text == "the file computes in float32; int8 is recommended here"


def test_batch(tmp_path):
    data = made("RELU", "float32", shape=(4, 8))
    found = check(data, "mediapipe")
    assert not found.passed
    assert found.mends[0] == "Convert with batch_size=1 (--batch-size 1)."
    found = check(data, "mobile_cpu")
    assert found.passed
    assert "input 't0' has a batch 4; 1 is better here" in found.findings[0].text


def test_memory(tmp_path):
    data = made("CONV_2D")  # 2048 bytes of activations, 2368 of constants
    for memory, texts in [
        ({"sram_bytes": 2048, "weight_bytes": 2368, "flash_bytes": len(data)}, []),
        ({"sram_bytes": 2047}, ["activations take at least 2,048 bytes, of 2,047 there are"]),
        ({"flash_bytes": len(data) - 1}, [f"the file takes {len(data):,} bytes"]),
    ]:
        found = check(data, board(tmp_path, memory=memory))
        assert found.passed == (not texts)
        assert [f.fatal for f in found.findings] == [True] * len(texts)
        assert all(text in f.text for text, f in zip(texts, found.findings, strict=True))
    # Here what does not fit is only slower.
    found = check(data, board(tmp_path, "edge_tpu", memory={"weight_bytes": 2367}))
    assert found.passed
    assert (
        "constants take 2,368 bytes, of 2,367 there are: what is beyond" in found.findings[0].text
    )


def test_limit_of_a_board(tmp_path):
    limit = {"value": "output_channels", "multiple_of": 32, "status": "limit", "text": "32"}
    limits = {"wide": {**limit, "rule": "operators"}}
    target = board(tmp_path, limits=limits, common_limits=["wide"])
    assert not check(made("CONV_2D"), target).passed
    assert check(made("CONV_2D", shape=(1, 8, 8, 32)), target).passed


def test_the_mapped_part_goes_by_what_reads_what():
    # ELU is no operator of the Edge TPU: it ends its own branch, and what reads of it, alone.
    file = File()
    taken = file.part(real(*SHAPE), "int8")
    front = file.unary("ABS", taken)  # reads nothing of the part
    left = file.unary("ELU", file.conv(front))
    right = file.conv(file.conv(front))
    total = file.part(real(*SHAPE), "int8")
    file.op("ADD", [left, right], [total], options("Add"))
    last = file.conv(right)
    found = check(file.bytes([taken], [total, last]), "edge_tpu")
    names = [(op.name, op.mapped) for op in found.operators]
    assert names == [
        *[("ABS", False), ("CONV_2D", True), ("ELU", False), ("CONV_2D", True)],
        *[("CONV_2D", True), ("ADD", False), ("CONV_2D", True)],
    ]
    assert found.operators[5].reason == "it comes behind operator 2 (ELU), which is not mapped"


@pytest.mark.parametrize("target", ["ethos_u55", "ethos_u65", "ethos_u85"])
def test_plain_lstms_are_on_the_npu(target):
    assert only(check(lstm(), target)).mapped
    assert "no peepholes" in only(check(lstm(more=9), target)).reason
    assert "no peepholes" in only(check(lstm(more=16), target)).reason


@pytest.mark.parametrize(
    ("target", "dtype", "mapped"),
    [
        ("mobile_cpu", "int8", 4),
        ("mobile_cpu", "float32", 4),
        ("ethos_u85", "int8", 4),
        ("ethos_u85", "int16", 4),
        ("ethos_u55", "int8", 1),
        ("microcontroller", "int8", 4),
    ],
)
def test_variables(target, dtype, mapped):
    assert check(with_variable(dtype), target).mapped == mapped


@pytest.mark.parametrize("target", ["ethos_u55", "ethos_u65", "ethos_u85"])
def test_vela_reads_no_constants_without_values(target):
    file = File()
    taken, shape, given = (
        file.add("int32", (1, 1)),
        file.add("int32", (0,), b""),
        file.add("int32", ()),
    )
    file.op("RESHAPE", [taken, shape], [given])
    data = file.bytes([taken], [given])
    found = check(data, target)
    assert found.is_refused
    assert only(found).reason == "constants hold values (empty constants 1)"
    assert check(data, "microcontroller").passed


def test_signal_operators_of_tflite_micro():
    file = File()
    taken, made, given = (file.add(d, (8,)) for d in ("int16", "uint32", "int32"))
    file.op("SignalEnergy", [taken], [made])
    file.op("CAST", [made], [given], options("Cast"))
    data = file.bytes([taken], [given])
    assert check(data, "microcontroller").passed
    assert check(data, "mobile_cpu").mapped == 0


def test_what_litert_does_not_load_is_said():
    # ADD of shapes that do not fit.
    file = File()
    parts = [file.part(real(*shape), "float32") for shape in ((1, 4), (1, 3), (1, 4))]
    file.op("ADD", parts[:2], parts[2:], options("Add"))
    data = file.bytes(parts[:2], parts[2:])
    found = check(data, "mobile_cpu")
    assert found.is_refused
    assert not found.passed
    assert "LiteRT does not load the file: " in found.findings[0].text
    assert not check(data, "edge_tpu").is_refused
    # An app may bring operators of its own.
    own = op_file("Mine", "float32", [real(1, 4)], [real(1, 4)])
    found = check(own, "mobile_cpu")
    assert (found.is_refused, found.runs_in_parts) == (False, False)
    assert "only where an app brings operators of its own: " in found.findings[0].text


def test_memory_that_a_file_asks_for_in_vain_is_a_finding(monkeypatch):
    def refuse(*_):
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr("tfcompress.targets.check.run.Loaded", refuse)
    found = check(op_file("RELU", "float32", [real(1, 4)], [real(1, 4)]), "mobile_cpu")
    assert "LiteRT does not load the file: std::bad_alloc" in found.findings[0].text
    assert not found.passed
