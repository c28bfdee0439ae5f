"""Corrections of a model before its weights become integers, and what each is worth.

Each is tried, and stays if it helps on calibration data that it was not made with.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from tfcompress.errors import expected_one_of
from tfcompress.graph.flatten import flatten
from tfcompress.graph.folding import folded
from tfcompress.graph.nodes import Graph
from tfcompress.kinds import DEPTHWISE, TRANSPOSED, is_of
from tfcompress.post_training.adaround_model import reconstruct
from tfcompress.post_training.batch_norm import reestimate_batch_norm
from tfcompress.post_training.bias import correct_bias
from tfcompress.post_training.equalization import equalize
from tfcompress.post_training.gptq_model import round_kernels
from tfcompress.post_training.kernels import Kernel, kernels_of, on_grid
from tfcompress.post_training.walk import batched, walk
from tfcompress.quantization.opening import name_outputs, opened_by, output_names
from tfcompress.techniques.rules import Rules
from tfcompress.techniques.scales import weight_scale

# In the order in which they are tried; of those that round the better one stays.
STEPS = ("batch_norm", "equalize", "gptq", "adaround", "bias")
ROUNDING = ("gptq", "adaround")
BEST = tuple(step for step in STEPS if step != "batch_norm")
# "none"; "fast": gptq of kernels of fewer than 8 bits; "best": BEST of all kernels.
PRESETS = ("none", "fast", "best")

# Samples that are used, the first ones; and from how many on a quarter is kept to judge by.
SAMPLES, _ENOUGH = 240, 40

# Samples that are computed at once.
_BATCH = 32


def check_tune(tune: Any) -> str | tuple[str, ...]:
    """A preset, or steps, each of them known."""
    if isinstance(tune, str) and tune in PRESETS:
        return tune
    steps = (tune,) if isinstance(tune, str) else tuple(tune)
    for step in steps:
        if step not in STEPS:
            known = (*PRESETS, *STEPS) if isinstance(tune, str) else STEPS
            raise ValueError(f"unknown tune {step!r}; {expected_one_of(str(step), known)}")
    return steps


def require_no_tune(tune: Any, expected: str) -> None:
    """Raises if a model is to be tuned that cannot be."""
    if tune not in (None, "none"):
        raise ValueError(
            f"tune is for {expected}; received tune={tune!r} with another. Leave it out, or pass "
            "the float Keras model and calibration= (--calibration)."
        )


@dataclasses.dataclass(frozen=True)
class Step:
    """A correction.

    Attributes:
        name: one of `STEPS`.
        before, after: signal to quantization noise ratio, in dB, of the model's outputs with
            weights rounded and activations float, on calibration samples that it was not made with.
        kept: whether it stayed, as it helped.
        layers: how many it changed.
        seconds: it took.
    """

    name: str
    before: float
    after: float
    kept: bool
    layers: int
    seconds: float

    def __str__(self) -> str:
        verdict = "" if self.kept else ": left out"
        return f"{self.name}: SQNR {self.before:.1f} -> {self.after:.1f} dB{verdict}"


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A model whose kernels are what a file is to hold.

    Attributes:
        model: flat and opened.
        scales: by name of a layer, the steps of the grid that its kernel lies on, keepdims.
        steps: what was done.
        origins: by the ids of operations, the names of the layers that they were opened from.
        flat: the model as it was.
        grids: layer and scales by the content of kernels as a file has them.
    """

    model: keras.Model
    scales: dict[str, np.ndarray]
    steps: tuple[Step, ...]
    origins: dict[int, str]
    flat: keras.Model
    grids: dict[bytes, tuple[str, np.ndarray]]

    def give(self, rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, list[np.ndarray]]:
        """What the model as it was gives for batches, by the names of outputs in a file."""
        graph = Graph.of(self.flat)
        names = [tensor.name for tensor in tree.flatten(graph.inputs)]
        made = walk(graph, [[row[name] for name in names] for row in rows])
        columns = zip(*(tree.flatten(each) for each in made), strict=True)
        found = [[ops.convert_to_numpy(x) for x in column] for column in columns]
        return dict(zip(output_names(self.flat), found, strict=True))

    def prepared(self) -> tuple[keras.Model, dict[int, str]]:
        """What `to_float` takes: outputs are named as those of the model as it was."""
        name_outputs(self.flat, Graph.of(self.model), None)
        return self.model, self.origins


