"""ChannelPruning: whole channels driven to zero in a user's own model, while it trains."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress import schedules
from tfcompress.backend import as_tensor
from tfcompress.compression.callbacks import models_of
from tfcompress.compression.in_place import MaskedWeight, MaskingCallback
from tfcompress.errors import check, expected_one_of, is_whole
from tfcompress.graph.flatten import flatten_with_sources
from tfcompress.graph.layers import Parameter
from tfcompress.layers.compressed import is_compressed
from tfcompress.schedules import Schedule
from tfcompress.surgery.pruning.dead import alive_channels
from tfcompress.surgery.pruning.groups import ChannelGroup, Member, Structure
from tfcompress.surgery.pruning.judging import objective
from tfcompress.surgery.pruning.limits import Target
from tfcompress.surgery.pruning.prune_channels import check_settings, kept_names, nothing_to_prune
from tfcompress.surgery.pruning.ranking import SCOPES, choose, competing, equal_scores
from tfcompress.surgery.pruning.scores import check_score, needs_loss, score_groups
from tfcompress.techniques.regularize import norms_of

METHODS = ("masks", "group_lasso")


class ChannelPruning(MaskingCallback):
    """Drives whole channels to zero in any Keras model, in place, while `fit` trains it.

    The model is the user's own and keeps its shape; `tfcompress.remove_dead_channels` then makes a
    smaller one of it that computes the same. Channels that belong together go together, see
    `tfcompress.prune_channels`; a channel that is gone stays so. Those that a normalization mixes,
    as LayerNormalization does along the channels, cannot be removed exactly and stay.

    With the method "masks" ever more channels, those with the lowest scores, are set to zero after
    every optimizer step (gradual as Zhu and Gupta 2017, arXiv:1710.01878). With "group_lasso" the
    channels that are to go get a penalty on their norm (Wen et al. 2016, arXiv:1608.03665) that
    grows step by step (Wang et al. 2021, arXiv:2012.09243) and drives them towards zero; at the
    end of the schedule they are set to zero. The logs get `channel_sparsity`, the fraction of
    channels that are zero, and `macs`, the share of the model's MACs that would remain.

    The step is `optimizer.iterations`; several fits, interrupted ones and `EarlyStopping` are
    treated as `PruneCallback` does. Train further after the schedule, as quality falls on the way.

    Args:
        macs, params: the share of the model's that is to remain, such as 0.5.
        sparsity: the fraction of channels that are to go.
        per_layer: {name of a layer: fraction of its channels that are to go}.
        method: "masks" or "group_lasso". The latter is not available on JAX.
        score: importance of channels, as of `tfcompress.prune_channels`.
        scope: "global": all channels compete; "local": each layer loses the same fraction.
        schedule: how far the way to the target is at a step: a schedule of
            `tfcompress.schedules` with values in [0, 1] that ends with 1. By default it begins
            with the first `fit` and ends after half of its steps: cubic for "masks", linear for
            "group_lasso".
        frequency: steps between updates of this default; None takes 100, or fewer so that there
            are ten updates.
        strength: of the penalty at the end of the schedule.
        round_to: the number of channels that stay in a layer is a multiple of it, or all. Where
            that cannot reach the target, as in narrow models, of its half, a quarter and so on,
            with a warning.
        max_sparsity: no layer loses more than this fraction; `per_layer` goes before it.
        keep: names of layers, or patterns such as "stem*", whose channels stay.
        data: (x, y) or a dataset of batches, for scores that need it; x alone for "apoz" and
            "reconstruction".
        loss: Keras loss for these; by default the one that the model is compiled with.
        batch_size: of arrays.
        samples: at most so many of `data`.
        seed: of random scores.

    Raises:
        TypeError: `schedule` is no schedule.
        ValueError: an argument is out of its range; or, at the start of `fit`, the model cannot
            be flattened, a layer does not exist, or the target is out of reach.

    Example:
        >>> model.fit(x, y, callbacks=[ChannelPruning(macs=0.5)])  # doctest: +SKIP
        >>> small = tfcompress.remove_dead_channels(model)  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        macs: float | None = None,
        params: float | None = None,
        sparsity: float | None = None,
        per_layer: Mapping[str, float] | None = None,
        method: str = "masks",
        score: str | Callable[[ChannelGroup], np.ndarray] = "l2",
        scope: str = "global",
        schedule: Schedule | None = None,
        frequency: int | None = None,
        strength: float = 0.03,
        round_to: int = 8,
        max_sparsity: float = 0.9,
        keep: Iterable[str] = (),
        data: Any = None,
        loss: Any = None,
        batch_size: int = 32,
        samples: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.target = Target(macs, params, sparsity, per_layer)
        check_settings(scope, round_to, max_sparsity, SCOPES)
        check_score(score, data)
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}; {expected_one_of(str(method), METHODS)}")
        _check_growth(schedule, frequency, strength)
        self.method, self.schedule, self.frequency = method, schedule, frequency
        self.strength, self.keep = float(strength), [keep] if isinstance(keep, str) else list(keep)
        self._score, self._loss = score, loss
        limits = {"scope": scope, "round_to": round_to, "max_sparsity": max_sparsity}
        judged = {"data": data, "batch_size": batch_size, "samples": samples, "seed": seed}
        self._limits: dict[str, Any] = limits
        self._judged: dict[str, Any] = judged
        curve = schedules.polynomial if method == "masks" else schedules.linear
        self._whole = schedule or curve(0.0, 1.0, end="50%", frequency=frequency)
        self._followed = self._whole  # with steps for shares, once `fit` has begun
        self._shares: dict[str, float] = {}

    def on_train_begin(self, logs=None):
        if self.method == "group_lasso" and keras.backend.backend() == "jax":
            raise ValueError(
                "method='group_lasso' has a strength that grows, which a training step that JAX "
                "compiles does not see. Use method='masks'."
            )
        super().on_train_begin(logs)

    def find(self) -> Sequence[MaskedWeight]:
        models = models_of(self.model)
        if len(models) != 1:
            raise ValueError(
                f"ChannelPruning prunes one model; received '{self.model.name}', which trains "
                f"{len(models)}. Prune them one after the other, each in a fit of its own."
            )
        judged = objective(self.model, self._loss) if needs_loss(self._score) else None
        self._judged["loss"] = judged
        self._channels = masks = ChannelMasks(models[0], self.keep)
        self._lasso = GrowingLasso(masks) if self.method == "group_lasso" else None
        # Raises now if no scores at all could lead to the target.
        choose(masks.structure, equal_scores(masks.structure), self.target, **self._limits)
        return masks.weights

    @property
    def has_shares(self) -> bool:  # type: ignore[override]
        return self._followed.has_shares

    def forget(self) -> None:
        self._followed = self._whole

    def begin_training(self, first: int, steps: int) -> None:
        self._followed = self._whole.over(first, steps)

    def next_step(self, step: int) -> int | None:
        return self._followed.next_update(step)

    def unfinished(self, step: int) -> str | None:
        schedule = self._followed
        if schedule.at(step) == 1:
            return None
        end = schedule.begin if schedule.end is None else schedule.end
        what = "channels" if self.method == "masks" else "penalty, so that no channel is zero yet"
        return f"{schedule.at(step):.0%} of the {what}; the rest is due at step {end}"

    def update(self, step: int) -> None:
        share = self._followed.at(step)
        masks = self._channels
        gone = masks.gone()
        if self._lasso is None:
            gone = _either(gone, self._going(_on_the_way(self.target, share), gone))
        else:
            going = self._going(self.target if share > 0 else None, gone)
            self._lasso.set(self.strength * share if share < 1 else 0.0, going)
            gone = _either(gone, going) if share == 1 else gone
        masks.mask(gone)
        self._shares = masks.shares(gone)

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs.update(self._shares)

    def _going(self, target: Target | None, gone: Flags) -> Flags:
        """The channels that a target takes, those that are gone first."""
        masks = self._channels
        if target is None:
            return {name: np.zeros(group.size, bool) for name, group in masks.groups.items()}
        masks.refresh()
        found = score_groups(masks.structure, self._score, **self._judged)
        scores = {name: _lowered(values, gone[name]) for name, values in found.items()}
        choice = choose(masks.structure, scores, target, **self._limits)
        return {
            name: ~np.isin(np.arange(group.size), choice.get(name, np.arange(group.size)))
            for name, group in masks.groups.items()
        }


