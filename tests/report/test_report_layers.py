"""The layers of a file: figures worked out by hand, and those that `verify` and `inspect` give."""

import keras
import numpy as np
import pytest
from keras import layers
from refusals import refused

import tfcompress as tfc
from tfcompress.bench.methods.peers import int8_by_converter
from tfcompress.report.layers import BINS, EXACT_DB, histogram, layer_figures, layer_names
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.inspect import inspect
from tfcompress.tflite.run import ports

KERNEL = np.array([[1.0, 0.0, 0.5], [0.0, 0.0, -2.0]], np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("layers")


@pytest.fixture(scope="module")
def small(folder):
    """A dense layer of known weights behind a ReLU: the model, its data, its int8 file."""
    inputs = keras.Input((2,), name="point")
    dense = layers.Dense(3, name="mixing")
    model = keras.Model(inputs, dense(layers.ReLU(name="positive")(inputs)))
    dense.set_weights([KERNEL, np.array([0.1, 0.2, 0.3], np.float32)])
    x = np.random.default_rng(0).uniform(-1, 1, (40, 2)).astype("float32")
    tfc.convert(model, folder / "small.tflite", calibration=x)
    return model, x, folder / "small.tflite"


@pytest.fixture
def cnn_file(converted, float_cnn, images, tmp_path):
    """Files by their precision, each made when it is asked for."""

    def file_of(name):
        if name == "int4":  # With ranges.
            settings = {"precision": "int4", "calibration": images[0][:64]}
            tfc.convert(float_cnn, tmp_path / "int4.tflite", **settings)
            return tmp_path / "int4.tflite"
        return converted("qat")[0] if name == "qat" else converted("float", precision=name)[0]

    return file_of


def named(figures, name):
    return next(each for each in figures if each["name"] == name)


def test_figures_of_a_layer_are_those_worked_out_by_hand(small):
    model, x, path = small
    found = layer_figures(path, model, x)
    assert [each["name"] for each in found] == ["positive", "mixing"]
    relu, dense = found
    assert dense["op"] == "FULLY_CONNECTED"
    assert dense["bytes"] == 6 + 3 * 4  # int8 weights, int32 biases.
    assert dense["params"] == 9
    assert dense["sparsity"] == 0.5
    assert dense["bits"] == 8
    # A scale for each unit: 1 is 127 in its own, -2 is -127, 0.5 is a quarter of that.
    assert dense["unique"] == len({127, 0, 32, -127})
    (output,) = ports(flatbuffer.read(path))[1]
    tensor = next(t for t in inspect(path).tensors if t.name == flatbuffer_name(path, dense))
    low, high = ((code - tensor.zero_point) * tensor.scale for code in (-128, 127))
    assert dense["range"] == pytest.approx([low, high], rel=1e-5)
    assert output.dtype == "float32"  # What the range is told of is before the last DEQUANTIZE.
    assert relu["range"][0] == 0
    assert relu["bytes"] == relu["params"] == 0
    assert all(relu[key] is None for key in ("sparsity", "unique", "bits", "histogram"))


def flatbuffer_name(path, layer):
    """The name of the tensor that the only operator of a kind gives."""
    return next(op.layer for op in inspect(path).operators if op.name == layer["op"])


def test_weights_are_dequantized_with_the_scale_of_their_channel(small):
    model, _, path = small
    found = named(layer_figures(path, model), "mixing")["histogram"]
    low, high = found["edges"]
    assert -low == high == pytest.approx(2 * 127.5 / 127, rel=1e-5)
    expected = np.histogram(KERNEL, BINS, (low, high))[0]
    assert found["counts"] == expected.tolist()
    assert found["counts"][BINS // 2] == 3  # The zeros.


def test_levels_of_int8_fall_into_bins_evenly():
    levels = np.arange(-127, 128) * 0.013
    assert histogram([levels])["counts"] == [5] * BINS
    assert histogram([]) is None
    assert histogram([np.array([np.nan, 0.0])])["counts"][BINS // 2] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "bits"),
    [("float32", 32), ("float16", 16), ("int8", 8), ("int4", 4), ("qat", 8)],
)
def test_every_precision_has_its_figures(name, bits, cnn_file, float_cnn, qat_cnn, images):
    path = cnn_file(name)
    model = qat_cnn if name == "qat" else float_cnn
    found = layer_figures(path, model, images[0])
    last = named(found, "pointwise")
    op = "FULLY_CONNECTED" if bits == 4 else "CONV_2D"  # The narrow kernel of a pointwise one.
    assert (last["op"], last["bits"]) == (op, bits)
    assert last["params"] == 8 * 8 + 8
    assert last["unique"] <= min(2**bits, 64)
    assert sum(last["histogram"]["counts"]) == 64
    assert (last["range"] is None) == (bits > 8)
    assert {"kind"} <= {each["name"] for each in found}
    assert not {"QUANTIZE", "DEQUANTIZE", "RESHAPE"} & {each["op"] for each in found}
    constants = sum(layer.bytes for layer in inspect(path).layer_bytes)
    assert sum(each["bytes"] for each in found) <= constants
    least = {32: EXACT_DB, 16: 40, 8: 14, 4: 2}[bits]
    assert all(each["sqnr_db"] >= least for each in found)


@pytest.mark.slow
def test_float_weights_keep_their_values(cnn_file, float_cnn):
    found = named(layer_figures(cnn_file("float32"), float_cnn), "pointwise")
    weights = float_cnn.get_layer("pointwise").get_weights()[0]
    edges = found["histogram"]["edges"]
    assert edges[1] == pytest.approx(np.abs(weights).max() * 127.5 / 127, rel=1e-5)
    expected, _ = np.histogram(weights, BINS, edges)
    assert np.abs(np.array(found["histogram"]["counts"]) - expected).sum() <= 2
    assert found["sqnr_db"] is None  # Without data.


def test_dynamic_files_have_narrow_weights_and_no_ranges(cnn_file, float_cnn):
    found = layer_figures(cnn_file("dynamic_int8"), float_cnn)
    assert all(each["range"] is None for each in found)
    assert {each["bits"] for each in found} <= {8, 32, None}


@pytest.mark.slow
def test_errors_are_those_that_verify_finds(cnn_file, qat_cnn, images):
    path = cnn_file("qat")
    checked = tfc.verify(qat_cnn, path, images[0][:16], layers=True)
    expected = {(e.layer, e.op): e.sqnr_db for e in checked.layers}
    found = layer_figures(path, qat_cnn, images[0])
    compared = [each for each in found if (each["name"], each["op"]) in expected]
    assert len(compared) > 5
    for each in compared:
        wanted = min(expected[each["name"], each["op"]], EXACT_DB)
        assert each["sqnr_db"] == pytest.approx(wanted, abs=0.006)


def test_a_float_file_can_stand_for_the_model(cnn_file, float_cnn, images):
    path, reference = cnn_file("int8"), cnn_file("float32")
    by_model = layer_figures(path, float_cnn, images[0])
    by_file = layer_figures(path, None, images[0], reference)
    expected = {each["op"]: each["sqnr_db"] for each in by_model}
    found = {each["op"]: each["sqnr_db"] for each in by_file if each["sqnr_db"] is not None}
    assert found["SOFTMAX"] == pytest.approx(expected["SOFTMAX"], abs=0.5)
    # Without data there is nothing to run, and nothing to convert.
    assert all(each["sqnr_db"] is None for each in layer_figures(path, None, None, reference))


def test_names_are_told_without_a_model(cnn_file, float_cnn):
    with_model = layer_figures(cnn_file("int8"), float_cnn)
    without = layer_figures(cnn_file("int8").read_bytes())
    weighted = [each["name"] for each in with_model if each["histogram"]]
    assert [each["name"] for each in without if each["histogram"]] == weighted
    assert [each["histogram"] for each in without] == [each["histogram"] for each in with_model]


@pytest.mark.parametrize(
    ("tensors", "names"),
    [
        (["model/conv1/Relu;model/conv1/BiasAdd;model/conv1/Conv2D"], ["conv1"]),
        # Two numbers are names of their own, one is that of the copy which Keras 3 exports.
        (["m_1/conv_1/convolution", "m_1/conv_2/convolution"], ["conv_1", "conv_2"]),
        (["m_1/conv_1/convolution", "m_1/dense_1/MatMul"], ["conv", "dense"]),
        (["model/relu/Relu;model/bn/add;model/conv/Conv2D;model/conv/x"], ["conv"]),
        (["model/quant_conv/Conv2D"], ["conv"]),
        (["predictions_"], ["predictions"]),
        (["StatefulPartitionedCall:0"], ["StatefulPartitionedCall:0"]),
        ([""], [""]),
    ],
)
def test_names_of_tensors_tell_names_of_layers(tensors, names):
    assert layer_names(tensors) == names


def test_a_model_of_another_kit_is_left_aside(cnn_file):
    class Model:
        pass

    found = layer_figures(cnn_file("int8"), Model(), np.zeros((1, 12, 12, 3)))
    assert all(each["sqnr_db"] is None for each in found)


def test_inputs_are_given_in_the_order_of_the_model(folder):
    second, first = keras.Input((2,), name="zeta"), keras.Input((2,), name="alpha")
    model = keras.Model([second, first], layers.Subtract(name="gap")([second, first]))
    x = [np.full((4, 2), 3, np.float32), np.ones((4, 2), np.float32)]
    path = folder / "two.tflite"
    tfc.convert(model, path, calibration=x)
    for data in (x, {"alpha": x[1], "zeta": x[0]}):
        (gap,) = layer_figures(path, model, data)
        # 3 - 1 and not 1 - 3, of which the file can give but 0.
        assert gap["sqnr_db"] > 30


@pytest.mark.slow
def test_files_of_tf_keras_are_compared_with_its_float_file(small):
    tf_keras = pytest.importorskip("tf_keras")
    model, x, _ = small
    inputs = tf_keras.Input((2,), name="point")
    dense = tf_keras.layers.Dense(3, name="mixing")
    outputs = dense(tf_keras.layers.ReLU(name="positive")(inputs))
    twin = tf_keras.Model(inputs, outputs)
    dense.set_weights(model.get_layer("mixing").get_weights())
    found = layer_figures(int8_by_converter(twin, x), twin, x)
    # The name of the output is that of the signature.
    assert [each["name"] for each in found] == ["positive", "mixing"]
    assert all(20 < each["sqnr_db"] < 80 for each in found)

    class QuantizeWrapper(tf_keras.layers.Wrapper):
        def call(self, values):
            return self.layer(values)

    wrapped = tf_keras.Model(inputs, QuantizeWrapper(dense)(inputs))
    found = layer_figures(int8_by_converter(twin, x), wrapped, x)
    assert all(each["sqnr_db"] is None for each in found)


def test_bad_input_is_refused(small, folder):
    model, x, path = small
    refused("is not a .tflite file", lambda: layer_figures(b"12345678"))
    refused("no file at", lambda: layer_figures(folder / "no.tflite"))
    refused("shape", lambda: layer_figures(path, model, x[:, :1]))
