"""Masks and penalties on whole channels of a user's own model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.baking import is_compressed
from tfcompress.graph import flatten_with_sources
from tfcompress.layers import Parameter
from tfcompress.masking import MaskedWeight
from tfcompress.surgery.pruning.channels import kept_names
from tfcompress.surgery.pruning.channels import nothing_to_prune as nothing_to_prune
from tfcompress.surgery.pruning.dead import alive_channels
from tfcompress.surgery.pruning.groups import ChannelGroup, Member, Structure
from tfcompress.surgery.pruning.ranking import competing
from tfcompress.techniques.quantize import as_tensor

_MIXED = "a channel that is zero still counts in a normalization or softmax over channels"
# For each group, by name, which of its channels: bool arrays.
Flags = dict[str, np.ndarray]


class ChannelMasks:
    """The channel groups of a user's model, and masks on its own weights.

    A channel that is masked is zero in all weights that make, scale or read it, so that it takes no
    part in what the model computes.

    Args:
        model: built; it is not changed before `mask`.
        keep: names of layers, or patterns, whose channels stay.

    Attributes:
        structure: of a flat copy, whose weights are those of the last `refresh`.
        groups: those of which channels can go, by name.
        weights: what is masked of the user's model.

    Raises:
        ValueError: the model cannot be flattened, is wrapped by `compress`, has no channels that
            can go, or no layer of a name in `keep`.
    """

    def __init__(self, model: keras.Model, keep: Iterable[str] = ()):
        if is_compressed(model):
            raise ValueError(
                "ChannelPruning prunes models that are not wrapped; received "
                f"'{model.name}', whose layers are wrapped by compress or quantize_aware. Prune "
                "before compress."
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the copy is never trained
            flat, sources = flatten_with_sources(model)
        self.structure = Structure(flat)
        self.structure.keep(kept_names(self.structure, keep))
        self._pairs = list(_variables(flat, sources))
        self.structure.keep(dict.fromkeys(self._mixed(), _MIXED))
        self.groups = self.structure.prunable()
        if not self.groups:
            raise ValueError(nothing_to_prune(self.structure))
        self.own = {id(copy): variable for copy, variable in self._pairs}
        members = [member for group in self.groups.values() for member in masked_members(group)]
        copies = {id(member.variable): member.variable for member in members}
        self._copies = list(copies.values())
        own = [self.own[key] for key in copies]
        self.weights = [MaskedWeight(v, written=v.name == "moving_mean") for v in own]

    def _mixed(self) -> list[str]:
        """The groups whose channels have an effect even if they are zero."""
        prunable = self.structure.prunable()
        first = {name: np.arange(group.size) == 0 for name, group in prunable.items()}
        for copy, mask in _masks(prunable, first):
            copy.assign(ops.convert_to_numpy(copy) * mask)
        alive = alive_channels(self.structure)
        self.refresh()
        return [name for name in prunable if alive.get(name, [0])[0] == 0]

    def refresh(self) -> None:
        """Gives the flat copy the weights that the user's model has now."""
        for copy, variable in self._pairs:
            copy.assign(ops.convert_to_numpy(as_tensor(variable)))

    def gone(self) -> Flags:
        """Which channels are zero in all weights of the user's model."""
        values = {
            id(copy): ops.convert_to_numpy(as_tensor(weight.variable))
            for copy, weight in zip(self._copies, self.weights, strict=True)
        }
        found = {}
        for name, group in self.groups.items():
            slices = [m.slices(values[id(m.variable)]) for m in masked_members(group)]
            found[name] = np.all([(each == 0).all(1) for each in slices], axis=0)
        return found

    def mask(self, gone: Mapping[str, np.ndarray]) -> None:
        """Masks channels, and no others."""
        masks = {id(copy): mask for copy, mask in _masks(self.groups, gone)}
        for copy, weight in zip(self._copies, self.weights, strict=True):
            weight.mask.assign(masks[id(copy)])

    def shares(self, gone: Mapping[str, np.ndarray]) -> dict[str, float]:
        """How many of the channels are gone, and the share of the MACs that would remain."""
        sizes = {self.structure.numbers[name]: int((~each).sum()) for name, each in gone.items()}
        before = self.structure.cost({})[0]
        macs = self.structure.cost(sizes)[0] / before if before else 1.0
        counted = competing(self.structure, gone)
        sparsity = float(np.mean(np.concatenate(list(counted.values()))))
        return {"channel_sparsity": sparsity, "macs": macs}


