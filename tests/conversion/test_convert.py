"""Conversion: what comes out computes what Keras computes, in the types that were asked for."""

import keras
import numpy as np
import pytest
from conftest import make_cnn, make_images, run_tflite
from keras import layers

import tfcompress as tfc

LSB = 1 / 256  # the scale of a softmax in int8


def constants(path, op: str) -> dict[str, str]:
    """Type of the weights of each op of a kind, by the name of its output."""
    found = tfc.inspect(path)
    tensors = {t.index: t for t in found.tensors}
    return {
        tensors[o.outputs[0]].name: tensors[o.inputs[1]].dtype
        for o in found.operators
        if o.name == op
    }


@pytest.mark.parametrize("io_dtype", ["float32", "int8", "uint8"])
def test_int8_of_a_qat_model_is_the_model(qat_cnn, images, converted, io_dtype):
    path, report = converted("qat", io_dtype=io_dtype)
    assert report.float_ops == []
    edges = sum(count for op, _, count in report.ops if op in ("QUANTIZE", "DEQUANTIZE"))
    assert edges == {"float32": 2, "int8": 0, "uint8": 2}[io_dtype]
    expected = qat_cnn.predict(images[0], verbose=0)
    result = run_tflite(path, images[0])
    # One step of the logits may be several of the softmax; test_one_step below has no softmax.
    assert np.abs(result - expected).max() <= 3 * LSB
    assert (result.argmax(-1) == expected.argmax(-1)).mean() >= 0.99
    details = tfc.inspect(path)
    assert [t.dtype for t in (*details.inputs, *details.outputs)] == [io_dtype] * 2


def test_names_and_shapes_come_from_the_keras_model(converted):
    for kind in ("qat", "float"):
        found = tfc.inspect(converted(kind, precision="float32")[0])
        assert [t.name for t in found.inputs] == ["image"]
        assert [t.name for t in found.outputs] == ["kind"]
        assert [list(t.shape) for t in found.inputs] == [[1, 12, 12, 3]]
        (signature,) = found.signatures
        assert signature.name == "serve"


@pytest.mark.parametrize("precision", ["float32", "float16", "dynamic_int8"])
def test_modes_of_the_converter(float_cnn, images, converted, precision):
    path, _ = converted("float", precision=precision)
    result = run_tflite(path, images[0][:32], reference=False)
    expected = float_cnn.predict(images[0][:32], verbose=0)
    assert np.abs(result - expected).max() < {"float32": 1e-5}.get(precision, 2e-2)


def test_float16_of_a_qat_model_leaves_activations_float(qat_cnn, images, converted):
    path, _ = converted("qat", precision="float16")
    assert {"float16", "float32"} >= {t.dtype for t in tfc.inspect(path).tensors} - {"int32"}
    result = run_tflite(path, images[0][:32], reference=False)
    assert np.abs(result - qat_cnn.predict(images[0][:32], verbose=0)).max() < 0.05


@pytest.mark.parametrize("io_dtype", ["float32", "int16"])
def test_int16_activations(float_cnn, qat_cnn, images, converted, io_dtype):
    for kind, model in (("float", float_cnn), ("qat", qat_cnn)):
        path, report = converted(kind, precision="int16x8", io_dtype=io_dtype)
        assert report.float_ops == []
        result = run_tflite(path, images[0][:32])
        assert np.abs(result - model.predict(images[0][:32], verbose=0)).max() < 0.02
        assert [t.dtype for t in tfc.inspect(path).inputs] == [io_dtype]


def test_post_training_quantization(float_cnn, images, converted):
    path, report = converted("float", io_dtype="int8")
    assert report.float_ops == []
    result = run_tflite(path, images[0])
    expected = float_cnn.predict(images[0], verbose=0)
    assert np.abs(result - expected).max() < 0.06
    assert (result.argmax(-1) == expected.argmax(-1)).mean() > 0.97


@pytest.mark.slow
def test_a_generator_and_a_dataset_calibrate_alike(float_cnn, images, tmp_path):
    import tensorflow as tf

    files = []
    for number, data in enumerate(
        (
            images[0][:20],
            {"image": images[0][:20]},
            (image for image in images[0][:20]),
            tf.data.Dataset.from_tensor_slices((images[0][:20], images[1][:20])).batch(5),
        )
    ):
        files.append(tmp_path / f"{number}.tflite")
        tfc.convert(float_cnn, files[-1], precision="int8", calibration=data)
    assert len({file.read_bytes() for file in files}) == 1


