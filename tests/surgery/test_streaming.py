"""Step models from `streaming`, frame by frame against the window model."""

import keras
import numpy as np
import pytest
from keras import layers
from refusals import refused

import tfcompress as tfc
from tfcompress.surgery.streams.stream import _File

FRAMES = 24


def random_weights(model, seed=0):
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        values = rng.normal(0.0, 0.4, weight.shape)
        weight.assign(np.abs(values) + 0.5 if "variance" in weight.path else values)
    return model


def sound(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=(1, *shape)).astype("float32")


def tcn(x):
    x = layers.Conv1D(6, 3, padding="causal", activation="relu")(x)
    x = layers.BatchNormalization()(x)
    x = layers.Conv1D(6, 3, padding="causal", dilation_rate=2)(x)
    return layers.LayerNormalization()(layers.PReLU(shared_axes=[1])(x))


def valid(x):
    x = layers.BatchNormalization()(layers.Conv1D(6, 3, activation="relu")(x))
    x = layers.MaxPooling1D(2)(layers.DepthwiseConv1D(2)(x))
    return layers.AveragePooling1D(3, strides=1)(layers.SeparableConv1D(4, 3)(x))


def branches(x):
    y = layers.Conv1D(5, 3)(x)
    y = layers.Add()([y, layers.Cropping1D((2, 0))(x)])
    y = layers.Concatenate()([y, layers.Cropping1D((1, 1))(x)])
    return layers.Subtract()([y[:, 1:], y[:, :-1]])


def padded(x):
    y = layers.ZeroPadding1D((3, 0))(layers.Reshape((FRAMES, 5, 1))(x)[:, :, :, 0])
    return layers.Conv1D(4, 4, strides=2)(y)


def operations(x):
    x = keras.ops.pad(keras.ops.flip(x, axis=2), [[0, 0], [2, 0], [0, 1]])
    x = layers.Conv1D(4, 3)(x)
    cells = [layers.GRUCell(3), layers.LSTMCell(4)]
    return layers.RNN(cells, return_sequences=True)(x)


def remembering(x):
    x = layers.GRU(4, return_sequences=True)(layers.Conv1D(5, 3)(x))
    return layers.Conv1D(5, 3, padding="causal")(x)


def images(x):
    x = layers.Reshape((FRAMES, 5, 1))(x)
    x = layers.Conv2D(4, (1, 3), padding="same")(x)
    x = layers.DepthwiseConv2D((3, 3))(layers.ZeroPadding2D(((2, 0), (1, 1)))(x))
    x = layers.Permute((2, 1, 3))(x)
    return keras.ops.mean(x, axis=1)


def made(function, frames=FRAMES):
    x = keras.Input((frames, 5), name="sound")
    return random_weights(keras.Model(x, function(x), name="net"))


@pytest.mark.parametrize(
    ("function", "chunk", "delay"),
    [
        (tcn, 1, 0),
        (tcn, 4, 0),
        (valid, 2, 12),
        (valid, 4, 12),
        (branches, 1, 3),
        (branches, 3, 3),
        (padded, 2, 0),
        (operations, 6, 0),
        (remembering, 1, 2),
        (remembering, 3, 3),
        (images, 2, 0),
    ],
)
def test_a_sequence_comes_frame_by_frame(function, chunk, delay):
    model = made(function)
    step = tfc.streaming(model, chunk)
    assert list(step.stream_report.delays.values()) == [delay]
    x = sound(FRAMES, 5)
    offline = np.asarray(model(x))
    online = np.concatenate(list(tfc.Stream(step).run(x)), axis=1)
    late = delay * online.shape[1] // FRAMES
    count = min(online.shape[1] - late, offline.shape[1])
    assert count > 3
    np.testing.assert_allclose(online[:, late:][:, :count], offline[:, :count], atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU, layers.SimpleRNN])
def test_the_state_of_a_recurrent_layer_goes_on(kind, chunk):
    model = made(lambda x: layers.Dense(3)(kind(4)(kind(6, return_sequences=True)(x))))
    x = sound(FRAMES, 5)
    step = tfc.streaming(model, chunk)
    *_, last = tfc.Stream(step).run(x)
    np.testing.assert_allclose(last, np.asarray(model(x)), atol=1e-6)
    names = [x.name for x in keras.tree.flatten(step._inputs_struct)]
    assert all(f"{n}_out" in step._outputs_struct for n in names if n.endswith("_state"))


def classifier(frames=13):
    x = inputs = keras.Input((frames, 6, 1), name="sound")
    x = layers.Conv2D(4, (4, 3), strides=(2, 1), use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, padding="valid")(layers.ZeroPadding2D(((0, 0), (1, 1)))(x))
    x = layers.GlobalAveragePooling2D(name="pool")(layers.ReLU()(layers.Conv2D(6, 1)(x)))
    return random_weights(
        keras.Model(inputs, layers.Dense(3, activation="softmax", name="word")(x))
    )


