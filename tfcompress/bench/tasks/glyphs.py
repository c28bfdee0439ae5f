"""Digits and capital letters in the system's fonts, 32 x 32: image classification, ResNet-8."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfcompress.bench.tasks import cache, fonts
from tfcompress.bench.tasks.task import Data, DataSet, NotThere, Task, Training, architecture

_SIDE = 32
_COUNTS = {"train": 20_000, "test": 3_600}
_SEED = 0

_SETTINGS = {
    "generator": 1,
    "seed": _SEED,
    "counts": _COUNTS,
    "characters": fonts.CHARACTERS,
}


def generate() -> Data:
    """20,000 images to train with and 3,600 to test with, the fonts of the one not in the other."""
    files = fonts.font_files()
    settings = {**_SETTINGS, **fonts.listing(files)}
    arrays = cache.cached("glyphs", settings, lambda: _make(files))
    return Data.of(arrays, len(fonts.CHARACTERS), scale=1 / 255)


def _make(files: Sequence[Path]) -> cache.Arrays:
    arrays = {}
    sides = zip(_COUNTS.items(), fonts.split_designs(files), strict=True)
    for number, ((part, count), designs) in enumerate(sides):
        random = np.random.default_rng([_SEED, number])
        labels = random.permutation(np.arange(count) % len(fonts.CHARACTERS))
        arrays[f"x_{part}"] = np.stack([_image(random, designs, label) for label in labels])
        arrays[f"y_{part}"] = labels.astype(np.int64)
    return arrays


def _image(random: np.random.Generator, designs: list[fonts.Design], label: int) -> np.ndarray:
    """uint8 (32, 32, 3): a character, some amid parts of others."""
    # From plain to hard: a network that saw nothing plain would take long to start learning.
    hard = random.uniform()
    ink, paper = fonts.colours(random, 0.6 - 0.45 * hard)
    image = _background(random, paper, hard)
    file = fonts.draw_file(random, designs)
    pose = fonts.Pose(
        size=random.uniform(24 - 9 * hard, 26),
        angle=random.normal(0, 0.25 * hard),
        shear=random.normal(0, 0.25 * hard),
        stretch=random.uniform(1 - 0.3 * hard, 1 + 0.3 * hard),
        x=_SIDE / 2 + random.uniform(-4, 4) * hard,
        y=_SIDE / 2 + random.uniform(-4, 4) * hard,
    )
    mask = fonts.draw_mask(file, int(label), pose, _SIDE)
    for side in (-1, 1):
        if random.uniform() < 0.5 * hard:
            # A neighbour in the same word, as house numbers have them.
            other = int(random.integers(len(fonts.CHARACTERS)))
            place = pose.x + side * pose.size * random.uniform(0.85, 1.1)
            beside = dataclasses.replace(pose, x=place)
            mask = np.maximum(mask, fonts.draw_mask(file, other, beside, _SIDE))
    mask = mask[..., None] * random.uniform(1 - 0.3 * hard, 1)
    image = fonts.blurred(image * (1 - mask) + ink * mask, random.uniform(0, 1.2 * hard))
    noise = random.uniform(0, 0.12 * hard)
    return fonts.stored(image + random.normal(0, noise, image.shape))


def _background(random: np.random.Generator, colour: np.ndarray, hard: float) -> np.ndarray:
    """A colour that changes over the image, under soft spots: float32 (32, 32, 3)."""
    from PIL import Image

    other = np.clip(colour + random.normal(0, 0.15 * hard, 3), 0, 1)
    along = np.linspace(0, 1, _SIDE)
    ramp = along[:, None] if random.uniform() < 0.5 else along[None]
    ramp = np.broadcast_to(ramp, (_SIDE, _SIDE))[..., None]
    spots = random.normal(0, random.uniform(0, 0.15 * hard), (random.integers(2, 9),) * 2)
    soft = Image.fromarray(spots.astype(np.float32)).resize((_SIDE, _SIDE))
    return (colour * (1 - ramp) + other * ramp + np.asarray(soft)[..., None]).astype(np.float32)


CIFAR10 = DataSet(
    "CIFAR-10",
    "the files of CIFAR-10's binary version, data_batch_1.bin to _5.bin and test_batch.bin",
    "Get cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html and unpack it",
)
_CIFAR10_PARTS = {
    "train": [f"data_batch_{number}.bin" for number in range(1, 6)],
    "test": ["test_batch.bin"],
}
_RECORD = 1 + 32 * 32 * 3


def read_cifar10(folder: Path) -> Data:
    """CIFAR-10: 50,000 images of 32 x 32 to train with and 10,000 to test with."""
    names = [name for part in _CIFAR10_PARTS.values() for name in part]
    place = _cifar10_folder(folder, names)
    CIFAR10.require(place, (name for name in names if not (place / name).is_file()))
    arrays = {}
    for part, files in _CIFAR10_PARTS.items():
        records = np.concatenate([_records(place / name) for name in files])
        pixels = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        arrays[f"x_{part}"] = np.ascontiguousarray(pixels)
        arrays[f"y_{part}"] = records[:, 0].astype(np.int64)
    return Data.of(arrays, 10, CIFAR10.name, scale=1 / 255)


def _cifar10_folder(folder: Path, names: list[str]) -> Path:
    """The folder of the files."""
    pickled = []

    def holds(own: Path) -> bool:
        if (own / "data_batch_1").is_file():
            pickled.append(own)
        return any((own / name).is_file() for name in names)

    try:
        return CIFAR10.find(folder, holds)
    except NotThere as error:
        if not pickled:
            raise
        what = (
            f"'{pickled[0]}' is the Python version of CIFAR-10, whose pickled files are not "
            "opened, since unpickling runs code"
        )
        raise ValueError(CIFAR10.told(what)) from error


def _records(path: Path) -> np.ndarray:
    """Labels and pixels of one file of CIFAR-10, uint8 (images, 3073)."""
    values = np.fromfile(path, np.uint8)
    if not values.size or values.size % _RECORD:
        raise ValueError(
            f"'{path}' has {values.size} bytes; expected a multiple of {_RECORD}, a label and an "
            f"image each. {CIFAR10.source} anew"
        )
    records = values.reshape(-1, _RECORD)
    if (highest := records[:, 0].max()) > 9:
        raise ValueError(
            f"'{path}' has the label {highest}; expected 0 to 9. {CIFAR10.source} anew"
        )
    return records


TASK = Task(
    name="glyphs",
    title="Characters in colour",
    build=architecture("resnet8"),
    published=(10, 78_666, 12_501_632),
    generated=(36, 80_356, 12_503_296),
    generate=generate,
    training=Training(steps=2000, batch=32, rate=4e-3),
    tuning=Training(steps=160, batch=32, rate=1e-3),
    short=(Training(800, 32, 4e-3), Training(80, 32, 1e-3)),
    read=read_cifar10,
    real=CIFAR10.expected,
)
