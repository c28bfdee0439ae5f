"""Mel-frequency cepstral coefficients, as the keyword spotting of MLPerf Tiny takes them.

Source: the settings of github.com/mlcommons/tiny (windows of 30 ms every 20 ms, magnitudes, 40 mel
bands from 20 to 4000 Hz, 10 coefficients); what they mean in the documentation of `tf.signal`.
"""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import scipy

FRAMES, COEFFICIENTS = 49, 10
_WINDOW, _HOP, _LENGTH = 480, 320, 512
_BANDS, _LOW, _HIGH = 40, 20.0, 4000.0

# What is added before the logarithm.
_FLOOR = 1e-6


def mfcc(samples: np.ndarray) -> np.ndarray:
    """MFCCs of clips of a second."""
    if samples.ndim != 2 or samples.shape[1] != RATE:
        raise ValueError(
            f"expected clips of {RATE} samples, (count, {RATE}); received the shape "
            f"{samples.shape}. Cut or pad them."
        )
    frames = np.lib.stride_tricks.sliding_window_view(samples, _WINDOW, axis=1)[:, ::_HOP]
    window = scipy.signal.windows.hann(_WINDOW, sym=False).astype("float32")
    spectra = np.abs(scipy.fft.rfft(frames.astype("float32") * window, _LENGTH))
    loudness = np.log(spectra @ mel_filters() + np.float32(_FLOOR))
    # HTK's factor, not that of an orthonormal transform: the first coefficient differs.
    waves = scipy.fft.dct(loudness)[..., :COEFFICIENTS, None] / np.sqrt(2 * _BANDS)
    return waves.astype("float32")


def mel_filters() -> np.ndarray:
    """Triangles of height 1 that are straight on the mel scale, float32 (bins, 40)."""
    bins = mel(np.linspace(0, RATE / 2, _LENGTH // 2 + 1))[:, None]
    edges = mel(mel_edges(_LOW, _HIGH, _BANDS))
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return np.maximum(0, np.minimum(rising, falling)).astype("float32")


def mel(hertz: np.ndarray | float) -> np.ndarray:
    """Hertz on the mel scale of O'Shaughnessy (1987), which HTK and TensorFlow take, too."""
    return 2595 * np.log10(1 + np.asarray(hertz) / 700)


def hertz(mels: np.ndarray | float) -> np.ndarray:
    """The inverse of `mel`."""
    return 700 * (10 ** (np.asarray(mels) / 2595) - 1)


def mel_edges(low: float, high: float, bands: int) -> np.ndarray:
    """Where bands that overlap by half begin, have their middle and end, in hertz.

    Returns (bands + 2,): band i goes from edge i over edge i + 1 to edge i + 2.
    """
    return hertz(np.linspace(mel(low), mel(high), bands + 2))


RATE = 16_000


def read_wav(path: Path) -> np.ndarray:
    """Samples of a WAV file of 16-bit PCM, mono, 16 kHz."""
    try:
        with wave.open(str(path), "rb") as file:
            found = (8 * file.getsampwidth(), file.getnchannels(), file.getframerate())
            count = file.getnframes()
            # A header may announce gigabytes.
            samples = np.frombuffer(file.readframes(min(count, path.stat().st_size)), np.uint8)
    except (wave.Error, EOFError, OSError) as error:
        raise _refused(path, f"cannot be read: {str(error) or 'it ends too early'}") from None
    if found != (16, 1, RATE):
        raise _refused(path, f"has {found[0]} bits, channels: {found[1]}, rate: {found[2]} Hz")
    if count == 0 or len(samples) != 2 * count:
        raise _refused(path, f"holds {len(samples) // 2:,} of {count:,} samples")
    return samples.view("<i2").astype("float32") / np.float32(32768)


def _refused(path: Path, why: str) -> ValueError:
    return ValueError(
        f"'{path}' {why}; expected a WAV file of 16-bit PCM, mono, {RATE} Hz. Unpack the data set "
        "again."
    )
