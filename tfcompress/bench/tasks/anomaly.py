"""Anomaly detection, the autoencoder of MLPerf Tiny: sounds of a machine, well or not.

Of ToyADMOS's toy car as DCASE 2020 lays it out, or of a made-up machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import scipy

from tfcompress.bench.tasks import cache
from tfcompress.bench.tasks.sounds import RATE, mel_edges, read_wav
from tfcompress.bench.tasks.task import (
    Data,
    DataSet,
    Task,
    Training,
    architecture,
    fingerprint,
    require,
)

# Raised when other data come of the same settings.
_GENERATOR = 1
_SEED = 0

# Clips to train with, and of each kind to test with.
_CLIPS = {"train": 300, "test": 300}


def generate() -> Data:
    """8,100 vectors to train with, 600 clips of 27 vectors to test with."""
    require_score()
    settings = {**_CLIPS, "generator": _GENERATOR, "seed": _SEED}
    arrays = cache.cached("machines", settings, _make)
    return Data.of(arrays, 0)


def _make() -> cache.Arrays:
    made = machine_sounds(_SEED, **_CLIPS)
    x_train = made.train.reshape(-1, made.train.shape[-1])
    return {"x_train": x_train, "x_test": made.test, "y_test": made.broken}


SECONDS = 1
BANDS, FRAMES, WINDOW, HOP = 128, 5, 1024, 512
HARMONICS = 40

# Times, turns of the machine at these times, what is random -> samples.
Fault = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Sounds:
    """Clips of a machine, as the autoencoder of MLPerf Tiny sees them.

    Attributes:
        train: of a machine that is well, float32 (clips, frames, 640): in each row five neighbours
            of a spectrogram of 128 mel bands, in decibels, shifted and scaled.
        test: others, half of them of a machine that is not.
        broken: which, bool (clips,).
    """

    train: np.ndarray
    test: np.ndarray
    broken: np.ndarray


def machine_sounds(seed: int, train: int = 300, test: int = 300) -> Sounds:
    """Clips of a second.

    A machine hums: harmonics of a speed that drifts, swelling with each turn, over noise from the
    machine and from the room. One that is not well has harmonics beside the others, clicks, or
    bursts of a worn bearing.
    """
    random = np.random.default_rng(seed)
    faults = (_detuned, _clicks, _bearing)
    clips = [_clip(random) for _ in range(train + test)]
    clips += [_clip(random, faults[i % 3]) for i in range(test)]
    bands = spectrograms(np.stack(clips))
    mean, scale = bands[:train].mean(), bands[:train].std()
    rows = vectors(((bands - mean) / scale).astype("float32"))
    broken = np.arange(2 * test) >= test
    return Sounds(rows[:train], rows[train:], broken)


def vectors(bands: np.ndarray) -> np.ndarray:
    """Five neighbours of a spectrogram: (clips, frames, 128) -> (clips, frames - 4, 640)."""
    frames = np.lib.stride_tricks.sliding_window_view(bands, FRAMES, axis=1)
    return np.moveaxis(frames, -1, 2).reshape(len(bands), -1, FRAMES * BANDS)


def spectrograms(samples: np.ndarray) -> np.ndarray:
    """Mel bands in decibels.

    Args:
        samples: (clips, samples) at 16 kHz.

    Returns (clips, frames, 128): windows of 1024 samples every 512.
    """
    _, _, bins = scipy.signal.stft(
        samples, RATE, nperseg=WINDOW, noverlap=WINDOW - HOP, boundary=None
    )
    power = np.abs(np.moveaxis(bins, 1, 2)) ** 2 @ _mel_filters()
    return 10 * np.log10(power + 1e-9)


def _clip(random: np.random.Generator, fault: Fault | None = None) -> np.ndarray:
    """Samples of one clip."""
    time = np.arange(RATE * SECONDS) / RATE
    drift = np.interp(time, np.linspace(0, SECONDS, 9), random.normal(0, 0.004, 9))
    speed = random.uniform(45, 75) * (1 + drift)
    turns = np.cumsum(speed) / RATE
    # The machine itself: the same spectrum of harmonics in every clip.
    levels = np.random.default_rng(0).lognormal(-0.05 * np.arange(HARMONICS), 0.6)
    levels = levels * random.lognormal(0, 0.15, HARMONICS)
    phases = np.exp(2j * np.pi * random.uniform(0, 1, HARMONICS))
    # By Horner's rule: sines of 40 harmonics would take most of the time.
    waves = np.polyval([*(levels * phases)[::-1], 0], np.exp(2j * np.pi * turns)).imag
    swell = 1 + random.uniform(0.1, 0.4) * np.sin(2 * np.pi * (turns + random.uniform()))
    sound = waves * swell
    hiss = scipy.signal.lfilter(
        [1.0], [1.0, -random.uniform(0.5, 0.9)], random.normal(size=len(time))
    )
    sound += random.uniform(0.3, 0.9) * hiss * swell
    sound += random.uniform(0.1, 0.4) * random.normal(size=len(time))
    if fault is not None:
        sound = sound + random.uniform(0.5, 1.5) * fault(time, turns, random)
    return sound * random.lognormal(0, 0.2)


def _detuned(time: np.ndarray, turns: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A tone between two harmonics, and its sidebands."""
    order = random.integers(8, 40) + random.uniform(0.3, 0.7)
    depth = 1 + 0.5 * np.sin(2 * np.pi * turns)
    return 1.2 * depth * np.sin(2 * np.pi * order * turns)


