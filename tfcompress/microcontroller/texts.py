"""Names, numbers and comments that are safe in C++ and Markdown, whatever a file holds."""

from __future__ import annotations

import math
import re

import numpy as np

_LONGEST = 60


def check_name(name: str) -> None:
    """Check what the files, the array and the constants are to be named after.

    Raises:
        ValueError: it is no C identifier, or one that C++ or the other files need.
    """
    wrong = not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name)
    if wrong or "__" in name or len(name) > _LONGEST or name.lower() == "main":
        raise ValueError(
            f"name: received {name!r:.80}; expected a C identifier of at most {_LONGEST} letters, "
            "digits and single underscores that starts with a letter and is not main. Take "
            "g_model, for example."
        )


def comment(text: str) -> str:
    """A text that cannot end a comment, continue a line or hide itself."""
    # Not "?", of which C makes other signs (trigraphs).
    return re.sub(r"[^A-Za-z0-9_ .,:;=+()/-]", "_", text[:_LONGEST])


def number(value: float) -> str:
    """A float32 as a C constant that is exactly the same.

    Raises:
        ValueError: it is not finite.
    """
    if not math.isfinite(value):
        raise ValueError(f"a scale is {value}; expected a finite number. Convert the model again.")
    text = f"{np.float32(value):.9g}"
    text = text if set(text) & set(".e") else f"{text}.0"
    return f"({text}f)" if value < 0 else f"{text}f"


def byte_lines(data: bytes) -> str:
    """The bytes as C numbers, twelve in a line."""
    codes = [f"0x{i:02x}," for i in range(256)]
    rows = (data[i : i + 12] for i in range(0, len(data), 12))
    return "\n".join("    " + " ".join(codes[b] for b in row) for row in rows)
