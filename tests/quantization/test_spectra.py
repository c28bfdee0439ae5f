"""Spectra as convolutions and products, beside those of NumPy."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc
from tests.conftest import run_tflite
from tfcompress.graph.nodes import Graph
from tfcompress.quantization.opening import open_layers

SIGNAL = np.random.default_rng(0).normal(size=(2, 700)).astype("float32")


def opened(function, *shapes):
    """A model of a function of Keras with it opened, and the kinds of its operations."""
    inputs = [keras.Input(shape) for shape in shapes]
    outputs = function(*inputs)
    model = open_layers(keras.Model(inputs if len(shapes) > 1 else inputs[0], outputs))
    shapes_of = [tuple(x.shape) for x in keras.tree.flatten(outputs)]
    assert [tuple(x.shape) for x in model.outputs] == shapes_of
    return model, {type(node.operation).__name__ for node in Graph.of(model).nodes}


def spectra(signal, length, step, size, window, center):
    """What `keras.ops.stft` is by NumPy."""
    if center:
        signal = np.pad(signal, ((0, 0), (size // 2, size // 2)), mode="reflect")
    before = (size - length) // 2
    window = np.pad(window, (before, size - length - before))
    starts = range(0, signal.shape[1] - size + 1, step)
    return np.fft.rfft(np.stack([signal[:, n : n + size] for n in starts], 1) * window)


def hann(length):
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)


@pytest.mark.parametrize(
    ("length", "step", "size", "center"),
    [(200, 80, 256, True), (64, 64, 64, False), (50, 33, 90, True)],
    ids=["apart", "touching", "coprime"],
)
def test_short_time_spectra_are_strided_convolutions(length, step, size, center):
    model, kinds = opened(lambda x: ops.stft(x, length, step, size, center=center), (700,))
    assert "Conv1D" in kinds
    assert "STFT" not in kinds
    real, imaginary = (np.asarray(part) for part in model(SIGNAL))
    wanted = spectra(SIGNAL, length, step, size, hann(length), center)
    np.testing.assert_allclose(real + 1j * imaginary, wanted, atol=3e-5)
    assert model.trainable_weights == []


def test_signals_are_made_again_of_spectra_where_frames_overlap():
    settings = {"sequence_length": 50, "sequence_stride": 10, "fft_length": 64}
    parts = [np.asarray(x) for x in ops.stft(SIGNAL, **settings)]
    shape = parts[0].shape[1:]
    model, kinds = opened(lambda a, b: ops.istft((a, b), **settings), shape, shape)
    assert "Conv1DTranspose" in kinds
    made = np.asarray(model(parts))
    np.testing.assert_allclose(made, ops.istft(parts, **settings), atol=2e-6)
    # At the ends fewer frames add up.
    np.testing.assert_allclose(made[:, 30:-30], SIGNAL[:, 30:-30], atol=2e-6)


@pytest.mark.parametrize(("given", "size"), [(64, None), (63, 63), (64, 40), (20, 65)])
def test_spectra_of_all_lengths_and_back(given, size):
    x = SIGNAL[:, :given]
    model, kinds = opened(lambda x: ops.rfft(x, size), (given,))
    assert kinds <= {"InputLayer", "Matmul", "GetItem"}
    real, imaginary = (np.asarray(part) for part in model(x))
    wanted = np.fft.rfft(x, size or given)
    np.testing.assert_allclose(real + 1j * imaginary, wanted, atol=1e-5)
    bins = real.shape[1:]
    back, kinds = opened(lambda a, b: ops.irfft((a, b), size or given), bins, bins)
    assert "IRFFT" not in kinds
    parts = wanted.real.astype("float32"), wanted.imag.astype("float32")
    np.testing.assert_allclose(back(parts), np.fft.irfft(wanted, size or given), atol=2e-6)


def test_sequences_are_rows_of_whole_blocks():
    model, kinds = opened(lambda x: ops.extract_sequences(x, 200, 80), (700,))
    assert "ExtractSequences" not in kinds
    rows = np.stack([SIGNAL[:, n : n + 200] for n in range(0, 501, 80)], 1)
    np.testing.assert_array_equal(model(SIGNAL), rows)


@pytest.mark.parametrize("settings", [{}, {"mag_exp": 1.0}, {"ref_power": 2.0, "top_db": 30.0}])
def test_mel_spectrogram_is_its_layers(settings):
    layer = layers.MelSpectrogram(64, 20, sampling_rate=8000, num_mel_bins=8, **settings)
    model, kinds = opened(layer, (700,))
    assert "MelSpectrogram" not in kinds
    np.testing.assert_allclose(model(SIGNAL), layer(SIGNAL), atol=2e-5)


def test_what_is_too_long_or_open_stays():
    _, kinds = opened(lambda x: ops.stft(x, 1200, 600, 2048), (9000,))
    assert "STFT" in kinds
    _, kinds = opened(lambda x: ops.stft(x, 64, 32, 64), (None,))
    assert "STFT" in kinds


def make_loudness():
    x = keras.Input((700,))
    real, imaginary = ops.stft(x, 50, 20, 64)
    power = ops.square(real) + ops.square(imaginary)
    return keras.Model(x, ops.log(power[:, :, :20] + 1e-3))


@pytest.mark.parametrize("target", [None, "mobile_cpu", "microcontroller"])
def test_files_have_the_operators_of_their_target(target, tmp_path):
    model, path = make_loudness(), tmp_path / "m.tflite"
    report = tfc.convert(model, path, precision="float32", target=target, io_dtype="float32")
    assert ("RFFT2D" in {name for name, _, _ in report.ops}) == (target != "microcontroller")
    if target == "microcontroller":
        assert report.check.passed
    for x in SIGNAL:
        np.testing.assert_allclose(run_tflite(path, x[None]), model(x[None]), atol=2e-5)
