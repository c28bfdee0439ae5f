"""What a model reads, assigns and looks up in inference, and what the converter refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from keras import layers, ops

import tfcompress as tfc
from tfcompress.tflite import flatbuffer


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def steps(path, samples):
    """What a file of one input and one output gives for samples, one after the other."""
    runner = Interpreter(str(path))
    runner.allocate_tensors()
    (taken,), (given,) = runner.get_input_details(), runner.get_output_details()
    found = []
    for sample in samples:
        runner.set_tensor(taken["index"], sample[None])
        runner.invoke()
        found.append(runner.get_tensor(given["index"])[0])
    return np.stack(found)


def names(path):
    file = flatbuffer.read(path)
    return {flatbuffer.op_name(file, op) for op in file.subgraphs[0].operators}


def slow(*values):
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize("cell", [layers.LSTM, *slow(layers.GRU, layers.SimpleRNN)])
def test_a_stateful_layer_keeps_its_state_between_runs(cell, tmp_path):
    inputs = keras.Input(batch_shape=(1, 1, 5))
    x = cell(6, stateful=True, unroll=True, dropout=0.5)(inputs)
    model = keras.Model(inputs, layers.Dense(2)(x))
    samples = normal(8, 1, 5)
    expected = np.concatenate([model(sample[None]) for sample in samples])
    path = tmp_path / "model.tflite"
    tfc.convert(model, path, precision="float32")
    np.testing.assert_allclose(steps(path, samples), expected, atol=1e-5)
    # The state, but no seed of dropout.
    file = flatbuffer.read(path)
    operators = [flatbuffer.op_name(file, op) for op in file.subgraphs[0].operators]
    assert operators.count("VAR_HANDLE") == (2 if cell is layers.LSTM else 1)
    if cell is layers.LSTM:
        tfc.convert(model, path, calibration=samples)
        found = steps(path, samples)
        assert np.abs(found - expected).max() < 0.05 * np.ptp(expected)


class Augment(layers.Layer):
    """Assigns a variable, a counter say, which nothing reads."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, x):
        self.calls.assign(self.calls + 1)
        return x * 2


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.LSTM(4, dropout=0.1, recurrent_dropout=0.1),
        *slow(lambda: layers.Bidirectional(layers.GRU(4, dropout=0.1, unroll=True))),
        Augment,
    ],
)
def test_what_only_training_changes_becomes_a_constant(layer, tmp_path):
    inputs = keras.Input((6, 3))
    model = keras.Model(inputs, layer()(inputs))
    samples = normal(4, 6, 3)
    tfc.convert(model, tmp_path / "model.tflite", precision="float32")
    found = steps(tmp_path / "model.tflite", samples)
    np.testing.assert_allclose(found, model(samples), atol=1e-5)
    assert not names(tmp_path / "model.tflite") & {"VAR_HANDLE", "ASSIGN_VARIABLE"}


def test_a_bias_that_is_an_addend_too_is_quantized(tmp_path):
    inputs = keras.Input((6, 3))
    model = keras.Model(inputs, layers.LSTM(4, dropout=0.2, unroll=True)(inputs))
    model.layers[1].cell.bias.assign(normal(16, seed=1))
    samples = normal(16, 6, 3)
    tfc.convert(model, tmp_path / "model.tflite", calibration=samples)
    found, expected = steps(tmp_path / "model.tflite", samples), model(samples)
    assert np.abs(found - expected).max() < 0.04 * np.ptp(expected)


class Accumulate(layers.Layer):
    """A running sum in a variable of TensorFlow, unknown to Keras."""

    def build(self, shape):
        self.total = tf.Variable(tf.zeros(shape[1:]), trainable=False)

    def call(self, x):
        return self.total.assign_add(x[0])[None]


def test_a_variable_of_tensorflow_is_kept_too(tmp_path):
    inputs = keras.Input(batch_shape=(1, 3))
    model = keras.Model(inputs, Accumulate()(inputs))
    tfc.convert(model, tmp_path / "model.tflite", precision="float32")
    samples = normal(5, 3)
    np.testing.assert_allclose(
        steps(tmp_path / "model.tflite", samples), np.cumsum(samples, axis=0), atol=1e-5
    )


