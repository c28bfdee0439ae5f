"""Schedules, masks, centroids and gradients against those of TFMOT itself."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfcompress as tfc
from tfcompress import Cluster, Prune, PruneCallback, schedules
from tfcompress.legacy import import_tf_keras
from tfcompress.techniques.cluster import initial, initial_without_zero

k = import_tf_keras()
tfmot = pytest.importorskip("tensorflow_model_optimization")
from tensorflow_model_optimization.python.core.clustering.keras import (  # noqa: E402
    cluster_config,
    clustering_algorithm,
    clustering_centroids,
)
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl  # noqa: E402

RANDOM = np.random.default_rng(0)
ConstantSparsity = tfmot.sparsity.keras.ConstantSparsity
PolynomialDecay = tfmot.sparsity.keras.PolynomialDecay


def theirs(schedule, steps):
    """TFMOT's (due, sparsity) of each step."""
    found = [schedule(tf.constant(step)) for step in range(steps)]
    return [bool(due) for due, _ in found], [float(sparsity) for _, sparsity in found]


@pytest.mark.parametrize(
    ("ours", "tfmot_schedule"),
    [
        (
            schedules.polynomial(0.2, 0.8, begin=4, end=24, frequency=5),
            PolynomialDecay(0.2, 0.8, 4, 24, frequency=5),
        ),
        (
            schedules.polynomial(0.5, 0.9, begin=0, end=30, power=1, frequency=1),
            PolynomialDecay(0.5, 0.9, 0, 30, power=1, frequency=1),
        ),
        (
            schedules.constant(0.6, begin=3, end=19, frequency=4),
            ConstantSparsity(0.6, 3, 19, frequency=4),
        ),
        (schedules.constant(0.6, begin=3, frequency=4), ConstantSparsity(0.6, 3, frequency=4)),
    ],
)
def test_schedules(ours, tfmot_schedule):
    due, values = theirs(tfmot_schedule, 40)
    updates = [step for step in range(40) if ours.next_update(step - 1) == step]
    assert updates == [step for step in range(40) if due[step]]
    for step in updates:
        assert ours(step) == pytest.approx(values[step], abs=1e-6)
        assert ours.at(step) == ours(step)


def their_mask(weight, sparsity=0.5, block=(1, 1), pooling="AVG", m_by_n=None):
    weight = tf.Variable(weight)
    pruning = pruning_impl.Pruning(
        lambda: 0,
        [(weight, None, None)],
        ConstantSparsity(sparsity, 0),
        block,
        pooling,
        m_by_n,
    )
    return pruning._maybe_update_block_mask(weight)[1].numpy().astype(bool)


AXES = {2: ((0,), (1,)), 4: ((2,), (3,))}


def our_mask(weight, sparsity, pattern="unstructured", score="magnitude"):
    inputs, outputs = AXES[weight.ndim]
    prune = Prune(sparsity, pattern, score=score, inputs=inputs, outputs=outputs)
    return prune.over(0, 0).mask(weight, None, 0)  # as at the end of the schedule


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.77, 0.875, 0.999, 0.99999])
@pytest.mark.parametrize("shape", [(17, 13), (3, 3, 5, 7), (100, 1)])
def test_unstructured_masks(shape, sparsity):
    weight = RANDOM.normal(size=shape).astype("float32")
    np.testing.assert_array_equal(our_mask(weight, sparsity), their_mask(weight, sparsity))


# Where blocks do not divide the shape TFMOT pools over others than it then prunes.
@pytest.mark.parametrize("shape", [(8, 8), (12, 16)])
@pytest.mark.parametrize("block", [(2, 2), (1, 4), (4, 1), (4, 2)])
@pytest.mark.parametrize(("pooling", "score"), [("AVG", "magnitude"), ("MAX", "max")])
def test_block_masks(shape, block, pooling, score):
    weight = RANDOM.normal(size=shape).astype("float32")
    for sparsity in (0.3, 0.5, 0.9):
        ours = our_mask(weight, sparsity, f"{block[0]}x{block[1]}", score)
        np.testing.assert_array_equal(ours, their_mask(weight, sparsity, block, pooling))


@pytest.mark.parametrize("shape", [(8, 6), (10, 3), (2, 5), (3, 3, 8, 5), (1, 1, 6, 4)])
@pytest.mark.parametrize(("zeros", "all_"), [(2, 4), (1, 2), (3, 4), (3, 5)])
def test_n_of_m_masks(shape, zeros, all_):
    weight = RANDOM.normal(size=shape).astype("float32")
    ours = our_mask(weight, None, f"{all_ - zeros}:{all_}")  # we name what is kept, they zeros
    np.testing.assert_array_equal(ours, their_mask(weight, m_by_n=(zeros, all_)))


def their_centroids(kind, values, clusters, preserve=False):
    name = f"{kind}CentroidsInitialisation"
    made = getattr(clustering_centroids, name)(
        tf.constant(values), clusters, preserve_sparsity=preserve
    )
    return np.sort(np.array(made.get_cluster_centroids()))


VALUES = {
    "normal": RANDOM.normal(size=(20, 30)).astype("float32"),
    "skewed": (RANDOM.gamma(2.0, size=(9, 50)) - 1).astype("float32"),
    "sparse": np.where(RANDOM.random((30, 30)) < 0.6, 0, RANDOM.normal(size=(30, 30)) + 0.2).astype(
        "float32"
    ),
    "upstream": np.array([0, 1, 2, 3, 3.1, 3.2, 3.3, 3.4, 3.5], "float32"),
}


