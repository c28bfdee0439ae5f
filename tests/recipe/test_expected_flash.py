"""What weights take in flash, before training: by hand, and against codes of a trained model."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress import Cluster, Codebook, Prune, Quantize, Rule, schedules
from tfcompress.conversion.grids import find_grid
from tfcompress.tflite.weight_codes import smallest


def net():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 4), name="image")
    x = layers.Conv2D(32, 3, activation="relu", name="conv")(inputs)
    x = layers.DepthwiseConv2D(3, name="deep")(x)
    return keras.Model(inputs, layers.Dense(10, name="head")(layers.Flatten()(x)), name="net")


SIZES = {"conv/kernel": 9 * 4 * 32, "deep/kernel": 9 * 32, "head/kernel": 512 * 10}


def flash_of(*techniques):
    found = tfc.expected_flash(net(), [Rule("*", list(techniques))])
    assert {weight.name: weight.count for weight in found.weights} == SIZES
    assert found.int8 == sum(SIZES.values())
    return {weight.name: weight for weight in found.weights}, found


@pytest.mark.parametrize(
    ("technique", "bits", "values"),
    [
        (Codebook("4"), 2, 4),
        (Codebook("binary"), 1, 2),
        (Cluster(16, init="linear"), 4, 16),
        (Cluster(100, init="linear", target="microcontroller"), 7, 100),
    ],
)
def test_tables_by_hand(technique, bits, values):
    """A header of 16 bytes, a byte a value, and so many bits for each weight."""
    found, whole = flash_of(technique, Quantize())
    head = found["head/kernel"]
    assert head.values <= values
    wanted = -(-5120 * bits // 8) + 16 + head.values
    assert head.bytes <= wanted  # a Huffman code may take less
    if head.code.startswith("table"):
        assert head.bytes == wanted
    assert found["deep/kernel"].bytes <= 9 * 32
    assert whole.bytes == sum(weight.bytes for weight in found.values())
    assert whole.decoded == 5120
    assert f"{whole.int8:,} bytes as int8, about {whole.bytes:,}" in whole.line
    assert whole.to_dict()["bytes"] == whole.bytes
    assert "head/kernel" in str(whole)


def test_zeros_count_at_the_end_of_their_schedule():
    prune = Prune(schedules.polynomial(0.0, 0.9, end=500), scope="global")
    found, whole = flash_of(prune, Quantize())
    assert whole.bytes < 0.4 * whole.int8
    # By far the smallest weights are those of the largest layer.
    assert found["head/kernel"].bytes < 0.35 * 5120


def test_a_trained_model_takes_as_much():
    model = net()
    recipe = [Rule("*", [Codebook("8"), Quantize()])]
    expected = tfc.expected_flash(model, recipe)
    small = tfc.compress(model, recipe)
    small.compile("adam", "mse", run_eagerly=True)
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 4)).astype("float32")
    small.fit(x, np.ones((16, 10)), verbose=0)
    kernel = np.array(tfc.finalize(small).get_layer("head").layer.kernel)
    grid = find_grid(kernel, 1, [8])
    codes = np.rint(kernel / grid.scale).astype(np.int8)
    row = next(weight for weight in expected.weights if weight.name == "head/kernel")
    assert smallest(codes).bytes == pytest.approx(row.bytes, rel=0.02)
    assert row.values == len(np.unique(codes)) == 8


def test_the_model_is_left_and_a_recipe_without_effect_refused():
    model = net()
    before = [w.copy() for w in model.get_weights()]
    tfc.expected_flash(model, tfc.Recipe([Rule("*", [Prune(0.5), Cluster(4), Quantize()])]))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    with pytest.raises(ValueError, match="finds no weight that it is meant for"):
        tfc.expected_flash(model, [Rule("deep", [Codebook("4")])])