@pytest.mark.slow
def test_int4_of_weights_trained_for_it(float_cnn, images, tmp_path):
    model = tfc.quantize_aware(float_cnn, bits=4)
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(*images, epochs=1, verbose=0)
    expected = model.predict(images[0][:64], verbose=0)
    for precision, dtype in (("int4", "int4"), ("int8", "int8")):
        path = tmp_path / f"{precision}.tflite"
        tfc.convert(model, path, precision=precision, io_dtype="int8")
        assert set(constants(path, "CONV_2D").values()) == {dtype}
        assert set(constants(path, "FULLY_CONNECTED").values()) == {dtype}
        assert set(constants(path, "DEPTHWISE_CONV_2D").values()) == {dtype}
        result = run_tflite(path, images[0][:64])
        assert np.abs(result - expected).max() <= 4 * LSB, precision


def test_int4_without_ranges_keeps_activations_float(converted):
    path, report = converted("float", precision="int4")
    assert any("calibration=" in note for note in report.notes)
    assert "int4" in {t.dtype for t in tfc.inspect(path).tensors}
    assert [t.dtype for t in tfc.inspect(path).inputs] == ["float32"]


@pytest.mark.slow
def test_a_skipped_layer_stays_float_and_the_rest_integer(float_cnn, images, tmp_path):
    model = tfc.quantize_aware(float_cnn, skip=["pointwise"])
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(*images, epochs=1, verbose=0)
    path = tmp_path / "model.tflite"
    report = tfc.convert(model, path, precision="int8")
    assert [f.op for f in report.float_ops] == ["CONV_2D"]
    assert "left out of quantization" in report.float_ops[0].reason
    assert report.float_ops[0].layer == "pointwise"
    weights = constants(path, "CONV_2D")
    assert sorted(weights.values()) == ["float32", "int8"]
    result = run_tflite(path, images[0][:64])
    assert np.abs(result - model.predict(images[0][:64], verbose=0)).max() <= 3 * LSB
    before = path.read_bytes()
    with pytest.raises(ValueError, match="strict=True and 1 operations would stay float"):
        tfc.convert(model, path, precision="int8", strict=True)
    assert path.read_bytes() == before


def test_dense_scales_per_tensor_and_per_channel(tmp_path):
    for dense, scales in (("per_tensor", 1), ("per_channel", 5)):
        x = inputs = keras.Input((6,))
        model = keras.Model(inputs, layers.Dense(5)(x))
        qat = tfc.quantize_aware(model, dense=dense)
        data = np.random.default_rng(0).normal(size=(50, 6)).astype("float32")
        qat(data, training=True)
        tfc.convert(qat, tmp_path / "model.tflite", precision="int8")
        found = tfc.inspect(tmp_path / "model.tflite")
        (op,) = [o for o in found.operators if o.name == "FULLY_CONNECTED"]
        weights = next(t for t in found.tensors if t.index == op.inputs[1])
        assert weights.scale_count == scales
        low, high = qat.layers[-1].limits()
        step = (float(high) - float(low)) / 255
        result = run_tflite(tmp_path / "model.tflite", data)
        assert np.abs(result - np.asarray(qat(data))).max() <= 1.01 * step


def test_a_batch_of_its_own(qat_cnn, images, tmp_path):
    path = tmp_path / "model.tflite"
    tfc.convert(qat_cnn, path, precision="int8", batch_size=7)
    assert list(tfc.inspect(path).inputs[0].shape) == [7, 12, 12, 3]


@pytest.mark.parametrize("suffix", ["keras", "h5", "saved_model"])
def test_models_from_files(float_cnn, images, tmp_path, suffix):
    source = tmp_path / f"model.{suffix}"
    float_cnn.export(source, verbose=False) if suffix == "saved_model" else float_cnn.save(source)
    expected = float_cnn.predict(images[0][:16], verbose=0)
    for precision, calibration in (("float32", None), ("int8", images[0][:50])):
        path = tmp_path / "model.tflite"
        tfc.convert(source, path, precision=precision, calibration=calibration)
        result = run_tflite(path, images[0][:16])
        assert np.abs(result - expected).max() < {"float32": 1e-5}.get(precision, 0.06)
        assert list(tfc.inspect(path).inputs[0].shape) == [1, 12, 12, 3]


def test_a_qat_model_saved_and_loaded_converts_to_the_same_bytes(qat_cnn, converted, tmp_path):
    qat_cnn.save(tmp_path / "qat.keras")
    wanted = converted("qat", io_dtype="float32")[0].read_bytes()
    for model in (tmp_path / "qat.keras", tfc.finalize(qat_cnn)):
        tfc.convert(model, tmp_path / "model.tflite", precision="int8")
        assert (tmp_path / "model.tflite").read_bytes() == wanted


