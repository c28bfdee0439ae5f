"""Characters, colours and backgrounds, drawn at random."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np

from tfcompress.bench.tasks.fonts import CHARACTERS, Design, cropped

# Characters are drawn once, this large, and brought to their size from there.
_LARGE = 64
# Around them, so that their edges fade.
_MARGIN = 1
# Drawn this many times larger, then reduced: smooth edges.
_FINER = 2


@dataclasses.dataclass(frozen=True)
class Pose:
    """How a character lies.

    Attributes:
        size: its longer side, pixels.
        angle: by which it is turned, radians.
        shear: to the side, per height.
        stretch: width over what the font has.
        x, y: its centre, pixels.
    """

    size: float
    angle: float
    shear: float
    stretch: float
    x: float
    y: float


def draw_file(random: np.random.Generator, designs: list[Design]) -> Path:
    """A font: each design is as likely, whatever the number of its files."""
    files = designs[random.integers(len(designs))].files
    return files[random.integers(len(files))]


def draw_mask(file: Path, character: int, pose: Pose, side: int) -> np.ndarray:
    """A character as float32 (side, side) from 0, nothing, to 1.

    Args:
        file: of the font.
        character: place in `CHARACTERS`.
        pose: how it lies.
        side: of the image, pixels.

    Returns:
        The mask.
    """
    from PIL import Image

    # From pixels of the image to those of the large character: the inverse of how it is placed.
    cos, sin = np.cos(pose.angle), np.sin(pose.angle)
    turn = np.array([[cos, -sin], [sin, cos]])
    lean = np.array([[pose.stretch, pose.shear], [0, 1]])
    back = np.linalg.inv(turn @ lean) * _LARGE / (pose.size * _FINER)
    start = _LARGE / 2 + _MARGIN - back @ (np.array([pose.x, pose.y]) * _FINER)
    numbers = (*back[0], start[0], *back[1], start[1])
    image = _large(file, character).transform(
        (side * _FINER, side * _FINER),
        Image.Transform.AFFINE,
        numbers,
        resample=Image.Resampling.BILINEAR,
    )
    return np.asarray(image.reduce(_FINER), np.float32) / 255


def colours(random: np.random.Generator, contrast: float) -> tuple[np.ndarray, np.ndarray]:
    """Two colours, RGB in [0, 1], the first darker than the second by at least `contrast`."""
    while True:
        dark, light = random.uniform(0, 1, (2, 3)).astype(np.float32)
        # What is bright to the eye, by ITU-R BT.601.
        if (light - dark) @ (0.299, 0.587, 0.114) >= contrast:
            return dark, light


def blurred(image: np.ndarray, radius: float) -> np.ndarray:
    """A float image (height, width, 3) under a Gaussian blur of `radius` pixels."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image, (radius, radius, 0)) if radius > 0.2 else image


def stored(image: np.ndarray) -> np.ndarray:
    """uint8 of a float image in [0, 1], clipped."""
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


@functools.cache
def _large(file: Path, character: int):
    """A character whose longer side is `_LARGE`, in the middle of its image."""
    from PIL import Image

    whole = next(cropped(file, CHARACTERS[character], 2 * _LARGE))
    assert whole is not None
    share = _LARGE / max(whole.size)
    width, height = (max(1, round(length * share)) for length in whole.size)
    canvas = Image.new("L", (_LARGE + 2 * _MARGIN,) * 2)
    small = whole.resize((width, height), Image.Resampling.BOX)
    middle = _LARGE // 2 + _MARGIN
    canvas.paste(small, (middle - width // 2, middle - height // 2))
    return canvas
