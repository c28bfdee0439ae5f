"""verify: numbers worked out by hand, files broken on purpose, inputs that will not do."""

import io
import json
import math

import keras
import numpy as np
import pytest
from keras import layers
from rich.console import Console

from tfcompress import quantize_aware
from tfcompress.conversion.convert import convert
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.run import Port
from tfcompress.verification.differences import Tally, sqnr_db
from tfcompress.verification.verify import verify

SQUARE = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.float32)


def edit(source, target, tensor: str, change):
    """Writes a file whose constant with `tensor` in its name (or its reader's) is changed."""
    model = flatbuffer.read(source)
    graph = model.subgraphs[0]
    for op in graph.operators:
        for index in op.inputs[1:2]:
            if tensor in graph.tensors[op.outputs[0]].name.decode():
                constant = graph.tensors[index]
                values = change(flatbuffer.tensor_values(model, constant))
                model.buffers[constant.buffer].data = np.frombuffer(values.tobytes(), np.uint8)
    target.write_bytes(flatbuffer.write(model))
    return target


@pytest.fixture(scope="module")
def identity():
    """A model that gives back its two inputs."""
    inputs = keras.Input((2,), name="point")
    model = keras.Model(inputs, layers.Dense(2, use_bias=False, name="same")(inputs))
    model.set_weights([np.eye(2, dtype=np.float32)])
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("verify")


@pytest.fixture(scope="module")
def int8_file(converted):
    return converted("qat", io_dtype="float32")[0]


def test_differences_are_those_worked_out_by_hand():
    tally = Tally()
    tally.add(np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 2.5, 3.0]]))
    tally.add(np.array([[0.0, 0.0, 4.0]]), np.array([[5.0, 0.0, 4.0]]))
    found = tally.result(0.5)
    assert (tally.low, tally.high) == (0.0, 4.0)
    assert found.max_abs == 5.0
    assert found.max_lsb == 10.0
    assert found.mean_lsb == pytest.approx(5.5 / 6 / 0.5)
    assert found.agreement == 0.5
    assert found.sqnr_db == pytest.approx(10 * math.log10(30 / 25.25))


def test_whole_numbers_agree_where_they_are_equal():
    tally = Tally()
    tally.add(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]))
    assert tally.result(1.0).agreement == 0.75
    assert tally.result(1.0).max_lsb == 1.0


def test_nan_is_kept():
    tally = Tally()
    tally.add(np.array([[1.0, 2.0]]), np.array([[1.0, np.nan]]))
    tally.add(np.array([[1.0, 2.0]]), np.array([[1.0, 2.0]]))
    found = tally.result(1.0)
    assert math.isnan(found.max_lsb)
    assert math.isnan(found.sqnr_db)


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [(100.0, 1.0, 20.0), (1.0, 0.0, math.inf), (0.0, 1.0, -math.inf), (0.0, 0.0, math.inf)],
)
def test_sqnr(signal, noise, expected):
    assert sqnr_db(signal, noise) == expected


def test_ports_quantize_by_their_scale():
    port = Port("x", 0, (1, 4), "int8", 0.5, 3)
    codes = port.quantize(np.array([-1.0, 0.25, 100.0, -100.0]))
    assert codes.dtype == np.int8
    assert codes.tolist() == [1, 4, 127, -128]
    assert port.dequantize(codes).tolist() == [-1.0, 0.5, 62.0, -65.5]


def test_float_file_is_measured_by_the_range_of_the_outputs(identity, tmp_path):
    convert(identity, tmp_path / "good.tflite", precision="float32")
    good = verify(identity, tmp_path / "good.tflite", SQUARE)
    assert good.passed
    assert good.tolerance == 1.0
    assert not good.strict
    assert good.samples == 4
    assert good.outputs[0].keras.max_abs < 1e-6
    # 1.5 * x[0] instead of x[0]: two of eight values are off by 0.5; outputs range over 0 to 1.
    bad = tmp_path / "bad.tflite"
    edit(tmp_path / "good.tflite", bad, "same", lambda w: w * np.float32([[1.5], [1]]))
    (output,) = verify(identity, bad, SQUARE).outputs
    assert not output.passed
    assert output.name == "same"
    assert not output.has_scale
    assert output.lsb == pytest.approx(1 / 255)
    assert output.keras.max_lsb == pytest.approx(127.5, rel=1e-4)
    assert output.keras.mean_lsb == pytest.approx(127.5 / 4, rel=1e-4)
    assert output.keras.agreement == 1.0
    assert output.keras.sqnr_db == pytest.approx(10 * math.log10(4 / 0.5), rel=1e-4)
    assert output.xnnpack.max_lsb == pytest.approx(0, abs=1e-3)
    assert verify(identity, bad, SQUARE, tolerance=128).passed
    assert not verify(identity, bad, SQUARE, tolerance=127).passed


