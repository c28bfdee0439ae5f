"""Pruning: the least important weights held at zero, more of them as a schedule goes on."""

import dataclasses
import math
import numbers
import zlib
from collections.abc import Callable
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from tfcompress.errors import check, fraction_meant
from tfcompress.kinds import is_depthwise, weight_axes
from tfcompress.schedules import Schedule, constant, one_shot, polynomial, whole
from tfcompress.techniques import masks
from tfcompress.techniques.masks import Groups, Pattern
from tfcompress.techniques.technique import Technique

SCORES = ("magnitude", "l1", "l2", "max", "random", "taylor", "movement", "rigl")

# The most that "rigl" lets change places at once, as its authors do.
_REGROWN = 0.3

# Weight of what was known before in the moving average of Taylor scores.
_TAYLOR_MOMENTUM = 0.9


@keras.saving.register_keras_serializable("tfcompress")
@dataclasses.dataclass(frozen=True)
class Prune(Technique):
    """Sets the least important weights to zero, on a schedule (Zhu, Gupta 2017, arXiv:1710.01878).

    Meant for kernels of convolutions, dense and recurrent layers, and for embeddings. The number
    of zeros is exact: of n weights max(1, round(n * (1 - sparsity))) are kept, of equal ones the
    first. Pruned weights get no gradient and may come back as long as masks are updated.

    Args:
        sparsity: fraction of zeros in [0, 1), as a schedule of `tfcompress.schedules`; or a number,
            which is reached gradually in the first 30% of the training. The masks then stay as
            they are while the rest recovers what that cost. Left out with `threshold` and
            `preserve`, and with an "n:m" pattern, which has its own.
        pattern: what is pruned together: "unstructured"; "n:m", which keeps n of every m weights
            along the input channels ("2:4"; a last group that is not full keeps at most n); "RxC"
            blocks of R inputs and C outputs ("1x4"; cut off at the edge); "filters" (all weights of
            an output channel) or "channels" (of an input channel).
        score: the importance of a weight; of a group of weights its mean. "magnitude" or "l1" is
            |w|; "l2" is w**2; "max" is |w|, of a group the largest; "random"; "taylor" is
            |w * gradient|, averaged over steps (Molchanov et al. 2017, arXiv:1611.06440);
            "movement" learns scores that grow where weights move away from zero (Sanh et al. 2020,
            arXiv:2005.07683); "rigl" is |w|, where up to 30% of what is kept gives way to pruned
            weights of the largest |gradient|, fewer as the schedule goes on (Evci et al. 2020,
            arXiv:1911.11134); or a function f(weight as ndarray) -> ndarray of the same shape. None
            is "taylor" where the model trains in a way that gives it, else "magnitude".
        scope: "layer" gives each layer the sparsity; "global" ranks the weights of all layers that
            have this technique together, so that some become sparser than others. None is
            "global", but "layer" for a threshold and "n:m".
        threshold: instead of a sparsity, prunes what scores below; a number or a schedule.
        depthwise: also prunes depthwise kernels, which are few and sensitive.
        seed: of random scores.
        inputs, outputs: axes of the weight, filled in by `compress`.
        floor: with "global", the fraction of what all layers keep on average that each keeps at
            least: 0.25 at a sparsity of 0.8 leaves none with less than 5% of its weights.
        preserve: instead of a sparsity, holds the zeros that weights have before the training, as
            of `tfcompress.post_training.prune_after_training`; weights of zeros alone are free.

    Raises:
        TypeError, ValueError: if an argument is out of its range, or two contradict each other.

    Example:
        >>> from tfcompress import schedules
        >>> prune = Prune(0.8)
        >>> prune = Prune(schedules.polynomial(0.0, 0.8, end="60%"), pattern="1x4")
    """

    sparsity: Schedule | float | None = None
    pattern: str = "unstructured"
    score: str | Callable[[np.ndarray], np.ndarray] | None = None
    scope: str | None = None
    threshold: Schedule | float | None = None
    depthwise: bool = False
    seed: int = 0
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    floor: float = 0.25
    preserve: bool = False

    order: ClassVar[int] = 1

    def __post_init__(self):
        pattern = Pattern.parse(self.pattern)
        named = self.score is None or self.score in SCORES
        known = named if not callable(self.score) else True
        check(known, "score", f"one of {', '.join(SCORES)} or a function", self.score)
        known = self.scope in ("layer", "global", None)
        check(known, "scope", "'layer' or 'global'", self.scope)
        low = isinstance(self.floor, numbers.Real) and 0 <= self.floor <= 1
        check(low, "floor", "in [0, 1]", self.floor, "0.25 is a quarter.")
        check(isinstance(self.preserve, bool), "preserve", "True or False", self.preserve)
        if self.preserve:
            self._check_preserved()
        elif self.threshold is not None:
            if self.sparsity is not None:
                raise ValueError(
                    f"give sparsity or threshold, not both; received sparsity={self.sparsity!r} "
                    f"and threshold={self.threshold!r}. Leave one of them out."
                )
            self._set("threshold", _as_schedule("threshold", self.threshold))
            low = min(_values(self.threshold))
            check(low >= 0, "threshold", "0 or more", low, "Scores are compared with it.")
        elif self.sparsity is None:
            fixed = pattern.sparsity
            check(fixed is not None, "sparsity", "in [0, 1)", None, "Try Prune(0.5).")
            self._set("sparsity", gradual(fixed))
        else:
            self._set("sparsity", _as_schedule("sparsity", self.sparsity, gradual))
            _check_sparsity(self.sparsity, pattern)
        self._check_together(pattern)
        for name in ("inputs", "outputs"):
            self._set(name, tuple(getattr(self, name)))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_preserved(self) -> None:
        names = ("sparsity", "threshold", "score", "scope", "pattern")
        given = {name: getattr(self, name) for name in names}
        given = {k: v for k, v in given.items() if v not in (None, "unstructured")}
        if given:
            told = ", ".join(f"{k}={v!r}" for k, v in given.items())
            raise ValueError(
                f"preserve=True holds the zeros that are there already; received {told} with it. "
                "Leave out either."
            )

    def _check_together(self, pattern: Pattern) -> None:
        if pattern.kind == "n:m" and (self.scope == "global" or self.threshold is not None):
            raise ValueError(
                f"pattern {self.pattern!r} gives every group of weights the same sparsity; "
                f"received scope={self.scope!r} and threshold={self.threshold!r}. Leave them out."
            )
        if self.score == "rigl" and (pattern.kind == "n:m" or self.threshold is not None):
            raise ValueError(
                "score 'rigl' exchanges as many weights as it takes from all of a layer; received "
                f"pattern={self.pattern!r} and threshold={self.threshold!r}. Take score='taylor'."
            )
        if self.threshold is not None and self.scope == "global":
            raise ValueError(
                "a threshold is the same for all layers already; received scope='global' with it. "
                "Leave scope out."
            )

    @property
    def schedule(self) -> Schedule:
        """The schedule of the sparsity or of the threshold."""
        if self.preserve:
            return one_shot(0.0)  # what there is, there is from the beginning
        return self.sparsity if self.threshold is None else self.threshold  # type: ignore

    @property
    def scheduled(self) -> bool:
        return not self.preserve

    @property
    def together(self) -> bool:
        free = (
            self.threshold is None
            and not self.preserve
            and Pattern.parse(self.pattern).kind != "n:m"
        )
        return self.scope == "global" or (self.scope is None and free)

    @property
    def trainable_states(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("scores",) if self.learns_scores else ()

    @property
    def overwritten_states(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("scores",) if self.score in ("taylor", "rigl") else ()

    def scored(self, taylor: bool) -> "Prune":
        """This technique with a score: that of Taylor by default where it can be had."""
        free = self.score is None and self.threshold is None and not self.preserve
        return dataclasses.replace(self, score="taylor") if free and taylor else self

    @property
    def learns_scores(self) -> bool:
        """Whether the scores come from gradients."""
        return self.score in ("taylor", "movement", "rigl")

    def next_step(self, step: int) -> int | None:
        return self.schedule.next_update(step)

    def begins(self) -> int:
        return whole(self.schedule.begin)

    def unfinished(self, step: int) -> str | None:
        schedule = self.schedule
        end = schedule.begin if schedule.end is None else schedule.end
        if step >= end or schedule.at(step) == schedule.final:
            return None
        name = "sparsity" if self.threshold is None else "threshold"
        return f"{name} reached {schedule.at(step):.4g} of {schedule.final:.4g}, due at step {end}"

    def refuses(self, layer, variable) -> str | None:
        if is_depthwise(layer, variable.name) and not self.depthwise:
            return "a depthwise kernel (pass depthwise=True to prune it)"
        if len(variable.shape) < 2:
            return "a vector"
        kind = Pattern.parse(self.pattern).kind
        inputs = weight_axes(layer, variable.name, len(variable.shape))[0]
        if kind in ("n:m", "channels") and not inputs:
            return f"without input channels, which pattern {self.pattern!r} needs"
        return None

    def bind(self, layer, weight: str, before=()) -> "Prune":
        inputs, outputs = weight_axes(layer, weight)
        # A seed of its own for each weight, the same after a reload.
        seed = zlib.crc32(f"{self.seed}/{layer.name}/{weight}".encode())
        return dataclasses.replace(self, inputs=inputs, outputs=outputs, seed=seed)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Prune":
        # Files from before there was one.
        return super().from_config({"floor": 0.0, **config})  # type: ignore[return-value]

    def initial_state(self, weight) -> dict[str, Any]:
        if self.preserve:
            return {"mask": as_mask(_nonzero(ops.convert_to_numpy(weight)))}
        state = {"mask": ops.ones(weight.shape, "uint8")}
        return {**state, "scores": ops.zeros(weight.shape)} if self.learns_scores else state

    def update(self, weight, state, step: int) -> dict[str, Any]:
        if self.score == "rigl":  # which needs the mask before
            return self.update_together([self], [weight], [state], step)[0]
        return {**state, "mask": as_mask(self.mask(*_arrays(weight, state), step))}

    def mask(self, weight: np.ndarray, scores: np.ndarray | None, step: int) -> np.ndarray:
        """The weights to keep after a step.

        Args:
            weight: float array.
            scores: learned scores of its shape; None if the technique learns none.
            step: optimizer iterations.

        Returns:
            A bool array of the shape of `weight`.
        """
        if self.preserve:
            return _nonzero(weight)
        pattern = Pattern.parse(self.pattern)
        scores = self.scores(weight, scores)
        groups = self.groups(weight.shape)
        importance = groups.reduce(scores, self.score == "max")
        if self.threshold is not None:
            pruned = importance < self.schedule.at(step)
            pruned[np.argmax(importance)] = False  # a layer without weights passes nothing on
            return groups.mask(pruned)
        sparsity = self.schedule.at(step)
        if pattern.kind != "n:m":
            count = masks.pruned_count(groups.count, sparsity)
            return groups.mask(masks.smallest(importance, count))
        keep = masks.keep_n_of_m(scores, pattern.n, pattern.m, self.inputs[-1])
        if sparsity < self.schedule.final:
            # On the way only the smallest of what the pattern prunes in the end.
            count = min(round(weight.size * sparsity), int(np.count_nonzero(~keep)))
            rest = np.where(keep, np.inf, scores).ravel()
            keep = ~masks.smallest(rest, count).reshape(weight.shape)
        return keep

    def scores(self, weight: np.ndarray, learned: np.ndarray | None) -> np.ndarray:
        """The importance of each weight, an array of the shape of `weight`."""
        if learned is not None and self.score != "rigl":
            # Nothing is learned before the first step; then sizes tell more than positions.
            return learned if learned.any() else np.abs(weight)
        if callable(self.score):
            found = np.asarray(self.score(weight))
            if found.shape != weight.shape:
                raise ValueError(
                    f"a score function must return an array of the weight's shape {weight.shape}; "
                    f"received one of shape {found.shape}. Return one score for each weight."
                )
            return found
        if self.score == "random":
            return np.random.default_rng(self.seed).random(weight.shape, np.float32)
        return np.square(weight) if self.score == "l2" else np.abs(weight)

    def groups(self, shape: tuple[int, ...]) -> Groups:
        """The groups of weights that are pruned together."""
        return masks.group(shape, Pattern.parse(self.pattern), self.inputs, self.outputs)

    @staticmethod
    def update_together(techniques, weights, states, step: int) -> list[dict[str, Any]]:
        arrays = [_arrays(*pair) for pair in zip(weights, states, strict=True)]
        kept = [ops.convert_to_numpy(state["mask"]) > 0 for state in states]
        found = global_masks(techniques, arrays, step, kept)
        pairs = zip(states, found, strict=True)
        return [{**state, "mask": as_mask(mask)} for state, mask in pairs]

    def apply(self, weight, state):
        mask = ops.cast(state["mask"], weight.dtype)
        if self.score == "movement":
            scores = ops.cast(state["scores"], weight.dtype)
            # Adds exactly 0, and gives scores the gradient of the effective weight times weight.
            return weight * (mask + (scores - ops.stop_gradient(scores)))
        if self.overwritten_states:
            return _watched(weight, mask, state["scores"], by_weight=self.score == "taylor")
        return weight * mask


def _nonzero(weight: np.ndarray) -> np.ndarray:
    """The weights that are not zero; all of a weight that has not begun to learn."""
    return weight != 0 if weight.any() else np.ones(weight.shape, bool)


def taylor_scores(scores, product):
    """The moving average of |weight * gradient|, from the product of one step."""
    return _TAYLOR_MOMENTUM * scores + (1 - _TAYLOR_MOMENTUM) * ops.abs(product)


def _watched(weight, mask, scores, by_weight: bool):
    """weight * mask, where the "gradient" of the scores is their next value."""

    @ops.custom_gradient
    def multiply(weight, scores):
        def gradient(*upstreams, upstream=None):
            upstream = upstreams[0] if upstreams else upstream
            product = ops.cast(upstream * weight if by_weight else upstream, scores.dtype)
            return upstream * mask, taylor_scores(scores, product)

        return weight * mask, gradient

    return multiply(weight, scores)


def global_masks(
    techniques,
    arrays: list[tuple[np.ndarray, np.ndarray | None]],
    step: int,
    kept: list[np.ndarray] | None = None,
) -> list[np.ndarray]:
    """The masks of several weights of which the least important of all are pruned.

    Args:
        kept: the masks before, bool, which "rigl" goes by.
    """
    every = [t.groups(weight.shape) for t, (weight, _) in zip(techniques, arrays, strict=True)]
    importance = [
        groups.reduce(technique.scores(weight, learned), technique.score == "max")
        for technique, groups, (weight, learned) in zip(techniques, every, arrays, strict=True)
    ]
    size = sum(weight.size for weight, _ in arrays)
    sparsity = techniques[0].schedule.at(step)
    count = masks.pruned_count(size, sparsity)
    if techniques[0].score == "rigl" and kept is not None:
        changing = _regrowth(techniques[0].schedule, step)
        share = (1 - changing) * (1 - count / max(size, 1))
        importance = _regrown(every, importance, arrays, kept, share)
    return masks.pool(every, importance, count, techniques[0].floor * (1 - sparsity))


def _regrown(every: list[Groups], importance, arrays, kept, survivors: float) -> list[np.ndarray]:
    """Importance by which that share of all groups survives, and pruned ones come back."""
    gradients = [g.reduce(learned) for g, (_, learned) in zip(every, arrays, strict=True)]
    before = [g.reduce(mask) > 0 for g, mask in zip(every, kept, strict=True)]
    sizes = np.concatenate(importance)
    stay = round(survivors * len(sizes))
    found = masks.regrown(sizes, np.concatenate(gradients), np.concatenate(before), stay)
    return np.split(found, np.cumsum([groups.count for groups in every])[:-1])


def _regrowth(schedule: Schedule, step: int) -> float:
    """The share of the kept weights that change places: 30%, falling along half a cosine to 0."""
    if schedule.end is None:
        return _REGROWN
    done = (step - schedule.begin) / max(1, schedule.end - schedule.begin)
    return _REGROWN * (1 + math.cos(math.pi * min(1.0, done))) / 2


def as_mask(keep: np.ndarray):
    """A mask as it is kept: one byte for each weight."""
    return ops.convert_to_tensor(keep.astype("uint8"))


def _arrays(weight, state) -> tuple[np.ndarray, np.ndarray | None]:
    scores = state.get("scores")
    return ops.convert_to_numpy(weight), None if scores is None else ops.convert_to_numpy(scores)


def gradual(sparsity: float) -> Schedule:
    """The schedule of a number: cubic in the first 30% of the training, then the same masks."""
    # Weights recover while the rate of learning is high: at 50% and 70% more is lost.
    return polynomial(0.0, sparsity, end="30%", frequency="1%")


def _as_schedule(name: str, value: Any, make: Callable[[float], Schedule] = constant) -> Schedule:
    if isinstance(value, Schedule):
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"{name} must be a number or a schedule such as "
            f"tfcompress.schedules.polynomial(0.0, 0.8, end='60%'); received {value!r}."
        )
    return make(float(value))


def _values(schedule) -> list[float]:
    return [schedule.initial, schedule.final, *(value for _, value in schedule.points)]


def _check_sparsity(schedule, pattern: Pattern) -> None:
    for value in _values(schedule):
        mend = fraction_meant(value, "0.5 to 0.9 is usual.")
        check(0 <= value < 1, "sparsity", "in [0, 1)", value, mend)
    if pattern.sparsity is not None and abs(schedule.final - pattern.sparsity) > 1e-9:
        raise ValueError(
            f"pattern '{pattern.n}:{pattern.m}' ends with sparsity {pattern.sparsity:g}; received "
            f"a sparsity that ends with {schedule.final:g}. Leave sparsity out, or end with that."
        )
