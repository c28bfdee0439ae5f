"""factorize with data: nothing of that rank changes the outputs less."""

import re
import warnings

import keras
import numpy as np
import pytest
from factor_models import normal, of_layer, samples
from keras import layers

from tfcompress.surgery.factors.factorize import factorize


def linear(layer, shape, x, columns):
    """The outputs of a layer without bias, as rows."""
    model = of_layer(layer, *shape)
    return model, model.predict(x, verbose=0).astype("float64").reshape(-1, columns)


CASES = {
    "dense": (lambda: layers.Dense(12, use_bias=False, name="x"), (20,), 12),
    "wide": (lambda: layers.Dense(40, use_bias=False, name="x"), (5, 20), 40),
    "same": (lambda: layers.Conv2D(9, 3, 2, "same", use_bias=False, name="x"), (8, 8, 3), 9),
    "valid": (lambda: layers.Conv2D(9, 3, use_bias=False, name="x"), (8, 8, 3), 9),
    "causal": (
        lambda: layers.Conv1D(9, 3, padding="causal", use_bias=False, name="x"),
        (9, 4),
        9,
    ),
    "query": (lambda: layers.EinsumDense("abc,cde->abde", (None, 3, 4), name="x"), (5, 20), 12),
    "output": (lambda: layers.EinsumDense("abcd,cde->abe", (None, 7), name="x"), (5, 2, 8), 7),
    "dots": (lambda: layers.EinsumDense("...x,xy->...y", 7, name="x"), (5, 8), 7),
}


def correlated(count, shape):
    random = np.random.default_rng(7)
    x = random.normal(size=(count, *shape))
    mixed = x @ (random.normal(size=(shape[-1], shape[-1])) * np.arange(1, shape[-1] + 1))
    return np.cumsum(mixed, axis=1).astype("float32")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rank", [1, 3])
def test_the_outputs_change_the_least_that_a_rank_allows(case, rank):
    build, shape, columns = CASES[case]
    x = correlated(70, shape)  # which is not a whole number of batches
    model, y = linear(build(), shape, x, columns)
    errors = {}
    for name, data in (("plain", None), ("weighted", x)):
        new = factorize(model, rank=rank, data=data, allow_larger=True)
        z = new.predict(x, verbose=0).astype("float64").reshape(-1, columns)
        errors[name] = np.sum((y - z) ** 2)
    best = np.sum(np.linalg.svd(y, compute_uv=False)[rank:] ** 2)
    # All outputs count the same, up to the noise of the gradients that tell so.
    assert errors["weighted"] == pytest.approx(best, rel=4e-2)
    assert errors["weighted"] < errors["plain"]
    found = re.search(r"([\d.]+)% of its energy on the data$", new.surgery_report.changes[0].detail)
    assert found is not None
    assert float(found[1]) == pytest.approx(100 * (1 - best / np.sum(y**2)), abs=2)


def test_bias_and_activation_do_not_count():
    x = correlated(64, (20,))
    model = of_layer(layers.Dense(12, activation="relu", name="x"), 20)
    new = factorize(model, rank=2, data=x, allow_larger=True)
    kernel = model.get_weights()[0].astype("float64")
    left, right, bias = new.get_weights()
    y = x.astype("float64") @ kernel
    best = np.sum(np.linalg.svd(y - y.mean(0), compute_uv=False)[2:] ** 2)
    z = x @ left @ right + bias - model.get_weights()[1]  # the bias makes up for what is left out
    assert np.sum((y - z) ** 2) == pytest.approx(best, rel=3e-2)


def test_what_the_outputs_do_not_see_is_left_out():
    """Of four directions of equal energy, rank 2 keeps those that the next layer reads."""
    x = keras.Input((4,))
    y = layers.Dense(4, use_bias=False, name="x")(x)
    model = keras.Model(x, layers.Dense(2, use_bias=False, name="y")(y))
    model.get_layer("x").kernel.assign(np.diag([1.2, 1.1, 1.0, 0.9]))
    model.get_layer("y").kernel.assign(np.eye(4)[:, 2:])
    data = normal(200, 4)
    new = factorize(model, rank=2, layers="x", data=data, allow_larger=True)
    left, right = new.get_layer("x_in").kernel, new.get_layer("x").kernel
    assert np.allclose((left @ right)[:, 2:], np.diag([1.2, 1.1, 1.0, 0.9])[:, 2:], atol=0.02)
    assert np.allclose(new(data), model(data), atol=0.05)
    assert factorize(model, rank=2, layers="x", allow_larger=True)(data).shape == (200, 2)


