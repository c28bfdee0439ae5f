"""Mel-frequency cepstral coefficients, as the keyword spotting of MLPerf Tiny takes them.

Source: the settings of github.com/mlcommons/tiny (windows of 30 ms every 20 ms, magnitudes, 40 mel
bands from 20 to 4000 Hz, 10 coefficients); what they mean in the documentation of `tf.signal`.
"""

from __future__ import annotations

import numpy as np
import scipy

from tfcompress.bench.tasks import mel

RATE = 16_000
FRAMES, COEFFICIENTS = 49, 10
_WINDOW, _HOP, _LENGTH = 480, 320, 512
_BANDS, _LOW, _HIGH = 40, 20.0, 4000.0
# What is added before the logarithm.
_FLOOR = 1e-6


def mfcc(samples: np.ndarray) -> np.ndarray:
    """MFCCs of clips of a second.

    Args:
        samples: float (count, 16000) in [-1, 1], at 16 kHz.

    Returns:
        float32 (count, 49, 10, 1).

    Raises:
        ValueError: the clips are not as long.

    Example:
        >>> mfcc(np.zeros((3, 16000), "float32")).shape
        (3, 49, 10, 1)
    """
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
    bins = mel.mel(np.linspace(0, RATE / 2, _LENGTH // 2 + 1))[:, None]
    edges = mel.mel(mel.edges(_LOW, _HIGH, _BANDS))
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return np.maximum(0, np.minimum(rising, falling)).astype("float32")