def tuned(
    model: keras.Model,
    rules: Rules,
    rows: Iterator[Mapping[str, np.ndarray]],
    steps: str | Sequence[str],
    precision_of: Callable[[Any, Any], int | None],
    progress: Callable[[int, int], Any],
    **granularity: str,
) -> Tuned:
    """A plain model opened into what has integer kernels, and corrected for weights of some bits.

    Args:
        rules: as `opened_by` takes them.
        rows: calibration samples, one by one, of which `SAMPLES` are used.
        steps: a preset or names of `STEPS`.
        precision_of: the bits of the kernel of an opened layer, by the layer of the flat model that
            it came from; None if it stays float.
        progress: called as `progress(done, total)` before each step.
        granularity: `dense` and `convolution`, see `kernels_of`.
    """
    flat = flatten(model)
    opened, origins = opened_by(model, rules)
    layers = {operation.name: operation for operation in flat.operations}
    came = {k.name: origins.get(id(k.layer), k.name) for k in kernels_of(Graph.of(opened))}
    named = {operation.name: origins.get(id(operation)) for operation in opened.operations}
    bits = {
        k.name: width
        for k in kernels_of(Graph.of(opened))
        if (width := precision_of(k.layer, layers.get(came[k.name]))) is not None
    }
    tuner = _Tuner(opened, list(itertools.islice(rows, SAMPLES)), bits, granularity)
    made, scales = tuner.run(steps, progress)
    from_layers = {id(x): named.get(x.name) or x.name for x in made.operations}
    rounded = (k for k in kernels_of(Graph.of(made)) if k.name in scales)
    grids = {content(k): (k.name, scales[k.name]) for k in rounded}
    return Tuned(made, scales, tuple(tuner.steps), from_layers, flat, grids)


def content(kernel: Kernel) -> bytes:
    """A kernel's numbers in the order that a file has them in: channel by channel."""
    value = kernel.value
    # A convolution of one channel is written as a depthwise one: (rows, columns, channels).
    if is_of(kernel.layer, DEPTHWISE) or (value.ndim > 2 and value.shape[-2] == 1):
        return value.tobytes()
    axis = value.ndim - 2 if is_of(kernel.layer, TRANSPOSED) else value.ndim - 1
    return np.ascontiguousarray(np.moveaxis(value, axis, 0)).tobytes()