def test_several_outputs_keep_order_and_names(tmp_path):
    x = inputs = keras.Input((8,), name="x")
    x = layers.Dense(8, activation="relu")(x)
    outputs = [
        layers.Dense(3, activation="softmax", name="zebra")(x),
        layers.Dense(1, name="ant")(x),
    ]
    model = keras.Model(inputs, outputs)
    qat = tfc.quantize_aware(model)
    assert qat.output_names == ["zebra", "ant"]
    qat.compile("adam", {"zebra": "sparse_categorical_crossentropy", "ant": "mse"})
    data = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    qat.fit(data, {"zebra": np.zeros(64), "ant": data[:, :1]}, verbose=0)
    tfc.convert(qat, tmp_path / "model.tflite", precision="int8")
    found = tfc.inspect(tmp_path / "model.tflite")
    assert [(t.name, list(t.shape)) for t in found.outputs] == [("zebra", [1, 3]), ("ant", [1, 1])]


@pytest.mark.slow
def test_mixed_precision_models_convert_as_float32(images, tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = make_cnn()
        qat = tfc.quantize_aware(model)
        qat.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
        qat.fit(*images, epochs=1, verbose=0)
    finally:
        keras.config.set_dtype_policy("float32")
    report = tfc.convert(qat, tmp_path / "model.tflite", precision="int8")
    assert report.float_ops == []
    result = run_tflite(tmp_path / "model.tflite", images[0][:32])
    assert np.abs(result - qat.predict(images[0][:32], verbose=0)).max() < 0.03


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "int7"}, "precision must be one of float32, .*received 'int7'"),
        (
            {"precision": "int8", "io_dtype": "int16"},
            "io_dtype must be one of float32, int8, uint8",
        ),
        ({"precision": "float16", "io_dtype": "int8"}, "io_dtype must be one of float32 with"),
        ({"batch_size": 0}, "batch_size must be an integer of 1 or more; received 0"),
        ({"precision": "int8"}, "needs the ranges of activations.*calibration="),
    ],
)
def test_wrong_arguments(float_cnn, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        tfc.convert(float_cnn, tmp_path / "model.tflite", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_an_untrained_qat_model_is_refused(float_cnn, tmp_path):
    with pytest.raises(ValueError, match="ranges of model 'cnn' were never observed"):
        tfc.convert(tfc.quantize_aware(float_cnn), tmp_path / "model.tflite", precision="int8")


@pytest.mark.slow
def test_names_that_are_no_scopes(tmp_path):
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")

    def make(odd):
        inputs = keras.Input((4,), name="my input: ü[0]")
        hidden = layers.Dense(3, activation="relu", name="the layer" if odd else None)(inputs)
        return keras.Model(inputs, layers.Dense(2)(hidden), name="a model" if odd else None)

    # Only what is not compiled trains with layers of such names, of which inputs are none.
    for odd, precision in ((False, "int8"), (True, "int8"), (True, "float32")):
        model = tfc.quantize_aware(make(odd), delay=1)
        model.compile("sgd", "mse", jit_compile=False, run_eagerly=odd)
        model.fit(x, x[:, :2], batch_size=4, verbose=0, callbacks=[tfc.UpdateCompression()])
        report = tfc.convert(model, tmp_path / "model.tflite", precision=precision)
        assert not report.float_ops or precision == "float32"
    path = tmp_path / "model.tflite"
    np.testing.assert_allclose(run_tflite(path, x[:1]), tfc.finalize(model)(x[:1]), atol=0.1)


def test_a_dynamic_size_is_refused(tmp_path):
    inputs = keras.Input((None, None, 3), name="image")
    model = keras.Model(inputs, layers.Conv2D(2, 3)(inputs))
    with pytest.raises(ValueError, match=r"input 'image' must have fixed sizes.*keras.Input"):
        tfc.convert(model, tmp_path / "model.tflite", precision="float32")


def test_nothing_but_a_model_is_converted(tmp_path):
    with pytest.raises(TypeError, match=r"model must be a keras.Model or the path"):
        tfc.convert(object(), tmp_path / "model.tflite")


def test_images_have_the_four_classes():
    x, y = make_images(64)
    quarters = x.reshape(64, 2, 6, 2, 6, 3).mean((2, 4, 5)).reshape(64, 4)
    assert (quarters.argmax(1) == y).all()