@pytest.mark.parametrize(
    "io_dtype", ["int8", *(pytest.param(t, marks=pytest.mark.slow) for t in ("float32", "uint8"))]
)
def test_int8_file_of_a_trained_model_passes(qat_cnn, images, converted, io_dtype):
    found = verify(qat_cnn, converted("qat", io_dtype=io_dtype)[0], images[0], samples=100)
    (output,) = found.outputs
    assert found.samples == 100
    assert found.passed
    assert found.tolerance == 1.0
    assert output.name == "kind"
    assert output.dtype == io_dtype
    assert output.has_scale
    assert output.lsb == 1 / 256  # LiteRT fixes it for softmax.
    assert output.keras.max_lsb == pytest.approx(round(output.keras.max_lsb), abs=1e-3)
    assert output.keras.sqnr_db > 30


@pytest.mark.slow
def test_larger_batches_give_the_same_numbers(qat_cnn, images, int8_file, tmp_path):
    convert(qat_cnn, tmp_path / "batch.tflite", batch_size=4)
    one = verify(qat_cnn, int8_file, images[0], samples=37)
    four = verify(qat_cnn, tmp_path / "batch.tflite", images[0], samples=37)
    assert four.samples == 37
    assert one.outputs == four.outputs


def first_layer(model) -> str:
    return next(layer.name for layer in model.layers if "conv2d" in layer.name)


def test_broken_weights_fail_and_their_layer_is_found(qat_cnn, images, int8_file, tmp_path):
    name = first_layer(qat_cnn)
    bad = edit(int8_file, tmp_path / "bad.tflite", f"/{name}_1/", lambda w: -w)
    sound = verify(qat_cnn, int8_file, images[0], samples=20, layers=True)
    found = verify(qat_cnn, bad, images[0], samples=20, layers=True)
    assert sound.passed
    assert not found.passed
    ratios = [entry.sqnr_db for entry in found.layers]
    assert ratios == sorted(ratios)
    assert {entry.layer for entry in found.layers} >= {name, "pointwise", "kind"}
    culprit = max(found.layers, key=lambda entry: entry.input_sqnr_db - entry.sqnr_db)
    assert culprit.layer == name
    assert culprit.op == "CONV_2D"
    assert culprit.sqnr_db < 3
    assert culprit.input_sqnr_db > 40  # The image itself is sound.
    (before,) = [entry for entry in sound.layers if entry.layer == name]
    assert before.sqnr_db > 25
    assert {entry.steps for entry in sound.layers} <= {0.0, None}


@pytest.mark.slow
def test_a_layer_of_little_weight_is_found(qat_cnn, images, int8_file, tmp_path):
    """The file's input has not the name that the model's has."""
    bad = edit(int8_file, tmp_path / "bad.tflite", "pointwise", lambda w: -w)
    file = flatbuffer.read(bad)
    file.signatureDefs[0].inputs[0].name = b"photo"
    bad.write_bytes(flatbuffer.write(file))
    found = verify(qat_cnn, bad, images[0], samples=20, layers=True)
    assert found.layers[0].layer == "pointwise"
    assert found.layers[0].sqnr_db < 3
    assert found.layers[0].steps > 10


def test_each_operator_alone_is_compared_with_what_the_copy_computes(tmp_path):
    """A table that is looked up in and multiplied with; a TRANSPOSE that the converter moves."""
    keras.utils.set_random_seed(0)
    ids = keras.Input((12,), dtype="int32")
    table = layers.ReversibleEmbedding(60, 12)
    y = layers.Dense(12)(table(ids))
    qat = quantize_aware(keras.Model(ids, [table(y, reverse=True), layers.Dot(2)([y, 1.0 - y])]))
    data = np.random.default_rng(0).integers(0, 60, (16, 12))
    qat(data, training=True)
    convert(qat, tmp_path / "tied.tflite", precision="int8")
    found = verify(qat, tmp_path / "tied.tflite", data, layers=True)
    alone = [(e.op, e.steps, e.share) for e in found.layers if e.steps is not None]
    assert {op for op, _, _ in alone} >= {"FULLY_CONNECTED", "BATCH_MATMUL"}
    assert [row for row in alone if row[1:] != (0.0, 0.0)] == []
    graph = flatbuffer.read(tmp_path / "tied.tflite").subgraphs[0]
    tables = [t for t in graph.tensors if tuple(t.shape) == (60, 12) and t.buffer]
    assert {t.buffer for t in tables} == {tables[0].buffer}


def test_quantization_after_training_is_judged_by_sqnr(float_cnn, images, converted, tmp_path):
    path, _ = converted("float", io_dtype="float32")
    found = verify(float_cnn, path, images[0][:64], layers=True)
    assert found.passed
    assert found.tolerance is None
    assert "10 dB" in found.rule
    assert not verify(float_cnn, path, images[0][:64], tolerance=0).passed
    bad = edit(path, tmp_path / "bad.tflite", "kind_1/", lambda w: -w)
    assert not verify(float_cnn, bad, images[0][:64]).passed


def test_layers_of_a_float_file_are_exact(float_cnn, images, converted):
    path, _ = converted("float", precision="float16")
    found = verify(float_cnn, path, images[0], samples=8, layers=True)
    assert found.passed
    assert len(found.layers) >= 6
    assert found.layers[0].sqnr_db > 40


