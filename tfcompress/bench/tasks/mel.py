"""The mel scale, on which bands are as far apart as ears hear them."""

from __future__ import annotations

import numpy as np


def mel(hertz: np.ndarray | float) -> np.ndarray:
    """Hertz on the mel scale of O'Shaughnessy (1987), which HTK and TensorFlow take, too."""
    return 2595 * np.log10(1 + np.asarray(hertz) / 700)


def hertz(mels: np.ndarray | float) -> np.ndarray:
    """The inverse of `mel`."""
    return 700 * (10 ** (np.asarray(mels) / 2595) - 1)


def edges(low: float, high: float, bands: int) -> np.ndarray:
    """Where bands that overlap by half begin, have their middle and end, in hertz.

    Args:
        low, high: where the first begins and the last ends, in hertz.
        bands: how many.

    Returns:
        (bands + 2,): band i goes from edge i over edge i + 1 to edge i + 2.

    Example:
        >>> edges(0, 1000, 1).round().tolist()
        [0.0, 390.0, 1000.0]
    """
    return hertz(np.linspace(mel(low), mel(high), bands + 2))
