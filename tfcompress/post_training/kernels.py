"""The kernels of a flat model that LiteRT stores as integers, and the grids that they get."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.errors import check
from tfcompress.graph.nodes import Graph
from tfcompress.kinds import LINEAR, SEPARABLE, channel_axes, has_plain_weights, is_of
from tfcompress.techniques.scales import levels

GRANULARITIES = ("per_channel", "per_tensor")

# Opened into others before, or without an integer operation.
_NONE = SEPARABLE | {"EinsumDense", "Conv3D", "Conv3DTranspose"}


# Values that a table has at most, each of which occurs twice on average.
_FEW = 256


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The kernel of a layer.

    Attributes:
        layer: a Dense, a convolution, or a depthwise or transposed one.
        axes: of the kernel, which have a scale each; () for one scale.
    """

    layer: Any
    axes: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.layer.name

    @property
    def variable(self) -> Any:
        return self.layer.kernel

    @property
    def value(self) -> np.ndarray:
        """The kernel, float32."""
        return ops.convert_to_numpy(self.layer.kernel).astype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.layer.kernel.shape)

    @property
    def is_table(self) -> bool:
        """Whether it has few different values, see `is_table`."""
        return is_table(self.value, channel_axes(self.layer))

    @property
    def reduced(self) -> tuple[int, ...]:
        """The axes along which values share a scale."""
        return tuple(i for i in range(len(self.shape)) if i not in self.axes)


def kernels_of(
    graph: Graph, dense: str = "per_channel", convolution: str = "per_channel"
) -> Iterator[Kernel]:
    """The kernels of a graph in its order, each once.

    Args:
        graph: of a flat model, opened if it has composite layers.
        dense, convolution: "per_channel" or "per_tensor" scales.
    """
    for name, granularity in (("dense", dense), ("convolution", convolution)):
        check(granularity in GRANULARITIES, name, f"one of {', '.join(GRANULARITIES)}", granularity)
    seen: set[int] = set()
    for node in graph.nodes:
        layer = node.operation
        known = is_of(layer, LINEAR) and not is_of(layer, _NONE) and has_plain_weights(layer)
        if not known or id(layer) in seen:
            continue
        seen.add(id(layer))
        granularity = dense if isinstance(layer, keras.layers.Dense) else convolution
        yield Kernel(layer, channel_axes(layer) if granularity == "per_channel" else ())


def is_table(kernel: np.ndarray, axes: tuple[int, ...]) -> bool:
    """Whether a kernel, or each channel of it, has few values beside 0, as clustering leaves it.

    The latter is what becomes of one that a BatchNormalization was folded into.

    Args:
        axes: that count channels.
    """
    others = [i for i in range(kernel.ndim) if i not in axes]
    channels = int(np.prod([kernel.shape[i] for i in axes]))
    rows = kernel.transpose(*axes, *others).reshape(channels, -1)
    return _has_few(kernel) or all(map(_has_few, rows))


def _has_few(values: np.ndarray) -> bool:
    found = values[values != 0]
    return len(np.unique(found)) <= min(_FEW, len(found) // 2)


def on_grid(weight: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    """A weight rounded to the nearest point of a symmetric grid; 0 where the scale is 0."""
    safe = np.where(scale > 0, scale, 1.0)
    codes = np.clip(np.rint(weight / safe), -levels(bits), levels(bits))
    return (codes * scale).astype(np.float32)
