"""Lowering: the float file computes the model, in the forms that have integer kernels."""

import keras
import numpy as np
import pytest
from conftest import run_tflite
from keras import layers, ops

import tfcompress as tfc
from tfcompress.conversion import float_files, lower
from tfcompress.tflite import flatbuffer


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def run(source, **values):
    """Outputs by name of one call of the signature of a path or parsed model."""
    from ai_edge_litert.interpreter import Interpreter

    content = None if hasattr(source, "read_bytes") else bytes(flatbuffer.write(source))
    runner = Interpreter(model_path=str(source) if content is None else None, model_content=content)
    runner.allocate_tensors()
    return runner.get_signature_runner("serve")(**values)


def float_file(model):
    parsed, _, _ = float_files.float_file(model)
    names = [flatbuffer.op_name(parsed, op) for op in parsed.subgraphs[0].operators]
    return parsed, names


def only(outputs):
    (value,) = outputs.values()
    return value


def batch_norm(**kwargs):
    layer = layers.BatchNormalization(**kwargs)
    layer.build((None, 4, 4, 3))
    values = {"gamma": [-2.0, 0.5, 3.0], "beta": [1.0, 0.0, -4.0]}
    values |= {"moving_mean": [0.3, -2.0, 5.0], "moving_variance": [0.1, 4.0, 1.0]}
    for name, value in values.items():
        if getattr(layer, name) is not None:
            getattr(layer, name).assign(value)
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        batch_norm(),
        batch_norm(scale=False),
        batch_norm(center=False),
        layers.Normalization(mean=[1.0, 2.0, -3.0], variance=[4.0, 0.25, 0.0]),
        layers.Normalization(axis=None, mean=2.0, variance=9.0),
        layers.Rescaling(1 / 127.5, offset=-1.0),
        layers.Rescaling([1.0, 2.0, 3.0], offset=[0.0, 1.0, -1.0]),
    ],
    ids=lambda layer: layer.name,
)
@pytest.mark.parametrize("shape", [(4, 4, 3), (5, 3), (3,)], ids=str)
def test_affine_layers_are_one_depthwise_convolution(layer, shape):
    config = layer.get_config()
    twin = type(layer).from_config(config)
    inputs = keras.Input(shape)
    model = keras.Model(inputs, twin(inputs))
    if layer.built:
        twin.set_weights(layer.get_weights())
    parsed, names = float_file(model)
    assert set(names) <= {"DEPTHWISE_CONV_2D", "RESHAPE"}
    assert names.count("DEPTHWISE_CONV_2D") == 1
    x = normal(1, *shape)
    result = only(run(parsed, **{inputs.name: x}))
    expected = np.asarray(model(x))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_a_normalization_over_another_axis_is_left_as_it_is():
    for axis in (1, (1, 2)):
        inputs = keras.Input((3, 3))
        layer = layers.Normalization(axis=axis)
        layer.adapt(normal(50, 3, 3) * [[1], [2], [3]] + [[1], [2], [3]])
        model = keras.Model(inputs, layer(inputs))
        x = normal(1, 3, 3)
        parsed, _ = float_file(model)
        np.testing.assert_allclose(
            only(run(parsed, **{inputs.name: x})), model(x), rtol=1e-5, atol=1e-5
        )