class Raw(layers.Layer):
    """A layer with weights that calls functions of TensorFlow; it cannot be copied, either."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(units, dtype=self.dtype_policy)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return tf.nn.crelu(self.dense(x)) * tf.reduce_mean(x, axis=-1, keepdims=True)


class RawModel(keras.Model):
    def __init__(self):
        super().__init__()
        self.raw, self.head = Raw(4), layers.Dense(2)

    def call(self, x):
        raw = self.raw(x)
        return {"scores": self.head(tf.nn.elu(raw)), "best": tf.argmax(raw, axis=-1)}


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("kind", ["functional", "subclassed", *slow("sequential", "half")])
def test_a_model_that_cannot_be_flattened_is_converted_as_it_is(kind, precision, tmp_path):
    inputs, samples = keras.Input((6,), name="x"), normal(64, 6)
    if kind == "subclassed":
        model = RawModel()
    elif kind == "sequential":
        model = keras.Sequential([inputs, Raw(4), layers.Dense(2)])
    else:
        policy = "mixed_float16" if kind == "half" else "float32"
        outputs = layers.Dense(2, name="scores", dtype="float32")(Raw(4, dtype=policy)(inputs))
        model = keras.Model(inputs, outputs)
    expected = model(samples)
    calibration = samples if precision == "int8" else None
    path = tmp_path / "model.tflite"
    tfc.convert(model, path, precision=precision, calibration=calibration)
    found = tfc.verify(model, path, samples)
    least = 25 if precision == "int8" else 50 if kind == "half" else 100
    assert all(e.keras.sqnr_db > least for e in found.outputs if e.name != "best")
    if kind == "subclassed":
        assert [entry.name for entry in found.outputs] == ["best", "scores"] == sorted(expected)
    if kind == "half":
        assert model.layers[1].compute_dtype == "float16"


class Spectrum(layers.Layer):
    def call(self, x):
        return ops.fft((x, ops.zeros_like(x)))[0]


class RawSpectrum(layers.Layer):
    def call(self, x):
        return tf.math.real(tf.signal.fft(tf.complex(x, x)))


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (Spectrum(name="own"), "FFT in 'own'"),
        (keras.Sequential([layers.Dense(4), Spectrum(name="inner")]), "FFT in 'inner'"),
        (RawSpectrum(name="raw"), "FFT in 'raw'"),
        (ops.erfinv, "Erfinv in 'erfinv'"),
    ],
)
def test_a_refused_operation_is_told_with_its_layer(layer, named, tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(layer(layers.Dense(4)(inputs))))
    with pytest.raises(ValueError, match=named) as caught:
        tfc.convert(model, tmp_path / "model.tflite", precision="float32")
    # Flex has no kernel for it either.
    assert ("select_tf_ops=True" in str(caught.value)) == (layer is not ops.erfinv)


class Positions(layers.Layer):
    """A table read by weights that are integers, as the relative positions of Swin."""

    def build(self, shape):
        self.index = self.add_weight(
            shape=shape[1:2], dtype="int32", initializer="zeros", trainable=False, name="index"
        )
        self.index.assign(np.arange(shape[1]) % 3)
        self.table = self.add_weight(shape=(3, shape[2]), name="table")

    def call(self, x):
        return x + ops.take(self.table, self.index, axis=0)


def test_weights_that_are_integers_stay_so(tmp_path):
    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, Positions()(inputs))
    samples = normal(16, 5, 4)
    tfc.convert(model, tmp_path / "model.tflite", precision="float32")
    np.testing.assert_array_equal(steps(tmp_path / "model.tflite", samples), model(samples))
    tfc.convert(model, tmp_path / "model.tflite", calibration=samples)
    found = steps(tmp_path / "model.tflite", samples)
    assert np.abs(found - model(samples)).max() < 1.5 * np.ptp(samples) / 255


def test_a_vocabulary_of_integers_is_compared_with(tmp_path):
    inputs = keras.Input((3,), dtype="int64", name="years")
    layer = layers.IntegerLookup(vocabulary=[1990, -5, 2000], mask_token=0)
    outputs = layers.Dense(2)(layers.Flatten()(layers.Embedding(6, 4)(layer(inputs))))
    model = keras.Model(inputs, outputs)
    years = np.array([[1990, 0, 7], [2000, -5, 1990]])
    tfc.convert(model, tmp_path / "model.tflite", precision="float32")
    np.testing.assert_allclose(steps(tmp_path / "model.tflite", years), model(years), atol=1e-6)


def test_a_vocabulary_of_texts_is_kept_in_the_file(tmp_path):
    words = keras.Input((3,), dtype="string", name="words")
    x = layers.StringLookup(vocabulary=["a", "b"])(words)
    model = keras.Model(words, layers.Dense(2)(layers.Flatten()(layers.Embedding(3, 4)(x))))
    texts = np.array([["a", "no", "b"], ["b", "b", ""]])
    for settings in ({"precision": "float32"}, {"calibration": {"words": texts}}):
        tfc.convert(model, tmp_path / "model.tflite", **settings)
        assert "HASHTABLE_FIND" in names(tmp_path / "model.tflite")
        (found,) = tfc.verify(model, tmp_path / "model.tflite", texts).outputs
        assert found.keras.sqnr_db > (30 if "calibration" in settings else 100)
    for data in (None, texts):
        tfc.benchmark(tmp_path / "model.tflite", data=data, runs=1, rounds=1)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A SavedModel of two functions."""
    module = tf.Module()
    module.weight = tf.Variable([1.0, 2.0, 3.0])
    specs = {"x": tf.TensorSpec([None, 3], name="x")}
    module.double = tf.function(lambda x: {"y": 2 * x * module.weight})
    module.mean = tf.function(lambda x: {"mean": tf.reduce_mean(x * module.weight, -1)})
    functions = {
        name: getattr(module, name).get_concrete_function(**specs) for name in ("double", "mean")
    }
    folder = tmp_path_factory.mktemp("several")
    tf.saved_model.save(module, str(folder), signatures=functions)
    return folder