class _Tuner:
    """A model on its way, with what it gave as a float one.

    `base` is the float model that rounding starts from; `model` the best one so far, of which
    `scales` tells the kernels that lie on grids.
    """

    def __init__(self, opened, rows, bits: Mapping[str, int], granularity: Mapping[str, str]):
        self.how, self.bits = granularity, dict(bits)
        held = len(rows) // 4 if len(rows) >= _ENOUGH else 0
        # Spread, as neighbours may be alike.
        judging = set(np.linspace(0, len(rows) - 1, held).astype(int).tolist())
        self.learned = [row for i, row in enumerate(rows) if i not in judging]
        self.judged = [row for i, row in enumerate(rows) if i in judging or not held]
        self.unfolded, self.steps = opened, list[Step]()
        self.wanted = self._outputs(opened)

    def run(self, steps: str | Sequence[str], progress) -> tuple[keras.Model, dict]:
        """The corrected model, which uses up the one that was given, and its scales."""
        todo = self._todo(steps)
        if "batch_norm" in todo:
            self._reestimate()
        self.base = self.model = folded(self.unfolded)
        self.scales: dict[str, np.ndarray] = {}
        self.sqnr = self._judge(self.model, {})
        for number, name in enumerate(todo):
            if progress is not None:
                progress(number, len(todo))
            if name != "batch_norm":
                self._take(name)
        return self.model, self.scales

    def _todo(self, steps: str | Sequence[str]) -> list[str]:
        """The steps that have something to do, in their order."""
        if steps == "fast":
            self.bits = {name: width for name, width in self.bits.items() if width < 8}
            steps = ("gptq",) if self.bits else ()
        elif steps == "best":
            tensorwise = "per_tensor" in self.how.values()
            steps = [step for step in BEST if tensorwise or step != "equalize"]
        return [name for name in STEPS if name in steps and (self.bits or name == "batch_norm")]

    def _reestimate(self) -> None:
        """Takes other statistics; what follows is judged by what the model gives with them."""
        start, before = time.perf_counter(), self.unfolded
        self.unfolded = reestimate_batch_norm(before, self._rows(), samples=None)
        found = self._outputs(self.unfolded)
        sqnr, changed = _sqnr(self.wanted, found), _changed(before, self.unfolded)
        self.wanted = found
        seconds = round(time.perf_counter() - start, 3)
        self.steps.append(Step("batch_norm", sqnr, sqnr, True, changed, seconds))

    def _take(self, name: str) -> None:
        """Tries a step, and keeps what it made if it helps."""
        start, before = time.perf_counter(), self.sqnr
        made, scales = getattr(self, f"_{name}")()
        after = self._judge(made, scales)
        changed, kept = _changed(self.model, made), after > before
        if kept:
            self.model, self.scales, self.sqnr = made, scales, after
            self.base = made if name == "equalize" else self.base
        seconds = round(time.perf_counter() - start, 3)
        self.steps.append(Step(name, before, after, kept, changed, seconds))

    def _equalize(self) -> tuple[keras.Model, dict[str, np.ndarray]]:
        return equalize(self.base, self._rows(), samples=None), {}

    def _gptq(self):
        flat = flatten(self.base)
        rounded = round_kernels(flat, self._batches(flat, _BATCH), self.bits, **self.how)
        return flat, rounded.scales

    def _adaround(self):
        flat = flatten(self.base)
        # All of a shape at once: steps draw from them.
        rounded = reconstruct(flat, self._batches(flat, len(self.learned)), self.bits, **self.how)
        return flat, rounded.scales

    def _bias(self):
        quantized = flatten(self.model)
        for kernel, value in self._nearest(quantized, self.scales):
            kernel.variable.assign(value)
        made = correct_bias(quantized, self.base, self._rows(), samples=None)
        plain = {kernel.name: kernel.value for kernel in kernels_of(Graph.of(self.model))}
        for kernel in kernels_of(Graph.of(made)):
            kernel.variable.assign(plain[kernel.name])
        return made, self.scales

    def _nearest(self, model, scales) -> Iterator[tuple[Kernel, np.ndarray]]:
        """Kernels that are not on a grid yet, and what the file would make of them."""
        for kernel in kernels_of(Graph.of(model), **self.how):
            if kernel.name in self.bits and kernel.name not in scales:
                width, value = self.bits[kernel.name], kernel.value
                yield kernel, on_grid(value, weight_scale(value, kernel.reduced, width), width)

    def _judge(self, model, scales) -> float:
        """The SQNR in dB of what a model gives with its weights rounded."""
        rounded = list(self._nearest(model, scales))
        old = [(kernel, kernel.value) for kernel, _ in rounded]
        for kernel, value in rounded:
            kernel.variable.assign(value)
        found = self._outputs(model)
        for kernel, value in old:
            kernel.variable.assign(value)
        return _sqnr(self.wanted, found)

    def _outputs(self, model) -> list[list[np.ndarray]]:
        """What a model gives for the samples to judge by: by output and batch."""
        graph = Graph.of(model)
        made = walk(graph, batched(graph, iter(self.judged), _BATCH, None))
        columns = zip(*(tree.flatten(each) for each in made), strict=True)
        return [[ops.convert_to_numpy(x) for x in column] for column in columns]

    def _rows(self) -> Iterator[Mapping[str, np.ndarray]]:
        return iter(self.learned)

    def _batches(self, flat, size: int) -> list[list[np.ndarray]]:
        return batched(Graph.of(flat), self._rows(), size, None)


def _sqnr(wanted: list[list[np.ndarray]], found: list[list[np.ndarray]]) -> float:
    """Signal to quantization noise in dB, the mean over outputs; at most 200."""
    ratios = []
    for a, b in zip(wanted, found, strict=True):
        signal = sum(float(np.square(x, dtype=np.float64).sum()) for x in a)
        noise = sum(
            float(np.square(np.subtract(x, y, dtype=np.float64)).sum())
            for x, y in zip(a, b, strict=True)
        )
        ratios.append(10 * np.log10(max(signal, 1e-300) / max(noise, 1e-20 * signal, 1e-300)))
    return round(float(np.mean(ratios)), 2)


def _changed(before: keras.Model, after: keras.Model) -> int:
    """How many layers have other weights than before."""
    old = {layer.name: layer.get_weights() for layer in before.layers}
    return sum(
        len(old.get(layer.name, ())) != len(layer.weights)
        or not all(map(np.array_equal, layer.get_weights(), old[layer.name]))
        for layer in after.layers
    )
