"""Scores of channels from weights alone, against arrays computed by hand."""

import keras
import numpy as np
import pytest
from graph_models import normal
from keras import layers
from scipy.spatial.distance import cdist
from surgery_models import switch_off_channels

from tfcompress.surgery.base import opened
from tfcompress.surgery.pruning.groups import Structure
from tfcompress.surgery.pruning.scores import score_groups


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


def dense(kernel, out):
    """Dense to Dense."""
    kernel, out = np.float32(kernel), np.float32(out)
    x = keras.Input((len(kernel),))
    hidden = layers.Dense(kernel.shape[1], name="hidden", bias_initializer="ones")
    model = keras.Model(x, layers.Dense(out.shape[1], name="out")(hidden(x)))
    model.get_layer("hidden").kernel.assign(kernel)
    model.get_layer("out").kernel.assign(out)
    return model


def residual():
    """ "first" and "last" make one group, which "inner" and "out" read."""
    x = keras.Input((6, 6, 2))
    a = layers.Conv2D(4, 3, padding="same", name="first")(x)
    a = layers.ReLU()(layers.BatchNormalization(name="bn_first")(a))
    b = layers.Conv2D(3, 3, padding="same", name="inner")(a)
    b = layers.Conv2D(4, 1, name="last")(b)
    b = layers.BatchNormalization(name="bn_last")(b)
    c = layers.Flatten()(layers.Add()([a, b]))
    model = keras.Model(x, layers.Dense(2, name="out")(c))
    for v in model.weights:
        v.assign(normal(*v.shape) ** 2 + 0.1)
    return model


def scored(model, score, **settings):
    return score_groups(Structure(opened(model)), score, **settings)


def kernels(model, *names):
    return [model.get_layer(name).kernel.numpy() for name in names]


def test_norms_of_a_dense_layer():
    # |[3, 4]| * |[2]| = 10, |[1, 0]| * |[-5]| = 5, |[-2, 0]| * |[0]| = 0
    model = dense([[3, 1, -2], [4, 0, 0]], [[2], [-5], [0]])
    np.testing.assert_allclose(scored(model, "l2")["hidden"], [10, 5, 0])
    np.testing.assert_allclose(scored(model, "l1")["hidden"], [14, 5, 0])


@pytest.mark.parametrize("power", [1, 2])
def test_norms_of_a_group_of_several_layers(power):
    model = residual()
    first, inner, last, out = kernels(model, "first", "inner", "last", "out")

    def norm(*arrays):
        columns = np.concatenate([a.reshape(-1, a.shape[-1]) for a in arrays])
        return np.linalg.norm(columns, power, axis=0)

    reading = np.moveaxis(inner, 2, -1), np.moveaxis(out.reshape(36, 4, 2), 1, -1)
    found = scored(model, f"l{power}")
    np.testing.assert_allclose(found["first"], norm(first, last) * norm(*reading), rtol=1e-5)
    wanted = norm(inner) * norm(np.moveaxis(last, 2, -1))
    np.testing.assert_allclose(found["inner"], wanted, rtol=1e-5)


def test_norms_do_not_change_with_the_scale_between_layers():
    model = dense(normal(4, 3), normal(3, 2))
    wanted = scored(model, "l2")["hidden"]
    scale = np.float32([0.1, 3.0, 7.0])
    rescaled = dense(normal(4, 3) * scale, normal(3, 2) / scale[:, None])
    np.testing.assert_allclose(scored(rescaled, "l2")["hidden"], wanted, rtol=1e-5)


def test_largest_weights_of_a_dense_layer():
    # 4 * |-3| = 12, 5 * 0.5 = 2.5, 2 * 0 = 0
    model = dense([[3, 1, -2], [-4, -5, 0]], [[2, -3], [0.5, 0.1], [0, 0]])
    np.testing.assert_allclose(scored(model, "max")["hidden"], [12, 2.5, 0])


def test_largest_weights_of_a_group_of_several_layers():
    model = residual()
    names = "first", "inner", "last", "out"
    kernels = {name: np.zeros(model.get_layer(name).kernel.shape) for name in names}
    # "first" and "last" make the group, "inner" and "out" read it: of both the larger counts.
    kernels["first"][0, 2, 1] = [1, -7, 2, 0]
    kernels["last"][0, 0, 2] = [-5, 1, 2, 0]
    kernels["inner"][1, 1, :, 2] = [2, -3, 0, 1]
    kernels["out"][4:8, 1] = [1, -4, 0.5, 1]
    for name, kernel in kernels.items():
        model.get_layer(name).kernel.assign(kernel)
    found = scored(model, "max")
    np.testing.assert_allclose(found["first"], [5 * 2, 7 * 4, 2 * 0.5, 0])
    np.testing.assert_allclose(found["inner"], [0, 0, 3 * 5])


