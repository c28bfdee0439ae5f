"""Data for the quality of surgery: distorted digits in colour."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from tfcompress.demo import load_digits

Split = tuple[np.ndarray, np.ndarray]
SIDE = 32
TRAIN_COPIES, TEST_COPIES = 8, 5


def digit_images() -> tuple[Split, Split]:
    """The digits of scikit-learn on images of 32 x 32 x 3: turned, sheared, coloured, under noise.

    Returns:
        (images, labels) to train with and to test with, 10,784 and 2,245 made from different
        digits: float32 of shape (count, 32, 32, 3) around [0, 1], and integers 0 to 9.

    Example:
        >>> (images, labels), _ = digit_images()
        >>> images.shape
        (10784, 32, 32, 3)
    """
    random = np.random.default_rng(0)
    (train, train_labels), (test, test_labels) = load_digits()

    def rendered(digits: np.ndarray, labels: np.ndarray, copies: int) -> Split:
        images = [_rendered(digit[..., 0], random) for digit in np.tile(digits, (copies, 1, 1, 1))]
        return np.stack(images).astype("float32"), np.tile(labels, copies)

    return rendered(train, train_labels, TRAIN_COPIES), rendered(test, test_labels, TEST_COPIES)


def _rendered(digit: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """One image of a digit of 8 x 8."""
    angle, shear = random.normal(0, 0.12, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shrink = 8 / random.uniform(20, 30, 2)
    matrix = turn @ np.array([[1, shear], [0, 1]]) * shrink[:, None]
    middle = (SIDE - 1) / 2 + random.uniform(-2, 2, 2)
    shape = ndimage.affine_transform(
        digit, matrix, 3.5 - matrix @ middle, output_shape=(SIDE, SIDE), order=1
    )
    patches = random.uniform(0.2, 0.8, 3) + random.uniform(-0.2, 0.2, (4, 4, 3))
    ground = ndimage.zoom(patches, (SIDE // 4, SIDE // 4, 1), order=1)
    ink = ground.mean((0, 1)) + random.choice([-1, 1]) * random.uniform(0.3, 0.7, 3)
    image = ground + shape[..., None] * (ink - ground)
    return image + random.normal(0, 0.1, image.shape)
