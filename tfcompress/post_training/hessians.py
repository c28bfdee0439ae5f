"""Second moments of the inputs that the outputs of a linear layer see: its patches.

A kernel is seen as matrices (groups, d, channels), a patch of each group as a vector of d numbers
whose product with a column is what the channel gives, up to its bias. A depthwise convolution has a
group for each channel of its input.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.kinds import DEPTHWISE, TRANSPOSED, is_of

# Multiplications that the moments of one layer may take, and numbers that are held at a time:
# of more positions than that some are taken.
_WORK = 5e8
_HELD = 2e7


def matrix_of(layer, kernel: np.ndarray) -> np.ndarray:
    """A kernel, or its scales with axes of 1, as (groups, d, channels)."""
    places, rank = tuple(range(kernel.ndim - 2)), kernel.ndim
    if is_of(layer, TRANSPOSED):
        kernel = np.flip(np.swapaxes(kernel, -1, -2), places)
        return kernel.reshape(1, -1, kernel.shape[-1])
    if is_of(layer, DEPTHWISE):
        return np.moveaxis(kernel, -2, 0).reshape(kernel.shape[-2], -1, kernel.shape[-1])
    groups = getattr(layer, "groups", 1)
    split = kernel.reshape(*kernel.shape[:-1], groups, -1)
    return np.moveaxis(split, rank - 1, 0).reshape(groups, -1, split.shape[-1])


def kernel_of(layer, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The kernel of this shape, or its scales, that `matrix_of` sees as a matrix."""
    places, (groups, _, channels) = tuple(range(len(shape) - 2)), matrix.shape
    if is_of(layer, TRANSPOSED):
        kernel = matrix.reshape(*shape[:-2], shape[-1], shape[-2])
        return np.flip(np.swapaxes(kernel, -1, -2), places)
    if is_of(layer, DEPTHWISE):
        return np.moveaxis(matrix.reshape(groups, *shape[:-2], channels), 0, -2)
    split = matrix.reshape(groups, *shape[:-1], channels)
    return np.moveaxis(split, 0, -2).reshape(shape)


