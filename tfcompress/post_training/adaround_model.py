"""adaround: each weight rounded up or down so that blocks of layers give what they gave."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import KerasTensor, tree

from tfcompress.errors import check, is_whole
from tfcompress.graph.nodes import Graph, Node
from tfcompress.layers.fake_quant import call_with
from tfcompress.post_training.kernels import Kernel, kernels_of
from tfcompress.post_training.layerwise import Progress, flat_copy
from tfcompress.post_training.rounded import Rounded, told, widths_of
from tfcompress.post_training.walk import batched
from tfcompress.techniques.scales import levels, weight_scale

# Samples of a step, fewer where tensors are large: so many numbers suffice to tell a direction.
_ROWS, _LEAST_ROWS, _NUMBERS = 32, 8, 2_000_000

# How often the inputs of a block are those of the model so far, and not those of the float model.
_QUANTIZED = 0.5

# How fast scales move, to weights; and how far.
_SCALES, _NARROWEST, _WIDEST = 0.2, 0.5, 1.1

Arrays = list[Any]


def adaround(
    model: keras.Model,
    data: Any,
    bits: int | Mapping[str, int] = 4,
    *,
    steps: int = 200,
    block: int = 3,
    samples: int | None = 200,
    dense: str = "per_channel",
    convolution: str = "per_channel",
    seed: int = 0,
    progress: Progress | None = None,
) -> Rounded:
    """A copy of a model whose weights are rounded up or down as suits what the layers give.

    Block by block, in the order in which they are computed, it is learned for each weight whether
    it is rounded up or down (AdaRound: Nagel et al. 2020, arXiv:2004.10568), and how wide the grid
    of each channel is, such that the block gives what it gave in the float model. A block is one
    layer or several (BRECQ: Li et al. 2021, arXiv:2102.05426); the inputs of a block are at random
    those of the float model and those of what is rounded so far (QDrop: Wei et al. 2022,
    arXiv:2203.05740). Steps go by the sign of the gradient, which takes hundreds where AdaRound's
    own take thousands (SignRound: Cheng et al. 2023, arXiv:2309.05516). No labels are needed.

    Weights of 0 stay 0. Kernels of few different values, as clustering leaves them, stay as they
    are.

    Args:
        model: any built Keras 3 model of plain layers; it is left untouched.
        data: samples as `convert(calibration=)` takes them; some hundred, as in training.
        bits: of the codes, 2 to 8; or those of the layers that are to be changed, by name.
        steps: for each block.
        block: kernels that are rounded together at most, if a single tensor leads from block to
            block; 1 rounds layer by layer.
        samples: at most so many are taken, the first ones; None for all.
        dense, convolution: "per_channel" or "per_tensor" scales, as `convert` is to use.
        seed: of the order of the samples.
        progress: called as `progress(done, total)` after each block.

    Returns:
        A `Rounded`, as `gptq` gives; SQNR is that of the block that a layer belongs to.

    Raises:
        TypeError: if the model is not a Keras 3 model.
        ValueError: if the model is compressed or cannot be flattened, has no such layers, an
            argument is out of its range, or the data do not fit.

    Example:
        >>> import keras, numpy
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, name="head")])
        >>> data = numpy.random.default_rng(0).normal(size=(64, 8)).astype("float32")
        >>> adaround(model, data, bits=4, steps=20).scales["head"].shape
        (1, 3)
    """
    check(is_whole(steps), "steps", "a whole number of at least 1", steps, "200 is usual.")
    check(is_whole(block), "block", "a whole number of kernels, at least 1", block)
    flat = flat_copy(model)
    widths = widths_of(bits, flat)
    # All at once: steps draw from all samples of a shape.
    batches = batched(Graph.of(flat), data, 10**9, samples)
    rounded = reconstruct(
        flat,
        batches,
        widths,
        steps=steps,
        block=block,
        dense=dense,
        convolution=convolution,
        seed=seed,
        progress=progress,
    )
    return told(rounded, "adaround", widths)


def reconstruct(
    flat: keras.Model,
    batches: Sequence[Sequence[Any]],
    bits: Mapping[str, int],
    *,
    steps: int = 200,
    block: int = 3,
    dense: str = "per_channel",
    convolution: str = "per_channel",
    seed: int = 0,
    progress: Progress | None = None,
) -> Rounded:
    """Puts kernels of a flat model on grids in place, see `adaround`.

    Args:
        flat: with BatchNormalization folded; it is changed.
        batches: of samples, see `walk`; the samples of a step are of one batch.
        bits: of the layers that are changed, by name.
    """
    graph, random = Graph.of(flat), np.random.default_rng(seed)
    kernels = {
        id(k.layer): k
        for k in kernels_of(graph, dense, convolution)
        if k.name in bits and not k.is_table
    }
    scales: dict[str, np.ndarray] = {}
    sqnr: dict[str, tuple[float, float]] = {}
    blocks = blocks_of(graph, kernels, block)
    inputs = [id(t) for t in tree.flatten(graph.inputs)]
    plain = {key: [np.asarray(b[i]) for b in batches] for i, key in enumerate(inputs)}
    rounded = dict(plain)
    for number, part in enumerate(blocks, 1):
        before, now = (_read(part, values) for values in (plain, rounded))
        wanted = [part.run(arrays) for arrays in before]
        mine = part.kernels(kernels)
        if mine:
            learner = _Learner(part, mine, bits, before, now, wanted)
            found = learner.learn(steps, random)
            scales.update(learner.scales())
            sqnr.update(dict.fromkeys((k.name for k in mine), found))
        made = [part.run(arrays) for arrays in now]
        for values, each in ((plain, wanted), (rounded, made)):
            values.update({id(t): [x[i] for x in each] for i, t in enumerate(part.outputs)})
            for key in part.last:
                values.pop(key, None)
        if progress is not None:
            progress(number, len(blocks))
    return Rounded(flat, scales, sqnr)


def _read(part: Block, values: Mapping[int, Arrays]) -> list[Arrays]:
    """The inputs of a block for each batch."""
    columns = [values[id(t)] for t in part.inputs]
    return [list(row) for row in zip(*columns, strict=True)]


@dataclasses.dataclass
class Block:
    """Nodes that follow each other.

    Attributes:
        nodes: in topological order.
        inputs, outputs: what they read of others, and what others or the user read of them.
        last: the identities of the tensors that none reads after them.
    """

    nodes: list[Node]
    inputs: list[Any]
    outputs: list[Any]
    last: set[int]

    def kernels(self, known: Mapping[int, Kernel]) -> list[Kernel]:
        """Those of the block that are to be rounded."""
        found = {id(n.operation): known[id(n.operation)] for n in self._with(known)}
        return list(found.values())

    def _with(self, known: Mapping[int, Kernel]) -> list[Node]:
        return [n for n in self.nodes if id(n.operation) in known]

    def call(self, given: Arrays, weights: Mapping[int, Any]) -> Arrays:
        """What the block gives, with other values for some weights."""
        values = {id(t): x for t, x in zip(self.inputs, given, strict=True)}
        for node in self.nodes:
            args, kwargs = tree.map_structure(
                lambda x: values[id(x)] if isinstance(x, KerasTensor) else x,
                (node.args, node.kwargs),
            )
            if kwargs.get("training") is not None:
                kwargs = {**kwargs, "training": False}
            if any(id(v) in weights for v in getattr(node.operation, "variables", ())):
                made, _, _ = call_with(node.operation, dict(weights), *args, **kwargs)
            else:
                made = node.operation(*args, **kwargs)
            values.update({id(t): x for t, x in zip(node.outputs, tree.flatten(made), strict=True)})
        return [values[id(t)] for t in self.outputs]

    def run(self, given: Arrays) -> Arrays:
        """What the block gives for all rows of a batch, as NumPy arrays."""
        counted = [len(x) for t, x in zip(self.inputs, given, strict=True) if t.shape[0] is None]
        total = counted[0] if counted else 1
        if len(set(counted)) > 1:
            return [np.asarray(x) for x in self.call(given, {})]
        parts = [
            self.call(_rows(self.inputs, given, slice(i, i + _ROWS)), {})
            for i in range(0, total, _ROWS)
        ]
        return [
            np.concatenate([np.asarray(part[i]) for part in parts])
            if t.shape[0] is None
            else np.asarray(parts[0][i])
            for i, t in enumerate(self.outputs)
        ]


def _rows(tensors: list[Any], arrays: Arrays, which: Any) -> Arrays:
    """Some rows of arrays; those of tensors that do not count samples as they are."""
    return [x[which] if t.shape[0] is None else x for t, x in zip(tensors, arrays, strict=True)]


def blocks_of(graph: Graph, kernels: Mapping[int, Any], most: int) -> list[Block]:
    """A graph in pieces of `most` kernels or fewer, if few tensors lead from one to the next.

    Pieces end where a single tensor leads on, or where what began has too many kernels by far.
    """
    nodes = [node for node in graph.nodes if not node.is_input]
    until = {id(t): number for number, node in enumerate(nodes) for t in node.inputs}
    until.update({id(t): len(nodes) for t in tree.flatten(graph.outputs)})
    pieces: list[list[Node]] = [[]]
    live = {id(t) for t in tree.flatten(graph.inputs)}
    for number, node in enumerate(nodes):
        pieces[-1].append(node)
        live |= {id(t) for t in node.outputs}
        live = {key for key in live if until.get(key, -1) > number}
        if len(live) <= 1 or _count(pieces[-1], kernels) >= 2 * most:
            pieces.append([])
    joined: list[list[Node]] = []
    for piece in filter(None, pieces):
        count = _count(piece, kernels)
        if joined and (not count or _count(joined[-1], kernels) + count <= most):
            joined[-1] += piece
        else:
            joined.append(piece)
    return _linked(graph, joined, until)


def _count(piece: list[Node], kernels: Mapping[int, Any]) -> int:
    return len({id(n.operation) for n in piece} & kernels.keys())


def _linked(graph: Graph, pieces: list[list[Node]], until: Mapping[int, int]) -> list[Block]:
    """Blocks of pieces of a graph, which know what they read and give."""
    found, end = [], 0
    for piece in pieces:
        end += len(piece)
        made = {id(t) for node in piece for t in node.outputs}
        read = {id(t): t for node in piece for t in node.inputs if id(t) not in made}
        given = [t for node in piece for t in node.outputs if until.get(id(t), -1) >= end]
        last = {key for key in read if until[key] < end}
        found.append(Block(piece, list(read.values()), given, last))
    return found


class _Learner:
    """Learns how the kernels of a block are rounded.

    Args:
        part: the block.
        kernels: which of its kernels.
        bits: by name of a layer.
        before, now: its inputs in the float model, and in what is rounded so far, by batch.
        wanted: what it gave in the float model.
    """

    def __init__(self, part: Block, kernels, bits, before, now, wanted):
        self.part, self.kernels = part, kernels
        self.before, self.now, self.wanted = before, now, wanted
        self.top = [levels(bits[k.name]) for k in kernels]
        self.values = [k.value for k in kernels]
        found = [
            weight_scale(v, k.reduced, bits[k.name], "mse")
            for k, v in zip(kernels, self.values, strict=True)
        ]
        self.scale = [np.where(s > 0, s, 1.0).astype(np.float32) for s in found]
        # What is added before rounding, and by what the scale is multiplied.
        self.shifts = [tf.Variable(np.zeros_like(v)) for v in self.values]
        self.factors = [tf.Variable(np.ones_like(s)) for s in self.scale]
        power = [np.mean([np.mean(np.square(x[i])) for x in wanted]) for i in range(len(wanted[0]))]
        self.weights = [1.0 / max(float(p), 1e-12) for p in power]

    def learn(self, steps: int, random: np.random.Generator) -> tuple[float, float]:
        """The SQNR of the block with kernels rounded to nearest, and as learned; the better stays.

        Changes the kernels.
        """
        nearest, start = self._assign(), self._loss()
        if self._is_counted():
            step = tf.function(self._step, reduce_retracing=True)
            sizes = np.array([len(x[0]) for x in self.wanted], float)
            for number in range(steps):
                batch = random.choice(len(sizes), p=sizes / sizes.sum())
                rate = (1.0 - number / steps) / steps
                seeds = tf.constant(random.integers(2**31, size=2), tf.int64)
                step(*self._drawn(batch, random), tf.constant(rate, tf.float32), seeds)
        self._assign()
        end = self._loss()
        if not end < start:
            for kernel, value in zip(self.kernels, nearest, strict=True):
                kernel.variable.assign(value)
            for factor in self.factors:
                factor.assign(tf.ones_like(factor))
        return _decibels(start), _decibels(min(start, end))

    def _is_counted(self) -> bool:
        """Whether the first axis of all that a step draws rows of counts the same samples."""
        tensors, arrays = (*self.part.inputs, *self.part.outputs), (*self.now[0], *self.wanted[0])
        return len({len(x) for t, x in zip(tensors, arrays, strict=True) if _counts(t)}) == 1

    def scales(self) -> dict[str, np.ndarray]:
        """The steps of the grids, by name of the layer."""
        named = zip(self.kernels, self.scale, self.factors, strict=True)
        return {kernel.name: scale * factor.numpy() for kernel, scale, factor in named}

    def _drawn(self, batch: int, random: np.random.Generator) -> list[Arrays]:
        """Rows of a batch: inputs before and now, and what is wanted."""
        wanted = self.wanted[batch]
        count = len(wanted[0])
        largest = max(int(np.prod(x.shape[1:])) for x in (*wanted, *self.now[batch]))
        rows = min(count, max(_LEAST_ROWS, min(_ROWS, _NUMBERS // max(largest, 1))))
        which = random.choice(count, rows, replace=False)
        part = self.part
        found = [_rows(part.inputs, each[batch], which) for each in (self.before, self.now)]
        found.append(_rows(part.outputs, wanted, which))
        return [[tf.convert_to_tensor(x) for x in each] for each in found]

    def _step(self, before: Arrays, now: Arrays, wanted: Arrays, rate, seeds) -> None:
        given = [
            tf.where(tf.random.stateless_uniform(tf.shape(b), seeds + i) < _QUANTIZED, b, a)
            if b.dtype.is_floating
            else b
            for i, (a, b) in enumerate(zip(before, now, strict=True))
        ]
        with tf.GradientTape() as tape:
            made = self.part.call(given, self._soft())
            loss = self._distance(made, wanted)
        slopes = tape.gradient(loss, (self.shifts, self.factors), unconnected_gradients="zero")
        for shift, slope in zip(self.shifts, slopes[0], strict=True):
            shift.assign(tf.clip_by_value(shift - rate * tf.sign(slope), -0.5, 0.5))
        for factor, slope in zip(self.factors, slopes[1], strict=True):
            moved = factor - _SCALES * rate * tf.sign(slope)
            factor.assign(tf.clip_by_value(moved, _NARROWEST, _WIDEST))

    def _distance(self, made: Arrays, wanted: Arrays):
        """How far outputs are from those wanted, each in parts of its power."""
        squares = [tf.reduce_mean(tf.square(a - b)) for a, b in zip(made, wanted, strict=True)]
        return tf.add_n([w * s for w, s in zip(self.weights, squares, strict=True)])

    def _soft(self) -> dict[int, Any]:
        """Kernels on their grids, whose gradients pass to shifts and factors."""
        found = {}
        for kernel, value, scale, top, shift, factor in self._kernels():
            exact = value / (scale * factor) + shift
            rounded = exact + tf.stop_gradient(tf.round(exact) - exact)
            found[id(kernel.variable)] = tf.clip_by_value(rounded, -top, top) * scale * factor
        return found

    def _assign(self) -> list[np.ndarray]:
        """Gives the kernels what was learned so far."""
        found = []
        for kernel, value, scale, top, shift, factor in self._kernels():
            step = scale * factor.numpy()
            codes = np.clip(np.rint(value / step + shift.numpy()), -top, top)
            found.append((codes * step).astype(np.float32))
            kernel.variable.assign(found[-1])
        return found

    def _kernels(self):
        return zip(
            self.kernels, self.values, self.scale, self.top, self.shifts, self.factors, strict=True
        )

    def _loss(self) -> float:
        """The distance over all samples, of the kernels as they are."""
        found = [
            float(self._distance(self.part.run(now), wanted))
            for now, wanted in zip(self.now, self.wanted, strict=True)
        ]
        return float(np.mean(found)) / len(self.weights)


def _counts(tensor) -> bool:
    """Whether the first axis of a tensor counts samples."""
    return tensor.shape[0] is None


def _decibels(noise: float) -> float:
    return -10 * math.log10(max(noise, 1e-30))
