"""A character in a photograph or none, 96 x 96: wake vision, MobileNetV1 at width 0.25."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfcompress.bench.tasks import cache, fonts
from tfcompress.bench.tasks.task import (
    Data,
    DataSet,
    Task,
    Training,
    architecture,
    fingerprint,
    require,
)

_SIDE = 96
_COUNTS = {"train": 8_000, "test": 2_400}
_SEED = 0
_SETTINGS = {"generator": 1, "seed": _SEED, "counts": _COUNTS}


def generate() -> Data:
    """8,000 images to train with and 2,400 to test with, every other one with a character.

    Neither a font's design nor a region of a photograph is in both parts.
    """
    files = fonts.font_files()
    settings = {**_SETTINGS, **fonts.listing(files)}
    arrays = cache.cached("wake_vision", settings, lambda: _make(files))
    return Data.of(arrays, 2, scale=1 / 255)


def _make(files: Sequence[Path]) -> cache.Arrays:
    arrays = {}
    sides = zip(_COUNTS.items(), fonts.split_designs(files), regions(), strict=True)
    for number, ((part, count), designs, parts) in enumerate(sides):
        random = np.random.default_rng([_SEED, number])
        labels = random.permutation(np.arange(count) % 2)
        images = [_image(random, designs, parts, bool(label)) for label in labels]
        arrays[f"x_{part}"] = np.stack(images)
        arrays[f"y_{part}"] = labels.astype(np.int64)
    return arrays


def _image(
    random: np.random.Generator,
    designs: list[fonts.Design],
    parts: list[np.ndarray],
    character: bool,
) -> np.ndarray:
    """uint8 (96, 96, 3): a crop with blots on it, and a character or none."""
    # From plain to hard: a network that saw nothing plain would take long to start learning.
    hard = random.uniform(0, 0.85)
    image = draw_crop(random, parts, _SIDE)
    masks = [_blot(random) for _ in range(random.binomial(2, 0.6 * hard))]
    if character:
        # Blots that come later hide some of it.
        place = random.integers(len(masks) + 1)
        masks.insert(place, _character(random, designs, hard))
    for mask in masks:
        cover = mask[..., None] * random.uniform(1 - 0.5 * hard, 1)
        image = image * (1 - cover) + _colour(random, image, mask, 0.7 - 0.4 * hard) * cover
    image = fonts.blurred(image, random.uniform(0, hard))
    return fonts.stored(image + random.normal(0, random.uniform(0, 0.06 * hard), image.shape))


def _character(random: np.random.Generator, designs: list[fonts.Design], hard: float) -> np.ndarray:
    size = random.uniform(70 - 40 * hard, 85 - 25 * hard)
    margin = size / 2
    pose = fonts.Pose(
        size=size,
        angle=random.normal(0, 0.3 * hard),
        shear=random.normal(0, 0.2 * hard),
        stretch=random.uniform(1 - 0.2 * hard, 1 + 0.2 * hard),
        x=random.uniform(margin, _SIDE - margin),
        y=random.uniform(margin, _SIDE - margin),
    )
    number = int(random.integers(len(fonts.CHARACTERS)))
    return fonts.draw_mask(fonts.draw_file(random, designs), number, pose, _SIDE)


def _blot(random: np.random.Generator) -> np.ndarray:
    """A polygon around a point, float32 (96, 96): what has edges and no strokes."""
    from PIL import Image, ImageDraw

    corners = int(random.integers(3, 9))
    angles = np.sort(random.uniform(0, 2 * np.pi, corners))
    radii = random.uniform(0.3, 1, corners) * random.uniform(8, 28)
    middle = random.uniform(0.1, 0.9, 2) * _SIDE
    points = 2 * (middle + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1))
    image = Image.new("L", (2 * _SIDE, 2 * _SIDE))
    ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in points], fill=255)
    return np.asarray(image.reduce(2), np.float32) / 255


def _colour(
    random: np.random.Generator, image: np.ndarray, mask: np.ndarray, contrast: float
) -> np.ndarray:
    """A colour, RGB in [0, 1], at that distance at least from what it covers."""
    under = np.average(image.reshape(-1, 3), axis=0, weights=mask.ravel() + 1e-6)
    while True:
        colour = random.uniform(0, 1, 3).astype(np.float32)
        if np.linalg.norm(colour - under) > contrast:
            return colour


# What lies left of this share of a photograph's width is for tests.
_TEST_SHARE = 0.3


def regions() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The parts of the photographs to train with, and those to test with."""
    require("sklearn", "wake_vision takes the photographs of scikit-learn")
    from sklearn.datasets import load_sample_images

    images = load_sample_images().images
    borders = [int(_TEST_SHARE * image.shape[1]) for image in images]
    train = [image[:, border:] for image, border in zip(images, borders, strict=True)]
    return train, [image[:, :border] for image, border in zip(images, borders, strict=True)]


