"""What a conversion takes from a target, and what contradicts it."""

import json
from pathlib import Path

import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.conversion.settings import settle, settle_format
from tfcompress.tflite.inspect import inspect

TARGETS = Path(__file__).parents[2] / "tflite_targets"


def told(settings):
    return settings.precision, settings.io_dtype, settings.batch_size, settings.dense


def test_the_usual_without_a_target():
    assert told(settle()) == ("int8", "float32", 1, "per_channel")
    assert told(settle("int16x8", "int16", 4)) == ("int16x8", "int16", 4, "per_channel")


def test_edge_tpu_fills_in_what_was_not_said():
    assert told(settle(target="edge_tpu")) == ("int8", "int8", 1, "per_tensor")
    assert told(settle(io_dtype="uint8", target="edge_tpu")) == ("int8", "uint8", 1, "per_tensor")


def test_types_of_inputs_follow_the_precision_that_was_said():
    assert settle("int16x8", target="ethos_u55").io_dtype == "int16"
    assert settle("float16", target="mobile_cpu").io_dtype == "float32"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"precision": "float16"}, "'edge_tpu' takes precision 'int8'; received 'float16'"),
        ({"io_dtype": "float32"}, "takes io_dtype 'int8' or 'uint8'; received 'float32'"),
        ({"dense": "per_channel"}, "takes dense 'per_tensor'; received 'per_channel'"),
    ],
)
def test_what_contradicts_the_target(given, message):
    with pytest.raises(ValueError, match=message):
        settle(**given, target="edge_tpu")


def test_what_a_target_leaves_open_can_be_said():
    assert told(settle(batch_size=8, dense="per_channel", target="mobile_cpu"))[2:] == (
        8,
        "per_channel",
    )
    with pytest.raises(ValueError, match="takes batch_size 1; received 8"):
        settle(batch_size=8, target="mediapipe")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"precision": "int7"}, "precision must be one of float32, .*; received 'int7'"),
        ({"precision": "float16", "io_dtype": "int8"}, "io_dtype must be one of float32 with"),
        ({"batch_size": True}, "batch_size must be an integer of 1 or more; received True"),
        ({"dense": "per_row"}, "dense must be one of per_channel, per_tensor; received 'per_row'"),
        ({"target": "edgetpu"}, r"unknown target 'edgetpu'.*Did you mean 'edge_tpu'\?"),
    ],
)
def test_what_convert_does_not_take(given, message):
    with pytest.raises(ValueError, match=message):
        settle(**given)


def board(tmp_path, **changes):
    path = tmp_path / "board.json"
    path.write_text(json.dumps({"extends": "ethos_u55", "name": "board", **changes}))
    return path


def test_target_file_of_ones_own(tmp_path):
    path = board(tmp_path, io_dtypes=["int16"], precision="int16x8", shapes={"batch": 3})
    assert told(settle(target=path))[:3] == ("int16x8", "int16", 3)


def test_precision_that_no_io_dtype_of_the_target_fits(tmp_path):
    path = board(tmp_path, io_dtypes=["int16"], precision="int16x8")
    with pytest.raises(ValueError, match=r"'board' takes io_dtype 'int16'.*precision 'int8' has"):
        settle("int8", target=path)


@pytest.mark.parametrize(
    "given", [{"batch_size": 0}, {"io_dtype": ""}, {"dense": ""}, {"convolution": ""}]
)
def test_what_is_empty_was_said_all_the_same(given):
    ((name, value),) = given.items()
    with pytest.raises(ValueError, match=f"{name} must be .*; received {value!r}"):
        settle(**given)
    with pytest.raises(ValueError, match=f"{name} .*; received {value!r}"):
        settle(**given, target="mobile_cpu")


def dense_scales(path, name="FULLY_CONNECTED"):
    found = inspect(path)
    weights = {op.inputs[1] for op in found.operators if op.name == name}
    return [t.scale_count for t in found.tensors if t.index in weights]


def test_dense_per_tensor_has_one_scale_that_covers_the_largest_weight(float_cnn, images, tmp_path):
    path = tmp_path / "model.tflite"
    options = {"calibration": images[0][:32], "io_dtype": "int8"}
    tfc.convert(float_cnn, path, dense="per_tensor", **options)
    assert dense_scales(path) == [1]
    (weight,) = [t for t in inspect(path).tensors if t.dtype == "int8" and t.shape == (4, 16)]
    largest = np.abs(float_cnn.get_layer("kind").kernel.numpy()).max()
    np.testing.assert_allclose(weight.scale, largest / 127, rtol=1e-5)
    tfc.convert(float_cnn, path, **options)
    assert dense_scales(path) == [4]


def test_convolutions_per_tensor(float_cnn, images, tmp_path):
    path = tmp_path / "model.tflite"
    tfc.convert(float_cnn, path, calibration=images[0][:32], convolution="per_tensor")
    assert dense_scales(path, "CONV_2D") == [1, 1]
    assert dense_scales(path, "DEPTHWISE_CONV_2D") == [1]
    assert dense_scales(path) == [4]
    assert tfc.verify(float_cnn, path, images[0][:32]).outputs[0].keras.sqnr_db > 15


def test_ranges_that_a_user_fixes(float_cnn, images, tmp_path):
    path, data = tmp_path / "model.tflite", images[0][:32]
    ranges = {"image": (0, 2), "pointwise": (-1, 9)}
    report = tfc.convert(float_cnn, path, calibration=data, io_dtype="int8", ranges=ranges)
    assert report.float_ops == []
    found = inspect(path)
    assert found.inputs[0].scale == pytest.approx(2 / 255)
    assert found.inputs[0].zero_point == -128
    scales = {t.name: t.scale for t in found.tensors if t.dtype == "int8"}
    assert any(s == pytest.approx(10 / 255) for n, s in scales.items() if "pointwise" in n)
    assert tfc.verify(float_cnn, path, data).outputs[0].keras.sqnr_db > 15


