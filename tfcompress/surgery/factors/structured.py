"""Kernels of a given structure: sums of Kronecker products, and blocks along a diagonal."""

from __future__ import annotations

import functools
import itertools
import math

import keras
import numpy as np
from keras import layers, ops

from tfcompress.kinds import channel_place
from tfcompress.surgery.factors import maths
from tfcompress.surgery.factors.layers import (
    CONVOLUTIONS,
    Part,
    array_of,
    bias_of,
    closing,
    convolution,
    einsum,
    ending,
)
from tfcompress.surgery.factors.maths import diagonal_blocks
from tfcompress.surgery.factors.sites import Cost, MatrixSite, Site
from tfcompress.surgery.shapes import size


class KroneckerSite(MatrixSite):
    """A Dense as a sum of Kronecker products, each of which is two small products."""

    kinds = (layers.Dense,)

    @classmethod
    def refuses(cls, layer) -> str | None:
        rows, columns = layer.kernel.shape
        if _shapes(rows, columns):
            return None
        return f"its {rows}x{columns} kernel has no sizes to split"

    @property
    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of both factors."""
        return kronecker_shapes(*self.layer.kernel.shape)

    @property
    def shape(self) -> tuple[int, int]:
        first, second = self.shapes
        return math.prod(first), math.prod(second)

    def matrix(self) -> np.ndarray:
        return maths.kronecker_matrix(array_of(self.layer), self.shapes[0])

    def cost(self, rank: int) -> Cost:
        (m1, n1), (m2, n2) = self.shapes
        macs = self.places * rank * m1 * n2 * (m2 + n1)
        return Cost(macs, rank * (m1 * n1 + m2 * n2) + self.biases)

    def parts(self, rank: int) -> tuple[list[Part], float]:
        layer, ((m1, n1), (m2, n2)) = self.layer, self.shapes
        first, second = maths.kronecker(array_of(layer), (m1, n1), rank)
        names = [self.name(f"{layer.name}_{end}") for end in ("in", "out")]
        bias = _inner_bias(layer, "dc")
        made = [
            _split(m1, m2),
            Part(
                einsum(layer, "...ab,bcr->...acr", (m1, n2, rank), names[0]),
                {"kernel": second.transpose(1, 2, 0)},
            ),
            Part(
                einsum(layer, "...acr,adr->...dc", (n1, n2), names[1], **bias),
                {"kernel": first.transpose(1, 2, 0), **bias_of(layer)},
            ),
            _joined(self, n1 * n2),
            Part(closing(layer, layer.name)),
        ]
        return made, self.kept(rank)


def kronecker_shapes(rows: int, columns: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes of factors (m1, n1) and (m2, n2) of a kernel that are as alike as can be.

    Of equally good ones, those are taken that hold the fewest numbers, then take the fewest MACs.
    """

    def order(shape: tuple[int, int]) -> tuple[int, int, int]:
        m1, n1 = shape
        m2, n2 = rows // m1, columns // n1
        uneven = max(m1, m2) * columns + max(n1, n2) * rows
        return uneven, m1 * n1 + m2 * n2, m1 * n2 * (m2 + n1)

    m1, n1 = min(_shapes(rows, columns), key=order)
    return (m1, n1), (rows // m1, columns // n1)


def _shapes(rows: int, columns: int) -> list[tuple[int, int]]:
    """The shapes of a first factor, but for those that are whole, or products of vectors."""
    every = itertools.product(_divisors(rows), _divisors(columns))
    return [shape for shape in every if shape[0] not in (1, rows) or shape[1] not in (1, columns)]


class BlockSite(Site[int]):
    """A Dense of equal blocks along a diagonal, a convolution in groups; its rank counts them.

    Rows and columns are put in the order in which most of the kernel lies in the blocks.
    """

    kinds = (layers.Dense, *CONVOLUTIONS)

    @classmethod
    def refuses(cls, layer) -> str | None:
        inputs, outputs = layer.kernel.shape[-2:]
        if math.gcd(inputs, outputs) == 1:
            return f"its {inputs} inputs and {outputs} outputs have no divisor in common"
        return None

    @property
    def full(self) -> int:
        return math.gcd(*self.layer.kernel.shape[-2:])

    @property
    def least(self) -> int:
        return self.full

    def cost(self, rank: int) -> Cost:
        numbers = self.weights // rank
        return Cost(self.places * numbers, numbers + self.biases)

    @functools.cached_property
    def ladder(self) -> tuple[list[int], np.ndarray]:
        """Fewer and fewer blocks, down to the whole kernel."""
        options = _divisors(self.full)[::-1]
        energy = self._energy()
        return options, np.array([1.0 - diagonal_blocks(energy, count)[2] for count in options])

    def text(self, rank: int) -> str:
        return f"{rank} block{'s' if rank != 1 else ''}"

    def parts(self, rank: int) -> tuple[list[Part], float]:
        layer, kernel = self.layer, array_of(self.layer)
        rows, columns, kept = diagonal_blocks(self._energy(), rank)
        ordered = kernel[..., rows, :][..., columns]
        dense = isinstance(layer, layers.Dense)
        axis = channel_place(layer)
        ordering, back = _permutation(rows, axis), _permutation(np.argsort(columns), axis)
        inner = [self._grouped, self._blocks][dense](rank, ordered, columns)
        return [*ordering, *inner, *back, Part(closing(layer, layer.name))], kept

    def _blocks(self, count: int, ordered: np.ndarray, columns: np.ndarray) -> list[Part]:
        layer, (inputs, outputs) = self.layer, ordered.shape
        rows, width = inputs // count, outputs // count
        split = ordered.reshape(count, rows, count, width)
        blocks = np.stack([split[i, :, i] for i in range(count)])
        inner = einsum(
            layer,
            "...ka,kac->...kc",
            (count, width),
            self.name(f"{layer.name}_blocks"),
            **_inner_bias(layer, "kc"),
        )
        return [
            _split(count, rows),
            Part(inner, {"kernel": blocks, **_ordered_bias(layer, columns)}),
            _joined(self, outputs),
        ]

    def _grouped(self, count: int, ordered: np.ndarray, columns: np.ndarray) -> list[Part]:
        layer, (inputs, outputs) = self.layer, ordered.shape[-2:]
        rows, width = inputs // count, outputs // count
        groups = [
            ordered[..., i * rows : (i + 1) * rows, i * width : (i + 1) * width]
            for i in range(count)
        ]
        settings = ending(layer) | {"activation": None, "activity_regularizer": None}
        inner = convolution(
            layer,
            outputs,
            self.name(f"{layer.name}_groups"),
            layer.kernel_size,
            range(layer.rank),
            groups=count,
            **settings,
        )
        kernel = np.concatenate(groups, axis=-1)
        return [Part(inner, {"kernel": kernel, **_ordered_bias(layer, columns)})]

    def _energy(self) -> np.ndarray:
        """Of each input for each output."""
        kernel = array_of(self.layer)
        return np.sum(kernel**2, axis=tuple(range(kernel.ndim - 2)))


def not_reshaped(site: Site) -> str | None:
    """Why a Dense cannot be called on reshaped inputs, if it cannot."""
    if not isinstance(site.layer, layers.Dense):
        return None
    leading = {x[1:-1] for x, _ in site.calls}
    if any(None in x[1:] for x, _ in site.calls):
        return "axes of its input have no fixed length"
    if len(leading) > 1 and any(len(axes) != 1 for axes in leading):
        return "its inputs are of several shapes"
    return None


def _inner_bias(layer, axes: str) -> dict:
    """The settings of a bias that is added before the axes are joined again."""
    if layer.bias is None:
        return {}
    return {
        "bias_axes": axes,
        "bias_initializer": layer.bias_initializer,
        "bias_regularizer": layer.bias_regularizer,
    }


def _ordered_bias(layer, columns: np.ndarray) -> dict:
    if layer.bias is None:
        return {}
    return {"bias": np.asarray(keras.ops.convert_to_numpy(layer.bias))[columns]}


def _permutation(order: np.ndarray, axis: int) -> list[Part]:
    """A part that reorders an axis, if the order is another one."""
    if np.array_equal(order, np.arange(len(order))):
        return []
    places = order.tolist()
    return [Part(lambda x: ops.take(x, places, axis=axis))]


def _split(*last: int) -> Part:
    """Splits the last axis of inputs of a Dense, and makes one of all between it and the batch.

    EinsumDense gives several axes of "..." in the wrong order in the shape that it tells.
    """

    def call(x):
        between = x.shape[1:-1]
        return ops.reshape(x, (-1, *(between if len(between) < 2 else [size(between)]), *last))

    return Part(call)


def _joined(site: Site, units: int) -> Part:
    """Joins the last two axes, and splits what `_split` made one."""
    between = site.calls[0][0][1:-1]

    def call(x):
        return ops.reshape(x, (-1, *(between if len(between) > 1 else x.shape[1:-2]), units))

    return Part(call)


def _divisors(number: int) -> list[int]:
    return [i for i in range(1, number + 1) if number % i == 0]
