"""WAV files of real data sets, which may be damaged."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

RATE = 16_000


def read_wav(path: Path) -> np.ndarray:
    """Samples of a WAV file of 16-bit PCM, mono, 16 kHz.

    Args:
        path: of the file.

    Returns:
        float32 (samples,) in [-1, 1).

    Raises:
        ValueError: it is no such file, is cut off or holds nothing.

    Example:
        >>> read_wav(Path("yes/0a7c2a8d_nohash_0.wav"))  # doctest: +SKIP
    """
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
