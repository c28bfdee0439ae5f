"""From a float file with known ranges to an integer one."""

import tracemalloc

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.conversion import float_files, observation
from tfcompress.conversion.grids import find_grid
from tfcompress.tflite import flatbuffer


def on_grid(shape, axis, bits, kind, seed=0):
    """Random weights on a symmetric grid that use its largest code in every channel."""
    random = np.random.default_rng(seed)
    levels = 2 ** (bits - 1) - 1
    codes = np.moveaxis(random.integers(-levels, levels + 1, shape), axis, 0)
    codes.reshape(len(codes), -1)[:, 0] = levels
    codes = np.moveaxis(codes, 0, axis)
    size = [shape[axis] if i == axis else 1 for i in range(len(shape))]
    scale = random.uniform(0.01, 0.1, size) if kind == "c" else 0.037
    return (codes * scale).astype("float32")


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", ["t", "c"])
@pytest.mark.parametrize(("shape", "axis"), [((5, 7), 0), ((6, 3, 3, 4), 0), ((1, 3, 3, 9), 3)])
def test_find_grid(bits, kind, shape, axis):
    assert find_grid(on_grid(shape, axis, bits, kind), axis, [2, 4, 8])[:2] == (bits, kind)


def test_find_grid_of_a_large_float_weight_takes_little_memory():
    random = np.random.default_rng(0).normal(size=(2, 5000)).astype("float32")
    tracemalloc.start()
    assert find_grid(random, 0, [16]) is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_find_grid_of_special_weights():
    random = np.random.default_rng(0).normal(size=(5, 40)).astype("float32")
    assert find_grid(random, 0, [4, 8]) is None
    assert find_grid(np.zeros((3, 4), "float32"), 0, [4, 8])[:2] == (4, "t")
    assert find_grid(on_grid((5, 7), 0, 8, "t"), 0, [4]) is None
    dead = on_grid((5, 7), 0, 8, "c")
    dead[2] = 0.0  # a channel that is all zeros is on any grid
    assert find_grid(dead, 0, [4, 8])[:2] == (8, "c")
    scaled = on_grid((5, 7), 0, 8, "c") * np.array([-3, 1e-6, 1, 1e4, 7])[:, None]
    assert find_grid(scaled.astype("float32"), 0, [4, 8])[:2] == (8, "c")  # as a folded norm does


def run(path, **values):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path))
    runner.allocate_tensors()
    return runner.get_signature_runner("serve")(**values)


def features(count=64, size=6, seed=0):
    return np.random.default_rng(seed).normal(size=(count, size)).astype("float32")


def trained(outputs, inputs, data, **settings):
    qat = tfc.quantize_aware(keras.Model(inputs, outputs), **settings)
    qat(data, training=True)
    return qat


def weights_of(path, op: str) -> np.ndarray:
    found = tfc.inspect(path)
    model = flatbuffer.read(path.read_bytes())
    index = next(o for o in found.operators if o.name == op).inputs[1]
    tensor = model.subgraphs[0].tensors[index]
    codes = np.asarray(model.buffers[tensor.buffer].data, np.uint8).view(np.int8)
    scale = np.asarray(tensor.quantization.scale).reshape(-1, 1)
    return codes.reshape(tensor.shape) * scale


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_trained_weights_are_stored_exactly(bits, tmp_path):
    inputs = keras.Input((6,), name="x")
    qat = trained(layers.Dense(5, name="d")(inputs), inputs, features(), bits=bits)
    tfc.convert(qat, tmp_path / "model.tflite", precision="int8")
    layer = qat.get_layer("d")
    expected = np.asarray(layer.effective(layer.layer.kernel)).T
    stored = weights_of(tmp_path / "model.tflite", "FULLY_CONNECTED")
    np.testing.assert_allclose(stored, expected, rtol=1e-5, atol=1e-7)


