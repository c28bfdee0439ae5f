"""The integer grids that trained weights lie on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tfcompress.conversion.ranges import Range, constant, is_constant
from tfcompress.tflite.flatbuffer import op_name

# In steps. Values that a float32 factor was folded into are off by a ten-thousandth of one.
_TOLERANCE = 1e-3
# Values that are products of a code and a scale in float32.
_HANDED = 1e-2


class Grid(NamedTuple):
    """A symmetric integer grid: its bits, "t" for one scale or "c" for one a channel, its scales.

    `scale` has the rank of the weight, and is 0 for a channel of zeros. `widest` tells whether the
    largest code of each scale is the greatest one.
    """

    bits: int
    kind: str
    scale: np.ndarray
    widest: bool = True


class Stored(NamedTuple):
    """How trained weights are stored: their grid, None if they lie on none, and the bits."""

    grid: Grid | None
    bits: int


def find_grid(weight: np.ndarray, axis: int, widths: list[int]) -> Grid | None:
    """The coarsest symmetric integer grid that holds all values of a weight.

    Returns a `Grid`, None if no grid holds the values.
    """
    for bits in widths:
        levels = 2 ** (bits - 1) - 1
        # Of few codes, scales by channel that are nearly one would be taken for one.
        tolerance = 5e-3 * min(1.0, levels / 127)
        for kind in "tc":
            others = tuple(i for i in range(weight.ndim) if kind == "t" or i != axis)
            largest = np.abs(weight).max(axis=others, keepdims=True, initial=0.0)
            codes = weight / np.where(largest > 0, largest, 1.0) * levels
            if np.abs(codes - np.rint(codes)).max(initial=0.0) < tolerance:
                return Grid(bits, kind, largest.astype(np.float64) / levels)
    few = np.unique(weight)[None]
    for bits in (width for width in widths if width <= 8):  # LiteRT stores no wider ones
        levels = 2 ** (bits - 1) - 1
        scale = shared_codes(few, 0, levels) if few.size <= 2 * levels + 1 else None
        if scale is not None:
            return Grid(bits, "t", scale.reshape([1] * weight.ndim), widest=False)
        scale = shared_codes(weight, axis, levels)
        if scale is not None:
            return Grid(bits, "c", scale, widest=False)
    return None


def shared_codes(weight: np.ndarray, axis: int, levels: int) -> np.ndarray | None:
    """Scales by channel of weights whose largest code is any number up to `levels`.

    As those that had one scale until a normalization was folded into them, and those of learned
    scales. Of the numbers that fit, the one is taken whose codes other channels have, too, so that
    clustered weights stay as few different codes.

    Returns scales of the rank of `weight`, None if a channel fits no grid.
    """
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
    options = []  # for each channel the codes that its values may be, by the largest of them
    for row in rows:
        values = np.unique(row)
        largest = np.abs(values).max(initial=0.0)
        tops = np.arange(1, levels + 1)[:, None]
        codes = values[None] / (largest or 1.0) * tops
        fits = np.abs(codes - np.rint(codes)).max(axis=1, initial=0.0) < _TOLERANCE
        if not fits.any():
            return None
        options.append(
            {int(t): frozenset(np.rint(codes[t - 1]).astype(int)) for t in tops[fits, 0]}
        )
    order = sorted(range(len(rows)), key=lambda i: -len(options[i][max(options[i])]))
    found = [_agree(options, order, top) for top in options[order[0]]]
    chosen, _ = min(found, key=lambda each: len(each[1]))
    scale = np.abs(rows).max(axis=1, initial=0.0) / [chosen[i] for i in range(len(rows))]
    return scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])


def _agree(options: list[dict[int, frozenset]], order: list[int], first: int):
    """The largest code of each channel, if the first one's is `first`, and all codes there are."""
    known = set(options[order[0]][first])
    chosen = {order[0]: first}
    for index in order[1:]:
        top = min(options[index], key=lambda t: (len(options[index][t] - known), t))
        chosen[index] = top
        known |= options[index][top]
    return chosen, known


def table_ranges(model, weight_bits: set[int]) -> dict[int, Range]:
    """Ranges of embedding tables on a trained grid, and of the rows gathered from them."""
    found = {}
    for op in model.subgraphs[0].operators:
        if op_name(model, op) not in ("GATHER", "EMBEDDING_LOOKUP"):
            continue
        tables = [i for i in op.inputs if i >= 0 and is_float_constant(model, i)]
        for index in tables:
            grid = find_grid(constant(model, index), 0, sorted(weight_bits))
            if grid is None or grid.kind != "t":
                continue
            scale = float(grid.scale.max())
            known = Range(-128 * scale, 127 * scale)
            found.update({index: known, op.outputs[0]: known})
    return found


def handed_grid(weight: np.ndarray, axis: int, scale: np.ndarray, bits: int, layer: str) -> Grid:
    """The grid on which a layer's weight was rounded before, by its scales in any layout.

    Args:
        axis: of the channels.
        scale: one value, or one a channel, in their order.
        layer: whose name an error tells.
    """
    values = np.asarray(scale, np.float64).ravel()
    kind = "t" if values.size == 1 else "c"
    if values.size not in (1, weight.shape[axis]):
        raise ValueError(
            f"the scales of layer '{layer}' must be one or {weight.shape[axis]}; received "
            f"{values.size}."
        )
    shape = [-1 if kind == "c" and i == axis else 1 for i in range(weight.ndim)]
    grid, levels = Grid(bits, kind, values.reshape(shape)), 2 ** (bits - 1) - 1
    codes = weight / np.where(grid.scale > 0, grid.scale, 1.0)
    off = float(np.abs(codes - np.rint(codes)).max(initial=0.0))
    greatest = float(np.abs(codes).max(initial=0.0))
    if not (off < _HANDED and greatest < levels + 0.5):
        raise ValueError(
            f"the weights of layer '{layer}' must be whole multiples of its scales, up to {levels} "
            f"of them ({bits} bits); received codes up to {greatest:.4g}, off by {off:.2g}."
        )
    return grid


def fits(weight: np.ndarray, grid: Grid, bits: int) -> bool:
    """Whether the codes of a weight on a grid are codes of so many bits."""
    codes = weight / np.where(grid.scale > 0, grid.scale, 1.0)
    return bool(np.abs(codes).max(initial=0.0) < 2 ** (bits - 1) - 0.5)


def stored_range(grid: Grid, bits: int) -> dict[str, np.ndarray]:
    """The range that gives weights of a grid the same values when they are stored in some bits."""
    limit = grid.scale * (2 ** (bits - 1) - 1)
    return {"min": -limit, "max": limit}


def is_float_constant(model, index: int) -> bool:
    """Whether a tensor is float and holds data in the file."""
    return model.subgraphs[0].tensors[index].type == 0 and is_constant(model, index)
