"""LSTMs as one operator of integers: trained, converted, and run by LiteRT's kernels."""

import hashlib
import warnings

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from keras import layers

import tfcompress as tfc
from tfcompress.conversion import lstm
from tfcompress.layers.fixed_point import sigmoid_table, tanh_table
from tfcompress.tflite import flatbuffer
from tfcompress.tools.comparison import operators_alone
from tfcompress.tools.subject import read_subject

REFERENCE, DEFAULT = OpResolverType.BUILTIN_REF, OpResolverType.AUTO


def slow(*values):
    return [
        pytest.param(*v, marks=pytest.mark.slow)
        if isinstance(v, tuple)
        else pytest.param(v, marks=pytest.mark.slow)
        for v in values
    ]


# In front of the last Dense layer, and how many LSTMs there are.
NETS = {
    "last": (lambda x: layers.LSTM(6)(x), 1),
    "all": (lambda x: layers.LSTM(6, return_sequences=True)(x), 1),
    "no bias, backwards": (
        lambda x: layers.LSTM(5, use_bias=False, go_backwards=True, dropout=0.1)(x),
        1,
    ),
    "stacked": (lambda x: layers.LSTM(4)(layers.LSTM(6, return_sequences=True)(x)), 2),
    "behind a Dense": (lambda x: layers.LSTM(6)(layers.Dense(7, activation="relu")(x)), 1),
    "both ways": (lambda x: layers.Bidirectional(layers.LSTM(5))(x), 2),
    "all both ways": (
        lambda x: layers.LSTM(4)(layers.Bidirectional(layers.LSTM(5, return_sequences=True))(x)),
        3,
    ),
    "summed": (lambda x: layers.Bidirectional(layers.LSTM(5), merge_mode="sum")(x), 2),
    "pooled": (
        lambda x: layers.GlobalAveragePooling1D()(layers.LSTM(5, return_sequences=True)(x)),
        1,
    ),
}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def make(name="last", steps=7, head=True):
    keras.utils.set_random_seed(0)
    x = keras.Input((steps, 3), name="x")
    y = NETS[name][0](x)
    return keras.Model(x, layers.Dense(2, name="head")(y) if head else y)


def trained(model, recipe=None, epochs=4):
    """A model trained with quantization for a little while, so that its weights are any."""
    qat = tfc.quantize_aware(model) if recipe is None else tfc.compress(model, recipe)
    qat.compile(keras.optimizers.Adam(0.02), "mse", jit_compile=False)
    x = normal(64, *model.input_shape[1:])
    y = normal(64, *model.output_shape[1:], seed=1)
    callbacks = [tfc.UpdateCompression()]
    qat.fit(x, y, epochs=epochs, batch_size=16, verbose=0, callbacks=callbacks)
    return qat


def ran(path, data, kernels=REFERENCE):
    """What LiteRT gives for samples one by one, or for as many at once as the file takes."""
    file = Interpreter(str(path), experimental_op_resolver_type=kernels)
    file.allocate_tensors()
    taken, given = file.get_input_details()[0], file.get_output_details()[0]
    found, size = [], taken["shape"][0]
    for start in range(0, len(data), size):
        file.set_tensor(taken["index"], data[start : start + size])
        file.invoke()
        found.append(file.get_tensor(given["index"]))
    return np.concatenate(found)


def step(path):
    """The scale of the tensor from which the output is made."""
    file = flatbuffer.read(path)
    last = file.subgraphs[0].operators[-1]
    return flatbuffer.scales_of(file.subgraphs[0].tensors[last.inputs[0]])[0][0]


def counted(report):
    return {
        name: count for name, dtype, count in report.ops if "LSTM" in name or dtype == "float32"
    }


@pytest.mark.parametrize("name", ["both ways", *slow(*sorted(NETS.keys() - {"both ways"}))])
def test_the_file_gives_the_bits_of_the_simulation(name, tmp_path):
    qat = trained(make(name))
    report = tfc.convert(qat, tmp_path / "m.tflite", strict=True)
    assert report.float_ops == []
    assert counted(report) == {lstm.NAME: NETS[name][1]}
    data = normal(40, 7, 3, seed=2)
    want = qat.predict(data, verbose=0)
    np.testing.assert_allclose(ran(tmp_path / "m.tflite", data), want, atol=1e-5)
    # XNNPACK rounds the layers around it otherwise.
    off = np.abs(ran(tmp_path / "m.tflite", data, DEFAULT) - want).max()
    assert off < 2.01 * step(tmp_path / "m.tflite")
    assert np.std(want) > 5 * step(tmp_path / "m.tflite")


