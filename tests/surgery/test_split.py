"""Models cut in two give together what they gave."""

import re

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc
from tfcompress.export.microcontroller.c_array import examine
from tfcompress.export.microcontroller.generation import generate

X = np.random.default_rng(0).normal(size=(3, 300)).astype("float32")


def make_listener():
    x = keras.Input((300,), name="sound")
    real, imaginary = ops.stft(x, 32, 16, 32)
    loud = ops.log(ops.square(real) + ops.square(imaginary) + 1e-3)
    y = layers.Conv1D(4, 3, activation="relu", name="first")(loud)
    y = layers.Add(name="sum")([y, layers.Conv1D(4, 3, name="beside")(loud)])
    return keras.Model(x, layers.Dense(2, name="head")(layers.Flatten()(y)), name="listener")


def test_a_model_is_split_after_its_front_end():
    model = make_listener()
    front, rest, hint = tfc.split(model)
    assert (front.name, rest.name) == ("listener_front", "listener_rest")
    assert front.weights == []
    assert [w.shape for w in rest.weights] == [w.shape for w in model.weights]
    np.testing.assert_allclose(rest(front(X)), model(X), atol=1e-6)
    assert "fft 32" in hint


def test_a_model_is_split_where_layers_are_named():
    model = make_listener()
    front, rest, hint = tfc.split(model, ["first", "beside"])
    assert hint == ""
    assert [x.name for x in rest.inputs] == ["first", "beside"]
    np.testing.assert_allclose(rest(front(X)), model(X), atol=1e-6)


def test_inputs_that_are_read_later_are_inputs_of_the_rest():
    model = make_listener()
    _, rest, _ = tfc.split(model, "first")
    assert [x.name for x in rest.inputs] == ["first", "sound"]


def test_a_split_model_trains_and_converts(tmp_path):
    model = make_listener()
    front, rest, _ = tfc.split(model)
    seen = np.asarray(front(X))
    report = tfc.convert(rest, tmp_path / "rest.tflite", io_dtype="int8", calibration=seen)
    assert report.float_ops == []
    tfc.convert(front, tmp_path / "front.tflite", precision="float32")
    qat = tfc.quantize_aware(rest)
    np.testing.assert_allclose(qat(seen), model(X), atol=0.5)


def test_hints_get_into_what_is_made_for_devices(tmp_path):
    front, rest, hint = tfc.split(make_listener())
    about = tfc.Metadata(inputs=[tfc.TensorMetadata("loudness", hint)])
    path, seen = tmp_path / "rest.tflite", np.asarray(front(X))
    tfc.convert(rest, path, io_dtype="int8", calibration=seen, metadata=about)
    data = path.read_bytes()
    header = generate(examine(data, "g_rest", "it"), data)["g_rest_settings.h"]
    assert "/* features of sound: frame 32, step 16, fft 32" in header
    assert "arm_rfft_fast_f32 of 32 values" in " ".join(re.sub(r"[*/]", "", header).split())
    tfc.android_project(path, tmp_path / "app", package="org.example.ear")
    assert hint in (tmp_path / "app" / "README.md").read_text()


def test_refusals():
    model = make_listener()
    with pytest.raises(ValueError, match="received 'frist'"):
        tfc.split(model, "frist")
    x = keras.Input((4,))
    plain = keras.Model(x, layers.Dense(2, name="only")(layers.Dense(3)(x)))
    with pytest.raises(ValueError, match=r"must have a front-end of sound.*split\(model, 'dense"):
        tfc.split(plain)
    with pytest.raises(ValueError, match="cut at its output"):
        tfc.split(plain, "only")
