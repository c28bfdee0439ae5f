"""What data looks like where it goes through layers: second moments, batch by batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import keras
import numpy as np
from keras import layers, ops

from tfcompress.graph import Graph
from tfcompress.surgery.factors.layers import CONVOLUTIONS, kernel_of
from tfcompress.surgery.factors.svd import Letters, SvdSite

_BATCH = 32


class SecondMoment(layers.Layer):
    """X.T @ X of all rows X that a layer reads, or that its kernel makes of them.

    The smaller of both is enough, see `decompositions.weighted_svd`.
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
    """Runs data through a flat model, and sets the `moment` of layers.

    Args:
        graph: of the flat model.
        sites: the layers, all calls of which count.
        samples: batches of one sample, input name -> array, see `tfcompress.data.batches`.
    """
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
    return ops.moveaxis(y, 1, -1) if layer.data_format == "channels_first" else y
