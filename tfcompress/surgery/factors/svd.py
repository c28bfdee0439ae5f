"""The singular value decomposition of Dense, EinsumDense, Embedding and convolutions."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import keras
import numpy as np
from keras import layers, ops

from tfcompress.graph.nodes import Graph
from tfcompress.kinds import channel_place, equation_of
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
        return made, self.kept(rank)


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


_BATCH = 32


class SecondMoment(layers.Layer):
    """X.T @ X of all rows X that a layer reads, or that its kernel makes of them.

    The smaller of both is enough, see `maths.weighted_svd`.
    """

    def __init__(self, site: SvdSite, **kwargs):
        super().__init__(dtype="float32", autocast=False, **kwargs)
        self.site = site

    @property
    def side(self) -> str:
        """Which of both it is."""
        rows, columns = self.site.shape
        narrow = isinstance(self.site.layer, layers.Dense) and rows < columns
        return "inputs" if narrow else "outputs"

    def call(self, x):
        found = x if self.side == "inputs" else _products(self.site, x)
        found = ops.cast(ops.reshape(found, (-1, found.shape[-1])), "float32")
        return ops.matmul(ops.transpose(found), found)


def gather(graph: Graph, sites: Sequence[SvdSite], samples: Iterator[dict]) -> None:
    """Runs data through a flat model, and sets the `moment` of layers."""
    by_layer = {id(site.layer): site for site in sites}
    probes = [
        (SecondMoment(by_layer[id(node.operation)]), node.inputs[0])
        for node in graph.nodes
        if id(node.operation) in by_layer
    ]
    starts = keras.tree.flatten(graph.inputs)
    model = Graph(starts, [probe(x) for probe, x in probes]).rebuild()
    model.compile(jit_compile=False)
    for batch in _joined(samples):
        found = model.predict_on_batch([batch[x.name] for x in starts])
        for (probe, _), moment in zip(probes, keras.tree.flatten(found), strict=True):
            kept = probe.site.moment
            kept[probe.side] = kept.get(probe.side, 0.0) + np.asarray(moment, "float64")


def _joined(samples: Iterator[dict]) -> Iterator[dict]:
    """Batches of samples that are of one shape."""

    def shapes(sample: dict) -> list:
        return [array.shape for array in sample.values()]

    for _, alike in itertools.groupby(samples, shapes):
        while batch := list(itertools.islice(alike, _BATCH)):
            yield {name: np.concatenate([x[name] for x in batch]) for name in batch[0]}


def _products(site: SvdSite, x):
    """What the kernel makes of `x`, without bias and activation, channels last."""
    layer = site.layer
    if isinstance(layer, layers.Embedding):
        return layer(x)
    kernel = ops.cast(kernel_of(layer), "float32")
    x = ops.cast(x, "float32")
    if isinstance(layer, layers.EinsumDense):
        letters = Letters.of(layer)
        rows = "".join(letter for letter in letters.inputs if letter not in letters.summed)
        y = ops.einsum(f"{letters.inputs},{letters.kernel}->{rows}{letters.free}", x, kernel)
        return ops.reshape(y, (-1, site.shape[1]))
    if not isinstance(layer, CONVOLUTIONS):
        return ops.matmul(x, kernel)
    padding = layer.padding
    if padding == "causal":
        x, padding = ops.pad(x, layer._compute_causal_padding()), "valid"
    y = ops.conv(
        x,
        kernel,
        strides=list(layer.strides),
        padding=padding,
        data_format=layer.data_format,
        dilation_rate=layer.dilation_rate,
    )
    return ops.moveaxis(y, channel_place(layer), -1)
