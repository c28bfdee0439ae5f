"""Files with operators that LiteRT's reference kernels lack, and files that LiteRT cannot run."""

import math

import keras
import numpy as np
import pytest
from acceptance_files import two_layers
from ai_edge_litert import schema_py_generated as schema
from keras import layers
from tflite_by_hand import OPS, TYPES, build, code, graph, operator, tensor

from tfcompress.conversion.convert import convert
from tfcompress.export.android.reference import make_reference
from tfcompress.export.android.tensors import read_interface
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.run import Runner
from tfcompress.tools import accept as module
from tfcompress.tools.comparison import operators_alone
from tfcompress.tools.subject import read_subject
from tfcompress.verification.verify import verify

NOTE = "LiteRT's reference kernels lack {}: its optimized ones instead"


def chain(*ops, version=1):
    """float32 (1, 2) -> each operator in turn, custom ones by their name."""
    codes = [
        code(OPS.CUSTOM, 1, op.encode()) if isinstance(op, str) else code(op, version) for op in ops
    ]
    tensors = [tensor(f"t{i}", [1, 2], TYPES.FLOAT32) for i in range(len(ops) + 1)]
    operators = [operator(i, [i], [i + 1]) for i in range(len(ops))]
    return build(codes, [graph(tensors, operators, [0], [len(ops)])], [])


def elu_model():
    inputs = keras.Input((2,), name="t0")
    return keras.Model(inputs, layers.Activation("elu")(inputs))


@pytest.mark.parametrize(
    ("ops", "note", "expected"),
    [
        ([OPS.ELU], NOTE.format("ELU"), [math.expm1(-1.3), 2.6]),
        ([OPS.ELU, OPS.ROUND], NOTE.format("ELU"), [-1.0, 3.0]),
        ([OPS.NEG], "", [1.3, -2.6]),
    ],
)
def test_what_the_reference_lacks_runs_on_the_optimized_kernels(ops, note, expected):
    data = chain(*ops)
    runner = Runner(flatbuffer.read(data), data, "it", reference=True, keep=True)
    (found,) = runner.run({"t0": np.float32([[-1.3, 2.6]])})
    np.testing.assert_allclose(found, [expected], rtol=1e-6)
    assert runner.note == note


@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_sums_of_integers_are_those_of_the_optimized_kernels(dtype):
    scale = 4 / np.iinfo(dtype).max
    kind, options = getattr(TYPES, dtype.upper()), schema.ReducerOptionsT()
    tensors = [
        tensor("x", [1, 16, 4], kind, 0, [scale], [0]),
        tensor("axes", [1], TYPES.INT32, 1),
        tensor("y", [1, 4], kind, 0, [4 * scale], [0]),
    ]
    layer = operator(0, [0, 1], [2], schema.BuiltinOptions.ReducerOptions, options)
    axes = [np.int32([1]).tobytes()]
    data = build([code(OPS.SUM, 2)], [graph(tensors, [layer], [0], [2])], axes)
    x = np.random.default_rng(0).normal(size=(1, 16, 4))
    runner = Runner(flatbuffer.read(data), data, "it", reference=True)
    np.testing.assert_allclose(runner.run({"x": x})[0], x.sum(1), atol=10 * scale)
    assert "sum integers wrongly" in runner.note


def test_what_ends_the_reference_runs_on_the_optimized_kernels():
    options = schema.SoftmaxOptionsT()
    options.beta = 1.0
    tensors = [
        tensor("x", [1, 1000], TYPES.INT8, 0, [0.01], [0]),
        tensor("y", [1, 1000], TYPES.INT8, 0, [1 / 256], [-128]),
    ]
    layer = operator(0, [0], [1], schema.BuiltinOptions.SoftmaxOptions, options)
    data = build([code(OPS.SOFTMAX, 2)], [graph(tensors, [layer], [0], [1])], [])
    model = flatbuffer.read(data)
    reference, other = (Runner(model, data, "it", reference=kind) for kind in (True, False))
    x = {"x": np.zeros((1, 1000), "float32")}
    for runner in (other, reference, other, reference):
        np.testing.assert_allclose(runner.run(x)[0], np.zeros((1, 1000)), atol=1 / 256)
    assert "reference kernels fail (it crashed" in reference.note
    assert other.note == ""


