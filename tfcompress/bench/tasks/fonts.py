"""The system's fonts, as designs: what has the letters of another font is on the same side."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfcompress.bench.tasks.extras import require
from tfcompress.environments import Unavailable

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
    """What data that are drawn with fonts follow from, for the settings of the cache.

    Raises:
        Unavailable: if Pillow is missing.
    """
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

    Args:
        files: of fonts; those that cannot be read, and those of symbols, are left out.

    Returns:
        The designs.

    Example:
        >>> [design.name for design in designs(font_files())]  # doctest: +SKIP
        ['Accanthis ADF Std', 'Agave', 'Andika', ...
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
    """Designs to train with and others to test with.

    Args:
        files: of fonts.

    Returns:
        Three quarters and one quarter of the designs.

    Raises:
        Unavailable: if there are too few of them.
    """
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

    Args:
        file: of the font.
        characters: which to draw.
        size: of the font, pixels.

    Yields:
        An image for each; None where nothing was drawn.

    Raises:
        OSError: if this is no font that can be read.
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

    Returns:
        The name and a float32 array (characters, pixels); None if the font lacks one of them.
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