def test_a_shared_batch_norm_is_folded_where_it_can_be():
    x = inputs = keras.Input((4, 4, 3))
    norm = layers.BatchNormalization()
    outputs = layers.Add()([norm(layers.Conv2D(3, 1)(x)), norm(layers.MaxPooling2D(1)(x))])
    model = keras.Model(inputs, outputs)
    norm.set_weights(batch_norm().get_weights())
    parsed, names = float_file(model)
    assert sorted(n for n in names if n != "MAX_POOL_2D") == ["ADD", "CONV_2D", "DEPTHWISE_CONV_2D"]
    x = normal(1, 4, 4, 3)
    np.testing.assert_allclose(
        only(run(parsed, **{inputs.name: x})), model(x), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_integer_images(dtype, tmp_path):
    inputs = keras.Input((6, 6, 3), dtype=dtype, name="image")
    x = layers.Conv2D(2, 3)(layers.Rescaling(1 / 127.5, offset=-1.0)(inputs))
    model = keras.Model(inputs, x)
    images = np.random.default_rng(0).integers(0, 255, (8, 6, 6, 3)).astype(dtype)
    qat = tfc.quantize_aware(model)
    qat(images, training=True)
    tfc.convert(qat, tmp_path / "model.tflite", precision="int8")
    assert tfc.inspect(tmp_path / "model.tflite").inputs[0].dtype == dtype
    expected = np.asarray(qat(images[:1]))
    result = only(run(tmp_path / "model.tflite", image=images[:1]))
    assert np.abs(result - expected).max() <= 1.5 * np.ptp(np.asarray(qat(images))) / 255


def test_nearest_upsampling_is_one_op():
    inputs = keras.Input((3, 4, 2))
    model = keras.Model(inputs, layers.UpSampling2D((2, 3))(inputs))
    parsed, names = float_file(model)
    assert names == ["RESIZE_NEAREST_NEIGHBOR"]
    x = normal(1, 3, 4, 2)
    np.testing.assert_array_equal(only(run(parsed, **{inputs.name: x})), model(x))


PRECISIONS = ["float32", "int8"]


def convert(model, path, precision, data, **options):
    """Converts; int8 through quantize_aware. Returns what the file is to be compared with."""
    if precision == "int8":
        model = tfc.quantize_aware(model)
        model(data, training=True)
    tfc.convert(model, path, precision=precision, **options)
    return model


# Keras 3.12, the last for Python 3.10, builds no model of which an input leads nowhere.
loose_inputs = pytest.mark.skipif(
    tuple(int(n) for n in keras.__version__.split(".")[:2]) < (3, 13),
    reason="this Keras refuses inputs that lead nowhere",
)


@loose_inputs
@pytest.mark.parametrize("precision", PRECISIONS)
def test_inputs_keep_their_order_and_names(precision, tmp_path):
    inputs = [keras.Input((3,), name=name) for name in ("z", "a", "unused", "m")]
    y = layers.Subtract(name="y")([ops.multiply(inputs[0], 2.0), inputs[1]])
    model = keras.Model(inputs, layers.Add(name="sum")([y, inputs[3]]))
    data = [normal(16, 3, seed=n) for n in range(4)]
    path = tmp_path / "model.tflite"
    model = convert(model, path, precision, data)
    assert [t.name for t in tfc.inspect(path).inputs] == ["z", "a", "unused", "m"]
    values = {t.name: x[:1] for t, x in zip(inputs, data, strict=True)}
    result = run(path, **values)
    np.testing.assert_allclose(result["sum"], model([x[:1] for x in data]), atol=0.06)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_dicts_of_inputs_and_outputs(precision, tmp_path):
    inputs = {name: keras.Input((3,), name=name) for name in ("b", "a")}
    difference = layers.Subtract()([inputs["a"], inputs["b"]])
    outputs = {"less": difference, "dense": layers.Dense(2)(difference)}
    model = keras.Model(inputs, outputs)
    data = {"a": normal(16, 3), "b": normal(16, 3, seed=1)}
    path = tmp_path / "model.tflite"
    model = convert(model, path, precision, data)
    one = {name: x[:1] for name, x in data.items()}
    result, expected = run(path, **one), model(one)
    assert set(result) == {"less", "dense"}
    for name, value in result.items():
        np.testing.assert_allclose(value, expected[name], atol=0.05)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nested_outputs_are_named_after_their_layers(precision, tmp_path):
    inputs = keras.Input((3,), name="x")
    one, two, three = (layers.Dense(n, name=f"dense{n}")(inputs) for n in (1, 2, 3))
    model = keras.Model(inputs, {"pair": [three, one], "single": two})
    path = tmp_path / "model.tflite"
    model = convert(model, path, precision, normal(16, 3))
    found = [(t.name, t.shape[-1]) for t in tfc.inspect(path).outputs]
    assert found == [("dense3", 3), ("dense1", 1), ("dense2", 2)]


@pytest.mark.filterwarnings("ignore:these (operations stay float|activations were always 0)")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_outputs_that_are_inputs_or_constants(precision, tmp_path):
    inputs = keras.Input((3,), name="x")
    ones = layers.Identity(name="ones")(ops.zeros_like(inputs) + 1.0)
    model = keras.Model(inputs, [inputs, ones, layers.Dense(2, name="y")(inputs)])
    path = tmp_path / "model.tflite"
    model = convert(model, path, precision, normal(16, 3))
    x = normal(1, 3, seed=2)
    result = run(path, x=x)
    expected = [np.asarray(v) for v in model(x)]
    for value in result.values():
        assert any(value.shape == e.shape and np.abs(value - e).max() < 0.03 for e in expected), (
            value
        )


@loose_inputs
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_model_that_is_its_input(precision, tmp_path):
    inputs = keras.Input((3,), name="x")
    path = tmp_path / "model.tflite"
    convert(keras.Model(inputs, inputs), path, precision, normal(16, 3))
    x = normal(1, 3)
    np.testing.assert_allclose(only(run(path, x=x)), x, atol=0.02)


class Loop(layers.GRU):
    """A loop of a class of its own, which is not opened."""


def test_a_loop_stays_float_and_says_so(tmp_path):
    inputs = keras.Input((5, 3), name="x")
    model = keras.Model(inputs, layers.Dense(2)(Loop(4, name="loop")(inputs)))
    data = normal(8, 5, 3)
    tfc.convert(model, tmp_path / "model.tflite", precision="float32")
    np.testing.assert_allclose(
        only(run(tmp_path / "model.tflite", x=data[:1])), model(data[:1]), atol=1e-5
    )
    with pytest.warns(UserWarning, match=r"stay float.*'loop' \(Loop\)"):
        qat = tfc.quantize_aware(model)
    qat(data, training=True)
    with pytest.warns(UserWarning, match="loops stay float: layer 'loop' is a loop of a class"):
        report = tfc.convert(qat, tmp_path / "model.tflite", precision="int8")
    assert "WHILE" in {f.op for f in report.float_ops}
    assert ("FULLY_CONNECTED", "int8", 1) in report.ops
    np.testing.assert_allclose(
        only(run(tmp_path / "model.tflite", x=data[:1])), qat(data[:1]), atol=0.02
    )


class Doubled(keras.Model):
    """A Functional model whose class changes what it computes."""

    def __init__(self, **kwargs):
        inputs = keras.Input((3,), name="x")
        super().__init__(inputs, layers.Dense(2)(inputs), **kwargs)

    def call(self, x):
        return 2.0 * super().call(x)


@pytest.mark.parametrize("precision", ["float32", "int4"])
def test_a_call_of_its_own_is_not_forgotten(precision, tmp_path):
    model, x = Doubled(), normal(1, 3)
    tfc.convert(model, tmp_path / "model.tflite", precision=precision)
    np.testing.assert_allclose(only(run(tmp_path / "model.tflite", x=x)), model(x), atol=0.5)


def test_an_operation_that_litert_lacks_is_named(tmp_path):
    inputs = keras.Input((4, 4, 4, 2))
    model = keras.Model(inputs, layers.MaxPooling3D()(inputs))
    with pytest.raises(ValueError, match=r"converter failed.*MaxPool3D.*select_tf_ops=True"):
        tfc.convert(model, tmp_path / "model.tflite", precision="float32")
    assert list(tmp_path.iterdir()) == []


def test_names_of_inputs_and_outputs():
    inputs = keras.Input((3,), name="x")
    y = layers.Dense(2, name="y")(inputs)
    model = keras.Model(inputs, [y, y, layers.Flatten(name="flat")(y)])
    assert lower.io_names(model) == (["x"], ["y", "y_1", "flat"])
    assert lower.io_names(tfc.quantize_aware(model)) == (["x"], ["y", "y_1", "flat"])


@pytest.mark.slow
def test_a_large_model_goes_another_way_to_the_same_file(monkeypatch, tmp_path):
    one, two = keras.Input((4,), name="zebra"), keras.Input((3,), name="ant")
    first = layers.Dense(2, name="last")(layers.Concatenate()([one, two]))
    model = keras.Model([one, two], [first, layers.Dense(5, name="first")(one)])
    values = [np.ones((1, 4), "float32"), np.full((1, 3), 2.0, "float32")]
    for precision in ("float32", "int8"):
        results = []
        for limit in (lower.LARGE, 0):
            monkeypatch.setattr(lower, "LARGE", limit)
            path = tmp_path / f"{limit}.tflite"
            tfc.convert(model, path, precision=precision, calibration=values)
            found = tfc.inspect(path)
            assert [t.name for t in found.inputs] == ["zebra", "ant"]
            assert [t.name for t in found.outputs] == ["last", "first"]
            assert [s.name for s in found.signatures] == ["serve"]
            results.append(tfc.verify(model, path, values).outputs[0].keras.max_lsb)
        assert results[0] == pytest.approx(results[1], abs=1e-3)


def test_masks_pass_the_marks_of_ranges(tmp_path):
    tokens = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 9], [3, 3, 0, 0, 0, 0]], "int32")
    x = keras.Input((6,), dtype="int32")
    words = layers.Dense(8)(layers.Embedding(10, 8, mask_zero=True)(x))
    model = keras.Model(x, layers.MultiHeadAttention(2, 4, name="attention")(words, words))
    aware = tfc.quantize_aware(model, skip=["attention"])
    aware(tokens, training=True)
    tfc.convert(aware, tmp_path / "model.tflite")
    assert tfc.verify(aware, tmp_path / "model.tflite", tokens).outputs[0].keras.sqnr_db > 60


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_words_are_looked_up_by_one_operator(precision, tmp_path):
    """TFLite Micro has no SELECT of whole numbers, with which Keras counts from the end."""
    words = keras.Input((3,), dtype="int32")
    table = layers.Embedding(5, 2, embeddings_initializer="normal")
    model, path = keras.Model(words, table(words)), tmp_path / "model.tflite"
    tokens = np.array([[0, 1, 4], [3, 3, 2]], "int32")
    seen = {"calibration": tokens} if precision == "int8" else {}
    tfc.convert(model, path, precision=precision, **seen)
    found = [op.name for op in tfc.inspect(path).operators]
    assert set(found) - {"DEQUANTIZE"} == {"GATHER"}
    step = float(np.abs(table.embeddings).max()) / 127
    assert np.abs(run_tflite(path, tokens) - model(tokens)).max() <= step
    with pytest.raises(RuntimeError, match="gather index out of bounds"):
        run_tflite(path, -tokens)
