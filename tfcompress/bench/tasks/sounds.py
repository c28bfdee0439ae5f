"""Sounds of a second: read, spoken, in rooms and noise, and what models take of them.

Their mel-frequency cepstral coefficients are those of the keyword spotting of MLPerf Tiny. Source:
the settings of github.com/mlcommons/tiny (windows of 30 ms every 20 ms, magnitudes, 40 mel bands
from 20 to 4000 Hz, 10 coefficients); what they mean in the documentation of `tf.signal`.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import subprocess
import wave
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import gcd
from pathlib import Path

import numpy as np
import scipy

from tfcompress.tools.environments import Unavailable, program, run_tool

RATE = LENGTH = 16_000
FRAMES, COEFFICIENTS = 49, 10
_WINDOW, _HOP, _FFT = 480, 320, 512
_BANDS, _LOW, _HIGH = 40, 20.0, 4000.0

# What is added before the logarithm.
_FLOOR = 1e-6

# Of the streaming wake word of MLPerf Tiny: windows of 64 ms every 32 ms.
BANDS, WINDOW, HOP = 40, 1024, 512


def mfcc(samples: np.ndarray) -> np.ndarray:
    """MFCCs of clips of a second."""
    if samples.ndim != 2 or samples.shape[1] != RATE:
        raise ValueError(
            f"expected clips of {RATE} samples, (count, {RATE}); received the shape "
            f"{samples.shape}. Cut or pad them."
        )
    frames = np.lib.stride_tricks.sliding_window_view(samples, _WINDOW, axis=1)[:, ::_HOP]
    window = scipy.signal.windows.hann(_WINDOW, sym=False).astype("float32")
    spectra = np.abs(scipy.fft.rfft(frames.astype("float32") * window, _FFT))
    loudness = np.log(spectra @ mel_filters() + np.float32(_FLOOR))
    # HTK's factor, not that of an orthonormal transform: the first coefficient differs.
    waves = scipy.fft.dct(loudness)[..., :COEFFICIENTS, None] / np.sqrt(2 * _BANDS)
    return waves.astype("float32")


def log_mels(samples: np.ndarray) -> np.ndarray:
    """Loudness of mel bands, as the streaming wake word of MLPerf Tiny takes it.

    Args:
        samples: float32 (clips, samples) at 16 kHz.

    Returns float32 (clips, frames, 40): -52 to 12 decibels as 0 to 1, after pre-emphasis. Source:
    benchmark/training/streaming_wakeword of github.com/mlcommons/tiny.
    """
    before = np.pad(samples, ((0, 0), (1, 0)))[:, :-1]
    risen = (samples - np.float32(1 - 2**-5) * before).astype("float32")
    frames = np.lib.stride_tricks.sliding_window_view(risen, WINDOW, axis=1)[:, ::HOP]
    window = scipy.signal.windows.hamming(WINDOW).astype("float32")
    power = np.square(np.abs(scipy.fft.rfft(frames * window))) / np.float32(WINDOW)
    energy = power @ mel_filters(WINDOW, 0.0, RATE / 2, BANDS)
    decibels = 10 * np.log10(np.maximum(energy, 1e-30))
    return np.clip((decibels + 52) / 64, 0, 1).astype("float32")


def mel_filters(
    fft: int = _FFT, low: float = _LOW, high: float = _HIGH, count: int = _BANDS
) -> np.ndarray:
    """Triangles of height 1 that are straight on the mel scale, float32 (bins, bands)."""
    bins = mel(np.linspace(0, RATE / 2, fft // 2 + 1))[:, None]
    edges = mel(mel_edges(low, high, count))
    first, middle, last = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - first) / (middle - first), (last - bins) / (last - middle)
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


_VOICES, _HARMONICS = 5, 12
Random = np.random.Generator


def placed(sounds: Sequence[np.ndarray], random: Random) -> np.ndarray:
    """Clips of a second that have a sound anywhere in them; of longer ones, any second.

    Args:
        sounds: float32 (samples,) at 16 kHz, each of its own length.
    """
    clips = np.zeros((len(sounds), LENGTH), "float32")
    for clip, sound in zip(clips, sounds, strict=True):
        free = LENGTH - len(sound)
        start = random.integers(0, abs(free) + 1)
        if free >= 0:
            clip[start : start + len(sound)] = sound
        else:
            clip[:] = sound[start : start + LENGTH]
    return clips


def in_rooms(clips: np.ndarray, random: Random) -> np.ndarray:
    """Clips in rooms of their own, heard through microphones of their own.

    A room adds echoes: noise that decays by 60 dB in 0.1 to 0.5 s. A microphone hears frequencies
    differently, by 3 dB as a standard deviation.

    Args:
        clips: float32 (count, samples), of half a second or more.
    """
    count, length = clips.shape
    # Echoes are as long as clips at most, and must not come round to their beginnings.
    padded = 2 * length
    time = np.arange(RATE // 2, dtype="float32") / RATE
    rates = 6.9 / random.uniform(0.1, 0.5, (count, 1)).astype("float32")
    echoes = _white(count, len(time), random) * np.exp(-rates * time)
    echoes *= random.uniform(0, 0.4, (count, 1)) / np.linalg.norm(echoes, axis=1, keepdims=True)
    echoes[:, 0] = 1
    heard = scipy.fft.rfft(clips, padded) * scipy.fft.rfft(echoes, padded)
    gains = 10 ** (random.normal(0, 3, (count, 8)) / 20)
    # Knots are an octave apart, from 62.5 Hz up.
    knots = np.log2(np.maximum(scipy.fft.rfftfreq(padded, 1 / RATE), 1) / 62.5)
    heard *= _between(gains.astype("float32"), knots.astype("float32"))
    return scipy.fft.irfft(heard, padded)[:, :length]


def noises(clips: np.ndarray, random: Random) -> np.ndarray:
    """Noise of five kinds: steady, swelling, of a motor, of bangs, of people who talk.

    Args:
        clips: float32 (count, samples), of words: what people say.
    """
    length = clips.shape[1]
    noise = _steady(len(clips), length, random)
    kinds = random.integers(0, 5, len(clips))
    for kind, make in enumerate((_swells, _motors, _bangs), 1):
        rows = kinds == kind
        noise[rows] = make(noise[rows], random)
    talk = kinds == 4
    voices = random.integers(0, len(clips), (_VOICES, talk.sum()))
    shift = random.integers(length)
    noise[talk] = _power_1(np.roll(clips[voices].sum(0), shift, 1)) + 0.3 * noise[talk]
    return _power_1(noise)


def _steady(count: int, length: int, random: Random) -> np.ndarray:
    """White, pink, brown and all between."""
    frequencies = np.maximum(scipy.fft.rfftfreq(length, 1 / RATE), 20).astype("float32")
    slopes = frequencies ** -random.uniform(0, 1, (count, 1)).astype("float32")
    return _power_1(scipy.fft.irfft(scipy.fft.rfft(_white(count, length, random)) * slopes, length))


def _times(noise: np.ndarray) -> np.ndarray:
    return np.arange(noise.shape[1], dtype="float32") / RATE


def _swells(noise: np.ndarray, random: Random) -> np.ndarray:
    speed, start = random.uniform(1, 8, (2, len(noise), 1))
    return noise * (1 + 0.9 * np.sin(2 * np.pi * (speed * _times(noise) + start)))


def _motors(noise: np.ndarray, random: Random) -> np.ndarray:
    """Harmonics of 40 to 200 Hz."""
    shape = (len(noise), _HARMONICS)
    levels = random.lognormal(0, 1, shape) / np.arange(1, _HARMONICS + 1)
    levels = levels * np.exp(2j * np.pi * random.uniform(0, 1, shape))
    turn = np.exp(2j * np.pi * random.uniform(40, 200, (len(noise), 1)) * _times(noise))
    # By Horner's rule: a sine of each harmonic would take ten times as long.
    hum = np.zeros(turn.shape)
    for level in levels.T[::-1]:
        hum = (hum + level[:, None]) * turn
    return _power_1(hum.imag) + 0.5 * noise


def _bangs(noise: np.ndarray, random: Random) -> np.ndarray:
    """About three a second, each dying away within a tenth of one."""
    struck = np.where(random.uniform(size=noise.shape) < 3 / RATE, 1.0, 0.0)
    ring = scipy.signal.lfilter([1.0], [1.0, -np.exp(-60 / RATE)], struck)
    return noise * (0.2 + 5 * ring)


def mixed(words: np.ndarray, noise: np.ndarray, decibels: np.ndarray) -> np.ndarray:
    """Words over noise.

    Args:
        words: float32 (count, samples), a multiple of 400.
    """
    squares = np.square(words)
    # A word is shorter than its clip: of the silence around it nothing must be seen.
    frames = squares.reshape(len(words), -1, 400).mean(2)
    level = np.sqrt(np.sort(frames)[:, -10:].mean(1, keepdims=True))
    softer = 10 ** (-decibels[:, None] / 20)
    return words / np.maximum(level, 1e-6) + noise * softer.astype("float32")


def _between(values: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Values at knots 0, 1, 2 ... of each row, interpolated."""
    knots = np.clip(knots, 0, values.shape[1] - 1)
    left = np.minimum(knots.astype(int), values.shape[1] - 2)
    part = knots - left
    return values[:, left] * (1 - part) + values[:, left + 1] * part


