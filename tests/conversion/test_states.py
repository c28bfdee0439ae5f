"""Files of step models: states have one scale, as they come in and as they go out."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.export.microcontroller.c_array import examine
from tfcompress.surgery.streams.stream import Stream


def recurrent():
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((16, 5), name="sound")
    x = layers.Conv1D(6, 3, padding="causal", activation="relu")(x)
    x = layers.SimpleRNN(5, return_sequences=True)(layers.LSTM(4, return_sequences=True)(x))
    x = layers.Dense(3, activation="softmax", name="word")(layers.GRU(6)(x))
    return keras.Model(inputs, x)


def sound(frames=60):
    return np.random.default_rng(0).normal(size=(1, frames, 5)).astype("float32")


@pytest.fixture(scope="module")
def step():
    return tfc.streaming(recurrent())


def require_one_scale(stream):
    runner = stream._runs.runner
    taken = {port.name: (port.scale, port.zero_point, port.dtype) for port in runner.inputs}
    states = [port for port in runner.outputs if port.name.endswith("_state_out")]
    assert len(states) == 5
    for port in states:
        assert (port.scale, port.zero_point, port.dtype) == taken[port.name.removesuffix("_out")]


@pytest.mark.parametrize(
    ("precision", "io_dtype", "most"),
    [("int8", "int8", 0.03), pytest.param("int16x8", "int16", 0.01, marks=pytest.mark.slow)],
)
def test_calibrated_states_have_one_scale(step, tmp_path, precision, io_dtype, most):
    x = sound()
    samples = Stream(step).samples(x)
    path = tmp_path / "step.tflite"
    made = {"precision": precision, "io_dtype": io_dtype, "calibration": samples}
    assert tfc.convert(step, path, **made).float_ops == []
    stream = Stream(path)
    require_one_scale(stream)
    expected = np.concatenate(list(Stream(step).run(x)))
    np.testing.assert_allclose(np.concatenate(list(stream.run(x))), expected, atol=most)


@pytest.mark.slow
def test_trained_states_have_one_scale(step, tmp_path):
    x = sound(24)
    rows = list(Stream(step).samples(x))
    data = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    qat = tfc.quantize_aware(step)
    qat(data, training=True)  # which observes ranges
    path = tmp_path / "step.tflite"
    assert tfc.convert(qat, path, precision="int8", io_dtype="int8").float_ops == []
    stream = Stream(path)
    require_one_scale(stream)
    simulated = np.concatenate(list(Stream(qat).run(x)))
    steps = np.abs(np.concatenate(list(stream.run(x))) - simulated) * 256
    assert steps.max() <= 2


def test_a_file_keeps_variables_by_itself(step, tmp_path):
    x = sound(30)
    kept = tfc.streaming(recurrent(), states="variables")
    expected = np.concatenate(list(Stream(step).run(x)))
    np.testing.assert_array_equal(np.concatenate(list(Stream(kept).run(x))), expected)
    files = []
    for model, name, io_dtype in ((step, "io", "int8"), (kept, "kept", "float32")):
        made = {"precision": "int8", "io_dtype": io_dtype}
        made["calibration"] = Stream(model).samples(x)
        report = tfc.convert(model, tmp_path / f"{name}.tflite", **made)
        assert report.float_ops == []
        files.append(Stream(tmp_path / f"{name}.tflite"))
    io, variables = files
    content = (tmp_path / "kept.tflite").read_bytes()
    assert examine(content, "step", "a file").variables == 5
    # The frames alone come as floats.
    found = tfc.inspect(tmp_path / "kept.tflite")
    floats = {t.index for t in found.tensors if t.subgraph == 0 and t.dtype == "float32"}
    main = [op for op in found.operators if op.subgraph == 0]
    assert [op.name for op in main if floats.intersection(op.inputs)] == ["QUANTIZE"]
    assert variables.states == {}
    assert [port.name for port in variables._runs.runner.inputs] == ["sound"]
    first = np.concatenate(list(variables.run(x)))
    np.testing.assert_array_equal(first, np.concatenate(list(io.run(x))))
    variables.reset()
    np.testing.assert_array_equal(np.concatenate(list(variables.run(x))), first)


def test_an_output_that_is_a_state_stays_one(tmp_path):
    x = keras.Input((8, 5), name="sound")
    kept = tfc.streaming(keras.Model(x, layers.SimpleRNN(3, name="cells")(x)), states="variables")
    tfc.convert(kept, tmp_path / "kept.tflite", precision="float32")
    frames = sound(8)
    made, expected = (
        np.concatenate(list(Stream(m).run(frames))) for m in (tmp_path / "kept.tflite", kept)
    )
    np.testing.assert_allclose(made, expected, atol=1e-6)
