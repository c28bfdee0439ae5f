"""The integer grids that trained weights lie on."""

import numpy as np

from tfcompress.tflite.flatbuffer import op_name
from tfcompress.tflite.ranges import Range, constant, is_constant


def find_grid(weight: np.ndarray, axis: int, widths: list[int]) -> tuple[int, str] | None:
    """The coarsest symmetric integer grid that holds all values of a weight.

    Args:
        weight: float array.
        axis: its axis of output channels.
        widths: bit widths to try, in this order.

    Returns:
        (bits, "t" for one scale or "c" for one a channel), None if no grid holds the values.

    Example:
        >>> find_grid(np.array([[-1.0, 64 / 127]]), 0, [4, 8])
        (8, 't')
    """
    for bits in widths:
        levels = 2 ** (bits - 1) - 1
        for kind in "tc":
            others = tuple(i for i in range(weight.ndim) if kind == "t" or i != axis)
            largest = np.abs(weight).max(axis=others, keepdims=True, initial=0.0)
            codes = weight / np.where(largest > 0, largest, 1.0) * levels
            if np.abs(codes - np.rint(codes)).max(initial=0.0) < 5e-3:
                return bits, kind
    return None


def table_ranges(model, weight_bits: set[int]) -> dict[int, Range]:
    """Ranges of embedding tables on a trained grid, and of the rows gathered from them.

    Args:
        model: a float `ModelT` without markers.
        weight_bits: the widths that weights were trained for.

    Returns:
        Ranges by tensor index, which make the scale of the activations the trained one.
    """
    found = {}
    for op in model.subgraphs[0].operators:
        if op_name(model, op) not in ("GATHER", "EMBEDDING_LOOKUP"):
            continue
        tables = [i for i in op.inputs if i >= 0 and is_float_constant(model, i)]
        for index in tables:
            grid = find_grid(constant(model, index), 0, sorted(weight_bits))
            if grid is None or grid[1] != "t":
                continue
            scale = float(np.abs(constant(model, index)).max()) / (2 ** (grid[0] - 1) - 1)
            known = Range(-128 * scale, 127 * scale)
            found.update({index: known, op.outputs[0]: known})
    return found


def wide_range(weight: np.ndarray, axis: int, kind: str, bits: int) -> dict[str, np.ndarray]:
    """The range that gives a weight on a narrow grid the same values as int8.

    Args:
        weight: float array.
        axis: its axis of output channels.
        kind, bits: the grid, as `find_grid` tells it.

    Returns:
        "min" and "max", as ai-edge-quantizer takes them.
    """
    others = tuple(i for i in range(weight.ndim) if kind == "t" or i != axis)
    largest = np.abs(weight).max(axis=others, keepdims=True)
    limit = largest * np.float32(127 / (2 ** (bits - 1) - 1))
    return {"min": -limit, "max": limit}


def is_float_constant(model, index: int) -> bool:
    """Whether a tensor is float and holds data in the file."""
    return model.subgraphs[0].tensors[index].type == 0 and is_constant(model, index)
