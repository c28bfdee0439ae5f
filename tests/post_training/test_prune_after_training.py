"""prune_after_training: which weights go, and what the others make up for."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress import Prune
from tfcompress.graph.flatten import flatten
from tfcompress.graph.folding import folded, unfolded
from tfcompress.post_training import prune_after_training
from tfcompress.post_training.layerwise import flat_copy
from tfcompress.post_training.obc import Quadratic
from tfcompress.post_training.pruned_model import by_size, sparsify


def correlated(groups, d, channels, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(groups, 4 * d, d)) @ random.normal(size=(groups, d, d))
    return Quadratic.of(random.normal(size=(groups, d, channels)), x.swapaxes(1, 2) @ x / (4 * d))


def least(problem, mask):
    """The loss with the weights of a mask as they are best, one channel."""
    h, t = problem.hessian[0], problem.target[0, :, 0]
    q = np.zeros_like(t)
    q[mask] = np.linalg.solve(h[np.ix_(mask, mask)], (h @ t)[mask])
    return problem.loss(q[None, :, None])[0, 0]


def largest(count):
    def keep(sizes):
        order = np.argsort(-np.abs(sizes), axis=1, kind="stable")
        mask = np.zeros(sizes.shape, bool)
        np.put_along_axis(mask, order[:, :count], True, axis=1)
        return mask

    return keep


def test_the_choice_is_nearly_that_of_brute_force_and_the_rest_is_fitted():
    ratios, by_size = [], []
    for seed in range(12):
        problem = correlated(1, 8, 1, seed)
        found = sparsify(problem, largest(4))
        mask = found[0, :, 0] != 0
        assert mask.sum() == 4
        np.testing.assert_allclose(problem.loss(found)[0, 0], least(problem, mask), rtol=1e-4)
        best = min(least(problem, list(kept)) for kept in itertools.combinations(range(8), 4))
        ratios.append(problem.loss(found)[0, 0] / best)
        by_size.append(problem.loss(problem.target * largest(4)(problem.target))[0, 0] / best)
    assert np.median(ratios) < 1.05
    assert np.mean(ratios) < 0.3 * np.mean(by_size)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 4), name="image")
    y = layers.Conv2D(16, 3, padding="same", use_bias=False, name="stem")(x)
    y = layers.ReLU()(layers.BatchNormalization(name="bn")(y))
    y = layers.DepthwiseConv2D(3, name="dw")(y)
    y = layers.Conv2D(8, 1, activation="relu", name="pointwise")(y)
    return keras.Model(x, layers.Dense(5, name="head")(layers.GlobalAveragePooling2D()(y)))


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    return np.cumsum(random.normal(size=(64, 8, 8, 4)), axis=2).astype("float32")


def kernels(model):
    """Those of layers, which have the zeros of kernels with BatchNormalization folded."""
    every = [x for x in model.layers if hasattr(x, "kernel")]
    return {x.name: keras.ops.convert_to_numpy(x.kernel) for x in every}


@pytest.mark.parametrize(("sparsity", "pattern"), [(0.7, "unstructured"), (None, "2:4")])
def test_zeros_are_as_many_as_asked_and_outputs_nearer_than_by_magnitude(
    model, data, sparsity, pattern
):
    how = {"pattern": pattern, "allocation": "uniform"}
    found, plain = prune_after_training(model, data, sparsity, **how), flat_copy(model)
    expected = np.asarray(model(data))
    for name, kernel in kernels(flat_copy(found)).items():
        layer = plain.get_layer(name)
        if name == "dw":
            assert kernel.all()
            continue
        prune = Prune(sparsity, pattern=pattern).bind(layer, "kernel").over(0, 0)
        np.testing.assert_array_equal(kernel != 0, prune.mask(kernel, None, 0))
        value = keras.ops.convert_to_numpy(layer.kernel)
        layer.kernel.assign(value * prune.mask(value, None, 0))
        assert (kernel != 0).sum() == prune.mask(value, None, 0).sum()
    ours, theirs = (np.square(np.asarray(m(data)) - expected).mean() for m in (found, plain))
    assert ours < 0.2 * theirs
    assert found.get_layer("bn").moving_mean.shape == (16,)
    report = str(found.correction_report)
    assert "dw         kept: a depthwise kernel (pass depthwise=True" in report
    assert "head       " in report


def test_layers_have_the_sparsity_of_their_name(model, data):
    found = prune_after_training(model, data, {"head": 0.5, "dw": 0.25}, depthwise=True)
    shares = {name: np.mean(kernel == 0) for name, kernel in kernels(found).items()}
    assert shares == {"stem": 0, "dw": 0.25, "pointwise": 0, "head": 0.5}


def test_small_layers_keep_more_by_hand():
    # Of 6,144 weights 1,536 stay: 256 * 16 times the roots 64, 32 and 16 would be whole twice.
    found = by_size({"large": 4096, "middle": 1024, "small": 1024}, 0.75)
    assert found == pytest.approx(
        {"large": 1 - 12 / 64, "middle": 1 - 12 / 32, "small": 1 - 12 / 32}
    )
    found = by_size({"large": 4096, "tiny": 4}, 0.5)  # 31.06 times the roots 64 and 2
    assert found == pytest.approx({"large": 1 - 2046 / 4096, "tiny": 0.0})
    assert by_size({"one": 32}, 0.75) == {"one": pytest.approx(0.75)}


def test_the_drift_of_outputs_is_told_and_warned_of(model, data):
    with pytest.warns(UserWarning, match=r"differ from the old ones by \d+% of their var"):
        found = prune_after_training(model, data, 0.9, allocation="uniform")
    old, new = (np.asarray(m(data)) for m in (model, found))
    expected = np.square(new - old).sum() / np.square(old - old.mean(0)).sum()
    assert found.correction_report.drift == pytest.approx(expected, rel=1e-3)
    assert f"outputs differ by {expected:.1%} of" in str(found.correction_report)


def test_one_sparsity_is_that_of_all_layers_together(model, data):
    found = kernels(prune_after_training(model, data, 0.5))
    pruned = [kernel for name, kernel in found.items() if name != "dw"]
    zeros = sum((kernel == 0).sum() for kernel in pruned)
    assert zeros == pytest.approx(0.5 * sum(kernel.size for kernel in pruned), abs=2)
    assert (found["head"] == 0).mean() < (found["stem"] == 0).mean()


def test_what_is_wrong_is_said_before_work_starts(model, data):
    with pytest.raises(ValueError, match=r"received 'haed'. Did you mean 'head'"):
        prune_after_training(model, data, {"haed": 0.5})
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\)"):
        prune_after_training(model, data)
    with pytest.raises(ValueError, match="allocation must be 'size' or 'uniform'; received 'erk'"):
        prune_after_training(model, data, 0.5, allocation="erk")
    with pytest.raises(ValueError, match="received 80"):
        prune_after_training(model, data, 80)
    with pytest.raises(ValueError, match=r"layers that can be pruned; received .*a depthwise"):
        prune_after_training(model, data, {"dw": 0.5})


def test_batch_norm_comes_out_of_changed_weights_as_it_went_in():
    keras.utils.set_random_seed(0)
    norm = layers.BatchNormalization
    x = keras.Input((6, 6, 4))
    y = norm()(layers.Conv2D(6, 3, padding="same", use_bias=False, name="plain")(x))
    y = norm(center=False)(layers.DepthwiseConv2D(3, depth_multiplier=2, name="dw")(y))
    y = norm(scale=False)(layers.Conv2DTranspose(5, 2, use_bias=False, name="up")(y))
    y = layers.Conv2D(8, 1, use_bias=False, name="between")(norm()(layers.ReLU()(y)))
    y = layers.GlobalAveragePooling2D()(norm()(y))
    model = keras.Model(x, norm()(layers.Dense(3, name="head")(layers.ReLU()(y))))
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, norm):
            layer.set_weights([random.uniform(0.5, 2, w.shape) for w in layer.get_weights()])
    other = folded(flatten(model))
    assert not any(isinstance(layer, norm) for layer in other.layers)
    names = ["plain", "dw", "up", "between", "head"]
    for name in names:
        layer = other.get_layer(name)
        layer.set_weights([w * (random.random(w.shape) > 0.5) for w in layer.get_weights()])
    found = unfolded(flatten(model), other, names)
    assert sum(isinstance(layer, norm) for layer in found.layers) == 6
    assert not any(found.get_layer(name).use_bias for name in ("plain", "up", "between"))
    x = random.normal(size=(4, 6, 6, 4)).astype("float32")
    np.testing.assert_allclose(np.asarray(found(x)), np.asarray(other(x)), rtol=1e-4, atol=1e-4)
    kept = (np.count_nonzero(kernels(m)["plain"]) for m in (found, other))
    assert len(set(kept)) == 1


def test_a_channel_that_batch_norm_switches_off_stays_off():
    x = keras.Input((3,))
    norm = layers.BatchNormalization()
    model = keras.Model(x, norm(layers.Dense(2, use_bias=False, name="dense")(x)))
    norm.gamma.assign([0.0, 1.0])
    other = folded(flatten(model))
    found = unfolded(flatten(model), other, ["dense"])
    inputs = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    np.testing.assert_allclose(np.asarray(found(inputs)), np.asarray(model(inputs)), atol=1e-5)
