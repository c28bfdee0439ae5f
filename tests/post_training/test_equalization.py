"""equalize: the same outputs from evener kernels, against scales by hand."""

import keras
import numpy as np
import pytest
from graph_models import normal, seeded, sequential
from keras import layers

import tfcompress as tfc
from tfcompress.graph.folding import values_of
from tfcompress.graph.nodes import Graph
from tfcompress.post_training import equalize
from tfcompress.post_training.kernels import kernels_of, on_grid

__all__ = ["seeded"]


def uneven(model, seed=2):
    """Gives channels of kernels ranges that differ a hundredfold, and other weights any values."""
    rng = np.random.default_rng(seed)
    for v in model.weights:
        values = rng.normal(size=v.shape)
        if v.name == "kernel":
            for size in ((v.shape[-2], 1), (v.shape[-1],)):
                values = values * 10 ** rng.uniform(-1, 1, size) / v.shape[0]
        elif v.name in ("moving_variance", "gamma"):
            values = rng.uniform(0.5, 2.0, v.shape)
        v.assign(values)
    return model


def same(model, x, data=None, **settings):
    """The equalized model, after a check that its outputs are those of the model."""
    before = [np.array(w) for w in model.weights]
    new = equalize(model, data, **{"absorb": False, **settings})
    assert all(np.array_equal(a, b) for a, b in zip(before, model.weights, strict=True))
    wanted = np.array(model(x, training=False))
    np.testing.assert_allclose(new(x), wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    return new


def scaled(new):
    return [change.layer for change in new.correction_report.changes]


def kept(new):
    return {change.layer: change.detail for change in new.correction_report.kept}


def test_values_by_hand():
    model = sequential(layers.Dense(2, "relu", name="a"), layers.Dense(2, name="b"), size=1)
    # Ranges 8, 2 that make channels, and 0.5, 8 that read them: steps 4 and 1/2, and over both
    # their mean is kept: sqrt(2) less of each.
    a, b = np.float32([[8, -2]]), np.float32([[0.5, 0.25], [8, -1]])
    model.set_weights([a, np.float32([1, 2]), b, np.zeros(2, "float32")])
    new = same(model, np.float32([[-1], [0.5], [3]]))
    step = np.array([4, 0.5]) / 2**0.5
    for got, wanted in zip(
        new.get_weights(), [a / step, [1, 2] / step, b * step[:, None], np.zeros(2)], strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-3)
    assert scaled(new) == ["a"]
    assert "2 channels scaled, widest to narrowest 4 -> 2" in str(new.correction_report)
    assert kept(new) == {"b": "is an output"}


def block(x, *made):
    for layer in made:
        x = layer(x)
    return x


def mobile():
    x = keras.Input((8, 8, 3))
    y = block(
        x,
        layers.Conv2D(6, 3, strides=2, padding="same", use_bias=False, name="stem"),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise"),
        layers.BatchNormalization(),
        layers.LeakyReLU(0.1),
        layers.Conv2D(8, 1, groups=2, name="grouped"),
        layers.PReLU(shared_axes=[1, 2]),
        layers.ZeroPadding2D(1),
        layers.MaxPooling2D(2),
        layers.Conv2DTranspose(5, 3, strides=2, activation="relu", name="transposed"),
        layers.AveragePooling2D(2),
        layers.Dropout(0.5),
        layers.Permute((3, 1, 2)),
        layers.Flatten(),
        layers.Dense(4, "relu", name="hidden"),
        layers.Dense(3, "softmax", name="head"),
    )
    return uneven(keras.Model(x, y))


def test_all_that_commutes_is_passed():
    new = same(mobile(), normal(4, 8, 8, 3))
    wanted = ["stem", "depthwise", "grouped", "transposed", "hidden"]
    assert (scaled(new), list(kept(new))) == (wanted, ["head"])
    assert kept(new)["head"] == "'head' has another activation"
    # Each channel of "hidden" is as wide where it is made as where it is read, up to a constant.
    made, read = (np.abs(values_of(new.get_layer(n))["kernel"]) for n in ("hidden", "head"))
    ratio = made.max(0) / read.max(1)
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=0.01)


