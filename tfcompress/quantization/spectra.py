"""Spectra of frames of a signal as strided convolutions and products with fixed numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import keras
import numpy as np
from keras import layers, ops

from tfcompress.quantization.pieces import with_weights

# The longest transform that becomes a product: it has as many values as this, squared.
LONGEST = 1024

_FIXED = {"use_bias": False, "trainable": False, "dtype": "float32"}


def opener_of(operation) -> Callable | None:
    """The function that opens a spectrum of real numbers, or what undoes it; None for another."""
    if isinstance(operation, keras.Layer):
        return mel_spectrogram if type(operation) is layers.MelSpectrogram else None
    return _OPENERS.get(type(operation).__name__)


def has_operator(operation) -> bool:
    """Whether LiteRT has an operator for it in float, RFFT2D, which is fast and needs no table."""
    return type(operation).__name__ in ("RFFT", "STFT", "MelSpectrogram")


def _rfft(operation, x):
    given = x.shape[-1]
    if not _fits(given, operation.fft_length or given):
        return operation(x)
    size = operation.fft_length or given
    kept = min(size, given)
    x = x if kept == given else x[..., :kept]
    return tuple(ops.matmul(x, part[:kept]) for part in _waves(size))


def _irfft(operation, x):
    real, imaginary = x
    bins = real.shape[-1]
    if not _fits(bins, operation.fft_length or (bins and 2 * (bins - 1))):
        return operation(x)
    size = operation.fft_length or 2 * (bins - 1)
    kept = min(bins, size // 2 + 1)
    if kept < bins:
        real, imaginary = real[..., :kept], imaginary[..., :kept]
    cosines, sines = (part[:kept] for part in _inverse_waves(size))
    return ops.add(ops.matmul(real, cosines), ops.matmul(imaginary, sines))


def _stft(operation, x):
    found = _short_spectra(operation, x, operation.center)
    return operation(x) if found is None else found


def _short_spectra(settings, x, center: bool):
    """A convolution with each wave of the window's length, in steps of the frames.

    Args:
        settings: an operation or layer that has them.

    Returns the real and the imaginary parts; None if sizes are open or frames too long.
    """
    size, step = settings.fft_length, settings.sequence_stride
    if len(x.shape) < 2 or None in x.shape[1:] or size > LONGEST:
        return None
    outer = x.shape[1:-1]
    if center:
        sides = [(0, 0)] * (len(x.shape) - 1) + [(size // 2, size // 2)]
        x = ops.pad(x, sides, mode="reflect")
    window, start, length = _window(settings)
    count = 1 + (x.shape[-1] - size) // step
    blocks = _blocks(x[..., start : start + (count - 1) * step + length], length, step)
    width = blocks.shape[-1]
    parts = []
    for name, wave in zip(("real", "imaginary"), _waves(size), strict=True):
        named = {**_FIXED, "name": f"{settings.name}_{name}"}
        frames = layers.Conv1D(wave.shape[1], length // width, strides=step // width, **named)
        kernel = window[:, None] * wave[start : start + length]
        part = with_weights(frames, blocks, kernel=kernel.astype("float32"))
        parts.append(ops.reshape(part, (-1, *outer, *part.shape[1:])) if outer else part)
    return tuple(parts)


def _istft(operation, x):
    """A transposed convolution, which adds the waves up where frames overlap."""
    real, imaginary = x
    size, step = operation.fft_length, operation.sequence_stride
    *outer, count, bins = real.shape[1:]
    if len(real.shape) < 3 or not _fits(*outer, count, bins, size) or bins != size // 2 + 1:
        return operation(x)
    width = math.gcd(size, step)
    window = _inverse_window(operation, size, step)
    kernel = np.concatenate(_inverse_waves(size)) * window
    kernel = kernel.reshape(2 * bins, size // width, width).transpose(1, 2, 0)
    waves = ops.reshape(ops.concatenate([real, imaginary], axis=-1), (-1, count, 2 * bins))
    named = {**_FIXED, "name": f"{operation.name}_waves"}
    add_up = layers.Conv1DTranspose(width, size // width, step // width, **named)
    whole = (count - 1) * step + size
    y = with_weights(add_up, waves, kernel=kernel.astype("float32"))[:, : whole // width]
    y = ops.reshape(y, (-1, *outer, whole))
    start = size // 2 if operation.center else 0
    end = whole - start if operation.length is None else start + operation.length
    return y[..., start:end]


def _extract_sequences(operation, x):
    """Rows of a signal that is cut into blocks, whole blocks at a time."""
    length, step = operation.sequence_length, operation.sequence_stride
    if len(x.shape) < 2 or None in x.shape[1:]:
        return operation(x)
    count = 1 + (x.shape[-1] - length) // step
    blocks = _blocks(x[..., : (count - 1) * step + length], length, step)
    width = blocks.shape[-1]
    rows = np.arange(count)[:, None] * (step // width) + np.arange(length // width)
    y = ops.take(blocks, rows.reshape(-1).astype("int32"), axis=1)
    return ops.reshape(y, (-1, *x.shape[1:-1], count, length))


def mel_spectrogram(layer, x):
    """The spectrum, its power, bands, and decibels below the loudest of all."""
    plain = len(x.shape) == 2 and layer.compute_dtype == "float32"
    parts = _short_spectra(layer, x, center=True) if plain else None
    if parts is None:
        return layer(x)
    real, imaginary = parts
    y = ops.add(ops.square(real), ops.square(imaginary))
    if layer.mag_exp != 2:
        y = ops.sqrt(y) if layer.mag_exp == 1 else ops.power(y, layer.mag_exp / 2)
    bands = layer.linear_to_mel_weight_matrix(
        layer.num_mel_bins,
        layer.fft_length // 2 + 1,
        layer.sampling_rate,
        layer.min_freq,
        layer.max_freq,
    )
    y = ops.matmul(y, ops.convert_to_numpy(bands))
    if layer.power_to_db:
        factor, least = 10.0 / math.log(10.0), float(layer.min_power)
        y = ops.multiply(ops.log(ops.maximum(y, least)), factor)
        reference = factor * math.log(max(abs(float(layer.ref_power)), least))
        y = y if reference == 0 else ops.subtract(y, reference)
        loudest = ops.max(y, axis=[0, 1, 2], keepdims=True)
        y = ops.maximum(y, ops.subtract(loudest, float(layer.top_db)))
    return ops.transpose(y, (0, 2, 1))


def _fits(*sizes) -> bool:
    return None not in sizes and sizes[-1] <= LONGEST


def _waves(size: int) -> tuple[np.ndarray, np.ndarray]:
    """What a signal is multiplied with for the parts of its spectrum, (size, bins) each."""
    angles = 2 * np.pi * (np.outer(np.arange(size), np.arange(size // 2 + 1)) % size) / size
    return np.cos(angles).astype("float32"), -np.sin(angles).astype("float32")


def _inverse_waves(size: int) -> tuple[np.ndarray, np.ndarray]:
    """What the parts of a spectrum are multiplied with for its signal, (bins, size) each."""
    factors = np.full(size // 2 + 1, 2.0 / size, "float32")
    factors[[0, -1] if size % 2 == 0 else [0]] = 1.0 / size
    cosines, sines = (part.T * factors[:, None] for part in _waves(size))
    return cosines, sines


def _window(operation) -> tuple[np.ndarray, int, int]:
    """The window of a frame, where it starts, and its length; beside it there are zeros."""
    size, length, window = operation.fft_length, operation.sequence_length, operation.window
    if window is None:
        return np.ones(size), 0, size
    if isinstance(window, str):
        # TensorFlow's windows of an odd length end as they begin.
        wave = np.cos(2 * np.pi * np.arange(length) / max(1, length - length % 2))
        values = 0.5 - 0.5 * wave if window == "hann" else 0.54 - 0.46 * wave
    else:
        values = np.asarray(ops.convert_to_numpy(window), "float64")
    return values, (size - length) // 2, length


def _inverse_window(operation, size: int, step: int) -> np.ndarray:
    """The window by which frames add up to the signal that they were cut from."""
    if operation.window is None:
        return np.ones(size)
    values, start, length = _window(operation)
    window = np.pad(values, (start, size - start - length))
    folds = -(-size // step)
    power = np.pad(window**2, (0, folds * step - size)).reshape(folds, step).sum(axis=0)
    power = np.tile(power, folds)[:size]
    return np.divide(window, power, out=np.zeros(size), where=power > 0)


def _blocks(x, length: int, step: int):
    """A signal in blocks, of which frames and the steps between them have whole numbers."""
    width = math.gcd(length, step)
    return ops.reshape(x, (-1, x.shape[-1] // width, width))


_OPENERS: dict[str, Callable] = {
    "RFFT": _rfft,
    "IRFFT": _irfft,
    "STFT": _stft,
    "ISTFT": _istft,
    "ExtractSequences": _extract_sequences,
}