def draw_crop(random: np.random.Generator, parts: list[np.ndarray], side: int) -> np.ndarray:
    """A square of one part at a random scale, mirrored, its colours changed."""
    from PIL import Image

    part = parts[random.integers(len(parts))]
    length = int(random.uniform(0.5, 2) * side)
    top, left = (int(random.integers(edge - length + 1)) for edge in part.shape[:2])
    square = Image.fromarray(part[top : top + length, left : left + length])
    image = np.asarray(square.resize((side, side), Image.Resampling.BILINEAR), np.float32) / 255
    if random.uniform() < 0.5:
        image = image[:, ::-1]
    return image * random.uniform(0.75, 1.25, 3).astype(np.float32) + random.uniform(-0.1, 0.1)


VISUAL_WAKE_WORDS = DataSet(
    "Visual Wake Words",
    "the folders person and non_person of Visual Wake Words, with JPEGs of 96 x 96",
    "Get vw_coco2014_96.tar.gz, which training/visual_wake_words of "
    "https://github.com/mlcommons/tiny downloads, and unpack it",
)
_WAKE_KINDS = ("non_person", "person")
_WAKE_TEST_SHARE = 0.1

# All 110,000 images would take 3 GB of memory.
_WAKE_MOST = {"train": 20_000, "test": 5_000}


def read_visual_wake_words(folder: Path) -> Data:
    """Visual Wake Words as MLPerf Tiny lays it out: images of 96 x 96, with a person or without.

    The tenth of the images whose names have the smallest hashes is for testing. At most 20,000
    are taken to train with and 5,000 to test with. What was decoded is kept in the cache.
    """
    place = VISUAL_WAKE_WORDS.find(
        folder, lambda own: all((own / kind).is_dir() for kind in _WAKE_KINDS)
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
    return Data.of(arrays, 2, VISUAL_WAKE_WORDS.name, scale=1 / 255)


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
            what = f"'{place}' has too few images, not one of each kind to {part} with"
            raise ValueError(VISUAL_WAKE_WORDS.told(what))
    return {
        part: [(path, label) for _, path, label in sorted(rows)[: _WAKE_MOST[part]]]
        for part, rows in found.items()
    }


def _photograph(path: Path) -> np.ndarray:
    """A JPEG as uint8 (96, 96, 3)."""
    from PIL import Image

    side = _SIDE
    try:
        with Image.open(path, formats=["JPEG"]) as image:
            # Before a single pixel is decoded: a file may claim any size.
            if image.size != (side, side):
                width, height = image.size
                raise ValueError(f"it is of {width} x {height} pixels, expected {side} x {side}")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"'{path}' cannot be used: {error}. {VISUAL_WAKE_WORDS.source} anew"
        ) from error


TASK = Task(
    name="wake_vision",
    title="A character in a photograph",
    build=architecture("mobilenet_v1"),
    published=(2, 221_794, 7_489_664),
    generate=generate,
    training=Training(steps=1500, batch=16, rate=4e-3),
    tuning=Training(steps=180, batch=16, rate=5e-4),
    short=(Training(800, 16, 4e-3), Training(60, 16, 5e-4)),
    read=read_visual_wake_words,
    real=VISUAL_WAKE_WORDS.expected,
)
