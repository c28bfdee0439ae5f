"""What calibration data look like, and words where the model was hardly trained on such data."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import layers, tree

from tfcompress.files import samples as samples_of
from tfcompress.graph.flatten import as_flat, flatten
from tfcompress.graph.inputs import inputs_of
from tfcompress.graph.nodes import Graph, Node
from tfcompress.graph.pixels import normalization_in_front

Sample = dict[str, np.ndarray]

# Fewer samples than this seldom show the range that an activation has.
_FEW = 5
# A scale is taken for another one from this factor on: pixels are off by 255.
_OFF = 30.0
# Samples that are compared with what BatchNormalization saw in training.
_COMPARED = 32


class Watched:
    """Samples on their way, which remembers what must be told of them.

    Args:
        samples: one by one, one more than `limit` if there are as many.
        limit: how many are to be taken; None for all.
    """

    def __init__(self, samples: Iterator[Sample], limit: int | None):
        self._samples, self.limit = samples, limit
        self.count, self.more = 0, False
        self.first: list[Sample] = []
        self.limits: dict[str, tuple[float, float]] = {}
        self.whole = True

    def __iter__(self) -> Iterator[Sample]:
        for sample in itertools.islice(self._samples, self.limit):
            self.count += 1
            if len(self.first) < _COMPARED:
                self.first.append(sample)
            numbers = {k: v for k, v in sample.items() if v.dtype.kind != "O"}
            for name, values in numbers.items():
                low, high = float(np.min(values)), float(np.max(values))
                before = self.limits.get(name, (low, high))
                self.limits[name] = min(low, before[0]), max(high, before[1])
                self.whole = self.whole and bool(np.all(values == np.round(values)))
            yield sample
        try:
            self.more = next(self._samples, None) is not None
        except ValueError:  # one that is not used need not be valid
            self.more = True


def sized(model: keras.Model, data: Any) -> tuple[keras.Model, Any]:
    """A model whose inputs leave sizes open, at those of the first sample; and the data again."""
    structure = inputs_of(getattr(model, "_functional", None) or model)[0]
    tensors = tree.flatten(structure)
    if not any(None in t.shape[1:] for t in tensors):
        return model, data
    start = data
    if isinstance(data, Iterator):
        start, data = itertools.tee(data)  # which keeps what the first has taken
    first = next(samples_of.batches(start, tensors, limit=1))
    inputs = tree.map_structure(
        lambda t: keras.Input(first[t.name].shape[1:], dtype=t.dtype, name=t.name), structure
    )
    return flatten(model, inputs=inputs), data


def warn_unused(why: str) -> None:
    """Warns of calibration data that have no effect."""
    warnings.warn(
        f"calibration= has no effect: {why}. Leave it out, or convert the float model with it.",
        stacklevel=5,
    )


def told(seen: Watched, model: Any) -> list[str]:
    """Notes on calibration data; warns of data that can hardly be those of the training."""
    if seen.count < _FEW:
        warnings.warn(
            f"calibration with {seen.count} sample{'s' * (seen.count > 1)} shows few of the values "
            "that activations have; expected a few hundred of the training's samples. Pass more.",
            stacklevel=6,
        )
    for name, (low, high) in seen.limits.items():
        if low == high:
            warnings.warn(
                f"the calibration data of input '{name}' are {low:g} everywhere, so that ranges "
                "of activations are those of one value; expected samples of the training. Look at "
                "how they are loaded.",
                stacklevel=6,
            )
    if isinstance(model, keras.Model) and len(seen.limits) == 1:
        low, high = next(iter(seen.limits.values()))
        reason = _of_another_scale(seen, model) if low < high else None
        if reason:
            warnings.warn(
                f"the calibration data, from {low:g} to {high:g}, are hardly scaled as in "
                f"training: {reason}. Scale them as there; the ranges of the file are theirs.",
                stacklevel=6,
            )
    if not seen.more:
        return []
    return [f"calibrated with the first {seen.count} samples of more; samples= takes others"]


def _of_another_scale(seen: Watched, model: keras.Model) -> str | None:
    """Why data cannot have the scale of those that a model was trained on; None if they can."""
    low, high = next(iter(seen.limits.values()))
    shape = seen.first[0][next(iter(seen.limits))].shape
    pixels = len(shape) == 4 and shape[-1] in (1, 3)
    try:
        flat = as_flat(model)
    except Exception:  # What users' layers raise, where they cannot be looked into, is of any kind.
        return None
    expected = normalization_in_front(flat) if pixels else None
    if expected is not None:
        ends = [
            (p - m) / s for p in (0, 255) for m, s in zip(expected.mean, expected.std, strict=True)
        ]
        factor = max(abs(low), abs(high)) / max(map(abs, ends))
        reason = f"the preprocessing inside takes values from {min(ends):.3g} to {max(ends):.3g}"
        return reason if not 1 / _OFF < factor < _OFF else None
    statistics = _first_statistics(Graph.of(flat))
    if statistics is not None:
        return _by_statistics(flat, *statistics, seen.first)
    if pixels and seen.whole and low >= 0 and 32 < high <= 255:
        return "they are whole numbers as of raw pixels, and nothing in the model scales them"
    return None


def _first_statistics(graph: Graph) -> tuple[Node, np.ndarray, np.ndarray] | None:
    """The first layer that knows the mean and variance of its input, with these."""
    for node in graph.nodes:
        operation = node.operation
        if isinstance(operation, layers.BatchNormalization):
            mean, variance = operation.moving_mean, operation.moving_variance
        elif isinstance(operation, layers.Normalization) and not operation.invert:
            mean, variance = operation.mean, operation.variance
        else:
            continue
        # Not by NumPy, of which TensorFlow's values warn.
        mean, variance = map(keras.ops.convert_to_numpy, (mean, variance))
        if np.any(mean != 0) or np.any(variance != 1):  # it was trained
            return node, mean, variance
    return None


def _by_statistics(flat, node: Node, mean, variance, samples: list[Sample]) -> str | None:
    part = keras.Model(flat.inputs, node.inputs[0])
    values = part.predict(np.concatenate([x for s in samples for x in s.values()]), verbose=0)
    found = float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
    factor = found / float(np.sqrt(np.mean(np.square(mean) + variance)))
    if 1 / _OFF < factor < _OFF:
        return None
    more = f"{factor:.0f} times" if factor > 1 else f"1/{1 / max(factor, 1e-9):.0f} of"
    return f"what comes to '{node.name}' is {more} what it was"
