"""How pixels, 0 to 255, become the numbers that a model takes, and how that is told."""

from __future__ import annotations

import dataclasses

import numpy as np

# The ranges that pixels are brought to: value = (pixel - mean) / std, as (mean, std).
SCALINGS = {"none": (0.0, 1.0), "0_1": (0.0, 255.0), "-1_1": (127.5, 127.5)}


@dataclasses.dataclass(frozen=True)
class Normalization:
    """(pixel - mean) / std, by channel or for all, with pixels from 0 to 255; where it is from."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str


def named(scaling: str, source: str) -> Normalization:
    """The normalization that one of `SCALINGS` stands for."""
    mean, std = SCALINGS[scaling]
    return Normalization((mean,), (std,), source)


def untold(what: str) -> ValueError:
    """The error where nothing tells how a model takes pixels."""
    return ValueError(
        f"nothing tells how {what} takes pixels: there is no preprocessing in front, and no range "
        "of pixels that it was quantized for. Expected scaling= (--scaling) 'none' for 0 to 255, "
        "'0_1' or '-1_1': give the one of the training, or the mean and std in the file's metadata."
    )


def scaling_of_range(low: float, high: float, signed: bool = True) -> str | None:
    """The scaling whose numbers have about this range, that of quantized ones; None if none has.

    Args:
        signed: whether `low` tells anything: grids around 0 reach as far below it in any case.
    """
    if _is_about(high, 255.0) and (not signed or abs(low) <= 0.1 * high):
        return "none"
    if not signed or not _is_about(high, 1.0):
        return None
    if abs(low) <= 0.1 * high:
        return "0_1"
    return "-1_1" if _is_about(-low, 1.0) else None


def _is_about(value: float, wanted: float) -> bool:
    # Data seldom reach the whole range, and some observers widen what they reach.
    return 0.5 * wanted <= value <= 1.1 * wanted


# What a preprocessing gives for pixels from black to white: of one standard deviation or more, or
# as wide as 0 to 255 still, with 0 among it.
_WIDTHS = ((0.9, 12.0), (200.0, 300.0))


def scaling_before(factor: np.ndarray, offset: np.ndarray) -> str | None:
    """The scaling that makes sense in front of a preprocessing; None if not one alone does.

    Args:
        factor, offset: the preprocessing computes x * factor + offset, by channel.
    """
    usual = [tuple((pixel - mean) / std for pixel in (0, 255)) for mean, std in SCALINGS.values()]
    exact, sensible = [], []
    for name, (mean, std) in SCALINGS.items():
        values = [float(np.mean((pixel - mean) / std * factor + offset)) for pixel in (0, 255)]
        low, high = min(values), max(values)
        wide = any(least <= high - low <= most for least, most in _WIDTHS)
        if wide and low <= 0.01 * (high - low) and high >= -0.01 * (high - low):
            sensible.append(name)
        if any(np.allclose((low, high), ends, atol=0.02 * (high - low)) for ends in usual):
            exact.append(name)
    found = exact or sensible
    return found[0] if len(found) == 1 else None