def _check_growth(schedule: Any, frequency: int | None, strength: float) -> None:
    number = isinstance(strength, int | float) and not isinstance(strength, bool)
    check(number and strength > 0, "strength", "a number above 0", strength, "0.03 is usual.")
    whole = frequency is None or is_whole(frequency)
    check(whole, "frequency", "a whole number of steps", frequency)
    if schedule is None:
        return
    if not isinstance(schedule, Schedule):
        raise TypeError(
            "schedule must be one of tfcompress.schedules, such as polynomial(0.0, 1.0, "
            f"end=2000); received {schedule!r}."
        )
    if frequency is not None:
        raise ValueError(
            f"a schedule has a frequency of its own; received frequency={frequency!r} with one. "
            "Give it to the schedule."
        )
    values = [schedule.initial, schedule.final, *(value for _, value in schedule.points)]
    if schedule.final != 1 or min(values) < 0 or max(values) > 1:
        raise ValueError(
            "schedule must tell how far the way to the target is, in [0, 1], and end with 1; "
            f"received one with values from {min(values):g} to {max(values):g} that ends with "
            f"{schedule.final:g}. Say how small the model is to become by macs, params, sparsity "
            "or per_layer."
        )


def _on_the_way(target: Target, share: float) -> Target | None:
    """What is wanted when a share of the way to a target is done; None if nothing yet."""
    if share < 1e-6 or share == 1:
        return target if share == 1 else None
    return target.changed(lambda left: 1 - share * (1 - left))


def _lowered(scores: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """Scores of which those of channels that are gone are the least."""
    lowest = min(0.0, float(np.min(scores))) - 1e-6 * (float(np.mean(np.abs(scores))) or 1.0)
    return np.where(gone, lowest, scores)


def _either(a: Flags, b: Flags) -> Flags:
    return {name: a[name] | b[name] for name in a}


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
            total = total + ops.sum(as_tensor(factors) * norms_of(squares))
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
