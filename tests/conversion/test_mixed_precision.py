"""Files whose layers have precisions of their own, run by LiteRT."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.conversion.grids import handed_grid
from tfcompress.conversion.job import Job
from tfcompress.conversion.layer_names import LayerNames
from tfcompress.conversion.packing import packed
from tfcompress.conversion.quantize import WEIGHTS, Weights
from tfcompress.conversion.settings import settle
from tfcompress.conversion.tuning import Tuned, content
from tfcompress.graph.flatten import flatten
from tfcompress.graph.nodes import Graph
from tfcompress.post_training.kernels import kernels_of, on_grid
from tfcompress.tflite import flatbuffer, run
from tfcompress.tflite.flatbuffer import op_name

KERNELS = {"reference": True, "XNNPACK": False}


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(3)
    x = image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, activation="relu", name="stem")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, activation="relu", name="dw")(x)
    x = layers.Conv2DTranspose(8, 2, name="up")(x)
    x = layers.Flatten(name="flat")(x)[:, :160]
    x = layers.Dense(32, activation="relu", name="wide")(x)
    x = layers.Dense(32, activation="relu", name="middle")(x)
    return keras.Model(image, layers.Dense(3, name="head")(x))


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(0).normal(size=(24, 8, 8, 3)).astype("float32")


def outputs(content, data, reference):
    runner = run.Runner(flatbuffer.read(content), content, "the file", reference=reference)
    return np.concatenate([runner.run({"image": x[None]})[0] for x in data])


def sqnr(model, path, data, reference):
    wanted = model.predict(data, verbose=0)
    noise = np.square(outputs(path.read_bytes(), data, reference) - wanted).mean()
    return 10 * np.log10(np.square(wanted).mean() / noise)


def test_each_layer_computes_as_asked(model, data, tmp_path):
    path = tmp_path / "mixed.tflite"
    rules = {"*": "int4", "flat": "int8", "stem": "float32", "wide": "int16x8", "head": "float16"}
    report = tfc.convert(model, path, precision=rules, calibration=data, strict=True)
    names = LayerNames(model)
    found = {
        names.of(layer.layer): layer.precision
        for layer in tfc.inspect(path).layer_bytes
        if layer.weights
    }
    assert found == {
        "stem": "float32",
        "dw": "int4 x int8",
        "up": "int8",
        "wide": "int8 x int16",
        "middle": "int4 x int8",
        "head": "float16 x float32",
    }
    assert (report.precision, report.layers["up"], report.layers["head"]) == (
        "mixed",
        "int8",
        "float16",
    )
    assert any("no int4 kernel: up" in note for note in report.notes)
    refused = [op for op in tfc.check(path, "microcontroller").operators if not op.mapped]
    assert "DEQUANTIZE" in {op.name for op in refused}
    assert all(sqnr(model, path, data, kind) > 15 for kind in KERNELS.values())


def file_with(model, data, rules, grids):
    job = Job(settle(rules, tune="none"), False, False, None)
    job.tuned = Tuned(model, {}, (), {}, flatten(model), grids)
    return job.run(model, data, None)


def weights_in(file):
    """By operator names the weights of a file: codes and scales."""
    found = {}
    for op in file.subgraphs[0].operators:
        if op_name(file, op) in WEIGHTS:
            weight = file.subgraphs[0].tensors[op.inputs[1]]
            scales, _ = flatbuffer.scales_of(weight)
            found[op_name(file, op)] = flatbuffer.tensor_values(file, weight), np.float32(scales)
    return found


# How LiteRT stores the kernels of Keras.
STORED = {
    "CONV_2D": ("stem", lambda codes: codes.transpose(3, 0, 1, 2)),
    "DEPTHWISE_CONV_2D": ("dw", lambda codes: codes.reshape(1, *codes.shape[:2], -1)),
    "TRANSPOSE_CONV": ("up", lambda codes: codes.transpose(2, 0, 1, 3)),
    "FULLY_CONNECTED": ("head", lambda codes: codes.T),
}


def test_known_scales_stay_and_packed_weights_give_the_same_numbers(model, data):
    model = keras.models.clone_model(model)
    scales, codes, grids = {}, {}, {}
    for kernel in kernels_of(Graph.of(model)):
        most = np.abs(kernel.value).max(kernel.reduced, keepdims=True)
        scale = scales[kernel.name] = most / 6.3  # beyond, and clipped
        codes[kernel.name] = np.rint(on_grid(kernel.value, scale, 4) / scale)
        kernel.variable.assign(codes[kernel.name] * scale)
        grids[content(kernel)] = kernel.name, scale
    rules = [{"*": "int4"}, {"*": "int8"}]
    files = [file_with(model, data, each, grids) for each in rules]
    for file in files:
        for operator, (values, found) in weights_in(file).items():
            layer, stored = STORED[operator]
            np.testing.assert_array_equal(values, stored(codes[layer]))
            np.testing.assert_array_equal(found, scales[layer].ravel())
    exact, xnnpack = (
        [outputs(flatbuffer.write(file), data, kind) for file in files] for kind in KERNELS.values()
    )
    np.testing.assert_array_equal(*exact)
    np.testing.assert_allclose(*xnnpack, atol=0.1 * np.abs(exact[0]).max())  # rounds otherwise


def test_codes_are_packed_with_the_first_in_the_lowest_bits():
    assert packed(np.int8([1, -1, 7]), 4) == bytes([0xF1, 0x07])
    assert packed(np.int8([1, -1, 0, 1, -1]), 2) == bytes([0b01_00_11_01, 0b11])
    codes = np.random.default_rng(0).integers(-7, 8, 9).astype(np.int8)
    assert np.array_equal(flatbuffer.decode(packed(codes, 4), "int4")[:9], codes)


@pytest.mark.parametrize(
    ("weight", "scale", "says"),
    [
        ([[1.0, 0.5]], [1.0, 1.0], "off by 0.5"),
        ([[8.0, 1.0]], [1.0, 1.0], r"up to 7 of them \(4 bits\); received codes up to 8"),
        ([[1.0, 1.0]], [0.0, 0.3], "off by"),
        ([[1.0, 1.0]], [1.0, 1.0, 1.0], "one or 2; received 3"),
    ],
)
def test_scales_that_do_not_fit_are_refused(weight, scale, says):
    with pytest.raises(ValueError, match=says):
        handed_grid(np.float32(weight), 1, np.float32(scale), 4, "dense")


def test_codes_of_more_bits_than_are_stored_are_rounded_anew():
    values, scale = np.float32([[7.0, -3.0], [8.0, 1.0]]), np.float32([1.0, 1.0])
    weights = Weights(None, ("dense", scale), False, "max")
    np.testing.assert_array_equal(weights.grid(values, 1, 8).scale, [[1.0, 1.0]])
    np.testing.assert_allclose(weights.grid(values, 1, 4).scale, [[8 / 7, 3 / 7]])
    values[1, 0] = 2.0
    assert weights.grid(values, 1, 4).bits == 4
    np.testing.assert_array_equal(weights.grid(values, 1, 4).scale, [[1.0, 1.0]])


def test_what_cannot_be_is_said_before_work_starts(model, data, tmp_path):
    def refused(says, of=model, **settings):
        with pytest.raises(ValueError, match=says):
            tfc.convert(of, tmp_path / "x.tflite", **settings)

    refused("needs the ranges of activations; received no calib", precision={"dw": "int4"})
    quantized = tfc.quantize_aware(model)
    refused("from before quantize_aware", quantized, precision={"dw": "float16"})
    refused("'up' asks for int4", precision={"up": "int4"}, calibration=data)
    refused("'nowhere' must match a layer", precision={"nowhere": "int4"}, calibration=data)
    refused("target 'edge_tpu' takes precision 'int8'", precision={"*": "int4"}, target="edge_tpu")
    with pytest.raises(ValueError, match=r"is for \.tflite files"):
        tfc.convert(model, tmp_path / "x.onnx", precision={"*": "int8"}, calibration=data)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_quality_rises_with_bits(model, data, tmp_path):
    path, found = tmp_path / "x.tflite", {}
    for precision in ("int2", "int4", "int4_blockwise", "int8", "int16x8", "float16", "float32"):
        report = tfc.convert(
            model, path, precision={"wide": precision}, calibration=data, tune="none"
        )
        assert report.layers["wide"] == precision
        found[precision] = [sqnr(model, path, data, kind) for kind in KERNELS.values()]
    for kind, _ in enumerate(KERNELS):
        row = {name: values[kind] for name, values in found.items()}
        assert row["int2"] < row["int4"] < row["int8"] - 3, row
        assert min(row[name] for name in ("int16x8", "float16", "float32")) > row["int8"] - 1.5
    assert found["int4_blockwise"][1] > found["int4"][1]
    whole = {}
    for precision in ("int4", "int8", "int16x8", "float16", "float32"):
        tfc.convert(model, path, precision={"*": precision}, calibration=data)
        whole[precision] = min(sqnr(model, path, data, kind) for kind in KERNELS.values())
    assert list(whole.values()) == sorted(whole.values())


@pytest.mark.slow
def test_layers_that_open_follow_their_rule(tmp_path):
    x = image = keras.Input((8, 32), name="image")
    x = layers.MultiHeadAttention(2, 16, name="attention")(x, x)
    x = layers.Dense(4, name="head")(layers.GlobalAveragePooling1D(name="pool")(x))
    model = keras.Model(image, x)
    data = np.random.default_rng(1).normal(size=(32, 8, 32)).astype("float32")
    for precision, kinds in {
        "int4": {"int8"},
        "int16x8": {"int16"},
        "float16": {"float32"},
        "int4_blockwise": {"float32", "dynamic_int4"},
    }.items():
        path = tmp_path / "x.tflite"
        report = tfc.convert(model, path, precision={"attention": precision}, calibration=data)
        assert report.layers == {"attention": precision, "pool": "int8", "head": "int8"}
        found = [op for op in tfc.inspect(path).operators if "QUANTIZE" not in op.name]
        assert {op.dtype for op in found if "attention" in op.layer} == kinds, precision
        assert sqnr(model, path, data, False) > (8 if "int4" in precision else 25)
