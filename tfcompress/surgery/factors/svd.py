"""The singular value decomposition of Dense, EinsumDense, Embedding and convolutions."""

from __future__ import annotations

import dataclasses

import numpy as np
from keras import layers

from tfcompress.kinds import equation_of
from tfcompress.surgery.factors import maths
from tfcompress.surgery.factors.layers import (
    CONVOLUTIONS,
    Part,
    array_of,
    bias_of,
    convolution,
    dense,
    einsum,
    embedding,
    ending,
    kernel_of,
    last_convolution,
)
from tfcompress.surgery.factors.sites import Cost, MatrixSite
from tfcompress.surgery.shapes import size


class SvdSite(MatrixSite):
    """Dense, EinsumDense, Embedding and convolutions as two of their kind.

    A convolution becomes one of as many filters as the rank, and a 1x1 convolution (Zhang et al.
    2016, arXiv:1505.06798).
    """

    kinds = (layers.Dense, layers.EinsumDense, layers.Embedding, *CONVOLUTIONS)

    @classmethod
    def refuses(cls, layer) -> str | None:
        return Letters.of(layer).reason if isinstance(layer, layers.EinsumDense) else None

    @property
    def shape(self) -> tuple[int, int]:
        shape = tuple(kernel_of(self.layer).shape)
        if isinstance(self.layer, layers.EinsumDense):
            letters = Letters.of(self.layer)
            sizes = dict(zip(letters.kernel, shape, strict=True))
            return size(sizes[x] for x in letters.summed), size(sizes[x] for x in letters.free)
        return size(shape[:-1]), int(shape[-1])

    def matrix(self) -> np.ndarray:
        kernel = array_of(self.layer)
        if isinstance(self.layer, layers.EinsumDense):
            letters = Letters.of(self.layer)
            order = [letters.kernel.index(x) for x in letters.summed + letters.free]
            kernel = kernel.transpose(order)
        return kernel.reshape(self.shape)

    def cost(self, rank: int) -> Cost:
        rows, columns = self.shape
        if isinstance(self.layer, layers.Embedding):
            looked_up = sum(size(x) for x, _ in self.calls)
            return Cost(looked_up * rank * columns, (rows + columns) * rank)
        numbers = (rows + columns) * rank
        return Cost(self.places * numbers, numbers + self.biases)

    def parts(self, rank: int) -> tuple[list[Part], float]:
        if self.moment:
            left, right = maths.weighted_svd(self.matrix(), rank, **self.moment)
        else:
            left, right = maths.svd(self.matrix(), rank)
        layer, (first, last) = self.layer, (self.name(f"{self.layer.name}_in"), self.layer.name)
        if isinstance(layer, layers.EinsumDense):
            made = _einsum_parts(layer, rank, (first, last), left, right)
        elif isinstance(layer, layers.Embedding):
            units = layer.output_dim
            regularizer = {"activity_regularizer": layer.activity_regularizer}
            made = [
                Part(embedding(layer, rank, first), {"embeddings": left}),
                Part(dense(layer, units, last, use_bias=False, **regularizer), {"kernel": right}),
            ]
        elif isinstance(layer, layers.Dense):
            made = [
                Part(dense(layer, rank, first, use_bias=False), {"kernel": left}),
                Part(
                    dense(layer, layer.units, last, **ending(layer)),
                    {"kernel": right, **bias_of(layer)},
                ),
            ]
        else:
            size, along = layer.kernel_size, range(layer.rank)
            made = [
                Part(
                    convolution(layer, rank, first, size, along, use_bias=False), {"kernel": left}
                ),
                last_convolution(layer, right),
            ]
        if self.mean is not None and layer.bias is not None:
            missed = maths.missed(self.matrix(), left, right, self.mean)
            made[-1] = dataclasses.replace(made[-1], added={"bias": missed})
        return made, self.kept(rank)

    @property
    def has_bias(self) -> bool:
        """Whether there is a number for each column that is added to what the kernel gives."""
        bias = getattr(self.layer, "bias", None)
        if isinstance(self.layer, layers.EinsumDense) and bias is not None:
            return self.layer.bias_axes == Letters.of(self.layer).free
        return bias is not None


def _einsum_parts(layer, rank: int, names: tuple[str, str], left, right) -> list[Part]:
    letters = Letters.of(layer)
    sizes = dict(zip(letters.kernel, layer.kernel.shape, strict=True))
    new = next(x for x in "zyxwvutsrqponmlkjihgfedcbaZ" if x not in layer.equation)
    # The new axis stands where the first summed one was: dots may be at either end alone.
    middle = letters.inputs.replace(letters.summed[0], new)
    middle = "".join(x for x in middle if x not in letters.summed)
    lengths = dict(zip(_explicit(letters.outputs), layer.partial_output_shape, strict=True))
    first = einsum(
        layer,
        f"{letters.inputs},{letters.summed}{new}->{middle}",
        [rank if x == new else lengths[x] for x in _explicit(middle)],
        names[0],
    )
    last = einsum(
        layer,
        f"{middle},{new}{letters.free}->{letters.outputs}",
        layer.partial_output_shape,
        names[1],
        bias_axes=layer.bias_axes,
        **ending(layer),
    )
    shape = [sizes[x] for x in letters.free]
    right = right.reshape(rank, *shape)
    return [Part(first, {"kernel": left}), Part(last, {"kernel": right, **bias_of(layer)})]


def _explicit(outputs: str) -> str:
    """The axes of which an EinsumDense is told the lengths: not the batch, nor those of dots."""
    return outputs.replace("...", "") if outputs.startswith(".") else outputs[1:].replace(".", "")


@dataclasses.dataclass(frozen=True)
class Letters:
    """The axes of an EinsumDense's equation."""

    inputs: str
    kernel: str
    outputs: str

    @classmethod
    def of(cls, layer) -> Letters:
        """Those of a layer."""
        return cls(*equation_of(layer))

    @property
    def summed(self) -> str:
        """The axes of the kernel that are summed over, in the order of the inputs."""
        return "".join(x for x in self.inputs if x in self.kernel and x not in self.outputs)

    @property
    def free(self) -> str:
        """The axes that the kernel brings, in the order of the kernel."""
        return "".join(x for x in self.kernel if x not in self.inputs)

    @property
    def reason(self) -> str | None:
        """Why the kernel is no matrix from the summed axes to the free ones."""
        if any(x in self.inputs and x in self.outputs for x in self.kernel):
            return "its kernel holds one matrix for each place of an axis"
        if not self.summed or not self.free or any(x not in self.outputs for x in self.free):
            return "its equation is no product with a matrix"
        if any(x not in self.outputs for x in self.inputs if x not in self.summed):
            return "its equation sums over axes of its input alone"
        return None
