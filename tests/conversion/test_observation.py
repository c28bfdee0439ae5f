"""What observers make of the activations of a file, against those that Keras computes."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.post_training.observers import Histogram, activation_range
from tfcompress.techniques.scales import weight_scale
from tfcompress.tflite import flatbuffer

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 6, 6, 2)).astype("float32")
X[7] *= 10


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((6, 6, 2), name="x")
    x = layers.Conv2D(3, 3, activation="relu", name="conv")(x)
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.Flatten(name="flat")(x)
    x = layers.Concatenate(name="joined")(
        [layers.Dense(4, name="left")(x), layers.Dense(3, name="right")(x)]
    )
    return keras.Model(inputs, layers.Dense(5, name="out")(x))


def scales(path):
    """Scales of activations and of weights by the start of their tensors' names, and points."""
    graph = (parsed := flatbuffer.read(path.read_bytes())).subgraphs[0]
    made = {i: flatbuffer.op_name(parsed, op) for op in graph.operators for i in op.outputs}
    found = {}
    for index, tensor in enumerate(graph.tensors):
        values, points = flatbuffer.scales_of(tensor)
        if index in made and made[index] not in ("QUANTIZE", "DEQUANTIZE"):
            found.setdefault(made[index], []).append((values, points))
        elif index in graph.inputs:
            found["input"] = [(values, points)]
    return found


def expected(values, method):
    histogram = Histogram(min(0.0, values.min()), max(0.0, values.max())).add(values)
    return activation_range(histogram, method)


def test_ranges_are_those_of_the_values_that_keras_computes(model, tmp_path):
    path, method = tmp_path / "model.tflite", "kl"
    tfc.convert(model, path, calibration=X, io_dtype="int8", observer=method)
    found = scales(path)

    names = "conv", "joined", "out"
    every = keras.Model(model.inputs, [model.get_layer(name).output for name in names])
    conv, joined, out = every.predict(X, verbose=0)
    _, high = expected(conv, method)
    assert high < 0.6 * conv.max()
    np.testing.assert_allclose(found["CONV_2D"][0][0], [high / 255], rtol=2e-3)
    assert found["MAX_POOL_2D"] == found["RESHAPE"] == found["CONV_2D"]  # what is moved alone
    low, high = expected(joined, method)
    np.testing.assert_allclose(found["CONCATENATION"][0][0], [(high - low) / 255], rtol=2e-3)
    # Inputs and outputs keep all values.
    np.testing.assert_allclose(found["input"][0][0], [(X.max() - X.min()) / 255], rtol=1e-6)
    width = max(out.max(), 0) - min(out.min(), 0)
    np.testing.assert_allclose(found["FULLY_CONNECTED"][-1][0], [width / 255], rtol=1e-4)


def test_a_moving_average_weighs_the_latest_batch_by_a_twentieth(tmp_path):
    x = inputs = keras.Input((2,), name="x")
    x = layers.Dense(2, "relu", kernel_initializer="identity", name="hidden")(x)
    model = keras.Model(inputs, layers.Dense(1, name="out")(x))
    data = np.float32([[1, 0], [3, 0], [0, 5], [4, 4], [2, 2], [1, 1]])
    average = 1.0
    for most in data.max(axis=1)[1:]:
        average = 0.95 * average + 0.05 * most
    path = tmp_path / "model.tflite"
    tfc.convert(model, path, calibration=data, io_dtype="int8", observer="moving_average")
    found = scales(path)
    np.testing.assert_allclose(found["FULLY_CONNECTED"][0][0], [average / 255], rtol=1e-6)
    np.testing.assert_allclose(found["input"][0][0], [5 / 255], rtol=1e-6)
    tfc.convert(model, path, calibration=data, precision="int16x8", observer="moving_average")
    np.testing.assert_allclose(scales(path)["FULLY_CONNECTED"][0][0], [5 / 32767], rtol=1e-6)


@pytest.mark.parametrize(("method", "data"), [("mse", X), ("octav", None)])
def test_weights_get_the_scales_of_their_observer(model, method, data, tmp_path):
    path = tmp_path / "model.tflite"
    tfc.convert(model, path, precision="int4", calibration=data, weight_observer=method)
    tensors = flatbuffer.read(path.read_bytes()).subgraphs[0].tensors
    narrow = [tensor for tensor in tensors if flatbuffer.dtype_name(tensor) == "int4"]
    found = {tuple(t.shape): np.array(flatbuffer.scales_of(t)[0]) for t in narrow}
    kernel = model.get_layer("conv").kernel.numpy()
    np.testing.assert_allclose(
        found[3, 3, 3, 2], weight_scale(kernel, (0, 1, 2), 4, method).ravel(), rtol=1e-6
    )
    kernel = model.get_layer("out").kernel.numpy()
    np.testing.assert_allclose(
        found[5, 7], weight_scale(kernel, (0,), 4, method).ravel(), rtol=1e-6
    )


def test_observers_that_have_nothing_to_observe(model, tmp_path):
    path = tmp_path / "model.tflite"
    known = "min_max, moving_average, percentile, mse, kl, octav"
    with pytest.raises(ValueError, match=f"observer must be one of {known}; received 'max'"):
        tfc.convert(model, path, calibration=X, observer="max")
    with pytest.raises(ValueError, match="weight_observer must be one of max, mse, octav; rec"):
        tfc.convert(model, path, calibration=X, weight_observer="min_max")
    with pytest.raises(ValueError, match="precision must be int8, int16x8 or int4 with observer"):
        tfc.convert(model, path, precision="float16", observer="mse")
    with pytest.raises(ValueError, match=r"weight_observer='mse' without calibration data.* float"):
        tfc.convert(model, path, weight_observer="mse")
    qat = tfc.quantize_aware(model)
    qat(X, training=True)
    with pytest.raises(ValueError, match=r"observer='kl' without .*trained for quantization"):
        tfc.convert(qat, path, calibration=X, observer="kl")
    assert not list(tmp_path.iterdir())


def test_tensors_of_16_bits_are_not_clipped(model, tmp_path):
    path = tmp_path / "model.tflite"
    rules = {"conv": "int16x8", "left": "int8"}
    tfc.convert(model, path, calibration=X, precision=rules, observer="kl")
    conv = keras.Model(model.inputs, model.get_layer("conv").output).predict(X, verbose=0)
    found = scales(path)
    np.testing.assert_allclose(found["CONV_2D"][0][0], [conv.max() / 32767], rtol=1e-5)
