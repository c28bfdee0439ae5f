"""What a model's outputs lose when layers are computed in fewer bits: simulated, without labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from tfcompress.graph.nodes import Graph, Node
from tfcompress.post_training.kernels import Kernel, on_grid
from tfcompress.post_training.walk import Call, run, walk
from tfcompress.surgery.pruning.judging import Batch, gradients_of
from tfcompress.techniques.scales import levels, weight_scale

# Bits of (weights, activations) as integers; None for floats.
BITS: dict[str, tuple[int | None, int | None]] = {
    "int8": (8, 8),
    "int4": (4, 8),
    "int2": (2, 8),
    "int4_blockwise": (4, None),
    "int16x8": (8, 16),
    "float16": (None, None),
    "float32": (None, None),
}
BLOCK = 32  # weights of an input that share a scale, blockwise

# Probabilities below count as this: a file in int8 gives them in steps of as much.
_LEAST = 2.0**-8
# Of random signs that the curvature is averaged over.
_DRAWS = 4


def rounded(kernel: Kernel, precision: str, observer: str = "max") -> np.ndarray:
    """A kernel as the file of a precision holds it, with scales of a `weight_observer`."""
    value = kernel.value
    if precision == "float16":
        return value.astype(np.float16).astype(np.float32)
    bits = BITS[precision][0]
    if bits is None:
        return value
    if precision != "int4_blockwise":
        return on_grid(value, weight_scale(value, kernel.reduced, bits, observer), bits)
    blocks = value.reshape(-1, math.gcd(value.shape[0], BLOCK), value.shape[-1])
    scale = weight_scale(blocks, (1,), bits, observer)
    return on_grid(blocks, scale, bits).reshape(value.shape)


class _Simulated(keras.Model):
    """A flat model in which what comes to layers is rounded to grids.

    Attributes:
        grids: by layer (step, least and greatest value in steps); a step of 0 rounds nothing.
    """

    def __init__(self, flat: keras.Model, names: Sequence[str]):
        super().__init__(name="simulated")
        self.flat, self.graph = flat, Graph.of(flat)
        self.grids = {
            name: self.add_weight(shape=(3,), initializer="zeros", trainable=False)
            for name in names
        }

    def call(self, inputs: list[Any]) -> list[Any]:
        def visit(node: Node, calls: list[Call]) -> list[Any]:
            grid = self.grids.get(node.name)
            if grid is not None:
                calls = tree.map_structure(lambda x: _on(grid, x) if ops.is_tensor(x) else x, calls)
            return run(node, calls)

        return tree.flatten(walk(self.graph, [inputs], visit)[0])


def _on(grid: Any, x: Any) -> Any:
    step, least, greatest = (ops.cast(grid[i], x.dtype) for i in range(3))
    codes = ops.clip(ops.round(x / ops.where(step > 0, step, 1.0)), least, greatest)
    return ops.where(step > 0, codes * step, x)


class Simulation:
    """A flat model on samples, any of whose layers can be computed in other precisions.

    Args:
        flat: the model; its kernels change while it is measured, and are given back.
        kernels: of the layers.
        inputs: of each input the samples, in the order of the model's inputs.
        batch_size: samples at a time.
        observer: which scales weights get, as `weight_observer` of `convert`.
    """

    def __init__(
        self,
        flat: keras.Model,
        kernels: Sequence[Kernel],
        inputs: Sequence[np.ndarray],
        batch_size: int = 128,
        observer: str = "max",
    ):
        self.kernels = {kernel.name: kernel for kernel in kernels}
        self._observer = observer
        self._inputs, count = list(inputs), len(inputs[0])
        # Batches of one size, as each is compiled.
        self._size = math.ceil(count / math.ceil(count / batch_size))
        self._model = _Simulated(flat, list(self.kernels))
        self._model.compile(jit_compile=keras.backend.backend() == "jax")
        self._ranges = self._observed()
        self.reference = self._outputs()

    def lost(self, precisions: Mapping[str, str]) -> dict[str, float]:
        """What the outputs lose with some layers in other precisions, see `lost`."""
        old = {name: self.kernels[name].value for name in precisions}
        for name, precision in precisions.items():
            self.kernels[name].variable.assign(self.rounded(name, precision))
            self._model.grids[name].assign(_grid(*self._ranges[name], BITS[precision][1]))
        found = lost(self.reference, self._outputs())
        for name, value in old.items():
            self.kernels[name].variable.assign(value)
            self._model.grids[name].assign(np.zeros(3, np.float32))
        return found

    def rounded(self, name: str, precision: str) -> np.ndarray:
        """The kernel of a layer as the file of a precision holds it."""
        return rounded(self.kernels[name], precision, self._observer)

    def curvature(self) -> dict[str, np.ndarray]:
        """By layer what the outputs lose by the square of a change of each weight.

        It is the diagonal of the Gauss-Newton matrix of `lost`: squares of the gradients of outputs
        under random signs, which for probabilities is Fisher's (Dong et al. 2020, arXiv:1911.03852,
        weight errors likewise, by the trace of each layer).
        """
        random = np.random.default_rng(0)
        kernels = list(self.kernels.values())
        signs: list[np.ndarray] = []
        factors = [_factor(x) for x in self.reference]

        def loss(batch: Batch) -> Any:
            outputs = self._model(batch.x, training=False)
            return sum(ops.sum(y * sign) for y, sign in zip(outputs, batch.y, strict=True))

        squares = gradients_of(loss, [k.variable for k in kernels], lambda g: [x * x for x in g])
        totals = [np.zeros(k.value.shape) for k in kernels]
        count = len(self.reference[0])
        for start in [s for _ in range(_DRAWS) for s in range(0, count, self._size)]:
            rows = slice(start, start + self._size)
            signs = [random.choice((-1.0, 1.0), f[rows].shape) * f[rows] for f in factors]
            given = Batch([x[rows] for x in self._inputs], [s.astype("f4") for s in signs], None)
            for total, found in zip(totals, squares(given), strict=True):
                total += ops.convert_to_numpy(found) / _DRAWS
        return {k.name: total for k, total in zip(kernels, totals, strict=True)}

    def _outputs(self) -> list[np.ndarray]:
        found = self._model.predict(self._inputs, batch_size=self._size, verbose=0)
        return [np.asarray(x, np.float64) for x in tree.flatten(found)]

    def _observed(self) -> dict[str, tuple[float, float]]:
        """The least and the greatest value that come to each layer."""
        graph, names = self._model.graph, list(self.kernels)
        nodes = [node for node in graph.nodes if node.name in self.kernels]
        part = keras.Model(tree.flatten(graph.inputs), [node.inputs[0] for node in nodes])
        ranges = dict.fromkeys(names, (0.0, 0.0))
        for start in range(0, len(self._inputs[0]), self._size):
            given = [x[start : start + self._size] for x in self._inputs]
            for node, x in zip(nodes, tree.flatten(part.predict_on_batch(given)), strict=True):
                low, high = ranges[node.name]
                ranges[node.name] = min(low, float(np.min(x))), max(high, float(np.max(x)))
        return ranges


def _grid(low: float, high: float, bits: int | None) -> np.ndarray:
    """(step, least and greatest value in steps) of activations from `low` to `high`."""
    if bits is None or high <= low:
        return np.zeros(3, np.float32)
    if bits == 16:
        step, most = max(-low, high) / levels(16), levels(16)
        return np.array([step, -most, most], np.float32)
    step = (high - low) / (2**bits - 1)
    least = np.rint(low / step)
    return np.array([step, least, least + 2**bits - 1], np.float32)


def lost(reference: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> dict[str, float]:
    """How far outputs are from those of the float model.

    Returns {"outputs": the mean over outputs of what each loses, "sqnr": of all together, in dB}.
    Probabilities lose their Kullback-Leibler divergence in nats, other outputs the power of the
    noise over that of what differs from sample to sample: what is always there tells nothing.
    """
    parts = [
        _divergence(r, f) if _are_probabilities(r) else _ratio(_noise(r, f), _signal(r))
        for r, f in zip(reference, found, strict=True)
    ]
    noise = sum(_noise(r, f) for r, f in zip(reference, found, strict=True))
    ratio = _ratio(noise, sum(float(np.square(r).sum()) for r in reference))
    sqnr = -10 * math.log10(ratio) if ratio > 0 else math.inf
    return {"outputs": float(np.mean(parts)), "sqnr": sqnr}


def _are_probabilities(x: np.ndarray) -> bool:
    known = x.ndim > 1 and x.shape[-1] > 1 and x.min(initial=0) >= 0
    return known and bool(np.allclose(x.sum(axis=-1), 1, atol=1e-3))


def _divergence(reference: np.ndarray, found: np.ndarray) -> float:
    p, q = (np.maximum(x, _LEAST) for x in (reference, found))
    p, q = (x / x.sum(axis=-1, keepdims=True) for x in (p, q))
    return float(np.mean(np.sum(p * np.log(p / q), axis=-1)))


def _noise(reference: np.ndarray, found: np.ndarray) -> float:
    return float(np.square(found - reference).sum())


def _signal(reference: np.ndarray) -> float:
    """The power of what differs from sample to sample; all of it if nothing does."""
    varying = float(np.square(reference - reference.mean(axis=0)).sum())
    whole = float(np.square(reference).sum())
    return varying if varying > 1e-12 * whole else whole


def _ratio(noise: float, signal: float) -> float:
    return noise / signal if signal > 0 else (math.inf if noise > 0 else 0.0)


def _factor(reference: np.ndarray) -> np.ndarray:
    """What the square of an output's change is multiplied by, under the root."""
    if _are_probabilities(reference):
        rows = reference.size // reference.shape[-1]
        return np.sqrt(0.5 / np.maximum(reference, _LEAST) / rows)
    return np.full(reference.shape, 1 / math.sqrt(max(_signal(reference), 1e-30)))
