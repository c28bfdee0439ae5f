"""The real data sets of the image tasks, CIFAR-10 and Visual Wake Words, from their folders."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from tfcompress.bench.tasks import cache
from tfcompress.bench.tasks.cache import NotThere, data_folder, fingerprint, require
from tfcompress.bench.tasks.task import Data

CIFAR10 = "the files of CIFAR-10's binary version, data_batch_1.bin to _5.bin and test_batch.bin"
VISUAL_WAKE_WORDS = "the folders person and non_person of Visual Wake Words, with JPEGs of 96 x 96"
_CIFAR10_PARTS = {
    "train": [f"data_batch_{number}.bin" for number in range(1, 6)],
    "test": ["test_batch.bin"],
}
_CIFAR10_SOURCE = (
    "Get cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html and unpack it"
)
_WAKE_SOURCE = (
    "Get vw_coco2014_96.tar.gz, which training/visual_wake_words of "
    "https://github.com/mlcommons/tiny downloads, and unpack it"
)
_RECORD = 1 + 32 * 32 * 3
_WAKE_SIDE = 96
_WAKE_KINDS = ("non_person", "person")
_WAKE_TEST_SHARE = 0.1

# All 110,000 images would take 3 GB of memory.
_WAKE_MOST = {"train": 20_000, "test": 5_000}


def image_data(arrays: cache.Arrays, classes: int, source: str) -> Data:
    """Images that are stored as uint8, and their labels."""
    digest = cache.digest(arrays)
    return Data(**arrays, classes=classes, source=source, digest=digest, scale=1 / 255)


def read_cifar10(folder: Path) -> Data:
    """CIFAR-10: 50,000 images of 32 x 32 to train with and 10,000 to test with."""
    names = [name for part in _CIFAR10_PARTS.values() for name in part]
    place = _cifar10_folder(folder, names)
    if missing := [name for name in names if not (place / name).is_file()]:
        lacks = ", ".join(missing)
        raise ValueError(f"'{place}' lacks {lacks}; expected {CIFAR10}. {_CIFAR10_SOURCE}")
    arrays = {}
    for part, files in _CIFAR10_PARTS.items():
        records = np.concatenate([_records(place / name) for name in files])
        pixels = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        arrays[f"x_{part}"] = np.ascontiguousarray(pixels)
        arrays[f"y_{part}"] = records[:, 0].astype(np.int64)
    return image_data(arrays, 10, "CIFAR-10")


def read_visual_wake_words(folder: Path) -> Data:
    """Visual Wake Words as MLPerf Tiny lays it out: images of 96 x 96, with a person or without.

    The tenth of the images whose names have the smallest hashes is for testing. At most 20,000
    are taken to train with and 5,000 to test with. What was decoded is kept in the cache.
    """
    place = data_folder(
        Path(folder),
        lambda own: all((own / kind).is_dir() for kind in _WAKE_KINDS),
        VISUAL_WAKE_WORDS,
        _WAKE_SOURCE,
    )
    chosen = _chosen(place)
    every = [path for rows in chosen.values() for path, _ in rows]

    def make() -> cache.Arrays:
        require("PIL", "wake_vision reads photographs with Pillow")
        arrays = {}
        for part, rows in chosen.items():
            arrays[f"x_{part}"] = np.stack([_photograph(path) for path, _ in rows])
            arrays[f"y_{part}"] = np.array([label for _, label in rows], np.int64)
        return arrays

    settings = {"reader": 1, "files": fingerprint(place, every)}
    arrays = cache.cached("visual_wake_words", settings, make)
    return image_data(arrays, 2, "Visual Wake Words")


def _chosen(place: Path) -> dict[str, list[tuple[Path, int]]]:
    """The images of each part, by the hashes of their names, with their labels."""
    found: dict[str, list[tuple[str, Path, int]]] = {"train": [], "test": []}
    for label, kind in enumerate(_WAKE_KINDS):
        for path in (place / kind).glob("*.jpg"):
            said = hashlib.sha256(f"{kind}/{path.name}".encode()).hexdigest()
            part = "test" if int(said[:8], 16) < _WAKE_TEST_SHARE * 16**8 else "train"
            found[part].append((said, path, label))
    for part, rows in found.items():
        if len({label for *_, label in rows}) < len(_WAKE_KINDS):
            raise ValueError(
                f"'{place}' has too few images, not one of each kind to {part} with; expected "
                f"{VISUAL_WAKE_WORDS}. {_WAKE_SOURCE}"
            )
    return {
        part: [(path, label) for _, path, label in sorted(rows)[: _WAKE_MOST[part]]]
        for part, rows in found.items()
    }


def _cifar10_folder(folder: Path, names: list[str]) -> Path:
    """The folder of the files."""
    pickled = []

    def holds(own: Path) -> bool:
        if (own / "data_batch_1").is_file():
            pickled.append(own)
        return any((own / name).is_file() for name in names)

    try:
        return data_folder(Path(folder), holds, CIFAR10, _CIFAR10_SOURCE)
    except NotThere as error:
        if not pickled:
            raise
        raise ValueError(
            f"'{pickled[0]}' is the Python version of CIFAR-10, whose pickled files are not "
            f"opened, since unpickling runs code; expected {CIFAR10}. {_CIFAR10_SOURCE}"
        ) from error


def _records(path: Path) -> np.ndarray:
    """Labels and pixels of one file of CIFAR-10, uint8 (images, 3073)."""
    values = np.fromfile(path, np.uint8)
    if not values.size or values.size % _RECORD:
        raise ValueError(
            f"'{path}' has {values.size} bytes; expected a multiple of {_RECORD}, a label and an "
            f"image each. {_CIFAR10_SOURCE} anew"
        )
    records = values.reshape(-1, _RECORD)
    if (highest := records[:, 0].max()) > 9:
        raise ValueError(
            f"'{path}' has the label {highest}; expected 0 to 9. {_CIFAR10_SOURCE} anew"
        )
    return records


def _photograph(path: Path) -> np.ndarray:
    """A JPEG as uint8 (96, 96, 3)."""
    from PIL import Image

    side = _WAKE_SIDE
    try:
        with Image.open(path, formats=["JPEG"]) as image:
            # Before a single pixel is decoded: a file may claim any size.
            if image.size != (side, side):
                width, height = image.size
                raise ValueError(f"it is of {width} x {height} pixels, expected {side} x {side}")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"'{path}' cannot be used: {error}. {_WAKE_SOURCE} anew") from error