class Patches:
    """The patches of some inputs of a layer.

    Args:
        layer: a Dense, a convolution, or a depthwise or transposed one.
        x: what it is called with, (samples, ...).
    """

    def __init__(self, layer, x: Any):
        self.layer = layer
        # A view (samples, *places of outputs, channels, *places of a window).
        self.windows = _windows(layer, ops.convert_to_numpy(x).astype(np.float32, copy=False))
        self.rank = 0 if isinstance(layer, keras.layers.Dense) else len(layer.kernel_size)
        self.places = self.windows.shape[: self.windows.ndim - 1 - self.rank]

    @property
    def count(self) -> int:
        """How many there are in all samples together."""
        return math.prod(self.places)

    def take(self, chosen: np.ndarray | None = None) -> np.ndarray:
        """Those with some numbers, or all of them, (groups, count, d)."""
        numbers = np.arange(self.count) if chosen is None else chosen
        found = self.windows[np.unravel_index(numbers, self.places)]
        channels, window = found.shape[1], found.shape[2:]
        groups = channels if is_of(self.layer, DEPTHWISE) else getattr(self.layer, "groups", 1)
        split = found.reshape(len(numbers), groups, channels // groups, *window)
        moved = np.moveaxis(split, (0, 1, 2), (1, 0, -1))
        return moved.reshape(groups, len(numbers), -1)


def _windows(layer, x: np.ndarray) -> np.ndarray:
    if isinstance(layer, keras.layers.Dense):
        return x
    if layer.data_format == "channels_first":
        x = np.moveaxis(x, 1, -1)
    strides, sizes = list(layer.strides), []
    for axis, (size, dilation) in enumerate(
        zip(layer.kernel_size, layer.dilation_rate, strict=True), 1
    ):
        size = (size - 1) * dilation + 1
        sizes.append(size)
        if is_of(layer, TRANSPOSED):
            x, strides[axis - 1] = _spread(x, axis, size, strides[axis - 1], layer.padding), 1
        else:
            x = _pad(x, axis, zeros_around(x.shape[axis], size, strides[axis - 1], layer.padding))
    view = np.lib.stride_tricks.sliding_window_view(x, sizes, tuple(range(1, 1 + len(sizes))))
    whole = [slice(None)]
    steps = [slice(None, None, step) for step in strides]
    inner = [slice(None, None, dilation) for dilation in layer.dilation_rate]
    return view[tuple(whole + steps + whole + inner)]


def zeros_around(length: int, size: int, stride: int, padding: str) -> tuple[int, int]:
    """The zeros before and after an axis of a convolution's input."""
    if padding == "causal":
        return size - 1, 0
    if padding == "valid":
        return 0, 0
    missing = max((-(-length // stride) - 1) * stride + size - length, 0)
    return missing // 2, missing - missing // 2


def _pad(x: np.ndarray, axis: int, zeros: tuple[int, int]) -> np.ndarray:
    return np.pad(x, [zeros if i == axis else (0, 0) for i in range(x.ndim)])


def _spread(x: np.ndarray, axis: int, size: int, stride: int, padding: str) -> np.ndarray:
    """An input of a transposed convolution, as that of a plain one whose kernel is turned round.

    Zeros stand between its values, and around them.
    """
    length = x.shape[axis]
    shape = list(x.shape)
    shape[axis] = (length - 1) * stride + 1
    wide = np.zeros(shape, x.dtype)
    wide[tuple(slice(None, None, stride if i == axis else 1) for i in range(x.ndim))] = x
    wide = _pad(wide, axis, (size - 1, size - 1 + max(stride - size, 0)))
    if padding == "same":
        before = max(size - stride, 0) // 2
        kept = slice(before, before + length * stride + size - 1)
        wide = wide[tuple(kept if i == axis else slice(None) for i in range(x.ndim))]
    return wide


@dataclasses.dataclass(frozen=True)
class Moments:
    """Means over the patches x that a layer gets, and over the products z that it is to give.

    Where the layer has a bias, which makes up for means, all are of what differs from these.

    Attributes:
        matrix: that of the layer, (groups, d, channels).
        mean: of x, (groups, d).
        wanted: of z, (groups, channels).
        second: of x x', (groups, d, d).
        product: of x z', (groups, d, channels).
        power: of z squared, (groups, channels).
    """

    matrix: np.ndarray
    mean: np.ndarray
    wanted: np.ndarray
    second: np.ndarray
    product: np.ndarray
    power: np.ndarray

    def noise(self, matrix: np.ndarray) -> np.ndarray:
        """The mean squared error of what another matrix gives, (groups, channels)."""
        found = self.power + (matrix * (self.second @ matrix - 2 * self.product)).sum(1)
        return np.maximum(found, 0.0)

    def sqnr(self, matrix: np.ndarray) -> float:
        """The signal to noise ratio of what another matrix gives, in dB."""
        power, noise = self.power.sum(), self.noise(matrix).sum()
        return float(10 * np.log10(max(power, 1e-30) / max(noise, 1e-12 * power, 1e-30)))

    def shift(self, matrix: np.ndarray) -> np.ndarray:
        """What the bias is to be changed by beside another matrix, (groups, channels)."""
        return self.wanted - np.einsum("gd,gdc->gc", self.mean, matrix)


def moments_of(layer, given: Sequence[Any], wanted: Sequence[Any]) -> Moments:
    """The moments of a layer.

    Args:
        layer: as `Patches` takes it.
        given: what it is called with, batch by batch, (samples, ...).
        wanted: what it would be called with in the float model, which tells what it is to give.
    """
    matrix = matrix_of(layer, ops.convert_to_numpy(layer.kernel).astype(np.float32))
    random, count = np.random.default_rng(0), 0
    sums: list[Any] = [0.0] * 5
    for call, target in zip(given, wanted, strict=True):
        found = Patches(layer, call)
        chosen = _chosen(found, matrix.shape, len(given), random)
        x, z = found.take(chosen), Patches(layer, target).take(chosen) @ matrix
        turned = x.swapaxes(1, 2)
        made = [x.sum(1, dtype=np.float64), z.sum(1, dtype=np.float64)]
        made += [turned @ x, turned @ z, np.square(z, dtype=np.float64).sum(1)]
        sums = [old + new.astype(np.float64) for old, new in zip(sums, made, strict=True)]
        count += x.shape[1]
    mean, mean_wanted, second, product, power = (each / count for each in sums)
    if layer.use_bias:
        second = second - mean[:, :, None] * mean[:, None]
        product = product - mean[:, :, None] * mean_wanted[:, None]
        power = power - np.square(mean_wanted)
    return Moments(matrix, mean, mean_wanted, second, product, power)


def _chosen(found: Patches, shape, calls: int, random) -> np.ndarray | None:
    """The numbers of the patches that are taken, each once; None for all."""
    groups, d, _ = shape
    most = min(_WORK / calls / (groups * d * d), _HELD / (groups * d))
    most = max(int(most), -(-4 * d // calls))
    if found.count <= most:
        return None
    return np.sort(random.choice(found.count, most, replace=False))
