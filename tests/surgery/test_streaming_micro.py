"""Step models on TFLite Micro: each call gives what LiteRT gives, with the states that it left."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.surgery.streams.stream import Stream
from tfcompress.tflite import flatbuffer, run
from tfcompress.tools.runtimes import arena_bytes, tflm_outputs

pytestmark = pytest.mark.slow


def ds_cnn():
    x = inputs = keras.Input((49, 10, 1), name="sound")
    x = layers.Conv2D(16, (10, 4), strides=(2, 2), use_bias=False)(x)
    for _ in range(2):
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.DepthwiseConv2D(3)(layers.ZeroPadding2D(((0, 0), (1, 1)))(x))
        x = layers.Conv2D(16, 1, use_bias=False)(layers.ReLU()(layers.BatchNormalization()(x)))
    x = layers.GlobalAveragePooling2D(name="pool")(layers.ReLU()(x))
    return keras.Model(inputs, layers.Dense(12, activation="softmax", name="word")(x))


def svdf():
    x = inputs = keras.Input((49, 40), name="sound")
    for _ in range(2):  # features of each frame, and each of them over time
        x = layers.DepthwiseConv1D(8, activation="relu")(layers.Dense(32)(x))
    return keras.Model(inputs, layers.Dense(4, activation="softmax", name="word")(x[:, -1]))


def tcn():
    x = inputs = keras.Input((48, 4), name="ecg")
    x = layers.Conv1D(16, 3, padding="causal", activation="relu")(x)
    for dilation in (1, 2, 4):
        y = layers.Conv1D(16, 3, padding="causal", dilation_rate=dilation, activation="relu")(x)
        x = layers.Add()([x, y])
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="beat")(x))


def calls(path, frames, chunk):
    """What each call of a file takes and gives, as codes in the order of its graph."""
    content = flatbuffer.load(path)
    parsed = flatbuffer.read(content)
    graph, (inputs, outputs) = parsed.subgraphs[0], run.ports(parsed)
    states = {p.name: p.quantize(np.zeros(p.shape)) for p in inputs if p.name.endswith("_state")}
    (sound,) = (p for p in inputs if p.name not in states)
    loaded, given, made = run.Loaded(content, run.REFERENCE), [], []
    for start in range(0, frames.shape[1] - chunk + 1, chunk):
        values = {**states, sound.name: sound.quantize(frames[:, start : start + chunk])}
        given.append({p.index: values[p.name] for p in inputs})
        wanted = [int(index) for index in graph.outputs]
        made.append(dict(zip(wanted, loaded.run(given[-1], wanted), strict=True)))
        for port in outputs:
            if port.name.removesuffix("_out") in states:
                states[port.name.removesuffix("_out")] = made[-1][port.index]
    rows = [[row[int(i)] for i in graph.inputs] for row in given]
    return content, rows, [[row[int(i)] for i in graph.outputs] for row in made]


def most_apart(ours, theirs):
    """The most steps between what two runtimes gave."""
    flat = zip(
        (x for call in ours for x in call), (x for call in theirs for x in call), strict=True
    )
    return max(int(np.abs(np.int32(a) - b).max()) for a, b in flat)


@pytest.mark.parametrize(
    ("make", "chunk", "windows", "macs"),
    [(ds_cnn, 2, "pool", 1.1), (svdf, 1, (), 1.1), (tcn, 1, (), 1.0)],
)
def test_trained_over_windows(make, chunk, windows, macs, tmp_path):
    keras.utils.set_random_seed(0)
    model = make()
    x = np.random.default_rng(0).normal(size=(32, *model.inputs[0].shape[1:])).astype("float32")
    qat = tfc.quantize_aware(model)
    qat(x, training=True)
    step = tfc.streaming(qat, chunk, windows=windows)
    cost, share = step.stream_report.macs
    assert cost <= macs * share
    for each, name in ((qat, "window"), (step, "step")):
        tfc.convert(each, tmp_path / f"{name}.tflite", precision="int8", io_dtype="int8")
    window = flatbuffer.load(tmp_path / "window.tflite")
    offline = run.Runner(flatbuffer.read(window), window, "window", reference=False)
    frames = x[:3].reshape(1, -1, *x.shape[2:])
    online = list(Stream(tmp_path / "step.tflite").run(frames))
    ((name, delay),) = step.stream_report.delays.items()
    length = x.shape[1]
    if name in step.stream_report.windows:
        for call, given in enumerate(online):
            start = (call + 1) * chunk - delay
            if 0 <= start <= frames.shape[1] - length:
                part = {offline.inputs[0].name: frames[:, start : start + length]}
                np.testing.assert_array_equal(given, offline.run(part)[0])
    else:
        (whole,) = offline.run({offline.inputs[0].name: frames[:, :length]})
        np.testing.assert_array_equal(np.concatenate(online, axis=1)[:, :length], whole)
    content, rows, made = calls(tmp_path / "step.tflite", frames, chunk)
    # A step is between their roundings of Dense layers.
    assert most_apart(made, tflm_outputs(content, rows)) <= (make is svdf)
    # States take room twice, as they come and as they go; frames in between once.
    assert arena_bytes(content) <= 1.2 * arena_bytes(window)


@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU])
def test_recurrent_layers(kind, tmp_path):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((20, 10), name="sound")
    x = kind(16)(kind(16, return_sequences=True)(x))
    model = keras.Model(inputs, layers.Dense(4, activation="softmax", name="word")(x))
    step = tfc.streaming(model)
    frames = np.random.default_rng(0).normal(size=(1, 100, 10)).astype("float32")
    path = tmp_path / "step.tflite"
    samples = Stream(step).samples(frames)
    tfc.convert(step, path, precision="int8", io_dtype="int8", calibration=samples)
    expected = np.concatenate(list(Stream(step).run(frames)))
    np.testing.assert_allclose(np.concatenate([*Stream(path).run(frames)]), expected, atol=0.03)
    content, rows, made = calls(path, frames, 1)
    # Dense layers that differ by a step, twice, in front of gates of smaller steps.
    assert most_apart(made, tflm_outputs(content, rows)) <= 3


@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU])
def test_recurrent_layers_trained_over_windows(kind, tmp_path):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((20, 10), name="sound")
    x = kind(16)(kind(16, return_sequences=True)(x))
    qat = tfc.quantize_aware(keras.Model(inputs, layers.Dense(4, activation="softmax")(x)))
    frames = np.random.default_rng(0).normal(size=(1, 60, 10)).astype("float32")
    qat(frames[:, :20], training=True)
    # LSTMs keep their states in the operator.
    step = tfc.streaming(qat, states="variables")
    path = tmp_path / "step.tflite"
    tfc.convert(step, path, precision="int8", io_dtype="int8")
    content = flatbuffer.load(path)
    (sound,), (scores,) = run.ports(flatbuffer.read(content))
    rows = [[sound.quantize(frames[:, time : time + 1])] for time in range(60)]
    made = [scores.dequantize(given[0]) for given in tflm_outputs(content, rows)]
    simulated = np.concatenate(list(Stream(step).run(frames)))
    assert np.abs(np.concatenate(made) - simulated).max() * 256 <= 1