class GrowingLasso:
    """A penalty on the L2 norms of channels that are to go (Wen et al. 2016, arXiv:1608.03665).

    It is strength * sum over channels of sqrt(size) * norm, where the size and the norm are those
    of all trained weights that make, scale or shift a channel.

    Args:
        masks: of the user's model, to one of whose weights the penalty is added.
    """

    def __init__(self, masks: ChannelMasks):
        self._strength = _constant("strength", np.float32(0))
        self._terms: dict[str, tuple[Any, list[tuple[Any, Member]]]] = {}
        for name, group in masks.groups.items():
            made = [m for m in masked_members(group) if m.role != "reads"]
            trained = [(masks.own[id(m.variable)], m) for m in made]
            trained = [(variable, m) for variable, m in trained if variable.trainable]
            if trained:
                factors = _constant(f"{name}_factors", np.zeros(group.size, "float32"))
                self._terms[name] = factors, trained
        trained_ids = {id(v) for _, pairs in self._terms.values() for v, _ in pairs}
        anchor = next((w for w in masks.weights if id(w.variable) in trained_ids), None)
        if anchor is not None:
            anchor.penalty = self

    def set(self, strength: float, going: Mapping[str, np.ndarray]) -> None:
        """Sets how strong it is, and on which channels."""
        self._strength.assign(strength)
        for name, (factors, pairs) in self._terms.items():
            size = sum(np.prod(v.shape) // v.shape[m.axis] * m.index.shape[1] for v, m in pairs)
            factors.assign(going[name] * np.sqrt(np.float32(size)))

    def __call__(self, weight):
        total = 0.0
        for factors, pairs in self._terms.values():
            squares = sum(_squares(variable, member) for variable, member in pairs)
            # The norm has no gradient at 0, where a channel that is gone shall stay.
            alive = squares > 0.0
            norms = ops.where(alive, ops.sqrt(ops.where(alive, squares, 1.0)), 0.0)
            total = total + ops.sum(as_tensor(factors) * norms)
        return as_tensor(self._strength) * total


def masked_members(group: ChannelGroup) -> list[Member]:
    """The members that are zero once a channel is gone: not variances, which divide."""
    return [m for m in group.members if not m.variable.name.startswith("moving_variance")]


def _masks(
    groups: Mapping[str, ChannelGroup], gone: Mapping[str, np.ndarray]
) -> Iterator[tuple[Any, np.ndarray]]:
    """(weight of the flat copy, its mask) pairs of all weights of groups."""
    masks: dict[int, tuple[Any, np.ndarray]] = {}
    for name, group in groups.items():
        for member in masked_members(group):
            new = member.variable, np.ones(tuple(member.variable.shape), "float32")
            _, mask = masks.setdefault(id(member.variable), new)
            np.moveaxis(mask, member.axis, 0)[member.index[gone[name]].ravel()] = 0.0
    yield from masks.values()


def _variables(flat: keras.Model, sources: Mapping[int, Any]) -> Iterator[tuple[Any, Any]]:
    """(weight of the flat copy, the user's weight) pairs."""
    for operation in flat.operations:
        source = sources.get(id(operation))
        if isinstance(source, Parameter) and "source" in vars(source):
            yield operation.value, vars(source)["source"]
        elif isinstance(source, keras.Layer):
            yield from zip(operation.weights, source.weights, strict=True)


def _constant(name: str, value):
    """A variable of the training step that does not train."""
    return keras.Variable(value, trainable=False, name=f"channel_{name}", aggregation="mean")


def _squares(variable, member: Member):
    """The sum of squares of each channel's slices."""
    squares = ops.square(ops.cast(as_tensor(variable), "float32"))
    others = [axis for axis in range(len(variable.shape)) if axis != member.axis]
    along = ops.sum(squares, axis=others) if others else squares
    return ops.sum(ops.take(along, member.index, axis=0), axis=1)