@pytest.mark.parametrize(("steps", "batch"), [(3, 4), *slow((1, 1), (49, 1), (100, 2))])
def test_any_length_and_batch(steps, batch, tmp_path):
    qat = trained(make("last", steps))
    tfc.convert(qat, tmp_path / "m.tflite", batch_size=batch)
    data = normal(24, steps, 3, seed=2)
    want = qat.predict(data, verbose=0)
    np.testing.assert_allclose(ran(tmp_path / "m.tflite", data), want, atol=1e-5)
    size = (tmp_path / "m.tflite").stat().st_size
    assert size < 6000


@pytest.mark.slow
def test_finalized_and_saved_models_give_the_same(tmp_path):
    qat = trained(make())
    data = normal(16, 7, 3, seed=2)
    want = qat.predict(data, verbose=0)
    qat.save(tmp_path / "qat.keras")
    again = keras.saving.load_model(tmp_path / "qat.keras")
    for copy in (again, tfc.finalize(again)):
        np.testing.assert_array_equal(copy.predict(data, verbose=0), want)
    tfc.convert(copy, tmp_path / "m.tflite")
    np.testing.assert_allclose(ran(tmp_path / "m.tflite", data), want, atol=1e-5)


@pytest.mark.parametrize("name", ["last", *slow("all both ways", "pooled")])
def test_after_training(name, tmp_path):
    model = make(name)
    for v in model.trainable_variables:
        v.assign(0.8 * np.random.default_rng(3).normal(size=v.shape))
    data = normal(64, 7, 3)
    path = tmp_path / "m.tflite"
    report = tfc.convert(model, path, precision="int8", calibration=data)
    assert report.float_ops == []
    assert counted(report) == {lstm.NAME: NETS[name][1]}
    want = model.predict(data, verbose=0)
    assert np.abs(ran(path, data) - want).max() < 0.06 * np.abs(want).max()
    # One whose cell state went further than its range would be far off.
    assert min(report.sqnr.values()) > 25


def test_the_kernel_step_by_step(tmp_path):
    """What LiteRT gives is what integers give that are computed here from the file's tensors."""
    qat = trained(make("all", steps=9, head=False))
    tfc.convert(qat, tmp_path / "m.tflite", io_dtype="int8")
    file = flatbuffer.read(tmp_path / "m.tflite")
    (op,) = lstm.operators_of(file)
    tensors = [None if i < 0 else file.subgraphs[0].tensors[i] for i in op.inputs]
    given = file.subgraphs[0].tensors[op.outputs[0]]
    scale = lambda tensor: flatbuffer.scales_of(tensor)[0][0]  # noqa: E731
    zero = lambda tensor: flatbuffer.scales_of(tensor)[1][0]  # noqa: E731
    values = lambda tensor: flatbuffer.tensor_values(file, tensor).astype(np.int64)  # noqa: E731
    cell = int(np.log2(scale(tensors[19])))
    assert scale(tensors[19]) == 2.0**cell
    assert [t.isVariable for t in (tensors[18], tensors[19])] == [True, True]
    data = np.random.default_rng(0).integers(-128, 128, (5, 9, 3)).astype(np.int8)
    codes = data.astype(np.int64) - zero(tensors[0])
    h, c, found = np.zeros((5, 6), np.int64), np.zeros((5, 6), np.int64), []
    for t in range(9):
        sums = []
        for gate in range(4):
            units = [scale(tensors[0]) * scale(tensors[1 + gate])]
            units.append(scale(given) * scale(tensors[5 + gate]))
            first = codes[:, t] @ values(tensors[1 + gate]).T + values(tensors[12 + gate])
            second = h @ values(tensors[5 + gate]).T
            parts = [
                times(x, unit / 2.0**-12) for x, unit in zip((first, second), units, strict=True)
            ]
            sums.append(wide(wide(parts[0]) + parts[1]))
        i, f, o = (sigmoid_table(3)[sums[gate] + 2**15] for gate in (0, 1, 3))
        g = tanh_table(3)[sums[2] + 2**15]
        c = wide(halved(f * c, 15) + halved(i * g, 30 + cell))
        h = times(o * tanh_table(15 + cell)[c + 2**15], 2.0**-30 / scale(given)) + zero(given)
        h = np.clip(h, -128, 127)
        found.append(h)
        h = h - zero(given)
    np.testing.assert_array_equal(ran(tmp_path / "m.tflite", data), np.stack(found, axis=1))


