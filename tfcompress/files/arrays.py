"""Arrays and images read from disk, with NumPy's pickles off."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfcompress.files import sizes
from tfcompress.files.models import reason_of, start_of
from tfcompress.files.pixels import SCALINGS, Normalization, named, untold
from tfcompress.files.writing import PathLike

Arrays = np.ndarray | tuple[np.ndarray, ...] | dict[str, np.ndarray]
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp")

_EXPECTED = "expected a .npy file, a .npz file or a folder of images"


def load_arrays(path: PathLike, **images: Any) -> Arrays:
    """Load the inputs of a model: a `.npy`, a `.npz`, or a folder of images.

    Returns np.ndarray: of a `.npy`, of a `.npz` of one array, or of images. A `.npz` of several
    gives a dict by name, or a tuple if `np.savez` named them itself (`arr_0`, `arr_1`, ...). A
    `.npy` is read when it is used.
    """
    file = Path(path)
    return load_images(file, **images) if file.is_dir() else _load_file(file)


def load_inputs(
    path: PathLike,
    shapes: Sequence[tuple[int | None, ...]],
    *,
    size: tuple[int, int] | None = None,
    **images: Any,
) -> Arrays:
    """Load the inputs of a model, images with the size and channels that it takes.

    Args:
        shapes: of the model's inputs, batch first; empty if they are not known.
        size: (height, width) in pixels instead of the model's.
        images: see `load_images`.
    """
    if not Path(path).is_dir():
        return load_arrays(path)
    if shapes and (len(shapes) != 1 or len(shapes[0]) != 4):
        raise ValueError(
            f"a folder of images fits a model with one image as its input; this one takes "
            f"{', '.join(map(str, shapes))}. Save the inputs as a .npz file."
        )
    _, height, width, channels = shapes[0] if shapes else (None, None, None, 3)
    if size is None and height and width:
        size = (height, width)
    return load_images(Path(path), size=size, channels=channels or 3, **images)


def load_labelled(
    folder: PathLike, shapes: Sequence[tuple[int | None, ...]], **images: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Load a folder with a folder of images for each class, in the order of their names.

    Args:
        shapes: of the model's inputs, batch first.
        images: see `load_images`.

    Returns (float32 images, int64 numbers of their classes).
    """
    classes = sorted(path for path in Path(folder).iterdir() if path.is_dir())
    if len(classes) < 2:
        raise ValueError(
            f"the folder '{os.fspath(folder)}' must hold a folder of images for each class, whose "
            f"names in their order number the classes; received {len(classes)} of them. Move the "
            "images into such folders, or save x and y as a .npz file."
        )
    found: list[Any] = [load_inputs(each, shapes, **images) for each in classes]
    labels = np.repeat(np.arange(len(classes)), [len(each) for each in found])
    return np.concatenate(found), labels


def _load_file(file: Path) -> Arrays:
    start = start_of(file, _EXPECTED)
    try:
        if start.startswith(b"\x93NUMPY"):
            return np.load(file, mmap_mode="r", allow_pickle=False)
        if start[:2] == b"PK":
            return _load_npz(file)
    except MemoryError:
        raise
    except Exception as error:  # NumPy and zipfile raise many kinds for damaged files.
        if "object" in str(error).lower():
            raise ValueError(
                f"'{file}' holds Python objects (pickled), which are not loaded; expected arrays "
                "of numbers. Save it again from an array with a numeric dtype."
            ) from error
        raise ValueError(
            f"'{file}' is damaged or cut off: {reason_of(error)}; {_EXPECTED}. Save it again with "
            "np.save or np.savez, or copy it again in full."
        ) from error
    what = f"starts with {start[:6]!r}" if start else "is empty"
    raise ValueError(f"'{file}' {what}; {_EXPECTED}. Save the data with np.save or np.savez.")


def _load_npz(file: Path) -> Arrays:
    with zipfile.ZipFile(file) as archive:
        sizes.check_zip(archive)
        broken = archive.testzip()
        if broken is not None:
            raise ValueError(f"the checksum of {broken} is wrong")
        members = archive.namelist()
        if not members or not all(name.endswith(".npy") for name in members):
            raise ValueError("it is a zip file that holds something else than arrays")
        sizes.check_arrays(archive)
    with np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    counted = [f"arr_{i}" for i in range(len(arrays))]
    return tuple(arrays[name] for name in counted) if set(arrays) == set(counted) else arrays


def load_images(
    folder: Path,
    *,
    size: tuple[int, int] | None = None,
    scaling: str | Normalization | None = "none",
    channels: int = 3,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Load the images (png, jpg, bmp) of a folder and its subfolders.

    Args:
        size: (height, width) in pixels that images are resized to, bilinearly and regardless of
            their proportions; None keeps theirs, which must all be the same.
        scaling: range of the pixels: "none" for 0 to 255, "0_1", or "-1_1"; or mean and std.
            None, that nothing is known of them, is refused where there are images.
        limit: how many to take at the most, evenly from all.
        progress: called as `progress(done, total)` after each image.

    Returns float32 array of shape (images, height, width, channels).
    """
    if isinstance(scaling, str) and scaling not in SCALINGS:
        raise ValueError(
            f"scaling must be one of {', '.join(SCALINGS)}; received {scaling!r}. "
            "Take the one that the model was trained with."
        )
    if channels not in (1, 3):
        raise ValueError(
            f"images have 1 or 3 channels; the model takes {channels}. "
            "Save its inputs as a .npy file instead."
        )
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1; received {limit}. Leave it out for all.")
    names = sorted(
        Path(parent, name)
        for parent, _, found in os.walk(folder)
        for name in found
        if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith(".")
    )
    if not names:
        raise ValueError(
            f"no images in the folder '{folder}'; expected files that end in "
            f"{', '.join(IMAGE_ENDINGS)}. Name another folder, a .npy or a .npz file."
        )
    if scaling is None:
        raise untold("the model")
    if limit is not None and limit < len(names):
        names = [names[i * len(names) // limit] for i in range(limit)]
    images: np.ndarray | None = None
    pixels_as = named(scaling, "") if isinstance(scaling, str) else scaling
    mean, std = np.array(pixels_as.mean), np.array(pixels_as.std)
    factor, offset = np.float32(1 / std), np.float32(-mean / std)
    for i, name in enumerate(names):
        pixels = _load_image(name, size, channels)
        if images is None:
            images = np.empty((len(names), *pixels.shape), np.float32)
        if pixels.shape != images.shape[1:]:
            raise ValueError(
                f"image '{name}' has {_pixels(pixels.shape)} pixels, the first one, '{names[0]}', "
                f"{_pixels(images.shape[1:])}; expected the same size. Give a size to resize to."
            )
        images[i] = pixels * factor + offset
        if progress is not None:
            progress(i + 1, len(names))
    assert images is not None
    return images


def _load_image(name: Path, size: tuple[int, int] | None, channels: int) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError(
            "reading images needs Pillow, which is not installed: "
            "pip install 'tfcompress[images]', or save the data as a .npy file."
        ) from error
    try:
        with Image.open(name) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError("it has more than 8 bits per channel")
            converted = image.convert("L" if channels == 1 else "RGB")
        if size is not None and converted.size != (size[1], size[0]):
            converted = converted.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        pixels: Any = np.asarray(converted, dtype=np.float32)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files.
        raise ValueError(
            f"cannot read the image '{name}': {reason_of(error)}; expected a png, jpg or bmp with "
            "8 bits per channel. Save it again or take it out of the folder."
        ) from error
    return pixels.reshape(*pixels.shape[:2], channels)


def _pixels(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"
