"""Cluster in training: updates, zeros of pruning, saving, and what finalize leaves."""

from itertools import pairwise

import keras
import numpy as np
import pytest
from cluster_models import X, fit, kernels, make, state_of, wrapped
from keras import layers, ops
from pruning_models import in_layers

import tfcompress as tfc
from tfcompress import Cluster, schedules


@pytest.mark.parametrize(
    ("init", "per_channel"),
    [
        ("kmeans++", False),
        ("linear", True),
        *(
            pytest.param(init, per_channel, marks=pytest.mark.slow)
            for init in ("density", "random")
            for per_channel in (False, True)
        ),
    ],
)
def test_finalize_leaves_so_many_values(init, per_channel):
    cluster = Cluster(5, init=init, per_channel=per_channel, frequency=3)
    model = fit(make(cluster, run_eagerly=False), 12)
    for kernel in kernels(model):
        columns = kernel.reshape(-1, kernel.shape[-1]).T if per_channel else [kernel]
        assert {len(np.unique(column)) for column in columns} <= {1, 2, 3, 4, 5}
        assert max(len(np.unique(column)) for column in columns) > 2
    if per_channel:
        assert len(np.unique(kernels(model)[0])) > 5
    np.testing.assert_array_equal(tfc.finalize(model)(X), model(X))


def test_per_channel_without_bias():
    model = fit(make(Cluster(3, per_channel=True), use_bias=False), 4)
    assert {len(np.unique(c)) for c in kernels(model)[0].reshape(-1, 8).T} == {3}


def test_centroids_are_trained_and_weights_move_on():
    model = make(Cluster(4, frequency=1000))
    fit(model, 1)
    before = {name: np.array(value) for name, value in state_of(model).items()}
    kernel = np.array(wrapped(model)[0].layer.kernel)
    fit(model, 8)
    after = state_of(model)
    assert (np.array(after["centroids"]) != before["centroids"]).all()
    np.testing.assert_array_equal(after["indices"], before["indices"])
    assert (np.array(wrapped(model)[0].layer.kernel) != kernel).mean() > 0.9
    # The index is chosen anew at the next update.
    model = fit(make(Cluster(4, frequency=8)), 8)
    target = wrapped(model)[0].bound[0]
    effective = wrapped(model)[0].effective(target.variable)
    table = np.array(target.states[0]["centroids"]).ravel()
    best = np.abs(np.array(target.variable)[..., None] - table).min(-1)
    np.testing.assert_allclose(np.abs(target.variable - effective), best, atol=1e-6)


def test_updates_come_at_the_frequency():
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(np.array(state_of(self.model)["indices"]))

    fit(make(Cluster(16, begin=3, frequency=4)), 16, callbacks=[Watch()])
    changed = [i + 2 for i, (a, b) in enumerate(pairwise(seen)) if (a != b).any()]
    assert changed == [3, 7, 11, 15]


@pytest.mark.slow
def test_weights_are_free_until_clustering_begins():
    model = fit(make(Cluster(4, begin=6)), 5)
    wrapper = wrapped(model)[0]
    np.testing.assert_array_equal(wrapper.effective(wrapper.layer.kernel), wrapper.layer.kernel)
    plain = fit(make(Cluster(4, begin=10**6)), 5)
    np.testing.assert_array_equal(wrapped(plain)[0].layer.kernel, wrapper.layer.kernel)
    fit(model, 1)
    assert len(np.unique(wrapper.effective(wrapper.layer.kernel))) == 4


PRUNES = [
    in_layers(schedules.polynomial(0.2, 0.75, end=12, frequency=4)),
    in_layers(schedules.linear(0.0, 0.7, begin=2, end=9, frequency=2), scope="global"),
    in_layers(pattern="2:4"),
    in_layers(0.5),
    in_layers(0.5, pattern="filters"),
    in_layers(0.5, score="taylor"),
    in_layers(0.5, score="movement", scope="global"),
    in_layers(threshold=0.1),
]
QUICK = [(PRUNES[0], None), (PRUNES[1], 5), (PRUNES[2], 0)]
SLOW = [(p, begin) for p in PRUNES for begin in (None, 0, 5) if (p, begin) not in QUICK]


