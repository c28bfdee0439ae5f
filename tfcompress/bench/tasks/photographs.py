"""Crops of scikit-learn's two photographs: parts to train with, other parts to test with."""

from __future__ import annotations

import numpy as np

from tfcompress.bench.tasks.extras import require

# What lies left of this share of a photograph's width is for tests.
_TEST_SHARE = 0.3


def regions() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The parts of the photographs to train with, and those to test with.

    Returns:
        Two lists of uint8 images (height, width, 3); nothing is in both.

    Raises:
        Unavailable: if scikit-learn is missing.

    Example:
        >>> [part.shape for part in regions()[1]]
        [(427, 192, 3), (427, 192, 3)]
    """
    require("sklearn", "wake_vision takes the photographs of scikit-learn")
    from sklearn.datasets import load_sample_images

    images = load_sample_images().images
    borders = [int(_TEST_SHARE * image.shape[1]) for image in images]
    train = [image[:, border:] for image, border in zip(images, borders, strict=True)]
    return train, [image[:, :border] for image, border in zip(images, borders, strict=True)]


def draw_crop(random: np.random.Generator, parts: list[np.ndarray], side: int) -> np.ndarray:
    """A square of one part at a random scale, mirrored, its colours changed.

    Args:
        random: what to draw with.
        parts: of photographs, uint8.
        side: of the crop that is returned, pixels.

    Returns:
        float32 (side, side, 3), about in [0, 1].
    """
    from PIL import Image

    part = parts[random.integers(len(parts))]
    length = int(random.uniform(0.5, 2) * side)
    top, left = (int(random.integers(edge - length + 1)) for edge in part.shape[:2])
    square = Image.fromarray(part[top : top + length, left : left + length])
    image = np.asarray(square.resize((side, side), Image.Resampling.BILINEAR), np.float32) / 255
    if random.uniform() < 0.5:
        image = image[:, ::-1]
    return image * random.uniform(0.75, 1.25, 3).astype(np.float32) + random.uniform(-0.1, 0.1)
