"""convert(tune=): what the corrections are worth, that files hold their grids, and refusals."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.conversion.job import Job
from tfcompress.conversion.settings import settle
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.flatbuffer import op_name


def build():
    keras.utils.set_random_seed(3)
    x = keras.Input((8, 8, 2), name="image")
    y = layers.BatchNormalization(name="bn1")(layers.Conv2D(12, 3, name="conv")(x))
    y = layers.SeparableConv2D(10, 3, name="separable", activation="relu")(layers.ReLU()(y))
    y = layers.Flatten(name="flat")(y)
    scores = layers.BatchNormalization(name="scores")(layers.Dense(5, name="dense")(y))
    model = keras.Model(x, [scores, layers.Dense(2, name="other")(y)])
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            factors = random.uniform(0.05, 2, layer.gamma.shape)
            layer.gamma.assign(factors)
            layer.moving_mean.assign(random.normal(0, 0.2, layer.gamma.shape))
    kernel = np.array(model.get_layer("other").kernel)
    kernel[abs(kernel) < np.quantile(abs(kernel), 0.5)] = 0
    model.get_layer("other").kernel.assign(kernel)
    return model


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def images():
    noise = np.random.default_rng(1).normal(size=(160, 8, 8, 2))
    return (noise.cumsum(1).cumsum(2) / 4).astype("float32")  # neighbours are alike, as in photos


def weights_of(file, kind):
    """Codes and scales of the weights of the operators of a kind."""
    graph = file.subgraphs[0]
    tensors = [graph.tensors[op.inputs[1]] for op in graph.operators if op_name(file, op) == kind]
    return [(flatbuffer.tensor_values(file, t), flatbuffer.scales_of(t)[0]) for t in tensors]


def test_files_hold_the_grids_of_the_rounded_kernels(model, images):
    settings = settle({"*": "int4", "dense": "float32"}, tune="fast")
    job = Job(settings, False, False, None)
    file = job.run(model, images, None)
    tuned = job.tuned
    assert tuned.scales.keys() == {"conv", "separable_depthwise", "separable_pointwise", "other"}
    kernel = np.asarray(tuned.model.get_layer("conv").kernel)
    ((codes, scales),) = weights_of(file, "CONV_2D")[:1]
    np.testing.assert_array_equal(np.float32(scales), tuned.scales["conv"].ravel())
    np.testing.assert_allclose(
        codes * np.reshape(scales, (-1, 1, 1, 1)), kernel.transpose(3, 0, 1, 2), atol=1e-6
    )
    assert abs(codes).max() == 7


def test_each_step_helps_or_is_left_out_and_names_stay(model, images, tmp_path):
    path = tmp_path / "m.tflite"
    how = {"precision": "int4", "calibration": images}
    plain = tfc.convert(model, path, tune="none", **how)
    fast = tfc.convert(model, path, **how)
    assert plain.tuning == ()
    (step,) = fast.tuning
    assert (step.name, step.kept) == ("gptq", True)
    assert step.after > step.before + 3
    assert fast.sqnr.keys() == plain.sqnr.keys() == {"scores", "other"}
    assert sum(fast.sqnr.values()) > sum(plain.sqnr.values()) + 4
    file = flatbuffer.read(path.read_bytes())
    codes = [codes for codes, _ in weights_of(file, "FULLY_CONNECTED") if codes.shape[0] == 2]
    zeros = np.asarray(model.get_layer("other").kernel).T == 0
    assert not codes[0][zeros].any()
    assert codes[0].any()


@pytest.mark.slow
def test_one_scale_for_a_tensor_is_made_up_for(model, images, tmp_path):
    how = {"calibration": images, "convolution": "per_tensor", "dense": "per_tensor"}
    plain = tfc.convert(model, tmp_path / "a.tflite", **how)
    best = tfc.convert(model, tmp_path / "b.tflite", tune="best", **how)
    assert {step.name for step in best.tuning} == {"equalize", "gptq", "adaround", "bias"}
    assert all(step.kept == (step.after > step.before) for step in best.tuning)
    assert best.tuning[1].after > best.tuning[0].before + 3
    assert sum(best.sqnr.values()) > sum(plain.sqnr.values())
    steps = ["bias", "batch_norm"]
    found = tfc.convert(model, tmp_path / "c.tflite", tune=steps, **how)
    assert [step.name for step in found.tuning] == ["batch_norm", "bias"]


def test_what_cannot_be_tuned_is_said(model, images, tmp_path):
    path = tmp_path / "m.tflite"
    with pytest.raises(ValueError, match="unknown tune 'adarond'"):
        tfc.convert(model, path, calibration=images, tune="adarond")
    with pytest.raises(ValueError, match="unknown tune 'best'"):
        tfc.convert(model, path, calibration=images, tune=["best", "bias"])
    with pytest.raises(ValueError, match="int8, int16x8 or int4 with tune; received 'float32'"):
        tfc.convert(model, path, precision="float32", tune="best")
    with pytest.raises(ValueError, match="tune is for a float Keras 3 model that"):
        tfc.convert(model, path, precision="int4", tune="best")
    assert not path.exists()