def test_branches_and_sums_are_scaled_alike():
    x = keras.Input((6, 4))
    y = layers.Conv1D(5, 3, padding="same", name="a", data_format="channels_last")(x)
    z = layers.ReLU()(layers.Conv1D(5, 1, name="b")(layers.ReLU()(y)))
    y = layers.Concatenate()([layers.Add()([y, z]), layers.Conv1D(2, 1, name="c")(x)])
    outputs = layers.Dense(3, name="head")(layers.GlobalMaxPooling1D()(y))
    new = same(uneven(keras.Model(x, outputs)), normal(4, 6, 4))
    assert scaled(new) == ["a", "b", "c"]


@pytest.mark.slow
def test_shared_layers_and_channels_first():
    x = keras.Input((3, 6))
    shared = layers.Conv1D(4, 1, name="shared", data_format="channels_first")
    y = layers.Conv1D(3, 1, name="a", data_format="channels_first")(x)
    y = layers.ReLU()(shared(layers.ReLU()(y)) - shared(x))
    y = layers.GlobalAveragePooling1D(data_format="channels_first", keepdims=True)(y)
    new = same(
        uneven(keras.Model(x, layers.Dense(2, name="b")(layers.Flatten()(y)))), normal(4, 3, 6)
    )
    assert scaled(new) == ["shared"]
    assert "(InputLayer) gives it" in kept(new)["a"]  # the shared layer reads it, too


def test_what_does_not_commute_says_so():
    model = sequential(
        layers.Dense(4, name="a"),
        layers.Activation("tanh", name="tanh"),
        layers.Dense(4, name="b"),
        layers.ReLU(threshold=0.5, name="above"),
        layers.Dense(4, name="c"),
        layers.Rescaling(1.0, offset=1.0, name="more"),
        layers.Dense(4, name="d"),
    )
    assert kept(same(uneven(model), normal(4, 8))) == {
        "a": "'tanh' (Activation) reads it",
        "b": "'above' (ReLU) reads it",
        "c": "'more' (Rescaling) reads it",
        "d": "is an output",
    }


def clipped():
    dense, clip = layers.Dense(3, name="a"), layers.ReLU(6.0, name="clip")
    model = sequential(dense, clip, layers.Dense(2, name="b"), size=1)
    # On an input up to 2 they reach 8, 4 and 0.5.
    weights = [[4, 2, 0.25]], np.zeros(3), [[1, 1.5], [1, 0.9], [16, 15]], np.zeros(2)
    model.set_weights(list(map(np.array, weights)))
    return model, np.float32([[0.5], [-1], [2]])


def test_relu6_by_its_rule():
    model, data = clipped()
    new = same(model, data)
    assert scaled(new) == []
    assert kept(new)["a"] == "'clip' clips at 6, which no data were given for"
    new = same(model, data, data)
    kernel = new.get_layer("a").kernel[0]
    assert float(kernel[0]) == 4.0  # it is clipped
    assert 2 * float(np.max(kernel[1:])) <= 6.0
    assert "2 channels scaled" in str(new.correction_report)
    # Nothing is clipped of smaller inputs: all get so small that the first need not reach it.
    read = model.get_layer("b").kernel
    read.assign(read * np.float32([[64], [1], [1 / 16]]))
    small = same(model, data / 1.5, data / 1.5)
    kernels = [np.array(small.get_layer(name).kernel) for name in "ab"]
    ratio = kernels[0][0] / np.abs(kernels[1]).max(1)
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=0.01)
    assert float(np.max(kernels[0])) * 2 / 1.5 < 6.0


def test_few_values_and_zeros_stay():
    model = uneven(sequential(*(layers.Dense(32, "relu", name=n) for n in "abcd"), size=32))
    table = np.random.default_rng(0).choice([-1.0, 0.0, 0.5, 2.0], (32, 32))
    model.get_layer("b").kernel.assign(table)
    zeros = np.random.default_rng(1).uniform(size=(32, 32)) < 0.7
    model.get_layer("c").kernel.assign(np.where(zeros, 0.0, model.get_layer("c").kernel))
    new = same(model, normal(4, 32))
    np.testing.assert_array_equal(new.get_layer("b").kernel, table)
    np.testing.assert_array_equal(np.array(new.get_layer("c").kernel) == 0.0, zeros)
    assert scaled(new) == ["c"]
    assert kept(new)["a"] == kept(new)["b"] == "the kernel of 'b' has few values, which stay"