def _clicks(time: np.ndarray, turns: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A few short clicks at any time."""
    beats = np.zeros(len(time))
    beats[random.integers(0, len(time), 6)] = random.choice([-1.0, 1.0], 6)
    return 14 * scipy.signal.lfilter([1.0], [1.0, -np.exp(-1 / 30)], beats)


def _bearing(time: np.ndarray, turns: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A resonance that is struck 3.6 times a turn."""
    struck = np.diff(np.floor(3.6 * turns), prepend=0) > 0
    ring = np.arange(400) / RATE
    tone = np.exp(-ring * 400) * np.sin(2 * np.pi * random.uniform(3000, 5000) * ring)
    return 1.5 * scipy.signal.oaconvolve(struck, tone)[: len(time)]


def _mel_filters() -> np.ndarray:
    """Triangles that are equally wide on the mel scale, (bins, 128)."""
    edges = mel_edges(0, RATE / 2, BANDS)
    bins = np.linspace(0, RATE / 2, WINDOW // 2 + 1)[:, None]
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    # Low bands are narrower than bins: each has at least the nearest one.
    half = np.maximum(RATE / WINDOW, [middle - low, high - middle])
    return np.maximum(0, 1 - np.maximum((middle - bins) / half[0], (bins - middle) / half[1]))


TOY_ADMOS = DataSet(
    "ToyADMOS ToyCar",
    "ToyADMOS of DCASE 2020, Task 2: ToyCar/train/normal_id_*.wav, ToyCar/test/normal_id_*.wav "
    "and ToyCar/test/anomaly_id_*.wav",
    "Get dev_data_ToyCar.zip from https://zenodo.org/record/3678171 and unpack it.",
)

# Vectors to train with, and of each clip to test with: all would take gigabytes.
TRAIN_VECTORS, TEST_VECTORS = 100_000, 25

# MLPerf Tiny takes the middle of clips: 200 of the frames, the first after 50.
_FIRST, _LAST = 50, 250


def read(folder: Path) -> Data:
    """Sounds of a toy car, whole to train with, whole and broken to test with."""
    root = TOY_ADMOS.find(folder, _is_root)
    require_score()
    found = {
        pattern: sorted(root.glob(f"{pattern}*.wav"))
        for pattern in ("train/normal_id_", "test/normal_id_", "test/anomaly_id_")
    }
    TOY_ADMOS.require(root, (f"{pattern}*.wav" for pattern, files in found.items() if not files))
    train, normal, anomaly = found.values()
    files = [*train, *normal, *anomaly]
    settings = {
        "files": fingerprint(root, files),
        "generator": _GENERATOR,
        "seed": _SEED,
        "vectors": [TRAIN_VECTORS, TEST_VECTORS],
    }
    arrays = cache.cached("toy_admos", settings, lambda: _read(train, normal, anomaly))
    return Data.of(arrays, 0, TOY_ADMOS.name)


def require_score() -> None:
    """Raises an `Unavailable` without what models are scored with, before they are trained."""
    require("sklearn", "anomaly is scored by the area under the ROC curve of scikit-learn")


def _is_root(folder: Path) -> bool:
    # "." has no name of its own, and a link has one beside that of its folder.
    return "ToyCar" in (folder.name, folder.resolve().name)


def _read(train: Sequence[Path], normal: Sequence[Path], anomaly: Sequence[Path]) -> cache.Arrays:
    random = np.random.default_rng(_SEED)
    each = -(-TRAIN_VECTORS // len(train))
    x_train = np.concatenate([_vectors(path, each, random) for path in train])[:TRAIN_VECTORS]
    tested = [_vectors(path, TEST_VECTORS) for path in (*normal, *anomaly)]
    # Clips are equally long; if not, the shortest says how much of each is taken.
    x_test = np.stack([rows[: min(map(len, tested))] for rows in tested])
    mean, scale = x_train.mean(dtype="float64"), x_train.std(dtype="float64")
    for x in (x_train, x_test):
        x -= np.float32(mean)
        x /= np.float32(scale)
    y_test = np.arange(len(tested)) >= len(normal)
    return {"x_train": random.permutation(x_train), "x_test": x_test, "y_test": y_test}


def _vectors(path: Path, most: int, random: np.random.Generator | None = None) -> np.ndarray:
    """Vectors of a clip, float32 (at most `most`, 640): at random, or as far apart as can be."""
    samples = read_wav(path)
    if len(samples) < WINDOW * FRAMES:
        raise ValueError(
            f"'{path}' holds {len(samples):,} samples; expected seconds. {TOY_ADMOS.source}"
        )
    bands = spectrograms(samples[None])
    if bands.shape[1] >= _FIRST + FRAMES:
        bands = bands[:, _FIRST:_LAST]
    rows = vectors(bands.astype("float32"))[0]
    count = min(most, len(rows))
    if random is None:
        chosen = np.linspace(0, len(rows) - 1, count).round().astype(int)
    else:
        chosen = random.permutation(len(rows))[:count]
    return rows[chosen]


TASK = Task(
    name="anomaly",
    title="Anomaly detection",
    build=architecture("autoencoder"),
    published=(0, 269_992, 264_192),
    generate=generate,
    training=Training(steps=1280, batch=64, rate=4e-3),
    tuning=Training(steps=512, batch=64, rate=1e-3),
    short=(Training(480, 64, 4e-3), Training(96, 64, 1e-3)),
    read=read,
    real=TOY_ADMOS.expected,
    loss="mse",
)
