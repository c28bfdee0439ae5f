"""Odds of channels to stay and of layers to have few bits, and what they make of a network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.post_training.kernels import Kernel
from tfcompress.surgery.pruning.groups import Choice, Structure, deciding
from tfcompress.techniques.quantize import quantize_weight

# What a channel of an integer layer takes in a file beside its weights: a bias, and two scales.
_CHANNEL_BYTES = 24
# How sure it is at first that a channel stays, and that a layer has most bits.
_SURE = 3.0
# Numbers of noise are kept from 0 and 1, whose logarithms are infinite.
_LEAST = 1e-6

# How likely each channel of a group is to stay, and the odds of the bits of a layer, by name.
Odds = tuple[Mapping[str, Any], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Options:
    """What the kernel of a layer may be.

    Attributes:
        bits: of its weights, falling.
        costs: {"bytes" of one weight, "macs" or "ms" of the whole layer: array, for each bits}.
    """

    kernel: Kernel
    bits: tuple[int, ...]
    costs: Mapping[str, np.ndarray]


class Gates:
    """What is chosen of a network, relaxed: its weights and its costs by odds.

    Args:
        structure: of the network.
        layers: whose bits are chosen.
        scores: {group whose channels may go: array of shape (channels,)}, higher for what is
            more likely to stay at first.
    """

    def __init__(
        self,
        structure: Structure,
        layers: Sequence[Options],
        scores: Mapping[str, np.ndarray],
    ):
        self.structure, self.layers = structure, {each.kernel.name: each for each in layers}
        self.stay = {
            name: keras.Variable(_SURE + _standard(values), dtype="float32")
            for name, values in scores.items()
        }
        self.bits = {
            name: keras.Variable(np.linspace(_SURE, 0, len(each.bits)), dtype="float32")
            for name, each in self.layers.items()
        }
        # By weight and axis: (group, which of its channels each place is; as many as it has: none).
        self._places: dict[tuple[int, int], list[tuple[str, np.ndarray]]] = {}
        self._acting: dict[int, list[tuple[int, str, np.ndarray]]] = {}
        for name in scores:
            group = structure.groups[name]
            acting = deciding(group)
            for member in group.members:
                places = np.full(member.variable.shape[member.axis], group.size)
                places[member.index] = np.arange(group.size)[:, None]
                key = id(member.variable)
                self._places.setdefault((key, member.axis), []).append((name, places))
                if any(member is each for each in acting):
                    self._acting.setdefault(key, []).append((member.axis, name, places))

    @property
    def variables(self) -> list[keras.Variable]:
        """The logits of the odds."""
        return [*self.stay.values(), *self.bits.values()]

    def odds(self) -> Odds:
        """The odds as they are."""
        stay = {name: ops.sigmoid(logits) for name, logits in self.stay.items()}
        return stay, {name: ops.softmax(logits) for name, logits in self.bits.items()}

    def drawn(self, heat: Any) -> Odds:
        """Samples of the odds, nearer to 0 and 1 as the heat falls (Gumbel-softmax)."""

        def noise(logits):
            uniform = keras.random.uniform(logits.shape, _LEAST, 1 - _LEAST)
            return -ops.log(-ops.log(uniform))

        # The difference of two is that of a choice between a channel and none.
        stay = {
            name: ops.sigmoid((logits + noise(logits) - noise(logits)) / heat)
            for name, logits in self.stay.items()
        }
        bits = {n: ops.softmax((logits + noise(logits)) / heat) for n, logits in self.bits.items()}
        return stay, bits

    def chosen(self, choice: Choice, bits: Mapping[str, int]) -> Odds:
        """The odds of a network that was chosen: 0 and 1."""
        stay = {}
        for name, logits in self.stay.items():
            every = np.arange(logits.shape[0])
            stay[name] = np.isin(every, choice.get(name, every)).astype("float32")
        layers = self.layers.items()
        return stay, {n: (np.array(x.bits) == bits[n]).astype("float32") for n, x in layers}

    def weights(self, odds: Odds, variables: Sequence[Any]) -> list[Any]:
        """The values of variables: on the grids of their odds, 0 where channels are gone."""
        stay, bits = odds
        kernels = {id(each.kernel.variable): each for each in self.layers.values()}
        found = []
        for variable in variables:
            value, layer = variable.value, kernels.get(id(variable))
            if layer is not None:
                share, axes = bits[layer.kernel.name], layer.kernel.axes
                every = [quantize_weight(value, each, axes) for each in layer.bits]
                value = sum(share[i] * each for i, each in enumerate(every))
            for axis, name, places in self._acting.get(id(variable), ()):
                shape = [-1 if i == axis else 1 for i in range(len(variable.shape))]
                value = value * ops.reshape(_at(stay[name], places), shape)
            found.append(value)
        return found

    def cost(self, name: str, odds: Odds) -> Any:
        """Expected "bytes", "macs" or "ms" of the layers whose bits are chosen."""
        stay, bits = odds
        total: Any = 0.0
        for layer in self.layers.values():
            kernel = layer.kernel
            left = self._left(kernel, stay)
            each = ops.sum(bits[kernel.name] * layer.costs[name])
            for size, part in zip(kernel.shape, left, strict=True):
                each = each * (part if name == "bytes" else part / size)
            total = total + each
            if name == "bytes":
                channels: Any = float(_CHANNEL_BYTES)
                for axis in kernel.axes:
                    channels = channels * left[axis]
                total = total + channels
        return total

    def shape_left(self, kernel: Kernel, odds: Odds) -> tuple[int, ...]:
        """The shape of a kernel of a network that was chosen."""
        return tuple(round(float(size)) for size in self._left(kernel, odds[0]))

    def _left(self, kernel: Kernel, stay: Mapping[str, Any]) -> list[Any]:
        """How many places of each axis of a kernel are expected to stay."""
        found: list[Any] = list(map(float, kernel.shape))
        for axis in range(len(found)):
            parts = self._places.get((id(kernel.variable), axis), ())
            if parts:
                found[axis] = ops.sum(math.prod(_at(stay[name], places) for name, places in parts))
        return found


def _at(stay: Any, places: np.ndarray) -> Any:
    """Odds by place; what belongs to no channel stays."""
    return ops.take(ops.concatenate([ops.convert_to_tensor(stay), ops.ones((1,))]), places)


def _standard(values: np.ndarray) -> np.ndarray:
    """Scores with mean 0 and deviation 1."""
    values = np.asarray(values, "float64")
    return (values - values.mean()) / (values.std() or 1.0)
