"""Recurrent nets whole in int8: trained or quantized after it, against their simulation."""

import keras
import numpy as np
import pytest
from keras import layers
from step_models import Made, Own, distance, loops, net, normal, steps_off, trained

import tfcompress as tfc
from tfcompress import Cluster, Prune, Quantize, Rule
from tfcompress.compression.logger import weights_of
from tfcompress.surgery import macs

SEQUENCES = {"return_sequences": True}


def text(*parts):
    keras.utils.set_random_seed(0)
    words = layers.Embedding(9, 6, keras.initializers.RandomUniform(-1, 1), mask_zero=True)
    return keras.Sequential([keras.Input((6,), dtype="int32"), words, *parts])


def sentences(count=64):
    """Words and, behind them, nothing."""
    rng = np.random.default_rng(0)
    words = rng.integers(1, 9, (count, 6)).astype("int32")
    return np.where(np.arange(6) < rng.integers(1, 7, (count, 1)), words, 0)


NETS = {
    "gru": lambda: (net(layers.GRU(8), layers.Dense(3)), normal(64, 5, 4)),
}
MORE = {
    "own": lambda: (net(layers.RNN(Own(5), **SEQUENCES)), normal(64, 5, 4)),
    "masked": lambda: (
        text(layers.Bidirectional(layers.LSTM(6)), layers.Dense(3)),
        sentences(),
    ),
    "before": lambda: (net(layers.GRU(5, reset_after=False, **SEQUENCES)), normal(64, 5, 4)),
    "relu": lambda: (net(layers.SimpleRNN(5, activation="relu", **SEQUENCES)), normal(64, 5, 4)),
    "lstm": lambda: (net(layers.LSTM(5, recurrent_dropout=0.1, **SEQUENCES)), normal(64, 5, 4)),
    "stacked": lambda: (
        net(layers.RNN([layers.GRUCell(5), layers.LSTMCell(4)]), layers.Dense(3)),
        normal(64, 5, 4),
    ),
    "both": lambda: (net(layers.Bidirectional(layers.GRU(6, **SEQUENCES))), normal(64, 5, 4)),
    "made": lambda: (net(layers.RNN(Made(5)), layers.Dense(3)), normal(64, 5, 4)),
    "masked_gru": lambda: (
        text(layers.GRU(6, **SEQUENCES), layers.GlobalAveragePooling1D(), layers.Dense(3)),
        sentences(),
    ),
    "masked_frames": lambda: (
        net(layers.Masking(), layers.SimpleRNN(6, **SEQUENCES)),
        np.where(np.arange(5)[:, None] < 3, normal(64, 5, 4), 0.0).astype("float32"),
    ),
    "conv1": lambda: (
        net(layers.ConvLSTM1D(3, 3, **SEQUENCES), shape=(4, 8, 2)),
        normal(64, 4, 8, 2),
    ),
    "conv2": lambda: (
        net(layers.ConvLSTM2D(2, 3, padding="same"), shape=(3, 5, 5, 2)),
        normal(64, 3, 5, 5, 2),
    ),
}


def check(model, data, tmp_path):
    qat, path = trained(model, data), tmp_path / "trained.tflite"
    assert loops(qat)
    io = {"io_dtype": "int8"} if data.dtype == np.float32 else {"io_dtype": "float32,int8"}
    assert tfc.convert(qat, path, precision="int8", **io).float_ops == []
    # What lies just between two steps may come out as either.
    off = distance(qat, path, data[:32])
    assert off.max_lsb < 1.01
    assert off.mean_lsb < 0.05
    final = tfc.finalize(qat)
    np.testing.assert_array_equal(final(data[:4]), qat(data[:4]))
    saved = tmp_path / "final.keras"
    final.save(saved)
    np.testing.assert_array_equal(keras.saving.load_model(saved)(data[:4]), qat(data[:4]))
    after = tmp_path / "after.tflite"
    report = tfc.convert(model, after, precision="int8", calibration=data, **io)
    assert report.float_ops == []
    assert min(report.sqnr.values()) > 20


@pytest.mark.parametrize("name", NETS)
def test_nets_are_whole_in_integers(name, tmp_path):
    check(*NETS[name](), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_more_nets_are_whole_in_integers(name, tmp_path):
    check(*MORE[name](), tmp_path)


def test_weights_are_written_once(tmp_path):
    sizes = []
    for length in (4, 8):
        model, data = net(layers.GRU(64), shape=(length, 16)), normal(8, length, 16)
        path = tmp_path / f"{length}.tflite"
        report = tfc.convert(model, path, precision="int8", calibration=data)
        assert report.float_ops == []
        sizes.append(report.file_bytes)
    assert sizes[1] - sizes[0] < 4 * 4500  # a kernel of 64 x 192 is 12 kB


@pytest.mark.slow
def test_techniques_reach_the_weights_of_steps(tmp_path):
    model, data = net(layers.GRU(16, name="memory"), layers.Dense(2)), normal(32, 5, 4)
    rules = [
        Rule("*", [Quantize()]),
        Rule("memory", [Prune(0.5), Quantize(bits=4)]),
    ]
    small = tfc.compress(model, rules)
    small.compile("adam", "mse", jit_compile=False)
    small.fit(data, normal(32, 2), verbose=0, callbacks=[tfc.UpdateCompression()])
    final = tfc.finalize(small)
    (loop,) = loops(final)
    recurrent = next(x for x in loop.step.layers if x.weights and "recurrent" in x.name)
    kernel = np.asarray(recurrent.layer.kernel)
    assert kernel.shape == (16, 48)
    assert 0.5 <= np.mean(kernel == 0.0) < 0.7  # some more are rounded to it
    path = tmp_path / "m.tflite"
    assert tfc.convert(final, path, precision="int4").float_ops == []
    assert steps_off(final, path, data) <= 2.01
    off = [row.steps for row in tfc.verify(final, path, data[:8], layers=True).layers]
    assert {step for step in off if step is not None} <= {0.0, 1.0}


def test_what_looks_at_models_looks_into_loops():
    model = net(layers.GRU(16, name="memory"), layers.Dense(2, name="head"))
    qat = tfc.quantize_aware(model)
    assert macs.count(qat) == macs.count(model)
    named = ["memory_inputs/kernel", "memory_recurrent/kernel", "head/kernel"]
    assert [weight.name for weight in weights_of(qat)] == named
    rules = [Rule("*", [Cluster(4), Quantize()])]
    found = tfc.expected_flash(model, rules)
    assert "memory_recurrent/kernel" in {weight.name for weight in found.weights}
    assert max(weight.values for weight in found.weights) <= 4
