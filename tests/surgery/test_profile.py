"""profile: activation memory worked out by hand, what it prints, and the command."""

import json
import sys
import types

import keras
import numpy as np
import pytest
import typer
from graph_models import sequential, subclassed
from keras import layers, ops
from rich.console import Console
from typer.testing import CliRunner

import tfcompress as tfc
from tfcompress.bench import models
from tfcompress.cli.files import parse_shapes
from tfcompress.cli.files import profile as command
from tfcompress.surgery.profile import profile


def rows_of(found, *names):
    return {row.name: tuple(getattr(row, name) for name in names) for row in found.rows}


def residual():
    inputs = keras.Input((4, 4, 2), name="image")
    x = layers.Conv2D(8, 3, padding="same", name="conv")(inputs)
    y = layers.ReLU(name="relu")(x)
    y = layers.Add(name="add")([y, x])
    return keras.Model(inputs, layers.Flatten(name="flat")(y), name="residual")


def test_rows_and_memory_by_hand():
    found = profile(residual())
    small, large = 4 * 4 * 2 * 4, 4 * 4 * 8 * 4  # bytes of float32
    assert rows_of(found, "kind", "shapes", "params", "macs") == {
        "image": ("InputLayer", ((4, 4, 2),), 0, 0),
        "conv": ("Conv2D", ((4, 4, 8),), 9 * 2 * 8 + 8, 16 * 9 * 2 * 8),
        "relu": ("ReLU", ((4, 4, 8),), 0, 0),
        "add": ("Add", ((4, 4, 8),), 0, 0),
        "flat": ("Flatten", ((128,),), 0, 0),
    }
    assert rows_of(found, "activation_bytes", "alive_bytes") == {
        "image": (small, small),
        "conv": (large, small + large),
        "relu": (large, 2 * large),
        "add": (large, 3 * large),  # the skip connection is held
        "flat": (large, 2 * large),
    }
    assert (found.macs, found.params) == (2304, 152)
    assert (found.peak.name, found.peak_bytes) == ("add", 3 * large)
    assert found.activation_bytes == small + 4 * large


def test_inputs_are_held_from_the_start_and_outputs_to_the_end():
    a, b = keras.Input((10,), name="a"), keras.Input((20,), name="b")
    first = layers.Dense(5, name="first")(a)
    second = layers.Dense(3, name="second")(b)
    found = profile(keras.Model([a, b], [first, second]))
    alive = rows_of(found, "alive_bytes")
    assert alive["first"] == (4 * (10 + 20 + 5),)
    assert alive["second"] == (4 * (20 + 5 + 3),)


def test_bytes_of_dtypes():
    inputs = keras.Input((6,), dtype="int32", name="words")
    x = layers.Embedding(9, 4, name="embed", dtype="mixed_float16")(inputs)
    mask = ops.greater(x, 0.0)
    model = keras.Model(inputs, [layers.LayerNormalization(name="norm")(x), mask])
    found = {name: each for name, (each,) in rows_of(profile(model), "activation_bytes").items()}
    assert [found[name] for name in ("words", "embed", "norm")] == [6 * 4, 24 * 2, 24 * 4]
    assert found.pop(next(name for name in found if name.startswith("greater"))) == 24
    int8 = rows_of(profile(model, bytes_per_value=1), "activation_bytes")
    # What are no reals stay: tokens are int32 in an int8 file, too.
    assert [int8[name] for name in ("words", "embed", "norm")] == [(24,), (24,), (24,)]


def test_a_shared_layer_has_a_row_for_each_call():
    a, b = keras.Input((4,)), keras.Input((4,))
    dense = layers.Dense(3, name="dense")
    found = profile(keras.Model([a, b], layers.Add()([dense(a), dense(b)])))
    rows = [row for row in found.rows if row.name == "dense"]
    assert [(row.params, row.macs) for row in rows] == [(15, 12), (0, 12)]
    assert found.params == 15


def test_weights_that_are_tensors_are_no_activations():
    class Scaled(layers.Layer):
        def build(self, shape):
            self.inner = layers.Dense(5, name="inner")
            self.inner.build(shape)
            self.scale = self.add_weight(shape=(5,), name="scale")

        def call(self, x):
            return self.inner(x) * self.scale

    model = sequential(Scaled(name="scaled"))
    row = next(row for row in profile(model).rows if row.kind == "Parameter")
    assert (row.params, row.activation_bytes, row.shapes) == (5, 0, ((5,),))


