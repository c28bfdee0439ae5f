"""The rules of targets against the tools themselves, operator by operator."""

import pytest
from asked_tools import delegated, tflm
from op_cases import cases

from tfcompress.targets.check import check, judge
from tfcompress.targets.operators import operators
from tfcompress.targets.targets import load_target
from tfcompress.tflite import flatbuffer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def asked():
    return list(cases())


def test_agrees_with_tflite_micro(asked):
    target = load_target("microcontroller")
    runs = tflm([data for *_, data in asked])
    found = [all(judge(op, target).mapped for op in _operators(data)) for *_, data in asked]
    wrong = [label for (label, *_), a, b in zip(asked, runs, found, strict=True) if a != b]
    assert wrong == []
    assert 600 < sum(runs) < len(asked) - 600


def test_agrees_with_xnnpack(asked):
    target = load_target("mobile_cpu")
    wrong, mapped, loaded = [], 0, 0
    for (label, _, _, data), given in zip(asked, delegated([d for *_, d in asked]), strict=True):
        if given is None:
            continue
        op = _operators(data)[-1]
        taken = any(tensor.index in given for tensor in op.outputs)
        loaded, mapped = loaded + 1, mapped + taken
        if judge(op, target).mapped != taken:
            wrong.append(label)
    assert wrong == []
    assert loaded > 1500
    assert 400 < mapped < loaded - 400


@pytest.mark.parametrize("io_dtype", ["int8", "float32"])
def test_whole_model_on_a_microcontroller(qat_cnn, io_dtype, tmp_path):
    import tfcompress as tfc

    path = tmp_path / "model.tflite"
    tfc.convert(qat_cnn, path, io_dtype=io_dtype)
    assert check(path, "microcontroller").passed
    assert tflm([path.read_bytes()]) == [True]


def _operators(data):
    return operators(flatbuffer.read(data))
