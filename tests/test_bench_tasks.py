"""What all tasks of the benchmark have in common."""

import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.bench.tasks import TASKS


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("glyphs", (10, 78_666, 12_501_632)),
        ("keywords", (12, 24_908, 2_656_768)),
        ("wake_vision", (2, 221_794, 7_489_664)),
        ("anomaly", (0, 269_992, 264_192)),
    ],
)
def test_the_model_is_the_published_one(name, published):
    """That of MLPerf Tiny: classes, parameters, MACs."""
    import keras
    import tf_keras

    task = TASKS[name]
    assert task.published == published
    classes, parameters, macs = published
    model, twin = task.build(keras, classes), task.build(tf_keras, classes)
    assert model.count_params() == twin.count_params() == parameters
    assert tfc.profile(model).macs == macs
    random = np.random.default_rng(0)
    # Statistics that are not those of an untrained BatchNormalization.
    weights = [
        random.uniform(0.5, 1.5, array.shape) if array.ndim == 1 else array
        for array in model.get_weights()
    ]
    model.set_weights(weights)
    twin.set_weights(weights)
    x = random.uniform(0, 1, (4, *model.input_shape[1:])).astype("float32")
    expected = np.asarray(model(x, training=False))
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(np.asarray(twin(x, training=False)), expected, atol=1e-5, rtol=1e-5)