def test_weights_of_more_than_eight_bits_are_refused(tmp_path):
    inputs = keras.Input((6,), name="x")
    qat = trained(layers.Dense(5)(inputs), inputs, features(), bits=12)
    with pytest.raises(ValueError, match="weights of 8 bits or fewer; received bits=12"):
        tfc.convert(qat, tmp_path / "model.tflite", precision="int8")


def test_weights_trained_alone_keep_their_scale_in_int4(tmp_path):
    inputs = keras.Input((32,), name="x")
    outputs = layers.Dense(5)(layers.Dense(16, activation="relu")(inputs))
    for dense in ("per_tensor", "per_channel"):
        qat = tfc.quantize_aware(
            keras.Model(inputs, outputs), bits=4, activation_bits=None, dense=dense
        )
        path = tmp_path / "model.tflite"
        report = tfc.convert(qat, path, precision="int4")
        assert "int4" in {t.dtype for t in tfc.inspect(path).tensors}
        assert any("activations stay float" in note for note in report.notes)
        x = features(1, 32)
        (result,) = run(path, x=x).values()
        np.testing.assert_allclose(result, qat(x), atol=1e-5)


def test_weights_trained_alone_need_calibration_for_int8(tmp_path):
    inputs = keras.Input((6,), name="x")
    model = keras.Model(inputs, layers.Dense(5, name="d")(inputs))
    qat = tfc.quantize_aware(model, activation_bits=None)
    with pytest.raises(ValueError, match="received a model without them and no calibration"):
        tfc.convert(qat, tmp_path / "model.tflite", precision="int8")
    path = tmp_path / "model.tflite"
    report = tfc.convert(qat, path, precision="int8", calibration=features())
    assert report.float_ops == []
    layer = qat.get_layer("d")
    expected = np.asarray(layer.effective(layer.layer.kernel)).T
    np.testing.assert_allclose(weights_of(path, "FULLY_CONNECTED"), expected, rtol=1e-5, atol=1e-7)


def test_training_that_ended_before_quantization_is_refused(tmp_path):
    inputs = keras.Input((6,), name="x")
    qat = tfc.quantize_aware(keras.Model(inputs, layers.Dense(5)(inputs)), delay=10)
    qat.compile("sgd", "mse", jit_compile=False)
    qat.fit(
        features(), np.ones((64, 5)), verbose=0, batch_size=32, callbacks=[tfc.UpdateCompression()]
    )
    with pytest.raises(ValueError, match="begins at step 10; received a model trained for 2 steps"):
        tfc.convert(qat, tmp_path / "model.tflite", precision="int8")


def test_calibration_takes_in_the_extremes_of_all_samples():
    inputs = keras.Input((2,), name="x")
    model = keras.Model(inputs, layers.Dense(2, name="d")(inputs))
    parsed, _, _ = float_files.float_file(model)
    data = [{"x": np.full((1, 2), value, "float32")} for value in (0.1, 5.0, -3.0, 0.2)]
    found = observation.observe(parsed, flatbuffer.write(parsed), data, "min_max", early=True)
    assert found.ranges[parsed.subgraphs[0].inputs[0]] == (-3.0, 5.0)


@pytest.mark.parametrize("io_dtype", ["float32", "int8", "uint8"])
def test_outputs_that_are_read_given_twice_or_inputs(io_dtype, tmp_path):
    x = inputs = keras.Input((6,), name="x")
    hidden = layers.Dense(4, activation="relu", name="hidden")(x)
    last = layers.Dense(2, name="last")(hidden)
    qat = trained([last, hidden, x, last], inputs, features())
    path = tmp_path / "model.tflite"
    tfc.convert(qat, path, precision="int8", io_dtype=io_dtype)
    found = tfc.inspect(path)
    assert [t.name for t in found.outputs[:2]] == ["last", "hidden"]
    assert {t.dtype for t in (*found.inputs, *found.outputs)} == {io_dtype}
    if io_dtype == "float32":
        sample = features(1, seed=1)
        results = run(path, x=sample)
        for info, expected in zip(found.outputs, qat(sample), strict=True):
            assert np.abs(results[info.name] - np.asarray(expected)).max() < 0.04