def test_layers_that_stay_float(float_cnn, images, tmp_path):
    path, data = tmp_path / "model.tflite", images[0][:32]
    report = tfc.convert(float_cnn, path, calibration=data, skip=["pointwise", "depth*"])
    told = {(entry.op, entry.reason) for entry in report.float_ops}
    reason = "its layer was left out of quantization"
    assert told == {("CONV_2D", reason), ("DEPTHWISE_CONV_2D", reason)}
    quantized = tfc.verify(float_cnn, path, data).outputs[0].keras.sqnr_db
    tfc.convert(float_cnn, path, calibration=data, skip="*")
    assert tfc.verify(float_cnn, path, data).outputs[0].keras.sqnr_db > 80 > quantized > 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": "pontwise"}, "skip must name layers; received 'pontwise'.*'pointwise'"),
        ({"skip": "pointwise", "precision": "float32"}, "int4 with skip; received 'float32'"),
        ({"skip": "pointwise", "calibration": None}, "skip is for Keras models.*Pass calibration"),
        ({"ranges": {"imgae": (0, 1)}}, "inputs, outputs or layers; received 'imgae'.*'image'"),
        ({"ranges": {"image": (0.5, 1)}}, r"with 0 between; received \(0.5, 1\)"),
        ({"ranges": {"kind": (0, 2)}}, r"LiteRT fixes the range of 'kind' \(SOFTMAX\)"),
        (
            {"ranges": {"image": (0, 1)}, "precision": "float32"},
            "int4 with ranges; received 'float",
        ),
    ],
)
def test_ranges_that_cannot_be(options, message, float_cnn, images, tmp_path):
    with pytest.raises(ValueError, match=message):
        tfc.convert(
            float_cnn, tmp_path / "model.tflite", **{"calibration": images[0][:8], **options}
        )


def test_ranges_of_a_trained_model_are_its_own(qat_cnn, tmp_path):
    with pytest.raises(ValueError, match="received those of 'image' for a model that was trained"):
        tfc.convert(qat_cnn, tmp_path / "model.tflite", ranges={"image": (0, 1)})


def test_report_holds_the_check(qat_cnn, tmp_path):
    report = tfc.convert(qat_cnn, tmp_path / "model.tflite", target="edge_tpu")
    assert report.check.passed
    assert json.loads(json.dumps(report.to_dict()))["check"]["passed"] is True
    assert [t.dtype for t in inspect(report.path).inputs] == ["int8"]
    assert dense_scales(report.path) == [1]


def test_versions_are_lowered_for_the_edge_tpu_alone(images, tmp_path):
    import keras

    x = keras.Input((12, 12, 3))
    model = keras.Model(x, keras.layers.LeakyReLU()(keras.layers.Conv2D(4, 3)(x)))
    versions = {}
    for target in ("edge_tpu", "microcontroller"):
        path = tmp_path / f"{target}.tflite"
        tfc.convert(model, path, target=target, calibration=images[0][:8])
        versions[target] = {c.name: c.version for c in inspect(path).op_counts}
    assert versions["microcontroller"]["LEAKY_RELU"] == 2
    assert versions["edge_tpu"]["LEAKY_RELU"] == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"format": "onxx"}, r"unknown format 'onxx'; .*Did you mean 'onnx'\?"),
        ({"format": "onnx"}, r"expected a name that ends in \.onnx"),
        (
            {"format": "tflite", "path": "model.onnx"},
            r"the name '.*\.onnx' of another",
        ),
        ({"path": "model.onnx", "target": "web"}, r"target and metadata are for .tflite files"),
        ({"format": "onnx", "precision": "int4"}, "received precision 'int4' for ONNX; expected"),
        ({"format": "onnx", "target": "web"}, "target and metadata are for .tflite files"),
    ],
)
def test_formats_that_cannot_be(tmp_path, given, message):
    path = tmp_path / given.get("path", "model.tflite")
    with pytest.raises(ValueError, match=message):
        tfc.convert(None, **{**given, "path": path})
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "format"),
    [("m.onnx", "onnx"), ("m.xml", "openvino"), ("m.tflite", "tflite"), ("m", "tflite")],
)
def test_the_format_follows_the_name(tmp_path, name, format):
    assert settle_format(settle(), None, tmp_path / name, None) == format


@pytest.mark.parametrize("as_iterator", [False, True])
def test_other_formats_are_compared_on_the_calibration_if_it_is_still_there(
    float_cnn, images, tmp_path, monkeypatch, as_iterator
):
    from tfcompress.conversion import exchange

    received = {}

    def write(format, data, path, *, samples):
        received.update(samples=samples, data=data, format=format)
        return {"files": {"m.onnx": 3}, "compared": {"max LSB": 0}, "remark": ""}

    monkeypatch.setattr(exchange, "exchange", write)
    x = images[0][:4]
    given = iter([sample[None] for sample in x]) if as_iterator else x
    report = tfc.convert(float_cnn, tmp_path / "m.onnx", calibration=given)
    assert received["samples"] is (None if as_iterator else x)
    assert (received["data"][4:8], received["format"]) == (b"TFL3", "onnx")
    assert (report.format, report.exchanged["files"]) == ("onnx", {"m.onnx": 3})
    assert "onnx" in report.seconds
