"""Rules that give layers precisions."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.conversion.float_files import float_file
from tfcompress.conversion.layer_names import LayerNames, shorten_names
from tfcompress.conversion.precisions import Precisions
from tfcompress.graph.flatten import flatten
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.predictor import predictor


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


def opening_model():
    x = image = keras.Input((6, 4))
    x = layers.MultiHeadAttention(1, 2, name="attention_1")(x[:, :4], x)
    x = layers.Dense(2, activation="gelu", name="dense")(layers.LayerNormalization(name="norm")(x))
    y = layers.Dense(2, name="dense_1")(x)
    return keras.Model(image, {"a": x, "b": y})


def layers_of(model, file):
    """The layer that each tensor comes from, as names tell."""
    names = LayerNames(model)
    return [names.of(flatbuffer.text(tensor.name)) for tensor in file.subgraphs[0].tensors]


def test_tensors_tell_layers_that_open_into_several_operations():
    file, _, _ = float_file(model := opening_model())
    told, graph = layers_of(model, file), file.subgraphs[0]
    made = [told[op.outputs[0]] for op in graph.operators]
    assert {name.partition("_")[0] for name in made} == {"get", "attention", "norm", "dense"}
    assert {"attention_1", "dense", "dense_1"} <= set(made)


def test_short_names_tell_the_same_layers():
    file, _, _ = float_file(model := opening_model())
    graph = file.subgraphs[0]
    long = [flatbuffer.text(tensor.name) for tensor in graph.tensors]
    before, ends = layers_of(model, file), {*graph.inputs, *graph.outputs}
    shorten_names(file, model)
    short = [flatbuffer.text(tensor.name) for tensor in graph.tensors]
    assert layers_of(model, file) == before
    assert {"dense_1_1", "attention_1_1"} <= {name.partition("/")[0] for name in short}
    assert len(set(short)) == len(short)
    assert all(short[index] == long[index] for index in ends)
    assert sum(map(len, short)) < 0.5 * sum(map(len, long))


def test_files_for_microcontrollers_have_short_names(tmp_path):
    inputs = keras.Input((6, 6, 1), name="image")
    x = layers.Conv2D(4, 3, use_bias=False, name="seeing")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    outputs = layers.Dense(2, name="head")(layers.Flatten()(x))
    model = keras.Model(inputs, outputs)
    data = np.random.default_rng(0).normal(size=(8, 6, 6, 1)).astype("float32")
    codes = {"image": np.arange(-72, 72, dtype="int8").reshape(4, 6, 6, 1)}
    found = {}
    for target in ("mobile_cpu", "microcontroller"):
        path = tmp_path / f"{target}.tflite"
        settings = {"dense": "per_tensor", "io_dtype": "int8", "calibration": data}
        report = tfc.convert(model, path, target=target, **settings)
        file = flatbuffer.read(path)
        names = [flatbuffer.text(tensor.name) for tensor in file.subgraphs[0].tensors]
        (made,) = predictor(path.read_bytes(), codes)(codes).values()
        found[target] = report.file_bytes, sum(map(len, names)), made
    (wide, many, expected), (narrow, few, received) = found.values()
    np.testing.assert_array_equal(received, expected)
    assert few < 0.5 * many
    assert wide - narrow > 0.8 * (many - few)
