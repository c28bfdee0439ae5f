"""What tells of an architecture before it is trained, against what is computed by hand."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.search.architecture.proxies import (
    PROXIES,
    gradient_norm,
    macs,
    naswot,
    params,
    synflow,
)

A = np.array([[1.0, -2.0], [0.5, 3.0], [-1.0, 1.0]], "float32")
B = np.array([[2.0], [-1.0]], "float32")
X = np.array([[1.0, 2.0, 3.0], [-1.0, 0.5, 2.0], [0.0, -1.0, 1.0]], "float32")
Y = np.array([[1.0], [0.0], [-2.0]], "float32")


def linear(activation=None, last=None):
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(2, use_bias=False, activation=activation),
            layers.Dense(1, use_bias=False, activation=last),
        ]
    )
    model.set_weights([A, B])
    return model


def test_synflow_is_each_path_once_for_each_weight_on_it():
    # R = 1' |A| |B|; each of two layers gives R.
    whole = np.abs(A).sum(0) @ np.abs(B)[:, 0]
    assert synflow(linear(), (X, Y)) == pytest.approx(2 * whole)
    assert synflow(linear(last="sigmoid"), (X, Y)) == pytest.approx(2 * whole)


def test_synflow_takes_normalizations_for_their_scale():
    inputs = keras.Input((3,))
    x = layers.BatchNormalization()(layers.Dense(2, use_bias=False)(inputs))
    model = keras.Model(inputs, layers.Softmax()(x))
    gamma, beta, mean, variance = (
        np.array(v, "float32") for v in ([2, -3], [0, 0], [7, 7], [9, 9])
    )
    model.set_weights([A, gamma, beta, mean, variance])
    whole = np.abs(A).sum(0) @ np.abs(gamma)
    assert synflow(model, (X, Y)) == pytest.approx(2 * whole, rel=1e-5)


def test_gradient_norm_of_a_linear_net():
    error = 2 * (X @ A @ B - Y) / len(X)
    by_a, by_b = X.T @ error @ B.T, (X @ A).T @ error
    expected = np.linalg.norm(by_a) + np.linalg.norm(by_b)
    assert gradient_norm(linear(), (X, Y), "mse") == pytest.approx(expected, rel=1e-5)
    compiled = linear()
    compiled.compile(loss="mse")
    assert gradient_norm(compiled, (X, Y)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="loss"):
        gradient_norm(linear(), (X, Y))


def test_naswot_counts_units_in_which_samples_agree():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, layers.ReLU()(layers.Dense(2, use_bias=False)(inputs)))
    model.set_weights([np.eye(2)])
    # Codes 10 and 11 agree in one of two units: det [[2, 1], [1, 2]] = 3.
    apart = np.array([[1.0, -1.0], [1.0, 1.0]])
    assert naswot(model, (apart, None)) == pytest.approx(np.log(3))
    with pytest.raises(ValueError, match=r"has none.*synflow"):
        naswot(linear(), (X, Y))


def test_costs_as_proxies():
    assert macs(linear(), (X, Y)) == 3 * 2 + 2
    assert params(linear(), (X, Y)) == 8


@pytest.mark.parametrize("name", PROXIES)
def test_the_model_stays_as_it_is(name):
    model = linear("relu")
    model.compile(loss="mse")
    first = PROXIES[name](model, (X, Y))
    assert PROXIES[name](model, (X, Y)) == first
    assert all(map(np.array_equal, model.get_weights(), [A, B]))
    assert model.layers[-1].activation is keras.activations.linear
