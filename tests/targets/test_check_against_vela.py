"""The rules of Ethos-U targets against Vela, operator by operator."""

from collections import Counter

import pytest
from asked_tools import vela
from op_cases import cases
from op_files import File, lstm, plain, real, with_variable

from tfcompress.targets.check import check, judge
from tfcompress.targets.operators import operators
from tfcompress.targets.targets import load_target
from tfcompress.tflite import flatbuffer

pytestmark = pytest.mark.slow
ACCELERATORS = {
    "ethos_u55": "ethos-u55-128",
    "ethos_u65": "ethos-u65-256",
    "ethos_u85": "ethos-u85-256",
}


def on_cpu(data):
    """The names of tensors that operators outside of the NPU give."""
    model = flatbuffer.read(data)
    graph = model.subgraphs[0]
    left = [op for op in graph.operators if flatbuffer.op_name(model, op) != "ethos-u"]
    return {flatbuffer.text(graph.tensors[i].name) for op in left for i in op.outputs}


@pytest.mark.parametrize("name", ACCELERATORS)
def test_agrees_on_operators(name):
    asked, target = list(cases()), load_target(name)
    made = vela([data for *_, data in asked], ACCELERATORS[name])
    wrong, mapped = [], 0
    for (label, _, _, data), result in zip(asked, made, strict=True):
        *before, op = operators(flatbuffer.read(data))
        # Where Vela fails on a file, nothing of it is mapped; it may also break an operator into
        # several, of which some stay on the CPU.
        aside = {other.info.layer for other in before}
        taken = result is not None and not on_cpu(result) - aside
        mapped += taken
        verdict = judge(op, target)
        # More may fail than is known to.
        if verdict.mapped != taken or (verdict.fatal and result is not None):
            wrong.append(label)
    assert wrong == []
    assert 500 < mapped < len(asked) - 500


@pytest.mark.parametrize("name", ACCELERATORS)
def test_agrees_on_what_is_refused(name):
    files = [data for *_, data in cases()]
    refused = [check(data, name).is_refused for data in files]
    made = vela(files, ACCELERATORS[name])
    # More may fail than is known to, but nothing that is said to fail may pass.
    wrong = [case[0] for case, no, out in zip(cases(), refused, made, strict=True) if no and out]
    assert wrong == []
    assert sum(refused) > 20
    inside = [compared(dtype) for dtype in ("int8", "int16", "int32", "float32")]
    assert None not in vela(inside, ACCELERATORS[name])
    assert [check(data, name).is_refused for data in inside] == [False] * 4


def compared(dtype):
    """LESS and SELECT, as an embedding has them: bool stays inside of the file."""
    part = plain(1, 8, 8, 4) if dtype == "int32" else real(1, 8, 8, 4)
    file = File()
    first, last = file.part(part, dtype), file.part(part, dtype)
    less = file.add("bool", (1, 8, 8, 4))
    file.op("LESS", [first, first], [less])
    file.op("SELECT", [less, first, first], [last])
    return file.bytes([first], [last])


@pytest.mark.parametrize("name", ACCELERATORS)
def test_agrees_on_whole_models(name, qat_cnn, float_cnn, images, tmp_path):
    import tfcompress as tfc

    def converted(model, **settings):
        path = tmp_path / "model.tflite"
        tfc.convert(model, path, **settings)
        return path.read_bytes()

    calibration = images[0][:64]
    files = [
        converted(qat_cnn, io_dtype="int8"),
        converted(qat_cnn, io_dtype="float32"),
        converted(qat_cnn, io_dtype="uint8"),
        converted(float_cnn, precision="int16x8", io_dtype="int16", calibration=calibration),
        converted(float_cnn, precision="float32"),
        converted(float_cnn, precision="float16"),
        converted(float_cnn, precision="dynamic_int8"),
        chain("CONV_2D SQRT CONV_2D RELU SQRT"),
        chain("LOG RSQRT ELU GELU HARD_SWISH TANH"),
    ]
    passed = []
    for data, result in zip(files, vela(files, ACCELERATORS[name]), strict=True):
        found = check(data, name)
        passed.append(found.passed)
        assert {op.layer for op in found.operators if not op.mapped} == on_cpu(result)
    assert passed == [True, False, True, True, False, False, False, False, True]


@pytest.mark.parametrize("name", ACCELERATORS)
def test_agrees_on_states_and_what_has_no_values(name):
    kinds = ("int8", "uint8", "int16")
    files = [lstm(), *map(lstm, (9, 16, 20)), *map(with_variable, kinds), empty()]
    for data, result in zip(files, vela(files, ACCELERATORS[name]), strict=True):
        found = check(data, name)
        assert found.is_refused == (result is None)
        if result is not None:
            model = flatbuffer.read(result)
            left = Counter(flatbuffer.op_name(model, op) for op in model.subgraphs[0].operators)
            del left["ethos-u"]
            assert Counter(op.name for op in found.operators if not op.mapped) == left


def empty():
    """RESHAPE to a scalar, by a constant of size 0."""
    file = File()
    taken, shape, given = (
        file.add("int32", (1, 1)),
        file.add("int32", (0,), b""),
        file.add("int32", ()),
    )
    file.op("RESHAPE", [taken, shape], [given])
    return file.bytes([taken], [given])


def chain(names):
    file = File()
    first = last = file.part(real(1, 8, 8, 16), "int8")
    for name in names.split():
        last = file.conv(last) if name == "CONV_2D" else file.unary(name, last)
    return file.bytes([first], [last])
