"""What calibration data look like, and words where the model was hardly trained on such data."""

from __future__ import annotations

import itertools
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, tree

from tfcompress.conversion.observation import Observed
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


class Calibration:
    """The first samples of calibration data, checked, and what is to be told of them.

    Args:
        data: see `files.samples.batches`.
        inputs: of the model, or of a file.
        limit: how many samples to take; None for all.

    Attributes:
        rows: the samples, which are given out once.
        more: whether there were others.
        limits: least and greatest value of each input of numbers.
    """

    def __init__(self, data: Any, inputs: Sequence[samples_of.Input], limit: int | None):
        samples_of.check_limit(limit)
        found = samples_of.batches(data, inputs, limit=None if limit is None else limit + 1)
        self.rows = deque(itertools.islice(found, limit))
        try:
            self.more = next(found, None) is not None
        except ValueError:  # one that is not used need not be valid
            self.more = True
        self.first = list(itertools.islice(self.rows, _COMPARED))
        self.count = len(self.rows)
        numbers = [name for name, values in self.first[0].items() if values.dtype.kind != "O"]
        self.limits = {
            name: (
                float(min(np.min(row[name]) for row in self.rows)),
                float(max(np.max(row[name]) for row in self.rows)),
            )
            for name in numbers
        }
        self.whole = all(np.all(r[n] == np.round(r[n])) for r in self.first for n in numbers)
        self.note = ""

    def batches(self, inputs: Sequence[samples_of.Input], size: int) -> list[Sample]:
        """The samples as a file takes them; they are not kept."""
        rows = samples_of.batches(self._given_out(), inputs)
        return [batch for _, batch in filled(rows, size)]

    def _given_out(self) -> Iterator[Sample]:
        while self.rows:
            yield self.rows.popleft()

    def found(self, seen: Observed, size: int) -> None:
        """Notes how many samples were used, and whether the ranges had settled."""
        used = min(seen.batches * size, self.count)
        first = "the first " * (used == self.count and self.more)
        noted = f"calibrated with {first}{used} sample{'s' * (used > 1)}{' of more' * bool(first)}"
        noted += f"; {seen.settling}" * bool(seen.settling)
        if first:
            noted += "; samples= takes others"
        self.note = noted


def inputs_of_model(model: keras.Model) -> list[Any]:
    """The symbolic inputs of a model, in the order that a file has them in."""
    return tree.flatten(inputs_of(getattr(model, "_functional", None) or model)[0])


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


def told(seen: Calibration, model: Any) -> list[str]:
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
    if isinstance(model, keras.Model) and len(seen.limits) == len(seen.first[0]):
        low, high = _ends(seen)
        reason = _of_another_scale(seen, model) if low < high else None
        if reason:
            warnings.warn(
                f"the calibration data, from {low:g} to {high:g}, are hardly scaled as in "
                f"training: {reason}. Scale them as there; the ranges of the file are theirs.",
                stacklevel=6,
            )
    return [seen.note] if seen.note else []


def _ends(seen: Calibration) -> tuple[float, float]:
    """The least and the greatest value of all inputs."""
    lows, highs = zip(*seen.limits.values(), strict=True)
    return min(lows), max(highs)


def _of_another_scale(seen: Calibration, model: keras.Model) -> str | None:
    """Why data cannot have the scale of those that a model was trained on; None if they can."""
    low, high = _ends(seen)
    shape = next(iter(seen.first[0].values())).shape
    pixels = len(seen.limits) == 1 and len(shape) == 4 and shape[-1] in (1, 3)
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
    given = [np.concatenate([sample[t.name] for sample in samples]) for t in flat.inputs]
    values = part.predict(given, verbose=0)
    found = float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
    factor = found / float(np.sqrt(np.mean(np.square(mean) + variance)))
    if 1 / _OFF < factor < _OFF:
        return None
    more = f"{factor:.0f} times" if factor > 1 else f"1/{1 / max(factor, 1e-9):.0f} of"
    return f"what comes to '{node.name}' is {more} what it was"


def filled(
    samples: Iterator[dict[str, np.ndarray]], size: int
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yields (samples, arrays by name) of batches of one size; the last is filled up by its last
    sample.
    """
    while rows := list(itertools.islice(samples, size)):
        count = len(rows)
        rows += [rows[-1]] * (size - count)
        yield count, {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