def windows_of(x, length, step, report):
    """(call, window) of those windows of a stream that are whole in it."""
    (reach,) = report.delays.values()
    for call in range(x.shape[1] // step):
        start = (call + 1) * step - reach
        if start >= 0 and start + length <= x.shape[1]:
            yield call, x[:, start : start + length]


def test_a_window_slides(tmp_path):
    model = classifier()
    step = tfc.streaming(model, 2, windows="pool")
    assert step.stream_report.states["pool_window_state"] == (2, 4, 6)
    step.save(tmp_path / "step.keras")
    x = sound(40, 6, 1)
    online = list(tfc.Stream(tmp_path / "step.keras").run(x))
    pairs = list(windows_of(x, 13, 2, step.stream_report))
    assert len(pairs) == 14
    for call, window in pairs:
        np.testing.assert_allclose(online[call], np.asarray(model(window)), atol=1e-6)


@pytest.fixture(scope="module")
def trained():
    """A trained classifier for integers, its step model, and both files."""
    qat = tfc.quantize_aware(classifier())
    qat.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    qat.fit(sound(64, 13, 6, 1)[0], np.arange(64) % 3, verbose=0)
    return qat, tfc.streaming(qat, 2, windows="pool")


def test_a_step_model_rounds_what_the_window_model_rounds(trained):
    qat, step = trained
    x = sound(800, 6, 1)
    online = list(tfc.Stream(step).run(x))
    calls, windows = zip(*windows_of(x, 13, 2, step.stream_report), strict=True)
    expected = np.asarray(qat(np.concatenate(windows), training=False))
    np.testing.assert_array_equal(np.concatenate([online[i] for i in calls]), expected)


def test_a_file_of_a_step_gives_what_that_of_the_window_gives(trained, tmp_path):
    qat, step = trained
    for model, name in ((qat, "window"), (step, "step")):
        report = tfc.convert(model, tmp_path / f"{name}.tflite", precision="int8", io_dtype="int8")
        assert report.float_ops == []
    x = sound(40, 6, 1)
    stream = tfc.Stream(tmp_path / "step.tflite")
    online = list(stream.run(x))
    ports = {p.name: (p.scale, p.zero_point) for p in stream._runs.runner.inputs}
    for port in stream._runs.runner.outputs:
        if port.name.endswith("_out"):
            assert (port.scale, port.zero_point) == ports[port.name.removesuffix("_out")]
    runs = _File(tmp_path / "window.tflite")
    for call, window in windows_of(x, 13, 2, step.stream_report):
        np.testing.assert_array_equal(online[call], runs.run({"sound": window})["word"])


@pytest.mark.parametrize(
    ("kind", "states", "names"),
    [
        (layers.LSTM, "variables", {"conv_variable"}),
        pytest.param(layers.GRU, "io", {"conv_state", "cells_state"}, marks=pytest.mark.slow),
    ],
)
def test_recurrent_layers_of_integers(kind, states, names, tmp_path):
    def net(x):
        x = layers.Conv1D(4, 3, padding="causal", activation="relu", name="conv")(x)
        return layers.Dense(3, activation="softmax", name="word")(kind(6, name="cells")(x))

    qat = tfc.quantize_aware(made(net, 4))
    x = sound(4, 5)
    qat(x, training=True)
    step = tfc.streaming(qat, 2, states=states)
    assert set(step.stream_report.states) == names
    step.save(tmp_path / "step.keras")
    for model, name in ((qat, "window"), (step, "step")):
        report = tfc.convert(model, tmp_path / f"{name}.tflite", precision="int8", io_dtype="int8")
        assert report.float_ops == []
    offline = _File(tmp_path / "window.tflite").run({"sound": x})["word"]
    np.testing.assert_array_equal(offline, np.asarray(qat(x)))
    for file in ("step.keras", "step.tflite"):
        stream = tfc.Stream(tmp_path / file)
        for _ in range(2):
            *_, last = stream.run(x)
            np.testing.assert_array_equal(last, offline)
            stream.reset()


def translator():
    """What an encoder heard, said by a decoder that remembers little of it."""
    keras.utils.set_random_seed(0)
    heard, said = keras.Input((5, 3), name="heard"), keras.Input((4, 3), name="said")
    *_, h, c = layers.LSTM(6, return_state=True, name="encoder")(heard)
    y = layers.LSTM(6, return_sequences=True, name="decoder")(said, initial_state=[h, c])
    model = keras.Model([heard, said], layers.Dense(3, name="next")(y), name="translator")
    model.get_layer("decoder").cell.bias.assign(np.repeat([0, -2, 0, 0], 6))
    return model


@pytest.mark.parametrize("integers", [False, True])
def test_a_decoder_begins_where_an_encoder_ends(integers, tmp_path):
    frames = np.random.default_rng(0).normal(size=(4, 9, 3)).astype("float32")
    model, x = translator(), [frames[:, :5], frames[:, 5:]]
    if integers:
        model = tfc.quantize_aware(model)
        model(x, training=True)
        tfc.convert(model, tmp_path / "whole.tflite", precision="int8", io_dtype="int8")
        assert tfc.verify(model, tmp_path / "whole.tflite", x).outputs[0].keras.max_lsb < 0.01
    front, rest, _ = tfc.split(model, "encoder")
    assert [tuple(y.shape) for y in front.outputs] == [(None, 6), (None, 6)]
    step = tfc.streaming(rest)
    names = [f"decoder_{what}_state" for what in ("01" if integers else "hc")]
    assert list(step.stream_report.states) == names
    begins = dict(zip(names, map(np.asarray, front(x[0])), strict=True))
    stream, wanted = tfc.Stream(step, 4), np.asarray(model(x))
    stream.reset(begins)
    found = np.concatenate([*stream.run(x[1])], axis=1)
    np.testing.assert_allclose(found, wanted, atol=0 if integers else 1e-6)
    seen = {"calibration": tfc.Stream(step).samples(x[1], states=begins)}
    path = tmp_path / "decoder.tflite"
    report = tfc.convert(step, path, precision="int8", **({} if integers else seen))
    assert report.float_ops == []
    stream = tfc.Stream(path)
    stream.reset({name: value[:1] for name, value in begins.items()})
    online = np.concatenate([*stream.run(x[1][:1])], axis=1)
    np.testing.assert_allclose(online, wanted[:1], atol=0.02)
    refused("states must be of", lambda: stream.reset({"decoder_state": np.zeros((1, 6))}))
    refused("pass states='io'", lambda: tfc.streaming(rest, states="variables"))


def test_what_looks_ahead_is_named_with_ways_out_that_work():
    def ahead(x):
        x = layers.Conv1D(6, 3, padding="same", name="conv")(x)
        x = layers.Bidirectional(layers.LSTM(3, return_sequences=True), name="both")(x)
        return layers.Dense(2)(layers.Flatten(name="flat")(x))

    model = made(ahead)
    with pytest.raises(ValueError, match="'net' cannot take a stream") as caught:
        tfc.streaming(model)
    for told in ("'conv' (Conv1D) pads", "'both' (Bidirectional) runs backwards", "'flat'"):
        assert told in str(caught.value)
    step = tfc.streaming(model, 12, windows=["conv", "both", "flat"])
    x = sound(FRAMES, 5)
    *_, last = tfc.Stream(step).run(x)
    np.testing.assert_allclose(last, np.asarray(model(x)), atol=1e-6)


def test_what_keeps_nothing_has_no_states():
    model = made(lambda x: layers.LayerNormalization()(layers.Dense(4, activation="relu")(x)))
    x = sound(FRAMES, 5)
    online = np.concatenate(list(tfc.Stream(tfc.streaming(model, 6)).run(x)), axis=1)
    np.testing.assert_allclose(online, np.asarray(model(x)), atol=1e-6)


def test_what_is_refused():
    model = made(valid)
    refused("multiple of 2", lambda: tfc.streaming(model, 1))
    refused("1 or more; received 0", lambda: tfc.streaming(model, 0))
    refused("1 to 2", lambda: tfc.streaming(model, axis=3))
    refused(r"'pol\*' matches none", lambda: tfc.streaming(model, 2, windows="pol*"))
    refused("one step already", lambda: tfc.streaming(tfc.streaming(model, 2)))
    unknown = made(lambda x: layers.GlobalMaxPooling1D()(x), None)
    lstm = tfc.quantize_aware(made(lambda x: layers.LSTM(3, name="cells")(x)))
    late = made(remembering)
    refused("begins with call 3", lambda: tfc.streaming(late, states="variables"))
    refused("'io' or 'variables'; received 'x'", lambda: tfc.streaming(late, states="x"))
    refused("'cells' .*pass states='variables'", lambda: tfc.streaming(lstm))
    refused("no known length", lambda: tfc.streaming(unknown, windows="*"))
    begun = made(lambda x: layers.GRU(3, name="cells")(x, initial_state=np.ones((1, 3))))
    refused("'cells' .*begins with states that the model computes", lambda: tfc.streaming(begun))
    refused("must have states", lambda: tfc.Stream(model))
    stream = tfc.Stream(tfc.streaming(model, 2))
    refused(r"\(1, 2, 5\)", lambda: stream(np.zeros((1, 3, 5))))