def _white(count: int, length: int, random: Random) -> np.ndarray:
    return random.standard_normal((count, length), "float32")


def _power_1(clips: np.ndarray) -> np.ndarray:
    power = np.sqrt(np.square(clips).mean(1, keepdims=True))
    return (clips / np.maximum(power, 1e-6)).astype("float32")


_NAME = "espeak-ng"
_SECONDS = 30

# Softer than this share of the loudest sample is silence.
_SILENCE = 0.01


@dataclasses.dataclass(frozen=True)
class Utterance:
    """A word, and how it is spoken.

    Attributes:
        word: in English.
        voice: an accent and a variant: "en-us+m3".
        speed: about words per minute, 80 to 450.
        pitch: 0 to 99.
    """

    word: str
    voice: str
    speed: int = 175
    pitch: int = 50


def version() -> str:
    """The version of eSpeak NG: "1.51"."""
    said = run_tool([_program(), "--version"], what=_NAME, seconds=_SECONDS).strip()
    found = re.search(r"text-to-speech: (\S+)", said)
    return found[1] if found else said


def variants() -> set[str]:
    """The names of the variants that there are: "m3", "whisper" ..."""
    said = run_tool([_program(), "--voices=variant"], what=_NAME, seconds=_SECONDS)
    # A name may have single spaces in it.
    return {found.strip() for found in re.findall(r"!v/(\S+(?: \S+)*)", said)}


