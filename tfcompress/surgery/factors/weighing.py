"""What data says of layers: what they give on it, and what errors there do to the outputs."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops, tree

from tfcompress.graph.nodes import Graph, call_node
from tfcompress.kinds import channel_place
from tfcompress.surgery.factors.layers import CONVOLUTIONS, bare, closing, kernel_of
from tfcompress.surgery.factors.svd import Letters, SvdSite
from tfcompress.surgery.pruning.judging import Batch, gradients_of
from tfcompress.surgery.shapes import size, specs_of

Samples = list[dict[str, np.ndarray]]

_BATCH = 32
# Of so many samples gradients are taken, and statistics of BatchNormalization.
_HELD = 256
# Numbers of which gradients are held at a time.
_NUMBERS = 2**24
# Samples that tell how the statistics of a BatchNormalization change.
ENOUGH = 32
# Gradients that tell what errors count, at least, and columns from which on they are too many.
_GRADIENTS, _WIDEST = 1024, 1024
# What all directions count, as a share of the mean of what they count by the gradients.
_DAMPING = 1e-2


class SecondMoment(layers.Layer):
    """X.T @ X of all rows X, with a 1 at their end, that a layer reads or its kernel makes of them.

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
        found = ops.concatenate([found, ops.ones_like(found[:, :1])], axis=1)
        return ops.matmul(ops.transpose(found), found)


def gather(graph: Graph, sites: Sequence[SvdSite], samples: Iterator[dict]) -> Samples:
    """Runs data through a flat model, and sets the `moment` of layers, and the `mean`.

    Returns batches of the first samples.
    """
    by_layer = {id(site.layer): site for site in sites}
    probes = [
        (SecondMoment(by_layer[id(node.operation)]), node.inputs[0])
        for node in graph.nodes
        if id(node.operation) in by_layer
    ]
    starts = tree.flatten(graph.inputs)
    model = Graph(starts, [probe(x) for probe, x in probes]).rebuild()
    model.compile(jit_compile=False)
    sums: dict[SvdSite, Any] = {}
    sides = {probe.site: probe.side for probe, _ in probes}
    held: Samples = []
    for batch in _joined(samples):
        if count_of(held) < _HELD:
            held.append(batch)
        found = model.predict_on_batch([batch[x.name] for x in starts])
        for (probe, _), moment in zip(probes, tree.flatten(found), strict=True):
            sums[probe.site] = sums.get(probe.site, 0.0) + np.asarray(moment, "float64")
    for site, found in sums.items():
        site.moment = {sides[site]: found[:-1, :-1]}
        normalized = count_of(held) >= ENOUGH and _is_normalized(graph, site.layer)
        if site.has_bias or normalized:
            mean = found[-1, :-1] / max(found[-1, -1], 1)
            site.moment[sides[site]] -= found[-1, -1] * np.outer(mean, mean)
            site.mean = mean if sides[site] == "outputs" else mean @ site.matrix()
    return held


def count_of(samples: Samples) -> int:
    """How many samples there are in batches."""
    return sum(len(next(iter(batch.values()))) for batch in samples)


def _is_normalized(graph: Graph, layer) -> bool:
    """Whether the mean of what a layer gives is taken off by a BatchNormalization."""
    nodes = [node for node in graph.nodes if node.operation is layer]
    readers = [graph.only_consumer(node.outputs[0]) for node in nodes]
    return getattr(layer, "activation", None) is keras.activations.linear and all(
        reader is not None and isinstance(reader.operation, layers.BatchNormalization)
        for reader in readers
    )


def weigh(graph: Graph, sites: Sequence[SvdSite], samples: Samples) -> None:
    """Sets the weights in the `moment` of layers: what errors of them do to the model's outputs.

    An error e of what a layer gives changes outputs f by J @ e at first, and J.T @ J are the
    weights, summed over places and samples as for K-FAC (Martens & Grosse 2015, arXiv:1503.05671);
    f are the roots of probabilities, whose J.T @ J is Fisher's information. Gradients of sums of
    outputs with random factors give it without labels.
    """
    narrow = {id(site.layer): site for site in sites if site.shape[1] <= _WIDEST}
    if not narrow:
        return
    first = next(iter(samples[0].values()))
    rows = min(len(first), _rows_at_once(graph, narrow))
    model, shifts = _shifted(graph, narrow, rows)
    if not shifts:
        return
    batches = list(_cut(model, samples, rows))
    views = _views(tree.flatten(model(batches[0], training=False)))

    def loss(batch: Batch) -> Any:
        found = tree.flatten(model(batch.x, training=False))
        terms = [ops.sum(view(found[i]) * e) for (i, view), e in zip(views, batch.y, strict=True)]
        return sum(terms)

    def moments(gradients: Sequence[Any]) -> list:
        rows = [_as_rows(site, g) for (site, _), g in zip(shifts, gradients, strict=True)]
        return [ops.matmul(ops.transpose(x), x) for x in rows]

    run = gradients_of(loss, [shift.shift for _, shift in shifts], moments)
    random = np.random.default_rng(0)
    sums: dict[SvdSite, Any] = {}
    shapes = [tree.flatten(model.outputs)[i].shape for i, _ in views]
    for x in batches * math.ceil(_GRADIENTS / (rows * len(batches))):
        factors = [random.normal(size=(rows, *shape[1:])).astype("float32") for shape in shapes]
        for (site, _), found in zip(shifts, run(Batch(x, factors, None)), strict=True):
            sums[site] = sums.get(site, 0.0) + np.asarray(ops.convert_to_numpy(found), "float64")
    for site, found in sums.items():
        mean = np.trace(found) / len(found)
        if np.isfinite(mean) and mean > 0:
            site.moment["weights"] = found / mean + _DAMPING * np.eye(len(found))