def test_norms_of_heads():
    x = keras.Input((5, 8))
    attended = layers.MultiHeadAttention(4, 3, name="attention")(x, x)
    model = keras.Model(x, layers.Dense(2)(layers.Flatten()(attended)))
    layer = model.get_layer("attention")
    parts = [p.kernel.numpy() for p in (layer.query_dense, layer.key_dense, layer.value_dense)]
    made = np.sqrt(sum((kernel**2).sum((0, 2)) for kernel in parts))
    read = np.sqrt((layer.output_dense.kernel.numpy() ** 2).sum((1, 2)))
    found = [v for v in scored(model, "l2").values() if v.shape == (4,)]
    np.testing.assert_allclose(found[0], made * read, rtol=1e-5)


def test_bn_gamma_is_the_mean_over_batch_norms():
    model = residual()
    model.get_layer("bn_first").gamma.assign([1.0, -2.0, 0.0, 4.0])
    model.get_layer("bn_last").gamma.assign([3.0, 0.0, 0.0, -1.0])
    found = scored(model, "bn_gamma")
    np.testing.assert_allclose(found["first"], [2.0, 1.0, 0.0, 2.5])
    np.testing.assert_allclose(found["inner"], scored(model, "l2")["inner"])  # no BatchNorm


def test_bn_gamma_leaves_out_other_norms_and_those_without_gamma():
    x = keras.Input((4,))
    y = layers.LayerNormalization()(layers.Dense(3, name="hidden")(x))
    y = layers.BatchNormalization(scale=False)(y)
    model = keras.Model(x, layers.Dense(2)(y))
    np.testing.assert_array_equal(
        scored(model, "bn_gamma")["hidden"], scored(model, "l2")["hidden"]
    )


def test_geometric_median():
    # Columns (0, 0), (3, 4), (0, 1): distances 5, 1 and sqrt(9 + 9).
    model = dense([[0, 3, 0], [0, 4, 1]], [[1], [1], [1]])
    far = np.sqrt(18)
    np.testing.assert_allclose(scored(model, "fpgm")["hidden"], [6, 5 + far, 1 + far], rtol=1e-6)


def test_geometric_median_adds_layers():
    model = residual()
    wanted = 0
    for kernel in kernels(model, "first", "last"):
        columns = kernel.reshape(-1, 4).T
        wanted = wanted + cdist(columns, columns).sum(1)
    np.testing.assert_allclose(scored(model, "fpgm")["first"], wanted, rtol=1e-5)


@pytest.mark.parametrize("score", ["l1", "l2", "max", "bn_gamma"])
def test_channels_of_zeros_are_the_lowest(score):
    structure = Structure(opened(residual()))
    for group in structure.prunable().values():
        switch_off_channels(group, [1])
    for values in score_groups(structure, score).values():
        assert values[1] == 0
        assert np.delete(values, 1).min() > 0


def test_random_is_seeded():
    model = residual()
    first, same, other = (scored(model, "random", seed=s) for s in (0, 0, 1))
    for name, values in first.items():
        np.testing.assert_array_equal(values, same[name])
        assert not np.any(values == other[name])
        assert np.all((values >= 0) & (values < 1))


def test_a_score_of_the_users_own():
    def sums(group):
        return sum(m.slices(m.variable.numpy()).sum(1) for m in group.members if m.role == "makes")

    model = dense([[3, 1], [4, 0]], [[2], [-5]])
    np.testing.assert_allclose(scored(model, sums)["hidden"], [7, 1])
    tensors = scored(model, lambda group: keras.ops.arange(group.size))
    np.testing.assert_array_equal(tensors["hidden"], [0, 1])
    assert tensors["hidden"].dtype == np.float64


def test_errors():
    model = dense(np.ones((2, 3)), np.ones((3, 1)))
    with pytest.raises(ValueError, match=r"unknown score 'tailor'.*Did you mean 'taylor'"):
        scored(model, "tailor")
    with pytest.raises(TypeError, match=r"or a function f\(group\) -> array; received 3"):
        scored(model, 3)
    with pytest.raises(ValueError, match=r"shape \(1, 3\) for group 'hidden', expected \(3,\)"):
        scored(model, lambda group: np.ones((1, group.size)))
    with pytest.raises(ValueError, match="NaN or infinity for group 'hidden'"):
        scored(model, lambda group: np.full(group.size, np.nan))
    with pytest.raises(TypeError, match="array of numbers; received str"):
        scored(model, lambda group: "high")
    with pytest.raises(ValueError, match=r"shape \(\) for group 'hidden'"):
        scored(model, lambda group: None)
