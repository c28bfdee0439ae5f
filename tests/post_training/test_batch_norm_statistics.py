"""reestimate_batch_norm against NumPy, on plain, masked and compressed models."""

import keras
import numpy as np
import pytest
from graph_models import difference, normal, seeded, shake
from keras import layers

import tfcompress as tfc
from tfcompress.post_training import reestimate_batch_norm

__all__ = ["seeded"]


def two_norms():
    x = keras.Input((5, 4, 2), name="image")
    y = layers.Conv2D(3, 2, use_bias=False, name="conv")(x)
    y = layers.ReLU()(layers.BatchNormalization(name="first")(y))
    y = layers.DepthwiseConv2D(2, name="depthwise")(y)
    y = layers.BatchNormalization(name="second")(y)
    return shake(keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling2D()(y))))


def statistics_of(values):
    flat = values.reshape(-1, values.shape[-1]).astype("float64")
    return flat.mean(0), flat.var(0)


def test_statistics_are_those_of_all_samples_layer_by_layer():
    model, x = two_norms(), 3.0 + normal(11, 5, 4, 2)
    before = [np.array(w) for w in model.weights]
    new = reestimate_batch_norm(model, x, batch_size=4)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.weights, strict=True))
    for name in ("first", "second"):  # the second sees what the corrected first gives
        norm = new.get_layer(name)
        given = np.array(keras.Model(new.input, norm.input)(x))
        mean, variance = statistics_of(given)
        np.testing.assert_allclose(norm.moving_mean, mean, rtol=1e-5)
        np.testing.assert_allclose(norm.moving_variance, variance, rtol=1e-4)
    # Now inference normalizes this data as one batch of training does.
    assert difference(new(x, training=False), new(x, training=True)) < 1e-4
    report = new.correction_report
    assert [change.layer for change in report.changes] == ["first", "second"]
    assert "mean and variance of 132 values a channel" in str(report)
    taken = reestimate_batch_norm(model, iter([x[:4], x[4:]]), samples=4)
    same = reestimate_batch_norm(model, x[:4])
    np.testing.assert_array_equal(*(m.get_layer("first").moving_mean for m in (taken, same)))


def test_masked_values_are_left_out():
    x = keras.Input((4, 2))
    y = layers.BatchNormalization(name="norm")(layers.Masking()(x))
    data = normal(3, 4, 2)
    data[:, 2:] = 0.0
    norm = reestimate_batch_norm(keras.Model(x, y), data).get_layer("norm")
    mean, variance = statistics_of(data[:, :2])
    np.testing.assert_allclose(norm.moving_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, variance, rtol=1e-5)


def test_channels_first_and_what_stays():
    x = keras.Input((3, 4))
    shared = layers.BatchNormalization(name="shared")
    y = layers.BatchNormalization(axis=1, name="first")(x)
    y = layers.Add()([shared(y), shared(2.0 * y)])
    y = layers.BatchNormalization(name="batch")(y, training=True)
    data = 2.0 + normal(6, 3, 4)
    new = reestimate_batch_norm(keras.Model(x, y), data)
    np.testing.assert_allclose(new.get_layer("first").moving_mean, data.mean((0, 2)), rtol=1e-5)
    kept = {change.layer: change.detail for change in new.correction_report.kept}
    assert kept == {
        "shared": "is called 2 times",
        "batch": "normalizes by the statistics of each batch",
    }
    np.testing.assert_array_equal(new.get_layer("shared").moving_mean, np.zeros(4))


@pytest.mark.slow
def test_a_compressed_model_keeps_its_techniques():
    model = tfc.quantize_aware(two_norms())
    x = 3.0 + normal(8, 5, 4, 2)
    new = reestimate_batch_norm(model, x)
    assert [type(a) for a in new.layers] == [type(b) for b in model.layers]
    names = [change.layer for change in new.correction_report.changes]
    assert names == ["first", "second"]
    given = np.array(keras.Model(new.input, new.get_layer("second").input)(x, training=False))
    mean, _ = statistics_of(given)
    np.testing.assert_allclose(new.get_layer("second").layer.moving_mean, mean, rtol=1e-4)


def test_bad_input():
    with pytest.raises(ValueError, match="batch_size must be a whole number"):
        reestimate_batch_norm(two_norms(), normal(2, 5, 4, 2), batch_size=0)
    with pytest.raises(TypeError, match=r"keras\.saving\.load_model"):
        reestimate_batch_norm("model.keras", normal(2, 5, 4, 2))
    with pytest.raises(ValueError, match="NaN or infinite"):
        reestimate_batch_norm(two_norms(), np.full((2, 5, 4, 2), np.nan))