def wide(x):
    return np.clip(x, -(2**15), 2**15 - 1)


def halved(x, times):
    """Halves away from zero."""
    return (np.sign(x) * ((np.abs(x) + (1 << (times - 1))) >> times)).astype(np.int64)


def times(x, factor):
    """A product in fixed point: by 31 bits, then by a power of two, each rounded."""
    mantissa, power = np.frexp(factor)
    mantissa, shape = round(mantissa * 2**31), np.shape(x)
    x = [(int(v) << max(int(power), 0)) * mantissa for v in np.ravel(x)]
    x = [int(np.sign(v)) * ((abs(v) + (1 << 30)) >> 31) for v in x]
    x = np.reshape(x, shape)
    return x if power >= 0 else halved(x, -int(power))


@pytest.mark.parametrize("bits", [0, 3, 6])
def test_functions_of_16_bits(bits):
    codes = np.arange(-(2**15), 2**15)
    x = codes / 2.0 ** (15 - bits)
    assert np.abs(tanh_table(bits) / 2.0**15 - np.tanh(x)).max() < 5e-4
    if bits:
        assert np.abs(sigmoid_table(bits) / 2.0**15 - 1 / (1 + np.exp(-x))).max() < 5e-4
    for table in (tanh_table(bits), sigmoid_table(3)):
        assert table.min() >= -32768
        assert table.max() <= 32767


def test_functions_of_16_bits_are_those_of_gemmlowp():
    """The hash of what its code gives for all codes: sigmoid for 3 whole bits, tanh for 0 to 6."""
    tables = [sigmoid_table(3), *(tanh_table(bits) for bits in range(7))]
    found = hashlib.sha256(np.stack(tables).astype("<i2").tobytes()).hexdigest()
    assert found == "f581e3c051f4b74d6d0a2e6034f3d7c3e375176e0217c7f2233f5f318867fe2c"
    # Where products of -1/2 are rounded up, some of its numbers are:
    assert sigmoid_table(3)[2**15 + 5678] == 26210
    assert tanh_table(4)[2**15 - 10232] == -32767


@pytest.mark.slow
def test_a_pruned_lstm(tmp_path):
    recipe = [tfc.Rule("LSTM", [tfc.Prune(0.5, score="magnitude"), tfc.Quantize()])]
    recipe.append(tfc.Rule("head", [tfc.Quantize()]))
    qat = trained(make(), recipe, epochs=8)
    small = tfc.finalize(qat)
    tfc.convert(small, tmp_path / "m.tflite")
    file = flatbuffer.read(tmp_path / "m.tflite")
    (op,) = lstm.operators_of(file)
    tensors = file.subgraphs[0].tensors
    kernels = [flatbuffer.tensor_values(file, tensors[op.inputs[i]]) for i in range(1, 9)]
    zeros = sum(int((k == 0).sum()) for k in kernels) / sum(k.size for k in kernels)
    assert 0.45 < zeros < 0.6
    data = normal(16, 7, 3, seed=2)
    want = qat.predict(data, verbose=0)
    np.testing.assert_allclose(ran(tmp_path / "m.tflite", data), want, atol=1e-5)


@pytest.mark.slow
def test_what_the_range_of_the_states_is_for(tmp_path):
    """Quantization that begins late, and ranges that are frozen."""
    model = make()
    recipe = [tfc.Rule("*", [tfc.Quantize(delay=8, freeze=12)])]
    qat = trained(model, recipe)
    tfc.convert(qat, tmp_path / "m.tflite")
    data = normal(16, 7, 3, seed=2)
    want = qat.predict(data, verbose=0)
    np.testing.assert_allclose(ran(tmp_path / "m.tflite", data), want, atol=1e-5)
    early = tfc.compress(model, recipe)
    np.testing.assert_allclose(
        early.predict(data, verbose=0), model.predict(data, verbose=0), atol=1e-5
    )


