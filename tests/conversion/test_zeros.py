"""Activations and channels that are 0 all along, and numbers far smaller than those before them."""

import keras
import numpy as np
import pytest
from conftest import run_tflite
from float_files import float_model
from keras import layers

import tfcompress as tfc
from tfcompress.conversion.kernel_limits import widen_products
from tfcompress.conversion.ranges import Range, with_zero

X = np.random.default_rng(0).normal(size=(24, 6)).astype("float32")
IMAGES = np.random.default_rng(1).normal(size=(24, 6, 6, 3)).astype("float32")


def dead(kind, *given, at=-100.0):
    return kind(*given, activation="relu", bias_initializer=keras.initializers.Constant(at))


def dead_dense(x):
    return layers.Dense(2, bias_initializer="ones")(dead(layers.Dense, 6)(x))


def dead_convolution(x):
    return layers.Dense(2)(layers.GlobalAveragePooling2D()(dead(layers.Conv2D, 4, 3)(x)))


def dead_between(x):
    y = dead(layers.Dense, 6)(x)
    return layers.Dense(2)(layers.Concatenate()([layers.Add()([y, x]), layers.Multiply()([y, x])]))


def nearly_dead(x):
    """Of 1e-6, a thousandth of what rounding the inputs makes."""
    layer = layers.Dense(4, activation="relu")
    y = layer(x)
    kernel = layer.get_weights()[0]
    layer.set_weights([kernel, 1e-6 - (X @ kernel).max(axis=0)])
    return y


def with_bias(layer):
    """Gives a layer a channel of zeros whose bias is 3."""
    kernel, bias = layer.get_weights()
    kernel[..., 1], bias[1] = 0.0, 3.0
    layer.set_weights([kernel, bias])


def zero_channel(x):
    layer = layers.Conv2D(4, 3)
    y = layer(x)
    with_bias(layer)
    return y


def zero_kernel(x):
    return layers.Dense(4, kernel_initializer="zeros", bias_initializer="ones")(x)


CASES = {
    "dense": (dead_dense, X),
    "large": (lambda x: dead(layers.Dense, 3, at=-1e8)(x), 1e6 * X),
    "convolution": (dead_convolution, IMAGES),
    "between": (dead_between, X),
    "nearly": (nearly_dead, X),
    "zero inputs": (dead_dense, 0 * X),
    "small inputs": (lambda x: layers.Dense(3, bias_initializer="ones")(x), 1e-8 * X),
    "channel": (zero_channel, IMAGES),
    "kernel": (zero_kernel, X),
}


@pytest.mark.parametrize("name", CASES)
def test_files_give_what_keras_does(name, tmp_path):
    make, data = CASES[name]
    keras.utils.set_random_seed(0)
    inputs = keras.Input(data.shape[1:])
    model = keras.Model(inputs, make(inputs))
    path = tmp_path / "model.tflite"
    tfc.convert(model, path, calibration=data)
    wanted = model.predict(data, verbose=0)
    # Two hundredths of what there is, or what the inputs' own steps leave of the smallest.
    atol = 0.02 * np.abs(wanted).max() + 1e-4
    for reference in (True, False):
        np.testing.assert_allclose(run_tflite(path, data[:6], reference), wanted[:6], atol=atol)


def test_a_trained_channel_of_zeros_keeps_its_bias(tmp_path):
    keras.utils.set_random_seed(0)
    inputs, layer = keras.Input((6, 6, 3)), layers.Conv2D(4, 3)
    model = keras.Model(inputs, layer(inputs))
    with_bias(layer)
    trained = tfc.quantize_aware(model)
    trained.compile(keras.optimizers.SGD(0.0), "mse")
    trained.fit(IMAGES, np.zeros((24, 4, 4, 4), "float32"), verbose=0)
    path = tmp_path / "model.tflite"
    tfc.convert(trained, path)
    wanted = trained.predict(IMAGES[:4], verbose=0)
    np.testing.assert_array_equal(run_tflite(path, IMAGES[:4]), wanted)
    np.testing.assert_allclose(wanted[..., 1], 3.0, atol=0.1)


def test_the_range_of_zeros():
    assert with_zero(0.0, 0.0) == Range(0.0, 1.0)
    assert with_zero(-2.0, -1.0) == Range(-2.0, 0.0)
    assert with_zero(0.0, 1e-9) == Range(0.0, 1e-6)


def test_a_product_gets_a_range_of_a_step_times_the_greatest_weight():
    model = float_model(lambda x: x @ np.full((4, 2), -3.0, "float32"), (1, 4))
    graph = model.subgraphs[0]
    source, made = graph.inputs[0], graph.outputs[0]
    known = {source: Range(-1.0, 1.55), made: Range(-1e-4, 1e-4)}
    widen_products(model, known)
    assert known[made].maximum - known[made].minimum == pytest.approx(0.03)
    known[made] = Range(-0.1, 0.1)
    widen_products(model, known)
    assert known[made] == Range(-0.1, 0.1)