@pytest.fixture(scope="module")
def two_outputs(folder):
    """A model of two inputs and a dict of outputs, one of whole numbers; and its file."""
    left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
    total = layers.Add()([left, right])
    above = keras.ops.cast(total > 0, "int32")
    model = keras.Model([left, right], {"sum": total, "above": above})
    path = folder / "two.tflite"
    convert(model, path, precision="float32")
    return model, path


def test_outputs_are_matched_by_name(two_outputs):
    model, path = two_outputs
    random = np.random.default_rng(0)
    data = {name: random.normal(size=(40, 3)) for name in ("right", "left")}
    found = verify(model, path, data)
    assert found.passed
    above, total = found.outputs
    assert (above.name, total.name) == ("above", "sum")
    assert above.lsb == 1.0
    assert above.keras.max_lsb == 0
    assert above.keras.agreement == 1.0
    assert total.keras.max_abs < 1e-6


def test_files_are_loaded(identity, tmp_path):
    convert(identity, tmp_path / "model.tflite", precision="float32")
    identity.save(tmp_path / "model.keras")
    identity.export(tmp_path / "saved", verbose=False)
    assert verify(tmp_path / "model.keras", str(tmp_path / "model.tflite"), SQUARE).passed
    assert verify(tmp_path / "saved", tmp_path / "model.tflite", SQUARE).passed
    with pytest.raises(ValueError, match="Keras model"):
        verify(tmp_path / "saved", tmp_path / "model.tflite", SQUARE, layers=True)


def test_result_prints_and_serializes(qat_cnn, images, int8_file, capfd):
    calls = []
    found = verify(
        qat_cnn,
        int8_file,
        images[0],
        samples=40,
        layers=True,
        progress=lambda *args: calls.append(args),
    )
    assert calls[-1] == ("verify", 40, 40)
    assert capfd.readouterr() == ("", "")  # LiteRT's chatter is kept back.
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["passed"] is True
    assert plain["outputs"][0]["keras"]["max_lsb"] <= 1.001
    assert {"layer", "op", "sqnr_db", "input_sqnr_db"} <= set(plain["layers"][0])
    target = io.StringIO()
    found.render(Console(file=target, width=100))
    assert "passed: at most 1 LSB, or an SQNR of 30 dB" in target.getvalue()
    assert "pointwise" in str(found)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((0, 12, 12, 3)), "empty"),
        (np.full((2, 12, 12, 3), np.nan), "NaN"),
        (np.zeros((2, 10, 12, 3)), "shape"),
    ],
)
def test_bad_data(qat_cnn, int8_file, data, message):
    with pytest.raises(ValueError, match=message):
        verify(qat_cnn, int8_file, data)


def test_file_of_another_model(identity, qat_cnn, two_outputs, int8_file, tmp_path, images):
    with pytest.raises(ValueError, match=r"input 'image' .* shape .*made from this model"):
        verify(identity, int8_file, SQUARE)
    with pytest.raises(ValueError, match=r"2 input\(s\), the model 1"):
        verify(identity, two_outputs[1], SQUARE)
    inputs = keras.Input((2,), name="point")
    wider = keras.Model(inputs, layers.Dense(3)(inputs))
    convert(identity, tmp_path / "model.tflite", precision="float32")
    with pytest.raises(ValueError, match=r"output 'same' .*shape \(2,\).* \(3,\)"):
        verify(wider, tmp_path / "model.tflite", SQUARE)
    several = keras.Model(inputs, [layers.Dense(2)(inputs), layers.Dense(2)(inputs)])
    with pytest.raises(ValueError, match=r"1 output\(s\), the model 2"):
        verify(several, tmp_path / "model.tflite", SQUARE)


def test_bad_files_and_arguments(identity, int8_file, tmp_path):
    with pytest.raises(ValueError, match="no file at"):
        verify(identity, tmp_path / "missing.tflite", SQUARE)
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(int8_file.read_bytes()[:5000])
    with pytest.raises(ValueError, match="damaged"):
        verify(identity, broken, SQUARE)
    with pytest.raises(ValueError, match="tolerance"):
        verify(identity, int8_file, SQUARE, tolerance=-1)
    with pytest.raises(TypeError, match=r"keras\.Model"):
        verify(42, int8_file, SQUARE)


def test_a_model_that_gives_nan_is_told(identity, tmp_path):
    convert(identity, tmp_path / "model.tflite", precision="float32")
    broken = keras.models.clone_model(identity)
    broken.set_weights([np.full((2, 2), np.nan, np.float32)])
    with pytest.raises(ValueError, match="NaN"):
        verify(broken, tmp_path / "model.tflite", SQUARE)
    # A file that gives NaN fails.
    bad = tmp_path / "bad.tflite"
    edit(tmp_path / "model.tflite", bad, "same", lambda w: w * np.float32(np.nan))
    found = verify(identity, bad, SQUARE)
    assert not found.passed
    assert found.to_dict()["outputs"][0]["keras"]["max_lsb"] is None