class Shift(layers.Layer):
    """Adds zeros, by which the gradients of single samples are taken."""

    def build(self, shape):
        self.shift = self.add_weight(shape=shape, initializer="zeros", dtype="float32")

    def call(self, x):
        return x + ops.cast(self.shift, x.dtype)


def _shifted(
    graph: Graph, by_layer: dict[int, SvdSite], rows: int
) -> tuple[keras.Model, list[tuple[SvdSite, Shift]]]:
    """A model of batches of `rows`, with a `Shift` of what each layer gives before activation."""
    shifts, twins = [], {}

    def call(node, *args, **kwargs):
        layer = node.operation
        if id(layer) not in by_layer:
            return call_node(node, *args, **kwargs)
        if id(layer) not in twins:
            twins[id(layer)] = bare(layer)
        y = twins[id(layer)](*args, **kwargs)
        if None not in y.shape:
            shifts.append((by_layer[id(layer)], Shift(name=f"{layer.name}__shift")))
            y = shifts[-1][1](y)
        own = twins[id(layer)] is layer
        return y if own else closing(layer, f"{layer.name}__activation")(y)

    model = Graph(graph.inputs, graph.outputs).rebuild(call, rows)
    for layer in {id(node.operation): node.operation for node in graph.nodes}.values():
        twin = twins.get(id(layer), layer)
        if twin is not layer:
            twin.set_weights(layer.get_weights())
    return model, shifts


def _rows_at_once(graph: Graph, by_layer: dict[int, SvdSite]) -> int:
    specs, numbers = specs_of(graph), 1
    for node in graph.nodes:
        shape = specs[id(node.outputs[0])].shape
        if id(node.operation) in by_layer and None not in shape:
            numbers += size(shape)
    return int(np.clip(_NUMBERS // numbers, 1, _BATCH))


def _cut(model: keras.Model, samples: Samples, rows: int) -> Iterator[Any]:
    """Inputs of as many samples as a model takes at once."""
    starts = tree.flatten(model._inputs_struct)
    shapes = [array.shape[1:] for array in samples[0].values()]
    for batch in samples:
        if [array.shape[1:] for array in batch.values()] != shapes:
            continue
        for first in range(0, len(batch[starts[0].name]) - rows + 1, rows):
            cut = [batch[x.name][first : first + rows] for x in starts]
            yield tree.pack_sequence_as(model._inputs_struct, cut)


def _views(outputs: Sequence[Any]) -> list[tuple[int, Callable[[Any], Any]]]:
    """The outputs that errors can change, each with what is seen of it, in units of its size."""
    found: list[tuple[int, Callable[[Any], Any]]] = []
    for place, output in enumerate(outputs):
        values = np.asarray(ops.convert_to_numpy(output))
        if values.dtype.kind != "f" or not np.isfinite(values).all():
            continue
        values = values.astype("float64")
        share = values.ndim > 1 and values.shape[-1] > 1 and values.min() >= 0
        if share and np.allclose(values.sum(-1), 1, atol=1e-3):
            found.append((place, _roots_of))
        else:
            unit = float(np.sqrt(np.mean(values**2))) or 1.0
            found.append((place, functools.partial(_in_units, unit)))
    return found


def _roots_of(x) -> Any:
    return ops.sqrt(ops.cast(x, "float32") + 1e-6)


def _in_units(unit: float, x) -> Any:
    return ops.cast(x, "float32") / unit


def _joined(samples: Iterator[dict]) -> Iterator[dict]:
    """Batches of samples that are of one shape."""

    def shapes(sample: dict) -> list:
        return [array.shape for array in sample.values()]

    for _, alike in itertools.groupby(samples, shapes):
        while batch := list(itertools.islice(alike, _BATCH)):
            yield {name: np.concatenate([x[name] for x in batch]) for name in batch[0]}


def _as_rows(site: SvdSite, y) -> Any:
    """What a layer gives, or gradients by it, as rows of what its kernel's columns give."""
    layer = site.layer
    if isinstance(layer, layers.EinsumDense):
        letters = Letters.of(layer)
        rows = "".join(letter for letter in letters.inputs if letter not in letters.summed)
        y = ops.einsum(f"{letters.outputs}->{rows}{letters.free}", y)
    elif isinstance(layer, CONVOLUTIONS):
        y = ops.moveaxis(y, channel_place(layer), -1)
    return ops.reshape(y, (-1, site.shape[1]))


def _products(site: SvdSite, x):
    """What the kernel makes of `x`, without bias and activation, channels last."""
    layer = site.layer
    if isinstance(layer, layers.Embedding):
        return layer(x)
    kernel = ops.cast(kernel_of(layer), "float32")
    x = ops.cast(x, "float32")
    if isinstance(layer, layers.EinsumDense):
        letters = Letters.of(layer)
        return _as_rows(
            site, ops.einsum(f"{letters.inputs},{letters.kernel}->{letters.outputs}", x, kernel)
        )
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