def test_unknown_axes():
    inputs = keras.Input((None, None, 3), name="image")
    y = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, padding="same")(inputs))
    model = keras.Model(inputs, y)
    found = profile(model)
    assert (found.macs, found.open_shapes) == (9 * 3 * 8, ("image",))
    for shapes in ((32, 16, 3), {"image": (32, 16, 3)}):
        found = profile(model, shapes=shapes)
        assert (found.macs, found.open_shapes) == (32 * 16 * 9 * 3 * 8, ())
    assert "image" in str(profile(model))


def test_subclassed_and_nested_models_and_their_weights_stay():
    parts = {"a": layers.Dense(5, name="a"), "b": layers.Dense(2, name="b")}
    model = subclassed(lambda m, x, t: m.b(ops.relu(m.a(x))), parts, np.ones((2, 8), "float32"))
    before = [np.array(v) for v in model.weights]
    found = profile(model)
    assert [row.name for row in found.rows if row.macs] == ["a", "b"]
    assert found.macs == 8 * 5 + 5 * 2
    assert all(np.array_equal(a, b) for a, b in zip(before, model.weights, strict=True))
    assert profile(sequential(model)).macs == found.macs


def test_compressed_models_count_as_their_layers_do():
    model = models.ds_cnn()
    plain = profile(model)
    for other in (
        tfc.quantize_aware(model),
        tfc.compress(model, [tfc.Rule("*", [tfc.Prune(0.5)])]),
    ):
        found = profile(other)
        assert (found.macs, found.params) == (plain.macs, plain.params)


def test_what_is_printed():
    def opaque(x):
        import tensorflow as tf

        return tf.math.bessel_i0e(x)

    model = sequential(layers.Dense(3), layers.Lambda(opaque, output_shape=(3,), name="[odd]"))
    found = profile(model)
    assert found.unknown == ("[odd]",)
    text = str(found)
    assert "unknown" in text
    assert "[odd]" in text
    assert "MACs" in text
    data = json.loads(json.dumps(found.to_dict()))
    assert data["rows"][-1]["macs"] is None
    assert (data["macs"], data["params"], data["unknown"]) == (24, 27, ["[odd]"])
    assert (data["peak_bytes"], data["peak_layer"]) == (4 * (8 + 3), found.peak.name)
    with (console := Console(width=60)).capture() as captured:
        found.render(console)
    assert "24" in captured.get()


def test_bad_input():
    with pytest.raises(ValueError, match="bytes_per_value must be 1, 2, 4 or 8; received 3"):
        profile(residual(), bytes_per_value=3)
    with pytest.raises(ValueError, match=r"unknown input 'img' in shapes.*Did you mean|expected"):
        profile(residual(), shapes={"img": (4, 4, 2)})
    with pytest.raises(ValueError, match=r"shape of input 'image' must be .*received \(4, 4, 3\)"):
        profile(residual(), shapes=(4, 4, 3))
    a, b = keras.Input((4,)), keras.Input((4,))
    with pytest.raises(ValueError, match=r"must name the model's 2 inputs"):
        profile(keras.Model([a, b], layers.Add()([a, b])), shapes=(4,))
    with pytest.raises(TypeError, match=r"received builtins\.str"):
        profile("model.keras")
    with pytest.raises(ValueError, match="built"):
        profile(keras.Sequential([layers.Dense(3)]))


def test_tf_keras_models_are_refused(monkeypatch):
    class Model:
        name = "old"

    monkeypatch.setitem(sys.modules, "tf_keras", types.SimpleNamespace(Model=Model))
    with pytest.raises(TypeError, match=r"received 'old' of tf_keras.*tfcompress migrate"):
        profile(Model())


def run(*arguments):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_command(tmp_path):
    model, file = residual(), tmp_path / "model.keras"
    model.save(file)
    shown = run(file, "--json", "--quiet", "--bytes-per-value", 1)
    assert json.loads(shown.stdout) == profile(model, bytes_per_value=1).to_dict()
    shown = run(file, "--quiet")
    assert f"{profile(model).macs:,}" in shown.stdout
    assert shown.exit_code == 0
    for wrong in (["--bytes-per-value", 3], ["--shape", "image=0x4"], ["--shape", "img=4x4x2"]):
        assert isinstance(run(file, *wrong).exception, ValueError)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    assert run(tmp_path / "saved").exit_code != 0


def test_shapes_of_the_command():
    assert parse_shapes([]) is None
    assert parse_shapes(["8x8x3"]) == (8, 8, 3)
    assert parse_shapes(["a=8x8x3", "b=20"]) == {"a": (8, 8, 3), "b": (20,)}
    for wrong in (["8x8", "b=20"], ["a="], ["8*8"], ["a=-1x3"]):
        with pytest.raises(ValueError, match="--shape must be"):
            parse_shapes(wrong)
