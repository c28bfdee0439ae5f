"""What commands work on, and how tests give them."""

import numpy as np
import pytest

from tfcompress.cli.app import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A float model, data for it, and its .tflite file."""
    keras = pytest.importorskip("keras")
    folder = tmp_path_factory.mktemp("cli")
    keras.utils.set_random_seed(0)
    layers = keras.layers
    body = [layers.Conv2D(2, 3, activation="relu"), layers.Flatten(), layers.Dense(3)]
    model = keras.Sequential([keras.Input((8, 8, 1), name="image"), *body])
    model.save(folder / "model.keras")
    x = np.random.default_rng(0).random((20, 8, 8, 1), np.float32)
    np.save(folder / "x.npy", x)
    from PIL import Image

    (folder / "photos").mkdir()
    for i, pixels in enumerate(x[:4, ..., 0]):
        pixels = (255 * pixels).astype(np.uint8).repeat(2, 0)
        Image.fromarray(pixels).save(folder / "photos" / f"{i}.png")
    command = ["convert", folder / "model.keras", "-o", folder / "model.tflite", "-q", "--json"]
    assert main([*map(str, command), "--precision", "float32"]) == 0
    return folder


def run(*arguments):
    return main([str(argument) for argument in arguments])