def test_a_cut_that_costs_much_is_told_with_what_keeps_more():
    x = keras.Input((32,))
    y = layers.Dense(32, use_bias=False, name="x")(x)
    model = keras.Model(x, layers.Dense(32, use_bias=False, name="y")(y))
    for layer in model.layers[1:]:
        layer.kernel.assign(np.linalg.qr(normal(32, 32))[0])  # no direction is more than another
    with pytest.warns(
        UserWarning, match=r"prune_channels\(model, params=0.5\) often keeps"
    ) as found:
        factorize(model, params=0.5, data=normal(64, 32))
    texts = [re.search(r"by (\d+)% of their variance", str(each.message)) for each in found]
    assert 40 < max(float(text[1]) for text in texts if text) < 90  # of each, three quarters go
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "on the data the outputs")
        factorize(model, params=0.5, data=normal(64, 2) @ normal(2, 32))


def test_normalization_gets_what_it_is_given_now():
    x = keras.Input((20,))
    y = layers.Dense(12, use_bias=False, name="x")(x)
    norm = layers.BatchNormalization(name="norm")
    model = keras.Model(x, norm(y))
    data = correlated(64, (20,)) + 3
    y = model(data, training=True)
    products = np.asarray(keras.Model(x, model.get_layer("x").output)(data))
    norm.moving_mean.assign(products.mean(0) + 1)  # of other data
    norm.moving_variance.assign(products.var(0) * 4)
    new = factorize(model, rank=2, layers="x", data=data)
    now = np.asarray(keras.Model(new.inputs[0], new.get_layer("x").output)(data))
    found = new.get_layer("norm")
    assert np.allclose(found.moving_mean, now.mean(0) + 1, atol=1e-3 * np.abs(now).max())
    assert np.allclose(found.moving_variance, now.var(0) * 4, rtol=1e-3)
    few = factorize(model, rank=2, layers="x", data=data[:9]).get_layer("norm")
    assert np.array_equal(few.moving_mean, norm.moving_mean)


def test_tokens_count_as_often_as_they_occur():
    x = keras.Input((9,), dtype="int32")
    model = keras.Model(x, layers.Embedding(30, 8, name="tokens")(x))
    model.layers[1].embeddings.assign(normal(30, 8))
    often = (np.random.default_rng(0).random((64, 9)) ** 3 * 30).astype("int32")
    new = factorize(model, rank=2, data=often, allow_larger=True)
    left, right = new.get_weights()
    y = normal(30, 8).astype("float64")[often.ravel()]
    best = np.sum(np.linalg.svd(y, compute_uv=False)[2:] ** 2)
    assert np.sum((y - (left @ right)[often.ravel()]) ** 2) == pytest.approx(best, rel=1e-3)


def test_few_samples_leave_what_they_do_not_tell_to_the_kernel():
    model = of_layer(layers.Dense(12, name="x"), 20)
    x = samples(model, 3)
    new = factorize(model, rank=3, data=x)
    assert np.allclose(new.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-4)
    whole = factorize(model, rank=12, data=x, allow_larger=True)
    other = normal(50, 20, seed=9)
    assert np.allclose(whole.predict(other, verbose=0), model.predict(other, verbose=0), atol=1e-4)


def test_all_calls_of_a_shared_layer_count():
    shared = layers.Dense(8, use_bias=False, name="shared")
    a, b = keras.Input((8,), name="a"), keras.Input((3, 8), name="b")
    model = keras.Model({"a": a, "b": b}, [shared(a), shared(b)])
    x = {"a": normal(40, 8), "b": correlated(40, (3, 8))}
    new = factorize(model, rank=2, data=x)
    y = [part.reshape(-1, 8).astype("float64") for part in model.predict(x, verbose=0)]
    z = [part.reshape(-1, 8) for part in new.predict(x, verbose=0)]
    best = np.sum(np.linalg.svd(np.concatenate(y), compute_uv=False)[2:] ** 2)
    assert np.sum((np.concatenate(y) - np.concatenate(z)) ** 2) == pytest.approx(best, rel=4e-2)


def test_data_comes_in_every_form_and_no_more_of_it_is_read_than_asked():
    import tensorflow as tf

    model = of_layer(layers.Dense(12, name="x"), 20)
    x = correlated(64, (20,))
    read = []

    def generator():
        for row in x:
            read.append(row)
            yield row[None]

    labels = np.zeros(64)
    wanted = factorize(model, rank=2, data=x[:10]).get_weights()
    forms = [x[:10], generator(), tf.data.Dataset.from_tensor_slices((x, labels)).batch(7).repeat()]
    for data in forms:
        found = factorize(model, rank=2, data=data, samples=10).get_weights()
        assert np.allclose(found[0] @ found[1], wanted[0] @ wanted[1], atol=1e-5)
    assert len(read) == 10


def test_budgets_count_what_the_data_needs():
    x = inputs = keras.Input((32,))
    for name in ("first", "second"):
        x = layers.Dense(32, use_bias=False, name=name)(x)
    model = keras.Model(inputs, x)
    # The data lies in four directions, which the second layer then reads alone.
    data = normal(100, 4) @ normal(4, 32)
    new = factorize(model, macs=0.26, data=data)
    assert new.get_layer("first_in").units == 4
    assert new.get_layer("second_in").units == 4
    assert np.allclose(new.predict(data, verbose=0), model.predict(data, verbose=0), atol=1e-3)