def test_an_integer_edge_of_a_float_layer_is_refused(tmp_path):
    inputs = keras.Input((6,), name="x")
    outputs = layers.Dense(2, name="last")(layers.Dense(4)(inputs))
    qat = trained(outputs, inputs, features(), skip=["last"])
    tfc.convert(qat, tmp_path / "model.tflite", precision="int8")
    with pytest.raises(ValueError, match="output 'last' belongs to a layer that stays float"):
        tfc.convert(qat, tmp_path / "model.tflite", precision="int8", io_dtype="int8")


def test_a_float_branch_of_concatenate_is_not_clipped(tmp_path):
    x = inputs = keras.Input((6,), name="x")
    large = layers.Dense(3, name="large", kernel_initializer=keras.initializers.Constant(5))(x)
    small = layers.Dense(3, name="small", kernel_initializer=keras.initializers.Constant(0.1))(x)
    outputs = layers.Concatenate()([small, large])
    qat = trained(outputs, inputs, features(), skip=["large"])
    tfc.convert(qat, tmp_path / "model.tflite", precision="int8")
    x = features(1)
    (result,) = run(tmp_path / "model.tflite", x=x).values()
    step = 2 * np.abs(np.asarray(qat(features()))).max() / 255
    np.testing.assert_allclose(result, qat(x), atol=1.01 * step)


def test_an_embedding_beside_other_values_is_not_clipped(tmp_path):
    tokens = keras.Input((5,), dtype="int32", name="t")
    x = keras.Input((5, 4), name="x")
    rows = layers.Embedding(20, 4, embeddings_initializer="normal")(tokens)
    outputs = layers.Concatenate()([rows, layers.Dense(4, activation="relu")(x)])
    random = np.random.default_rng(0)
    data = [random.integers(0, 20, (32, 5)), 3 * features(160, 4).reshape(32, 5, 4)]
    qat = trained(outputs, [tokens, x], data)
    report = tfc.convert(qat, tmp_path / "model.tflite", precision="int8")
    assert report.float_ops == []
    step = np.ptp(np.asarray(qat(data))) / 255
    (result,) = run(
        tmp_path / "model.tflite", t=data[0][:1].astype("int32"), x=data[1][:1]
    ).values()
    expected = np.asarray(qat([v[:1] for v in data]))
    assert np.abs(result - expected).max() <= 1.1 * step


@pytest.mark.slow
def test_an_unread_gate_of_an_unrolled_lstm(tmp_path):
    inputs = keras.Input((3, 3), name="x")
    sequence = layers.LSTM(5, return_sequences=True, unroll=True)(inputs)
    x = np.random.default_rng(0).normal(size=(64, 3, 3)).astype("float32")
    qat = trained(layers.Dense(2)(sequence), inputs, x)
    tfc.convert(qat, tmp_path / "model.tflite")
    # On LiteRT's default kernels, too, which refuse a SPLIT into tensors of different types.
    assert tfc.verify(qat, tmp_path / "model.tflite", x[:16]).passed


def test_logits_that_vanish_do_not_end_litert(tmp_path):
    """Its softmax aborts the process at scales below 2^-26."""
    inputs = keras.Input((8,), name="x")
    logits = layers.Dense(6, kernel_initializer=keras.initializers.Constant(1e-9))(inputs)
    model = keras.Model(inputs, layers.Softmax()(layers.Reshape((3, 2))(logits)))
    path, x = tmp_path / "model.tflite", features(8, 8)
    tfc.convert(model, path, precision="int8", calibration=x)
    assert tfc.verify(model, path, x).passed
    (result,) = run(path, x=x[:1]).values()
    np.testing.assert_allclose(result, 0.5, atol=1 / 256)