@pytest.mark.parametrize(
    ("prune", "begin"), QUICK + [pytest.param(*each, marks=pytest.mark.slow) for each in SLOW]
)
def test_zeros_stay_zeros_and_count_as_a_cluster(prune, begin):
    cluster = Cluster(4, begin=begin, frequency=3)
    model = fit(make(prune, cluster), 16)
    found = kernels(model)
    for wrapper, kernel in zip(wrapped(model), found, strict=True):
        mask = np.array(wrapper.bound[0].states[0]["mask"]).astype(bool)
        np.testing.assert_array_equal(kernel != 0, mask)
        assert 2 <= len(np.unique(kernel)) <= 4
        assert not np.signbit(kernel[kernel == 0]).any()
    zeros = sum((kernel == 0).sum() for kernel in found)
    if prune.threshold is None and prune.pattern == "unstructured":
        sizes = [kernel.size for kernel in found]
        sizes = [sum(sizes)] if prune.scope == "global" else sizes
        assert zeros == sum(n - round(n * (1 - prune.schedule.final)) for n in sizes)


@pytest.mark.slow
def test_zeros_per_channel():
    model = fit(make(in_layers(0.6), Cluster(3, per_channel=True, frequency=2)), 12)
    for wrapper, kernel in zip(wrapped(model), kernels(model), strict=True):
        mask = np.array(wrapper.bound[0].states[0]["mask"]).astype(bool)
        np.testing.assert_array_equal(kernel != 0, mask)
        assert max(len(np.unique(c)) for c in kernel.reshape(-1, kernel.shape[-1]).T) == 3


@pytest.mark.parametrize("scaled", [False, True])
def test_averages_of_centroids_begin_with_them(scaled):
    """Not with the zeros that they are before, which would shrink all weights."""
    optimizer = keras.optimizers.SGD(0.0, use_ema=True, ema_momentum=0.9)
    optimizer = keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer
    model = make(Cluster(4, begin=5))
    model.compile(optimizer, "mse", jit_compile=False, run_eagerly=not scaled)
    expected = wrapped(fit(model, 4))[0].layer.kernel.numpy()
    bound = wrapped(model)[0].bound[0].techniques[0]
    start = bound.update(ops.convert_to_tensor(expected), bound.initial_state(expected), 5)
    fit(model, 4)
    np.testing.assert_allclose(state_of(model)["centroids"], start["centroids"], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_weights_of_another_type(dtype):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(6, dtype=dtype, name="dense")])
    model = tfc.compress(model, [tfc.Rule("*", [in_layers(0.5), Cluster(4)])])
    model.compile("sgd", "mse", run_eagerly=True)
    callbacks = [tfc.UpdateCompression()]
    model.fit(X[:, 0, 0], np.zeros((32, 6)), callbacks=callbacks, verbose=0)
    kernel = tfc.finalize(model).get_layer("dense").kernel
    assert kernel.dtype == dtype
    values = ops.convert_to_numpy(ops.cast(kernel, "float32"))
    assert (values == 0).sum() == 9
    assert len(np.unique(values)) == 4


def test_keep_zeros_alone():
    model = make(Cluster(4, keep_zeros=True, frequency=2))
    kernel = np.array(wrapped(model)[0].layer.kernel)
    kernel[:, :, 1] = 0.0
    wrapped(model)[0].layer.kernel.assign(kernel)
    found = kernels(fit(model, 12))[0]
    np.testing.assert_array_equal(found[:, :, 1], 0.0)
    assert np.count_nonzero(found[:, :, [0, 2]]) == found[:, :, [0, 2]].size
    assert len(np.unique(found)) == 4


def test_clustering_begins_when_pruning_ends():
    prune = in_layers(schedules.linear(0.0, 0.5, begin=2, end=9))
    for before, begin in (([prune], 9), ([in_layers(0.5)], 0), ([], 0)):
        bound = wrapped(make(*before, Cluster(4)))[0].bound[0].techniques
        assert bound[-1].begin == begin
        assert bound[-1].keep_zeros is bool(before)


def test_more_clusters_than_weights():
    with pytest.raises(ValueError, match="with 216 weights, fewer than clusters=300"):
        make(Cluster(300))
    with pytest.raises(ValueError, match="27 weights in each channel, fewer than clusters=28"):
        make(Cluster(28, per_channel=True))
    model = fit(make(Cluster(100)), 3)  # which leaves out the smaller layer
    assert [len(np.unique(k)) for k in kernels(model)] == [100, 32]


@pytest.mark.slow
def test_save_and_continue(tmp_path):
    model = fit(make(in_layers(schedules.linear(0, 0.6, end=6, frequency=2)), Cluster(5)), 8)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(X), model(X))
    for a, b in zip(fit(model, 16).variables, fit(loaded, 16).variables, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)


@pytest.mark.slow
def test_jit_compile_gives_the_same():
    a, b = (make(in_layers(0.5), Cluster(4), run_eagerly=False) for _ in range(2))
    b.compile(keras.optimizers.Adam(0.02), "mse", jit_compile=True)
    for x, y in zip(kernels(fit(a, 8)), kernels(fit(b, 8)), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4)