def test_one_of_several_signatures(several, tmp_path):
    path, x = tmp_path / "model.tflite", normal(4, 3)
    with pytest.raises(ValueError, match=r"one of 'double', 'mean'.*received none.*signature="):
        tfc.convert(several, path, precision="float32")
    with pytest.raises(ValueError, match="received 'other'"):
        tfc.convert(several, path, precision="float32", signature="other")
    for name, expected in (("double", 2 * x * [1, 2, 3]), ("mean", (x * [1, 2, 3]).mean(-1))):
        for settings in ({"precision": "float32"}, {"calibration": x}):
            report = tfc.convert(several, path, signature=name, **settings)
            assert any("left out" in note for note in report.notes)
            assert list(Interpreter(str(path)).get_signature_list()) == [name]
            step = 0 if "calibration" not in settings else np.ptp(expected) / 255
            np.testing.assert_allclose(steps(path, x), expected, rtol=1e-5, atol=2 * step + 1e-6)
            assert tfc.verify(several, path, x).passed


def test_a_signature_is_for_a_saved_model_alone(float_cnn, tmp_path):
    with pytest.raises(ValueError, match="signature='serve' is for the folder of a SavedModel"):
        tfc.convert(float_cnn, tmp_path / "model.tflite", precision="float32", signature="serve")


@pytest.mark.parametrize("io_dtype", [("uint8", "float32"), *slow("float32,int8")])
def test_inputs_and_outputs_of_types_of_their_own(io_dtype, qat_cnn, images, tmp_path):
    path = tmp_path / "model.tflite"
    report = tfc.convert(qat_cnn, path, io_dtype=io_dtype)
    pair = tuple(io_dtype.split(",")) if isinstance(io_dtype, str) else io_dtype
    found = tfc.inspect(path)
    assert (found.inputs[0].dtype, found.outputs[0].dtype) == pair
    assert report.io_dtype == ",".join(pair)
    assert tfc.verify(qat_cnn, path, images[0][:50]).passed
    with pytest.raises(ValueError, match="one type, or the inputs' and the outputs'"):
        tfc.convert(qat_cnn, path, io_dtype=("uint8", "int8", "int8"))


@pytest.mark.parametrize("layer", [layers.TextVectorization, layers.Hashing])
def test_what_prepares_texts_is_to_be_split_off(layer, tmp_path):
    settings = {"vocabulary": ["a", "b"], "output_sequence_length": 3}
    settings = settings if layer is layers.TextVectorization else {"num_bins": 5}
    texts = keras.Input((1,), dtype="string")
    ids = layer(**settings, name="prepare")(texts)
    x = layers.GlobalAveragePooling1D()(layers.Embedding(6, 4)(ids))
    model, path = keras.Model(texts, layers.Dense(2)(x)), tmp_path / "model.tflite"
    with pytest.raises(ValueError, match=r"'prepare' prepares data.*get_layer\('prepare'\).output"):
        tfc.convert(model, path, precision="float32")
    rest = keras.Model(model.get_layer("prepare").output, model.output)
    tfc.convert(rest, path, precision="float32")
    words = tf.constant([["a no b"], ["b"]])
    ids = np.asarray(keras.Model(texts, ids)(words))
    np.testing.assert_allclose(steps(path, ids), model(words), atol=1e-5)


def test_sizes_that_are_free_are_fixed_as_the_error_tells(tmp_path):
    free = keras.Input((None,), dtype="int32")
    x = layers.LayerNormalization()(layers.Embedding(9, 4)(free))
    model, path = keras.Model(free, layers.GlobalAveragePooling1D()(x)), tmp_path / "model.tflite"
    with pytest.raises(ValueError, match=r"fixed sizes.*keras.Model\(x, model\(x\)\)"):
        tfc.convert(model, path, precision="float32")
    x, ids = keras.Input((5,), dtype="int32"), np.arange(10, dtype="int32").reshape(2, 5) % 9
    tfc.convert(keras.Model(x, model(x)), path, precision="float32")
    np.testing.assert_allclose(steps(path, ids), model(ids), atol=1e-5)
    report = tfc.convert(model, path, calibration=(ids[i : i + 1] for i in range(2)))
    assert report.notes[0].startswith("made for inputs of the sizes")
    np.testing.assert_allclose(steps(path, ids), model(ids), atol=0.05)


def test_a_batch_that_layers_ask_for(tmp_path):
    inputs = keras.Input(batch_shape=(4, 8))
    model = keras.Model(inputs, layers.Dense(2)(ops.reshape(layers.Dense(6)(inputs), (4, 2, 3))))
    with pytest.raises(ValueError, match=r"made for a batch of 4.*Pass batch_size=4"):
        tfc.convert(model, tmp_path / "model.tflite", precision="float32")
    tfc.convert(model, tmp_path / "model.tflite", precision="float32", batch_size=4)
    x = normal(8, 8)
    assert tfc.verify(model, tmp_path / "model.tflite", x).outputs[0].keras.sqnr_db > 100
