"""Models trained in few bits: what each layer is stored in, and that the numbers stay."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc
from tfcompress.conversion.grids import find_grid
from tfcompress.techniques.quantize import Quantize
from tfcompress.tflite import flatbuffer, run

BITS = {"stem": 4, "dw": 3, "point": 2, "up": 2, "wide": 2, "middle": 2, "head": 8}


@dataclasses.dataclass(frozen=True)
class Learned(Quantize):
    """A scale that the weights do not decide about: the greatest code may be any."""

    def apply(self, weight, state):
        most = 2 ** (self.bits - 1) - 1
        return ops.clip(ops.round(weight / 0.11), -most, most) * 0.11


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(0).normal(size=(16, 6, 6, 4)).astype("float32")


def trained(data, rules):
    keras.utils.set_random_seed(3)
    x = image = keras.Input((6, 6, 4), name="image")
    x = layers.BatchNormalization(name="bn")(layers.Conv2D(8, 3, name="stem")(x))
    x = layers.DepthwiseConv2D(2, depth_multiplier=2, name="dw")(layers.ReLU(name="relu")(x))
    x = layers.Conv2D(16, 1, activation="relu", name="point")(x)
    x = layers.Flatten(name="flat")(layers.Conv2DTranspose(4, 2, name="up")(x))
    x = layers.Dense(32, activation="relu", name="wide")(x)
    x = layers.Dense(16, activation="relu", name="middle")(x)
    model = keras.Model(image, layers.Dense(3, name="head")(x))
    qat = tfc.compress(model, [tfc.Rule(name, found) for name, found in rules.items()])
    qat(data, training=True)
    return qat


@pytest.fixture(scope="module")
def mixed(data):
    rules = {name: [Quantize(bits=bits)] for name, bits in BITS.items()}
    rules["middle"] = [Quantize(bits=2, dense="per_channel")]
    return trained(data, {"*": [Quantize()], **rules})


def outputs(path, data, reference=True):
    content = path.read_bytes()
    runner = run.Runner(flatbuffer.read(content), content, "the file", reference=reference)
    return np.concatenate([runner.run({"image": x[None]})[0] for x in data])


def steps(model, path, data):
    """How far a file is from its model."""
    (found,) = tfc.verify(model, path, data).outputs
    return found.keras.max_lsb


def test_each_layer_has_the_narrowest_kernel_there_is(mixed, data, tmp_path):
    path, wide = tmp_path / "few.tflite", tmp_path / "wide.tflite"
    report = tfc.convert(mixed, path, strict=True)
    assert report.precision == "int4"
    few = {"stem": "int4", "dw": "int4", "point": "int2", "up": "int8", "wide": "int2"}
    assert report.layers == {**few, "middle": "int2", "head": "int8"}
    found = tfc.inspect(path)
    stored = [t.dtype for t in found.tensors if t.is_constant and t.dtype.startswith("int")]
    assert stored.count("int4") == 2
    assert stored.count("int2") == 3
    assert any("few values in int8 codes" in note and "up (3)" in note for note in report.notes)
    assert any("save flash, not time" in note for note in report.notes)
    tfc.convert(mixed, wide, precision="int8")
    assert report.file_bytes < wide.stat().st_size - 1500
    file = flatbuffer.read(path)
    scales = {
        tuple(t.shape): len(flatbuffer.scales_of(t)[0])
        for t in file.subgraphs[0].tensors
        if flatbuffer.dtype_name(t) == "int2"
    }
    # As XNNPACK asks, where that pays.
    assert scales == {(16, 16): 16, (32, 64): 32, (16, 32): 16}
    (judged,) = tfc.verify(mixed, path, data).outputs
    assert judged.passed
    assert judged.keras.max_lsb < 0.01


@pytest.mark.slow
def test_codes_alone_change(mixed, data, tmp_path):
    """But for pointwise convolutions, which become FULLY_CONNECTED."""
    path, wide = tmp_path / "few.tflite", tmp_path / "wide.tflite"
    report = tfc.convert(mixed, path, precision={"point": "int8"})
    assert (report.precision, report.layers["point"]) == ("mixed", "int8")
    assert report.layers["wide"] == "int2"
    tfc.convert(mixed, wide, precision="int8")
    expected = outputs(wide, data)
    np.testing.assert_array_equal(outputs(path, data), expected)
    assert steps(mixed, wide, data) < 0.01


@pytest.mark.slow
def test_layers_may_have_more_bits_than_they_need(mixed, tmp_path):
    rules = {"wide": "int4", "middle": "int8", "dw": "int8", "point": "int4"}
    report = tfc.convert(mixed, tmp_path / "x.tflite", precision=rules)
    assert {name: report.layers[name] for name in (*rules, "stem")} == {**rules, "stem": "int4"}


@pytest.mark.parametrize(
    ("precision", "says"),
    [
        ({"head": "int4"}, r"trained in 4 bits to be stored as int4; received 'head'.*bits=4"),
        ({"*": "int2"}, r"trained in 2 bits to be stored as int2; received 'head', of a model"),
        ({"stem": "int2"}, "'stem' asks for int2, which .* LiteRT runs these in int4 or int8"),
        ({"up": "int4"}, r"'up' asks for int4, which .* matches 'up' \(Conv2DTranspose\)"),
        ({"head": "float16"}, "one of int8, int4, int2; received 'float16'"),
        ({"nowhere": "int4"}, "'nowhere' must match a layer"),
        ("int2", "int2 is by layer, as {'\\*': 'int2'}; received 'int2'"),
    ],
)
def test_what_does_not_fit_is_refused(mixed, tmp_path, precision, says):
    with pytest.raises(ValueError, match=says):
        tfc.convert(mixed, tmp_path / "x.tflite", precision=precision)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_model_of_eight_bits_keeps_them_beside_a_rule(data, tmp_path):
    model = trained(data, {"*": [Quantize()]})
    path = tmp_path / "x.tflite"
    assert tfc.convert(model, path, precision={"head": "int8"}).layers == {}
    np.testing.assert_allclose(outputs(path, data), model.predict(data, verbose=0), atol=1e-5)


def test_targets_get_what_they_take(mixed, data, tmp_path):
    path = tmp_path / "x.tflite"
    report = tfc.convert(mixed, path, target="edge_tpu")
    assert (report.precision, report.layers) == ("int8", {})
    assert any("are stored in 8" in note for note in report.notes)
    with pytest.raises(ValueError, match="'edge_tpu' takes precision 'int8'"):
        tfc.convert(mixed, path, target="edge_tpu", precision={"wide": "int2"})
    report = tfc.convert(mixed, path, target="microcontroller")
    assert report.check.passed
    assert any("2 weights are stored in more bits" in note for note in report.notes)
    few = dict.fromkeys(("stem", "dw", "point", "wide"), "int4")  # one scale each for Dense
    assert report.layers == {**few, "up": "int8", "middle": "int8", "head": "int8"}


@pytest.mark.slow
def test_tflite_micro_runs_what_its_target_gets(mixed, tmp_path):
    path = tmp_path / "x.tflite"
    tfc.convert(mixed, path, target="microcontroller")
    assert tfc.accept(path, "tflm").passed


@pytest.mark.slow
def test_scales_that_were_learned(data, tmp_path):
    model = trained(data, {"*": [Learned(bits=4)], "head": [Quantize()]})
    path, wide = tmp_path / "x.tflite", tmp_path / "wide.tflite"
    report = tfc.convert(model, path, precision={"point": "int8"}, strict=True)
    assert report.layers["wide"] == report.layers["stem"] == "int4"
    tfc.convert(model, wide, precision="int8")
    np.testing.assert_array_equal(outputs(path, data), outputs(wide, data))
    file = flatbuffer.read(path)
    weights = [
        flatbuffer.tensor_values(file, t) * np.array(flatbuffer.scales_of(t)[0])[:, None]
        for t in file.subgraphs[0].tensors
        if t.shape is not None and list(t.shape) == [16, 32]
    ]
    kernel = np.asarray(model.get_layer("middle").effective(model.get_layer("middle").layer.kernel))
    np.testing.assert_allclose(weights, [kernel.T], atol=1e-6)


def test_learned_scales_without_activations(data, tmp_path):
    x = keras.Input((144,), name="image")
    keras.utils.set_random_seed(0)
    model = keras.Model(x, layers.Dense(16, name="d")(x))
    few = tfc.compress(model, [tfc.Rule("*", [Learned(bits=4, activation_bits=None)])])
    path, flat = tmp_path / "x.tflite", data.reshape(-1, 144)
    assert tfc.convert(few, path, precision="int4").layers == {"d": "int4"}
    np.testing.assert_allclose(outputs(path, flat), few.predict(flat, verbose=0), atol=1e-4)


@pytest.mark.slow
def test_values_are_stored_in_the_bits_that_hold_them(data, tmp_path):
    """Whatever bits `Quantize` has behind a `Codebook`."""
    books = {"*": "8", "dw": "4", "wide": "binary", "middle": [-2.0, 0.0, 1.0, 5.0]}
    rules = {name: [tfc.Codebook(values), Quantize()] for name, values in books.items()}
    model = trained(data, {**rules, "dw": [tfc.Codebook("4", depthwise=True), Quantize()]})
    path = tmp_path / "x.tflite"
    report = tfc.convert(model, path, precision={"point": "int8"})
    four = dict.fromkeys(("stem", "dw", "middle", "head"), "int4")
    assert report.layers == {**four, "point": "int8", "up": "int8", "wide": "int2"}
    assert steps(model, path, data) < 0.01


@pytest.mark.parametrize("values", [(-3, -1, 1, 3), (-1, 0, 1), range(-5, 6), (-4, -2, 0, 1, 2, 4)])
@pytest.mark.parametrize("kind", ["t", "c"])
def test_grids_of_few_values(values, kind):
    codes = np.random.default_rng(1).choice(np.array(values), (64, 64))
    scale = np.full((64, 1), 0.037) if kind == "t" else np.linspace(0.01, 0.1, 64)[:, None]
    weight = (codes * scale).astype("float32")
    least = 2 if max(values) == 1 else 3 if max(values) == 3 else 4
    found = find_grid(weight, 0, [2, 3, 4, 8])
    assert (found.bits, found.kind) == (least, kind)
    np.testing.assert_array_equal(np.rint(weight / found.scale), codes)
    in_eight = find_grid(weight, 0, [8])
    back = np.rint(weight / in_eight.scale) * in_eight.scale
    assert in_eight.kind == kind
    np.testing.assert_allclose(back, weight, atol=1e-6)
