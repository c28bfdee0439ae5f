"""The system's fonts, as designs: what has the letters of another font is on the same side."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfcompress.bench.tasks.task import require
from tfcompress.tools.environments import Unavailable

if TYPE_CHECKING:
    from PIL import Image

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# Fewer would make a test of hardly any.
FEWEST_DESIGNS = 24
_TEST_SHARE = 0.25

# A design of many weights shall not cost more than others to draw.
_MOST_FILES = 6

# Correlation of normalized characters above which fonts are clones of each other: Nimbus Sans and
# TeX Gyre Heros have 0.99, Lato and Carlito 0.95, Roboto and Inter 0.91.
_CLONE = 0.92

# Share of a font's characters that are most like the same character of the average font.
_LEGIBLE = 0.6

# What a family's name tells beside its design, from there on.
_STYLE = re.compile(
    r"[ -](Sans|Serif|Mono|Std|Display|Condensed|Narrow|Code|Slab|Thin|Light|Medium|Math)\b.*"
)
_SIDE = 20

_PACKAGES = (
    "fonts-adf-gillius fonts-cantarell fonts-comfortaa fonts-dejavu-core fonts-dustin "
    "fonts-ebgaramond fonts-firacode fonts-gfs-didot fonts-go fonts-inter fonts-lato "
    "fonts-liberation fonts-linuxlibertine fonts-open-sans fonts-paratype fonts-quicksand "
    "fonts-roboto-unhinted fonts-tuffy fonts-urw-base35"
)


@dataclasses.dataclass(frozen=True)
class Design:
    """Fonts of one design.

    Attributes:
        name: a family of it.
        files: some of its fonts, as different in style as there are.
    """

    name: str
    files: tuple[Path, ...]


def font_files() -> list[Path]:
    """TrueType and OpenType fonts that fontconfig knows; without it, of the usual folders."""
    if shutil.which("fc-list"):
        command = ["fc-list", "--format", "%{file}\n"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        paths = [Path(line) for line in found.stdout.splitlines()]
    else:
        home = Path.home()
        places = ["/usr/share/fonts", "/usr/local/share/fonts", "/Library/Fonts"]
        places += ["/System/Library/Fonts", f"{os.environ.get('WINDIR', 'C:/Windows')}/Fonts"]
        folders = [*map(Path, places), home / ".fonts", home / ".local/share/fonts"]
        paths = [path for folder in folders for path in folder.rglob("*")]
    kinds = (".ttf", ".otf", ".ttc")
    paths = [path for path in paths if path.suffix.lower() in kinds and path.is_file()]
    # A copy in another folder is the same font.
    return sorted({(path.name, path.stat().st_size): path for path in sorted(paths)}.values())


def listing(files: Sequence[Path]) -> dict[str, Any]:
    """What data that are drawn with fonts follow from, for the settings of the cache."""
    require("PIL", "glyphs and wake_vision draw characters with Pillow")
    from PIL import __version__, features

    return {
        "fonts": sorted(f"{path.name}, {path.stat().st_size} bytes" for path in files),
        "pillow": __version__,
        "freetype": features.version("freetype2"),
    }


def designs(files: Sequence[Path]) -> list[Design]:
    """The designs of fonts that hold `CHARACTERS`, in their order by name.

    Fonts are of one design if their families' names say so ("DejaVu Sans Mono", "DejaVu Serif")
    or if their characters are almost the same ("Nimbus Sans", "TeX Gyre Heros").
    """
    from scipy.sparse.csgraph import connected_components

    read = [(path, found) for path in files if (found := _characters(path)) is not None]
    if not read:
        return []
    shapes = np.stack([shape for _, (_, shape) in read])
    average = shapes.mean(0)
    likeness = shapes @ (average / np.linalg.norm(average, axis=-1)[:, None]).T
    legible = (likeness.argmax(-1) == np.arange(len(CHARACTERS))).mean(-1) >= _LEGIBLE
    read, shapes = [font for font, good in zip(read, legible, strict=True) if good], shapes[legible]
    families = [family for _, (family, _) in read]
    stems = np.array([_STYLE.sub("", family).lower() for family in families])
    flat = shapes.reshape(len(shapes), -1)
    alike = (stems[:, None] == stems) | (flat @ flat.T > _CLONE * len(CHARACTERS))
    _, group = connected_components(alike, directed=False)
    found_designs = []
    for number in np.unique(group):
        rows = sorted(np.flatnonzero(group == number), key=lambda row: read[row][0].name)
        some = np.linspace(0, len(rows) - 1, min(len(rows), _MOST_FILES)).round().astype(int)
        paths = tuple(read[rows[place]][0] for place in some)
        found_designs.append(Design(min(families[row] for row in rows), paths))
    return sorted(found_designs, key=lambda design: design.name)


def split_designs(files: Sequence[Path]) -> tuple[list[Design], list[Design]]:
    """Designs to train with and others to test with."""
    found = designs(files)
    if len(found) < FEWEST_DESIGNS:
        raise Unavailable(
            f"the fonts of this machine are of {len(found)} designs with digits and capital "
            f"letters ({len(files)} font files); glyphs and wake_vision need {FEWEST_DESIGNS}. "
            f"Install some, on Debian by `sudo apt-get install {_PACKAGES}`; the tasks digits, "
            "keywords and anomaly need no fonts"
        )
    order = np.random.default_rng(0).permutation(len(found))
    count = round(_TEST_SHARE * len(found))
    return [found[place] for place in order[count:]], [found[place] for place in order[:count]]


def cropped(file: Path, characters: str, size: int) -> Iterator[Image.Image | None]:
    """Characters of a font as grey images, without what is empty around them.

    Yields an image for each; None where nothing was drawn.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(str(file), size)
    for character in characters:
        canvas = Image.new("L", (4 * size, 4 * size))
        ImageDraw.Draw(canvas).text((2 * size, 2 * size), character, 255, font, anchor="mm")
        box = canvas.getbbox()
        yield canvas.crop(box) if box else None


def _characters(path: Path) -> tuple[str, np.ndarray] | None:
    """The family of a font and its characters, each of one size and of length 1.

    Returns the name and a float32 array (characters, pixels); None if the font lacks one of them.
    """
    from PIL import Image, ImageFont

    shapes = []
    try:
        family = str(ImageFont.truetype(str(path), _SIDE).getname()[0])
        # First what a font draws for that which no font holds.
        images = cropped(path, "\uffff" + CHARACTERS, 2 * _SIDE)
        missing = next(images)
        for image in images:
            if image is None or image == missing:
                return None
            small = image.resize((_SIDE, _SIDE), Image.Resampling.BOX)
            shapes.append(np.asarray(small, np.float32).ravel())
    except (OSError, ValueError):
        return None
    stacked = np.stack(shapes)
    stacked -= stacked.mean(1, keepdims=True)
    lengths = np.linalg.norm(stacked, axis=1, keepdims=True)
    # A box that is filled all over tells nothing.
    return None if (lengths == 0).any() else (family, stacked / lengths)


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
    """A character as float32 (side, side) from 0, nothing, to 1."""
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
