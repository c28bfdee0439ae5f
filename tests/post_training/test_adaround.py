"""adaround: grids, zeros and tables that stay, and blocks that give what they gave."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.graph.nodes import Graph
from tfcompress.post_training import adaround
from tfcompress.post_training.adaround_model import blocks_of
from tfcompress.post_training.kernels import kernels_of, on_grid
from tfcompress.techniques.scales import levels, weight_scale


@pytest.fixture(scope="module")
def residual():
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3), name="image")
    y = z = layers.Conv2D(8, 3, activation="relu", name="stem")(x)
    y = layers.BatchNormalization(name="bn")(layers.Conv2D(8, 3, padding="same", name="a")(y))
    y = layers.DepthwiseConv2D(3, padding="same", name="dw")(layers.ReLU(name="relu")(y))
    y = layers.Add(name="add")([y, z])
    return keras.Model(x, layers.Dense(4, name="head")(layers.Flatten(name="flat")(y)))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(48, 8, 8, 3)).astype("float32")


@pytest.fixture(scope="module")
def rounded(residual, images):
    # Pruned by half; the kernel of the stem is a table of few values.
    model = keras.models.clone_model(residual)
    model.set_weights(residual.get_weights())
    kernel = np.asarray(model.get_layer("a").kernel)
    model.get_layer("a").kernel.assign(np.where(abs(kernel) > np.median(abs(kernel)), kernel, 0))
    stem = np.asarray(model.get_layer("stem").kernel)
    model.get_layer("stem").kernel.assign(np.sign(stem) * 0.2 + np.where(stem > 0.1, 0.1, 0))
    return model, adaround(model, images, {"stem": 4, "a": 4, "dw": 4, "head": 3}, steps=40)


def test_kernels_lie_on_their_grids_and_zeros_and_tables_stay(rounded):
    model, found = rounded
    assert found.scales.keys() == found.sqnr.keys() == {"a", "dw", "head"}
    for name, bits in (("a", 4), ("dw", 4), ("head", 3)):
        kernel = np.asarray(found.model.get_layer(name).kernel)
        codes = kernel / found.scales[name]
        np.testing.assert_allclose(codes, np.rint(codes), atol=1e-4)
        assert abs(codes).max() <= levels(bits) + 1e-4
    np.testing.assert_array_equal(found.model.get_layer("stem").kernel, model.layers[1].kernel)
    zeros = np.asarray(model.get_layer("a").kernel) == 0
    assert not np.asarray(found.model.get_layer("a").kernel)[zeros].any()
    assert "stem" in str(found.model.correction_report)


def test_each_weight_is_rounded_up_or_down(residual, images):
    found = adaround(residual, images, {"head": 4}, steps=40)
    kernel, scale = np.asarray(residual.get_layer("head").kernel), found.scales["head"]
    codes = np.asarray(found.model.get_layer("head").kernel) / scale
    inside = abs(codes) < levels(4) - 0.5
    assert abs(codes - kernel / scale)[inside].max() < 1 + 1e-4
    assert (abs(codes - kernel / scale)[inside] > 0.5).any()


def test_outputs_are_nearer_than_those_of_rounding_to_nearest(rounded, images):
    model, found = rounded
    nearest = keras.models.clone_model(found.model)
    nearest.set_weights(adaround(model, images, {"head": 8}, steps=1).model.get_weights())
    bits = {"a": 4, "dw": 4, "head": 3}
    for k in kernels_of(Graph.of(nearest)):
        if k.name in bits:
            scale = weight_scale(k.value, k.reduced, bits[k.name], "mse")
            k.variable.assign(on_grid(k.value, scale, bits[k.name]))
    wanted = model.predict(images, verbose=0)
    errors = [
        np.square(m.predict(images, verbose=0) - wanted).mean() for m in (found.model, nearest)
    ]
    assert errors[0] < 0.8 * errors[1]
    assert all(after >= before for before, after in found.sqnr.values())
    again = adaround(model, images, {"stem": 4, **bits}, steps=40)
    for a, b in zip(again.model.get_weights(), found.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_blocks_end_where_one_tensor_leads_on(residual):
    graph = Graph.of(residual)
    known = {id(k.layer): k for k in kernels_of(graph)}
    names = [[n.name for n in block.nodes] for block in blocks_of(graph, known, 1)]
    assert names == [["stem"], ["a", "bn", "relu", "dw", "add", "flat"], ["head"]]
    assert [[k.name for k in b.kernels(known)] for b in blocks_of(graph, known, 3)] == [
        ["stem", "a", "dw"],
        ["head"],
    ]


def test_arguments_are_checked(residual, images):
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1; received 0"):
        adaround(residual, images, steps=0)
    with pytest.raises(ValueError, match="bits must name layers with kernels; received 'haed'"):
        adaround(residual, images, {"haed": 4})