def test_16_bits_are_opened_step_by_step(tmp_path):
    data = normal(16, 7, 3)
    report = tfc.convert(make(), tmp_path / "m.tflite", precision="int16x8", calibration=data)
    assert report.float_ops == []
    assert "UNIDIRECTIONAL_SEQUENCE_LSTM" not in {name for name, _, _ in report.ops}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tfc.quantize_aware(make(), activation_bits=16)


@pytest.mark.slow
def test_floats(tmp_path):
    data = normal(8, 7, 3)
    qat = trained(make())
    for precision in ("float32", "float16"):
        tfc.convert(qat, tmp_path / "m.tflite", precision=precision)
        want = qat.predict(data, verbose=0)
        off = np.abs(ran(tmp_path / "m.tflite", data, DEFAULT) - want)
        assert np.median(off) < 0.01  # outputs of integers end with their range


@pytest.mark.slow
def test_an_lstm_that_is_left_float(tmp_path):
    """It is the operator of floats, which begins each run anew, too."""
    model, data = make(), normal(32, 7, 3)
    tfc.convert(model, tmp_path / "m.tflite", precision="int8", calibration=data, skip="lstm*")
    want = model.predict(data, verbose=0)
    np.testing.assert_allclose(ran(tmp_path / "m.tflite", data, DEFAULT), want, atol=0.02)


def stateful(steps=3):
    keras.utils.set_random_seed(0)
    x = keras.Input(batch_shape=(1, steps, 3), name="x")
    return keras.Model(x, layers.Dense(2)(layers.LSTM(6, stateful=True)(x)))


def test_states_that_are_kept_from_run_to_run(tmp_path):
    path, data = tmp_path / "m.tflite", normal(12, 3, 3, seed=2)
    qat = tfc.quantize_aware(stateful())
    qat.compile(keras.optimizers.Adam(0.02), "mse", jit_compile=False)
    qat.fit(normal(64, 3, 3), normal(64, 2, seed=1), epochs=3, batch_size=1, verbose=0)
    report = tfc.convert(qat, path, strict=True)
    assert [name for name, _, _ in report.ops if name == "SLICE"] == []

    def given(model):
        for layer in model._flatten_layers():
            if getattr(layer, "stateful", False):
                layer.reset_states()
        return np.concatenate([np.asarray(model(row[None])) for row in data])

    want = given(qat)
    assert not np.allclose(given(qat)[1:], np.concatenate([qat(row[None]) for row in data])[:-1])
    np.testing.assert_allclose(ran(path, data), want, atol=1e-5)
    plain = stateful()
    tfc.convert(plain, path, precision="int8", calibration=data, io_dtype="int8", strict=True)
    report = tfc.convert(plain, path, precision="int8", calibration=data)
    assert report.float_ops == []
    # What calibration did not see, as its states are others, ends with the range.
    assert np.quantile(np.abs(ran(path, data) - given(plain)), 0.9) < 0.02


def test_macs():
    model = make("all both ways")
    # 7 steps of 4 gates of 5 cells that read 3 numbers and 5 states, and so on.
    wanted = 2 * 7 * 4 * 5 * (3 + 5) + 7 * 4 * 4 * (10 + 4) + 4 * 2
    assert tfc.profile(model).macs == tfc.profile(tfc.quantize_aware(model)).macs == wanted


@pytest.mark.slow
@pytest.mark.parametrize("name", ["last", "all both ways"])
def test_tflite_micro(name, tmp_path):
    runtimes = pytest.importorskip("tfcompress.tools.runtimes")
    try:
        runtimes.require_tflm()
    except Exception as error:
        pytest.skip(str(error))
    tfc.convert(trained(make(name)), tmp_path / "m.tflite", io_dtype="int8")
    codes = np.random.default_rng(0).integers(-128, 128, (30, 7, 3)).astype(np.int8)
    data = (tmp_path / "m.tflite").read_bytes()
    found = runtimes.tflm_outputs(data, [[row[None]] for row in codes])
    found = np.concatenate([outputs[0] for outputs in found]).astype(int)
    assert np.abs(found - ran(tmp_path / "m.tflite", codes)).max() <= 2
    assert tfc.accept(tmp_path / "m.tflite", ["tflm"]).passed