def test_a_channel_that_hardly_varies_does_not_outgrow_the_others():
    dense, norm = layers.Dense(4, use_bias=False, name="a"), layers.BatchNormalization()
    model = sequential(dense, norm, layers.ReLU(), layers.Dense(3, name="b"))
    norm.set_weights([np.array(x) for x in ([1e-5, 2, 1, 1], [1, 0, 1, 0], [0] * 4, [1] * 4)])
    x = normal(9, 8)
    new = same(model, x)
    reach = 2 * (2 * 3.0)  # twice that of the second
    mean, std = new.correction_report.statistics["a"]
    assert reach / 10 < mean[0] <= reach
    assert np.all(mean + 3 * std <= reach)


def test_biases_are_absorbed_where_nothing_is_cut():
    dense, norm = layers.Dense(2, use_bias=False, name="a"), layers.BatchNormalization()
    model = sequential(dense, norm, layers.ReLU(), layers.Dense(2, name="b"), size=2)
    dense.set_weights([np.eye(2)])
    norm.set_weights(list(map(np.array, ([1, 2], [9, 1], [0, 0], [1 - 1e-3] * 2))))
    read = np.float32([[1, -3], [2, 1]])
    model.layers[-1].set_weights([read, np.zeros(2)])
    x = np.random.default_rng(0).uniform(-2, 2, (9, 2)).astype("float32")
    new = same(model, x, absorb=True)
    taken = np.array([9 - 3, 0])  # 3 deviations below the mean; the other mean is too small
    outer = np.array([9, 1]) - taken
    scales = np.array(values_of(new.get_layer("b"))["kernel"])[:, 0] / read[:, 0]
    np.testing.assert_allclose(new.get_layer("a").bias, outer / scales, rtol=1e-3)
    np.testing.assert_allclose(new.get_layer("b").bias, taken @ read, rtol=1e-3)
    assert "bias absorbed of 1 channels" in str(new.correction_report)
    mean, std = new.correction_report.statistics["a"]
    np.testing.assert_allclose(mean, outer / scales, rtol=1e-3)
    np.testing.assert_allclose(std, np.array([1, 2]) / scales, rtol=1e-3)


def test_statistics_from_data_and_no_bias_beside_padding():
    x = keras.Input((6, 6, 2))
    y = layers.Conv2D(3, 1, activation="relu", use_bias=False, name="a")(x)
    y = layers.Conv2D(3, 1, activation="relu", use_bias=False, name="b")(y)
    model = keras.Model(x, layers.Conv2D(2, 3, padding="same", name="c")(y))
    uneven(model)
    for layer in model.layers[1:]:
        layer.kernel.assign(np.abs(layer.kernel))
    data = np.random.default_rng(0).uniform(4, 5, (8, 6, 6, 2)).astype("float32")
    new = same(model, data, data, absorb=True)
    assert new.get_layer("a").use_bias
    parts = [keras.Model(m.input, m.get_layer("a").output)(data) for m in (model, new)]
    before, after = (np.array(x).reshape(-1, 3) for x in parts)
    assert np.all(after.max(0) / np.ptp(after, 0) < 0.5 * before.max(0) / np.ptp(before, 0))
    assert np.all(np.array(new.get_layer("b").bias) > 0)  # what "a" lost
    told = {change.layer: change.detail for change in new.correction_report.changes}
    assert "absorbed" in told["a"]
    assert "absorbed" not in told["b"]


@pytest.mark.slow
def test_one_scale_a_tensor_is_enough_afterwards():
    model, x = mobile(), normal(16, 8, 8, 3)
    hidden = [keras.Model(m.input, m.get_layer("hidden").output) for m in (model, equalize(model))]

    def error(m):
        m, wanted = tfc.flatten(m), np.array(m(x))
        for kernel in kernels_of(Graph.of(m), dense="per_tensor", convolution="per_tensor"):
            scale = np.abs(kernel.value).max(keepdims=True) / 127
            kernel.variable.assign(on_grid(kernel.value, scale, 8))
        return np.square(np.array(m(x)) - wanted).mean() / np.square(wanted).mean()

    assert error(hidden[1]) < 0.05 * error(hidden[0])


def test_bad_input():
    with pytest.raises(ValueError, match="Finalize it first"):
        equalize(tfc.quantize_aware(sequential(layers.Dense(2))))
    with pytest.raises(TypeError, match=r"keras\.saving\.load_model"):
        equalize("model.keras")
    with pytest.raises(ValueError, match="the model has 1 input"):
        equalize(sequential(layers.Dense(2)), (normal(4, 8), normal(4, 8)))
