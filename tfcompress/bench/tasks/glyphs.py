"""Digits and capital letters in the system's fonts, 32 x 32: image classification, ResNet-8."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfcompress.bench.tasks import cache, fonts, real_images
from tfcompress.bench.tasks.task import Data, Task, Training

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
    return real_images.image_data(arrays, len(fonts.CHARACTERS), "generated")


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


def build(kit: Any, classes: int) -> Any:
    """The model of `tfcompress.bench.models`."""
    # Here, as it imports Keras, for which those who ask for names do not wait.
    from tfcompress.bench.models import resnet8

    return resnet8(kit, classes)


TASK = Task(
    name="glyphs",
    title="Characters in colour",
    build=build,
    published=(10, 78_666, 12_501_632),
    generated=(36, 80_356, 12_503_296),
    generate=generate,
    training=Training(steps=2000, batch=32, rate=4e-3),
    tuning=Training(steps=160, batch=32, rate=1e-3),
    short=(Training(800, 32, 4e-3), Training(80, 32, 1e-3)),
    read=real_images.read_cifar10,
    real=real_images.CIFAR10,
)