def test_verify_tells_it(tmp_path):
    path = tmp_path / "elu.tflite"
    path.write_bytes(chain(OPS.ELU))
    found = verify(elu_model(), path, np.float32([[-1, 2], [0.5, -3]]))
    assert found.passed
    assert found.notes == (NOTE.format("ELU"),)
    assert found.to_dict()["notes"] == [NOTE.format("ELU")]
    assert f"note: {NOTE.format('ELU')}" in " ".join(str(found).split())


def test_accept_tells_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ask", lambda tool, file: module.Outcome("passed"))
    path = tmp_path / "elu.tflite"
    path.write_bytes(chain(OPS.ELU))
    found = module.accept(path, "vela")
    assert found.to_dict()["notes"] == [NOTE.format("ELU")]
    assert f"note: {NOTE.format('ELU')}" in " ".join(str(found).split())
    path.write_bytes(two_layers())
    assert module.accept(path, "vela").notes == ()


def test_operators_alone_and_the_test_on_the_device(tmp_path):
    data = chain(OPS.NEG, OPS.ELU)
    file = read_subject(data, {})
    alone = operators_alone(file)
    np.testing.assert_array_equal(alone.expected[0]["made_1"], -file.inputs[0]["t0"])
    np.testing.assert_array_equal(alone.expected[0]["made_2"], file.expected[0]["t2"])
    path = tmp_path / "elu.tflite"
    path.write_bytes(data)
    reference = make_reference(path, read_interface(flatbuffer.read(data), "it").outputs)
    stored = np.frombuffer(reference.data, "<f4").reshape(reference.samples, 2, 2)
    wanted = np.where(stored[:, 0] > 0, np.expm1(-stored[:, 0]), -stored[:, 0])
    np.testing.assert_allclose(stored[:, 1], wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            chain("FlexErf"),
            "TensorFlow op.*built-in operators only; convert again without SELECT_TF",
        ),
        (chain("Mine", OPS.ELU), "Mine.*convert again without SELECT_TF_OPS and custom operators"),
        (chain(OPS.CALL), "'CALL'.*This LiteRT has no kernel for CALL.*replace the layer"),
        (chain(OPS.ELU, version=99), "'ELU' version '99'.*replace the layer .* or install a newer"),
        (chain(OPS.DENSIFY), "DENSIFY.*expected a file that LiteRT runs; convert the model again"),
    ],
)
def test_the_advice_fits_the_reason(data, message):
    for load in (
        lambda: read_subject(data, {}),
        lambda: Runner(flatbuffer.read(data), data, "it", reference=True),
        lambda: Runner(flatbuffer.read(data), data, "it", reference=False),
    ):
        with pytest.raises(ValueError, match=f"LiteRT cannot run .*{message}"):
            load()


@pytest.mark.parametrize("kind", [MemoryError, TypeError, SystemError])
def test_whatever_litert_raises_is_a_line(kind, monkeypatch, in_this_process):
    def fail(self):
        raise kind("out of bounds")

    monkeypatch.setattr("ai_edge_litert.interpreter.Interpreter.invoke", fail)
    data = chain(OPS.NEG)
    with pytest.raises(ValueError, match=r"LiteRT cannot run .*: out of bounds\."):
        read_subject(data, {})
    runner = Runner(flatbuffer.read(data), data, "it", reference=True)
    with pytest.raises(ValueError, match=r"LiteRT failed on it: out of bounds\."):
        runner.run({"t0": np.float32([[1, 2]])})


def test_layers_where_folding_left_tensors_that_nobody_makes(tmp_path):
    inputs = keras.Input((6, 6, 2))
    hidden = layers.Conv2D(3, 3, activation="elu", name="conv")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="last")(layers.Flatten()(hidden)))
    samples = np.random.default_rng(0).normal(size=(8, 6, 6, 2)).astype("float32")
    path = tmp_path / "m.tflite"
    convert(model, path, precision="int8", calibration=samples)
    found = verify(model, path, samples, layers=True)
    assert found.passed
    ops = {error.op: error for error in found.layers}
    assert ops["CONV_2D"].layer == "conv"
    assert ops["CONV_2D"].sqnr_db > 30
    assert ops["ELU"].sqnr_db > 30
    assert ops["ELU"].input_sqnr_db == ops["CONV_2D"].sqnr_db
    assert ops["FULLY_CONNECTED"].layer == "last"