@pytest.mark.parametrize("clusters", [2, 3, 8, 16])
@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize(("kind", "init"), [("Linear", "linear"), ("DensityBased", "density")])
def test_centroids(kind, init, name, clusters):
    values, random = VALUES[name], np.random.default_rng(0)
    found = initial(values.ravel(), clusters, init, random)
    np.testing.assert_allclose(found, their_centroids(kind, values, clusters), atol=2e-6)


@pytest.mark.parametrize("clusters", [3, 8, 16])
@pytest.mark.parametrize("name", ["sparse", "normal"])
def test_linear_centroids_beside_zero(name, clusters):
    values, random = VALUES[name], np.random.default_rng(0)
    found = initial_without_zero(values.ravel(), clusters - 1, "linear", random)
    expected = their_centroids("Linear", values, clusters, preserve=True)
    np.testing.assert_allclose(np.sort(np.append(found, 0)), expected, atol=1e-6)


def inertia(values, centroids):
    return np.square(values.reshape(-1, 1) - centroids).min(1).sum()


@pytest.mark.parametrize("clusters", [2, 8, 16])
@pytest.mark.parametrize("name", ["normal", "skewed"])
def test_kmeans_is_no_worse_than_their_seeds_after_lloyd(name, clusters):
    values = VALUES[name]
    seeds = their_centroids("KmeansPlusPlus", values, clusters)
    for _ in range(100):
        index = np.abs(values.reshape(-1, 1) - seeds).argmin(1)
        for i in range(clusters):
            if (index == i).any():
                seeds[i] = values.ravel()[index == i].mean()
    found = [
        inertia(values, initial(values.ravel(), clusters, "kmeans++", np.random.default_rng(seed)))
        for seed in range(5)
    ]
    assert np.mean(found) <= 1.06 * inertia(values, seeds)


@pytest.mark.parametrize(("ours", "kind"), [("sum", "SUM"), ("mean", "AVG")])
def test_gradients_of_clusters(ours, kind):
    weight = VALUES["normal"]
    upstream = tf.constant(RANDOM.normal(size=weight.shape).astype("float32"))
    cluster = Cluster(8, init="linear", gradient=ours)
    state = cluster.update(weight, cluster.initial_state(tf.constant(weight)), 0)
    table = tf.Variable(np.ravel(state["centroids"]))
    algorithm = clustering_algorithm.ClusteringAlgorithm(
        table, cluster_config.GradientAggregation[kind]
    )
    of_tfmot, of_ours = tf.Variable(weight), tf.Variable(weight)
    with tf.GradientTape() as tape:
        indices = algorithm.get_pulling_indices(of_tfmot)
        effective = algorithm.get_clustered_weight(indices, of_tfmot)
        loss = tf.reduce_sum(effective * upstream)
    expected = tape.gradient(loss, [of_tfmot, table])
    with tf.GradientTape() as tape:
        tape.watch(state["centroids"])
        found = cluster.apply(tf.convert_to_tensor(of_ours), state)
        loss = tf.reduce_sum(found * upstream)
    gradients = tape.gradient(loss, [of_ours, state["centroids"]])
    np.testing.assert_array_equal(found, effective)
    np.testing.assert_allclose(gradients[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(
        np.ravel(gradients[1]), tf.convert_to_tensor(expected[1]), rtol=1e-4, atol=1e-6
    )


X = RANDOM.normal(size=(48, 6)).astype("float32")
Y = RANDOM.normal(size=(48, 4)).astype("float32")
KERNELS = [RANDOM.normal(size=shape).astype("float32") for shape in [(6, 10), (10, 4)]]


def net(library):
    inputs = library.Input((6,))
    hidden = library.layers.Dense(10, activation="tanh", use_bias=False)(inputs)
    model = library.Model(inputs, library.layers.Dense(4, use_bias=False)(hidden))
    model.set_weights(KERNELS)
    return model


def test_training_gives_the_same_weights():
    """Pruned after 5 of 12 steps of SGD; TFMOT counts the step that is running from 1 on."""
    settings = {"batch_size": 4, "shuffle": False, "verbose": 0}
    legacy = net(k)
    wrapped = tfmot.sparsity.keras.prune_low_magnitude(
        legacy, pruning_schedule=ConstantSparsity(0.7, 6, 6, frequency=1)
    )
    wrapped.compile(k.optimizers.SGD(0.1), "mse")
    wrapped.fit(X, Y, callbacks=[tfmot.sparsity.keras.UpdatePruningStep()], **settings)
    expected = tfmot.sparsity.keras.strip_pruning(wrapped).get_weights()

    prune = Prune(schedules.one_shot(0.7, step=5), scope="layer", score="magnitude")
    in_place, source = net(keras), net(keras)
    compressed = tfc.compress(source, [tfc.Rule("*", [prune])])
    ours = ((in_place, PruneCallback(prune)), (compressed, tfc.UpdateCompression()))
    for model, callback in ours:
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
        model.fit(X, Y, callbacks=[callback], **settings)
    for model in (in_place, tfc.finalize(compressed)):
        for found, wanted in zip(model.get_weights(), expected, strict=True):
            np.testing.assert_array_equal(found == 0, wanted == 0)
            np.testing.assert_allclose(found, wanted, atol=1e-6)
            assert (found == 0).sum() == round(0.7 * found.size)
