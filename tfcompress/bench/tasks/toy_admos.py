"""ToyADMOS's toy car as DCASE 2020 lays it out, a real data set of machine sounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfcompress.bench.tasks import cache
from tfcompress.bench.tasks.cache import data_folder, fingerprint, require
from tfcompress.bench.tasks.machines import FRAMES, WINDOW, spectrograms, vectors
from tfcompress.bench.tasks.sounds import read_wav
from tfcompress.bench.tasks.task import Data

EXPECTED = (
    "ToyADMOS of DCASE 2020, Task 2: ToyCar/train/normal_id_*.wav, ToyCar/test/normal_id_*.wav "
    "and ToyCar/test/anomaly_id_*.wav"
)
_SOURCE = "Get dev_data_ToyCar.zip from https://zenodo.org/record/3678171 and unpack it."
_GENERATOR, _SEED = 1, 0

# Vectors to train with, and of each clip to test with: all would take gigabytes.
TRAIN_VECTORS, TEST_VECTORS = 100_000, 25

# MLPerf Tiny takes the middle of clips: 200 of the frames, the first after 50.
_FIRST, _LAST = 50, 250


def read(folder: Path) -> Data:
    """Sounds of a toy car, whole to train with, whole and broken to test with."""
    root = data_folder(folder, _is_root, EXPECTED, _SOURCE)
    require_score()
    found = {
        pattern: sorted(root.glob(f"{pattern}*.wav"))
        for pattern in ("train/normal_id_", "test/normal_id_", "test/anomaly_id_")
    }
    missing = [f"{pattern}*.wav" for pattern, files in found.items() if not files]
    if missing:
        raise ValueError(f"'{root}' lacks {', '.join(missing)}; expected {EXPECTED}. {_SOURCE}")
    train, normal, anomaly = found.values()
    files = [*train, *normal, *anomaly]
    settings = {
        "files": fingerprint(root, files),
        "generator": _GENERATOR,
        "seed": _SEED,
        "vectors": [TRAIN_VECTORS, TEST_VECTORS],
    }
    arrays = cache.cached("toy_admos", settings, lambda: _make(train, normal, anomaly))
    return sound_data(arrays, "ToyADMOS ToyCar")


def sound_data(arrays: cache.Arrays, source: str) -> Data:
    """Sounds that are to be reconstructed, and which are broken."""
    digest = cache.digest(arrays)
    return Data(**arrays, y_train=None, classes=0, source=source, digest=digest, scale=1.0)


def require_score() -> None:
    """Raises an `Unavailable` without what models are scored with, before they are trained."""
    require("sklearn", "anomaly is scored by the area under the ROC curve of scikit-learn")


def _is_root(folder: Path) -> bool:
    # "." has no name of its own, and a link has one beside that of its folder.
    return "ToyCar" in (folder.name, folder.resolve().name)


def _make(train: Sequence[Path], normal: Sequence[Path], anomaly: Sequence[Path]) -> cache.Arrays:
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
        raise ValueError(f"'{path}' holds {len(samples):,} samples; expected seconds. {_SOURCE}")
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
