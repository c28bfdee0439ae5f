"""What becomes of a model whose kernels are put on integer grids, and what is told of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfcompress.errors import check, is_whole
from tfcompress.post_training.corrections import reported
from tfcompress.post_training.layerwise import named_kernels


@dataclasses.dataclass(frozen=True)
class Rounded:
    """A model whose kernels lie on integer grids.

    Attributes:
        model: a flat `keras.Model` of plain layers.
        scales: by name of a layer, the steps of its kernel's grid: float32, of the rank of the
            kernel, 1 along the axes that share a step.
        sqnr: by name of a layer, the signal to quantization noise ratio in dB of what it gives:
            with its kernel rounded to nearest, and with this one.
    """

    model: keras.Model
    scales: dict[str, np.ndarray]
    sqnr: dict[str, tuple[float, float]]


def widths_of(bits: Any, flat: keras.Model) -> dict[str, int]:
    """The bits of each layer whose kernel is to be put on a grid, checked."""
    widths = named_kernels("bits", bits, flat)
    for width in widths.values():
        check(is_whole(width, 2) and width <= 8, "bits", "whole numbers from 2 to 8", width)
    return widths


def told(rounded: Rounded, operation: str, widths: Mapping[str, int]) -> Rounded:
    """The same, whose model has a report."""
    changes = {
        name: f"int{widths[name]}, SQNR {before:.1f} -> {after:.1f} dB"
        for name, (before, after) in rounded.sqnr.items()
    }
    kept = {name: "has few different values" for name in widths if name not in changes}
    reported(rounded.model, operation, changes, kept)
    return rounded