def speak(utterances: Sequence[Utterance]) -> list[np.ndarray]:
    """What utterances sound like, each of them with a process of its own."""
    path = _program()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda each: _spoken(path, each), utterances))


def _program() -> str:
    return program(_NAME, _NAME)


def _spoken(path: str, each: Utterance) -> np.ndarray:
    options = ["-z", "-v", each.voice, "-s", str(each.speed), "-p", str(each.pitch)]
    command = [path, *options, "--stdout", each.word]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS)
        with wave.open(io.BytesIO(done.stdout)) as file:
            # The header is written before the length is known.
            samples = np.frombuffer(file.readframes(len(done.stdout)), "<i2")
            rate = file.getframerate()
    except (OSError, subprocess.TimeoutExpired, wave.Error, EOFError, ValueError) as error:
        raise Unavailable(f"{_NAME} does not speak {each}: {error or 'it said nothing'}") from error
    loud = np.flatnonzero(np.abs(samples) > _SILENCE * np.abs(samples).max(initial=1))
    if not len(loud):
        raise Unavailable(f"{_NAME} does not speak {each}: it was silent")
    samples = samples[loud[0] : loud[-1] + 1].astype("float32") / np.float32(32768)
    shared = gcd(RATE, rate)
    return scipy.signal.resample_poly(samples, RATE // shared, rate // shared).astype("float32")