@pytest.mark.slow
def test_operators_are_compared_alone(tmp_path):
    tfc.convert(trained(make()), tmp_path / "m.tflite", io_dtype="int8")
    alone = operators_alone(read_subject(tmp_path / "m.tflite", {}))
    assert [list(x) for x in alone.inputs[0].values()] != []
    assert len(alone.expected[0]) == 3  # of LSTM, STRIDED_SLICE, FULLY_CONNECTED


@pytest.mark.slow
def test_a_shared_lstm_of_two_inputs(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = [keras.Input((5, 3), name=name) for name in "ab"]
    shared = layers.LSTM(6, return_sequences=True)
    y = layers.LSTM(4)(layers.Subtract()([shared(inputs[0]), shared(inputs[1])]))
    qat = tfc.quantize_aware(keras.Model(inputs, layers.Dense(2)(y)))
    qat.compile("adam", "mse", jit_compile=False)
    data = [normal(64, 5, 3), 2 * normal(64, 5, 3, seed=1)]
    qat.fit(data, normal(64, 2, seed=2), epochs=2, verbose=0)
    report = tfc.convert(qat, tmp_path / "m.tflite", strict=True)
    assert counted(report) == {lstm.NAME: 3}
    found = tfc.verify(qat, tmp_path / "m.tflite", dict(zip("ab", data, strict=True)))
    assert found.passed
    file = Interpreter(str(tmp_path / "m.tflite"), experimental_op_resolver_type=REFERENCE)
    run = file.get_signature_runner()
    rows = [run(a=data[0][i : i + 1], b=data[1][i : i + 1]) for i in range(20)]
    want = qat.predict([x[:20] for x in data], verbose=0)
    given = np.concatenate([next(iter(row.values())) for row in rows])
    assert np.abs(given - want).max() < 1.01 * step(tmp_path / "m.tflite")


@pytest.mark.slow
def test_lengths_that_are_free_while_training(tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((None, 3), name="x")
    qat = tfc.quantize_aware(keras.Model(x, layers.Dense(2)(layers.LSTM(6)(x))))
    qat.compile("adam", "mse", jit_compile=False)
    for steps in (4, 9):
        qat.fit(normal(32, steps, 3), normal(32, 2, seed=1), epochs=2, verbose=0)
    fixed = keras.Input((6, 3), name="x")
    tfc.convert(keras.Model(fixed, qat(fixed)), tmp_path / "m.tflite", strict=True)
    data = normal(16, 6, 3, seed=2)
    want = qat.predict(data, verbose=0)
    np.testing.assert_allclose(ran(tmp_path / "m.tflite", data), want, atol=1e-5)


@pytest.mark.slow
def test_half_precision(tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 3), name="x")
    y = layers.LSTM(6, dtype="mixed_float16")(x)
    model = keras.Model(x, layers.Dense(2, dtype="mixed_float16")(y))
    qat = trained(model)
    tfc.convert(qat, tmp_path / "m.tflite", strict=True)
    data = normal(16, 6, 3, seed=2)
    off = np.abs(ran(tmp_path / "m.tflite", data) - qat.predict(data, verbose=0)).max()
    assert off < 1.5 * step(tmp_path / "m.tflite")


@pytest.mark.slow
@pytest.mark.parametrize(
    "techniques",
    [
        [tfc.Cluster(8), tfc.Quantize()],
        [tfc.Codebook("4"), tfc.Quantize(bits=3)],
        [tfc.Quantize(bits=4)],
        [tfc.Quantize(step="learned")],
        [tfc.Prune(pattern="2:4", score="magnitude"), tfc.Quantize(convolution="per_tensor")],
    ],
    ids=["clusters", "codebook", "4 bits", "learned", "2:4"],
)
def test_techniques_on_an_lstm(techniques, tmp_path):
    recipe = [tfc.Rule("*", [tfc.Quantize()]), tfc.Rule("LSTM", techniques)]
    qat = trained(make(), recipe)
    tfc.convert(tfc.finalize(qat), tmp_path / "m.tflite", precision="int8", strict=True)
    data = normal(16, 7, 3, seed=2)
    want = qat.predict(data, verbose=0)
    np.testing.assert_allclose(ran(tmp_path / "m.tflite", data), want, atol=1e-5)
