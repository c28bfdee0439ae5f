"""Rules that give layers precisions."""

import keras
import pytest
from keras import layers

from tfcompress.conversion.float_files import float_file
from tfcompress.conversion.layer_names import LayerNames
from tfcompress.conversion.precisions import Precisions
from tfcompress.graph.flatten import flatten
from tfcompress.tflite import flatbuffer


@pytest.fixture(scope="module")
def model():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, name="stem"),
            layers.DepthwiseConv2D(3, name="block_1_depthwise"),
            layers.BatchNormalization(name="block_1_norm"),
            layers.Flatten(name="flat"),
            layers.Dense(6, name="block_2_dense"),
            layers.Dense(2, name="head"),
        ]
    )
    return flatten(model)


def assigned(rules, model):
    found = Precisions(rules)
    found.check_layers(model)
    return [found.of_layer(layer) for layer in model.layers[1:]]


def test_the_last_rule_that_matches_decides_and_others_are_int8(model):
    rules = {layers.Dense: "int2", "block_*": "int4", lambda x: x.name == "head": "float32"}
    assert assigned(rules, model) == ["int8", "int4", "int4", "int8", "int4", "float32"]
    assert assigned({"Conv2D": "int16x8"}, model)[:2] == ["int16x8", "int8"]


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"nothing": "int4"}, "'nothing' must match a layer .* stem, block_1_depthwise"),
        ({layers.LSTM: "int4"}, "rule for LSTM must match a layer"),
        ({"stem": "int2"}, "'stem' asks for int2.* for weights of Dense alone.*'stem'"),
        ({"Conv2D": "int2"}, r"matches 'stem' \(Conv2D\). Name another precision"),
        ({layers.DepthwiseConv2D: "int4_blockwise"}, "'block_1_depthwise'"),
        ({"flat": "int4"}, r"'flat' \(Flatten\)"),
        ({"block_1_norm": "int4"}, "BatchNormalization"),
        ({"flat": "float16"}, "float16, which LiteRT runs for weights alone"),
    ],
)
def test_rules_without_effect_are_refused(model, rules, says):
    with pytest.raises(ValueError, match=says):
        Precisions(rules).check_layers(model)


def test_wide_patterns_take_the_layers_that_they_can(model):
    assert assigned({"*": "int2"}, model) == ["int2"] * 6


@pytest.mark.parametrize(
    ("rules", "error", "says"),
    [
        (
            {"*": "int5"},
            ValueError,
            "'int5' for the rule '\\*'; .*Did you mean 'int",
        ),
        ({"*": 4}, ValueError, "unknown precision 4"),
        ({}, ValueError, "at least one rule"),
        (["int4"], TypeError, "must be a mapping"),
        ({3: "int4"}, TypeError, "must be a pattern"),
    ],
)
def test_rules_are_checked(rules, error, says):
    with pytest.raises(error, match=says):
        Precisions(rules)


def test_tensors_tell_layers_that_open_into_several_operations():
    x = image = keras.Input((6, 4))
    x = layers.MultiHeadAttention(1, 2, name="attention_1")(x[:, :4], x)
    x = layers.Dense(2, activation="gelu", name="dense")(layers.LayerNormalization(name="norm")(x))
    y = layers.Dense(2, name="dense_1")(x)
    model = keras.Model(image, {"a": x, "b": y})
    file, _, _ = float_file(model)
    names, graph = LayerNames(model), file.subgraphs[0]
    made = [names.of(flatbuffer.text(graph.tensors[op.outputs[0]].name)) for op in graph.operators]
    assert {name.partition("_")[0] for name in made} == {"get", "attention", "norm", "dense"}
    assert {"attention_1", "dense", "dense_1"} <= set(made)
