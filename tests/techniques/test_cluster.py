"""Cluster as pure functions: its values, gradients, states and settings."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from cluster_models import RANDOM
from keras import ops

from tfcompress import Cluster
from tfcompress.layers.compressed import tensors


def gradients(cluster, weight, upstream=None):
    """Effective weight, and gradients of weight and of centroids for a known upstream one."""
    state = cluster.update(weight, cluster.initial_state(ops.convert_to_tensor(weight)), 0)
    weight = tf.constant(weight)
    upstream = tf.ones_like(weight) if upstream is None else tf.constant(upstream)
    with tf.GradientTape() as tape:
        tape.watch([weight, state["centroids"]])
        loss = tf.reduce_sum(cluster.apply(weight, state) * upstream)
    return cluster.apply(weight, state), tape.gradient(loss, [weight, state["centroids"]]), state


@pytest.mark.parametrize(("gradient", "expected"), [("sum", [8.0, 8.0]), ("mean", [1.0, 1.0])])
def test_gradients_by_hand(gradient, expected):
    weight = np.array([0.1, 0.9] * 8, "float32").reshape(4, 4)
    cluster = Cluster(2, init="linear", gradient=gradient)
    effective, (of_weight, of_centroids), _ = gradients(cluster, weight)
    np.testing.assert_array_equal(effective, weight)
    np.testing.assert_array_equal(of_weight, np.ones((4, 4)))
    np.testing.assert_allclose(np.ravel(of_centroids), expected)


@pytest.mark.parametrize("per_channel", [False, True])
def test_gradients_of_any_upstream(per_channel):
    weight = RANDOM.normal(size=(3, 3, 5, 4)).astype("float32")
    upstream = RANDOM.normal(size=weight.shape).astype("float32")
    channels = (3,) if per_channel else ()
    cluster = Cluster(6, gradient="sum", per_channel=per_channel, channels=channels)
    effective, (of_weight, of_centroids), state = gradients(cluster, weight, upstream)
    np.testing.assert_array_equal(of_weight, upstream)
    index = np.array(state["indices"]).astype(int)
    table, sums = np.array(state["centroids"]), np.zeros((6, 4 if per_channel else 1))
    for place in np.ndindex(weight.shape):
        column = place[3] if per_channel else 0
        assert effective[place] == table[index[place] - 1, column]
        sums[index[place] - 1, column] += upstream[place]
    np.testing.assert_allclose(of_centroids, sums, rtol=1e-5, atol=1e-5)
    mean = Cluster(6, gradient="mean", per_channel=per_channel, channels=channels)
    counts = np.maximum(np.array([(index == i + 1).sum((0, 1, 2)) for i in range(6)]), 1)
    counts = (
        counts
        if per_channel
        else np.maximum(np.array([[(index == i + 1).sum()] for i in range(6)]), 1)
    )
    np.testing.assert_allclose(
        gradients(mean, weight, upstream)[1][1], sums / counts, rtol=1e-5, atol=1e-5
    )


def test_each_weight_takes_the_nearest():
    weight = RANDOM.normal(size=(20, 30)).astype("float32")
    effective, _, state = gradients(Cluster(7), weight)
    table = np.array(state["centroids"]).ravel()
    best = np.abs(weight[..., None] - table).min(-1)
    np.testing.assert_allclose(np.abs(weight - effective), best, atol=1e-6)


@pytest.mark.parametrize("clusters", [255, 256, 300])
def test_many_clusters(clusters):
    weight = RANDOM.normal(size=(40, 50)).astype("float32")
    cluster = Cluster(clusters, init="linear")
    state = cluster.update(weight, cluster.initial_state(ops.convert_to_tensor(weight)), 0)
    effective = np.array(cluster.apply(tf.constant(weight), state))
    assert len(np.unique(effective)) <= clusters
    step = (weight.max() - weight.min()) / (clusters - 1)
    assert np.abs(effective - weight).max() <= step / 2 * 1.001
    zeros = np.where(np.abs(weight) < 0.5, 0, weight)
    cluster = Cluster(clusters, init="linear", keep_zeros=True, follows=True)
    state = cluster.update(zeros, cluster.initial_state(ops.convert_to_tensor(zeros)), 0)
    effective = np.array(cluster.apply(tf.constant(zeros), state))
    np.testing.assert_array_equal(effective == 0, zeros == 0)
    assert len(np.unique(effective)) <= clusters


def test_states_are_those_of_pure_functions():
    weight = RANDOM.normal(size=(6, 4)).astype("float32")
    cluster = Cluster(4, begin=3)
    state = cluster.initial_state(ops.convert_to_tensor(weight))
    assert cluster.update(weight, state, 2) is state
    np.testing.assert_array_equal(cluster.apply(tf.constant(weight), state), weight)
    new = cluster.update(weight, state, 3)
    again = cluster.update(weight, state, 3)
    for name in new:
        np.testing.assert_array_equal(new[name], again[name])
    assert {name: value.dtype for name, value in new.items()} == {
        name: value.dtype for name, value in tensors(state).items()
    }


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: Cluster(1), "clusters must be 2 to 65535; received 1"),
        (lambda: Cluster(16.0), "clusters must be 2 to 65535"),
        (lambda: Cluster(70000), "received 70000"),
        (lambda: Cluster(8, init="kmeans"), "init must be one of kmeans"),
        (lambda: Cluster(8, begin=-1), "begin must be 0 or more optimizer steps"),
        (lambda: Cluster(8, begin=1.5), "begin must be a whole number of optimizer steps"),
        (lambda: Cluster(8, frequency=0), "frequency must be 1 or more optimizer steps"),
        (lambda: Cluster(8, frequency=2.5), "frequency must be a whole number of optimizer"),
        (lambda: Cluster(129, target="microcontroller"), "128 or fewer with target='microc.*129"),
        (lambda: Cluster(8, target="web"), "target must be None or 'microcontroller'"),
        (lambda: Cluster(8, gradient="avg"), "gradient must be 'mean' or 'sum'"),
    ],
)
def test_errors(make_it, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make_it()


def test_whole_numbers_of_numpy():
    cluster = Cluster(np.int64(16), begin=np.int32(5), frequency=np.uint8(3))
    assert cluster == Cluster(16, begin=5, frequency=3)
    assert {type(x) for x in (cluster.clusters, cluster.begin, cluster.frequency)} == {int}


def test_config_round_trip():
    cluster = Cluster(8, init="density", per_channel=True, begin=3, gradient="sum", seed=2)
    load, serialize = keras.saving.deserialize_keras_object, keras.saving.serialize_keras_object
    assert load(serialize(cluster)) == cluster


def test_tables_of_a_target_are_one_for_each_scale():
    dense, conv = keras.layers.Dense(4), keras.layers.Conv2D(4, 3)
    dense.build((None, 6))
    conv.build((None, 8, 8, 2))
    for target, of_dense in ((None, (1,)), ("microcontroller", ())):
        cluster = Cluster(8, per_channel=True, target=target)
        assert cluster.bind(dense, "kernel").channels == of_dense
        assert cluster.bind(conv, "kernel").channels == (3,)
