"""Codebooks: weights of few given values, such as -1 and 1 or powers of two, and trained scales."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from tfcompress.errors import check
from tfcompress.kinds import channel_axes, is_depthwise, is_of, weight_axes
from tfcompress.schedules import Step, step_of, whole
from tfcompress.techniques.cluster import by_channel
from tfcompress.techniques.prune import Prune
from tfcompress.techniques.technique import Technique, check_table, table_axes

# Codes of 8 bits hold whole multiples of a scale up to this one.
_LARGEST = 127


def mid_rise(count: int) -> np.ndarray:
    """An even number of evenly spaced values without 0: odd numbers, as -3, -1, 1, 3."""
    return np.arange(1 - count, count, 2) / (count - 1)


def ternary() -> np.ndarray:
    """-1, 0 and 1."""
    return np.array([-1.0, 0.0, 1.0])


def powers_of_two(bits: int) -> np.ndarray:
    """0 and 2^(bits - 1) - 1 powers of two on each side: products become shifts."""
    return _both_sides(2.0 ** -np.arange(2 ** (bits - 1) - 1))


# The exponents of the powers of two of each summand, of which a value takes one or none.
_SUMMANDS = {2: ((0,),), 3: ((0, 1, 2),), 4: ((0, 1, 3), (2,)), 5: ((0, 2, 4), (1, 3, 5))}


def additive_powers_of_two(bits: int) -> np.ndarray:
    """Sums of few powers of two, one from each set of them (Li et al. 2020, arXiv:1909.13144)."""
    sums = np.zeros(1)
    for exponents in _SUMMANDS[bits]:
        sums = np.add.outer(sums, [0.0, *(2.0**-e for e in exponents)]).ravel()
    return _both_sides(sums / sums.max())


def logarithmic(bits: int) -> np.ndarray:
    """0 and powers of the root of two (Miyashita et al. 2016, arXiv:1603.01025)."""
    return _both_sides(2.0 ** (-np.arange(2 ** (bits - 1) - 1) / 2))


def sigmoid(bits: int) -> np.ndarray:
    """Values whose sigmoid is evenly spaced: dense near 0, where weights are."""
    shares = (np.arange(2**bits) + 0.5) / 2**bits
    values = np.log(shares / (1 - shares))
    return values / values.max()


def _both_sides(magnitudes: np.ndarray) -> np.ndarray:
    return np.unique(np.concatenate([-magnitudes, [0.0], magnitudes]))


# Name -> (its function, the bits that it may have; () where it has none).
GRIDS: dict[str, tuple[Callable[..., np.ndarray], tuple[int, ...]]] = {
    "binary": (functools.partial(mid_rise, 2), ()),
    "ternary": (ternary, ()),
    "4": (functools.partial(mid_rise, 4), ()),
    "8": (functools.partial(mid_rise, 8), ()),
    "power_of_two": (powers_of_two, (2, 3, 4)),
    "additive_power_of_two": (additive_powers_of_two, tuple(_SUMMANDS)),
    "log": (logarithmic, (2, 3, 4)),
    "sigmoid": (sigmoid, (1, 2, 3, 4, 5, 6)),
}


def codes_of(values: np.ndarray) -> np.ndarray:
    """Values as whole numbers of at most 8 bits: their least multiples that are, else 127ths."""
    values = np.asarray(values, np.float64) / np.abs(values).max()
    for largest in range(1, _LARGEST + 1):
        codes = values * largest
        if np.abs(codes - np.rint(codes)).max() < 1e-6:
            break
    return np.rint(codes).astype(int)


@keras.saving.register_keras_serializable("tfcompress")
@dataclasses.dataclass(frozen=True)
class Codebook(Technique):
    """Lets weights take a few fixed values, times scales that are trained.

    Each weight takes the nearest value; its gradient passes straight through inside of the range,
    and scales get theirs as LSQ's do (Esser et al. 2020, arXiv:1902.08153). Values are whole codes
    of at most 8 bits, which `Quantize` and the file hold as they are. Scales begin where the
    squared error is least.

    Args:
        values: "binary" (-1, 1), "ternary" (-1, 0, 1; Zhu et al. 2017, arXiv:1612.01064), "4"
            (-3, -1, 1, 3), "8" (-7, -5, ..., 7), "power_of_two", "additive_power_of_two" (Li et
            al. 2020, arXiv:1909.13144), "log" (powers of the root of two), "sigmoid" (dense near
            0), or a list of numbers. After `Prune` 0 is one more value of sets that lack it.
        bits: of "power_of_two" and "log", 2 to 4, "additive_power_of_two", 2 to 5, and "sigmoid",
            1 to 6: so many have at most 2^bits values. Others have none.
        per_channel: each output channel has a scale of its own; None where LiteRT's kernels do:
            in convolutions, if there is one scale for both signs.
        symmetric: one scale for both signs; "ternary" may have two, which is its default. Two take
            codes of 8 bits, `Quantize(bits=8)`, one of 2.
        threshold: of "ternary" with two scales: weights below so many times the mean of |w| are 0
            (Li et al. 2016, arXiv:1605.04711).
        begin: optimizer step at which weights take values, or a share of the training; None begins
            when the pruning before it has ended, or at once.
        depthwise: also takes depthwise kernels.
        target: see `Cluster`.
        channels: axes of output channels, filled in by `compress`, as is `follows`, whether `Prune`
            comes before.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> Codebook("4").codes
        (-3, -1, 1, 3)
        >>> Codebook("power_of_two", bits=3).codes
        (-4, -2, -1, 0, 1, 2, 4)
    """

    values: str | tuple[float, ...]
    bits: int | None = None
    per_channel: bool | None = None
    symmetric: bool | None = None
    threshold: float = 0.7
    begin: Step | None = None
    depthwise: bool = False
    channels: tuple[int, ...] = ()
    follows: bool = False
    target: str | None = None

    order: ClassVar[int] = 2
    trainable_states: ClassVar[tuple[str, ...]] = ("factor",)

    def __post_init__(self):
        object.__setattr__(self, "channels", tuple(self.channels))
        if isinstance(self.bits, numbers.Integral) and not isinstance(self.bits, bool):
            object.__setattr__(self, "bits", int(self.bits))  # also NumPy's
        if isinstance(self.values, str):
            self._check_name()
        else:
            self._check_numbers()
        one = self.symmetric is not False or self.values == "ternary"
        mend = "Only 'ternary' has two scales."
        check(one, "symmetric", f"None or True for {self.values!r}", self.symmetric, mend)
        low = isinstance(self.threshold, numbers.Real) and 0 <= self.threshold < 2
        check(low, "threshold", "[0, 2)", self.threshold, "0.7 is usual.")
        if self.begin is not None:
            object.__setattr__(self, "begin", step_of("begin", self.begin, 0))
        check_table(self.target, "values, with 0,", len({0, *self.codes}))

    def _check_name(self) -> None:
        check(self.values in GRIDS, "values", f"one of {', '.join(GRIDS)}, or numbers", self.values)
        widths = GRIDS[str(self.values)][1]
        name = f"bits of {self.values!r}"
        if widths:
            known = type(self.bits) is int and self.bits in widths
            mend = f"Write Codebook({self.values!r}, bits={widths[-1]})."
            check(known, name, f"{widths[0]} to {widths[-1]}", self.bits, mend)
        else:
            check(self.bits is None, name, "None", self.bits, "It has as many values as it says.")

    def _check_numbers(self) -> None:
        given = self.values
        numbered = isinstance(given, Sequence | np.ndarray) and all(
            isinstance(x, numbers.Real) and math.isfinite(x) for x in given
        )
        different = sorted({float(x) for x in given}) if numbered else []
        known = f"one of {', '.join(GRIDS)}, or 2 numbers or more"
        mend = f"Did you mean '{given}'?" if str(given) in GRIDS else ""
        check(len(different) > 1, "values", known, given, mend)
        check(self.bits is None, "bits of numbers", "None", self.bits, "There are as many as given")
        object.__setattr__(self, "values", tuple(different))
        lost = len(different) - len(set(codes_of(np.array(different)).tolist()))
        check(
            lost == 0,
            "values",
            "numbers that are a 127th of the largest apart, as codes of 8 bits are",
            given,
            f"{lost} of them would be the same code: take them out.",
        )

    @functools.cached_property
    def codes(self) -> tuple[int, ...]:
        """The values as whole numbers, in steps of which the file holds them."""
        values = (
            np.asarray(self.values, float) if not isinstance(self.values, str) else self._named()
        )
        codes = codes_of(values)
        return tuple(sorted({*codes.tolist(), *([0] if self.follows else [])}))

    def _named(self) -> np.ndarray:
        make, widths = GRIDS[str(self.values)]
        return make(self.bits) if widths else make()

    @property
    def two_scales(self) -> bool:
        """Whether negative and positive values have a scale each."""
        return self.values == "ternary" and not self.symmetric

    @property
    def greatest(self) -> int:
        """The greatest |code|; 0 if weights lie on no codes, as with two scales."""
        return 0 if self.two_scales else int(np.abs(self.codes).max())

    @property
    def code_bits(self) -> int:
        """The least bits of `Quantize` that hold the values."""
        if self.two_scales:
            return 8
        return max(2, self.greatest.bit_length() + 1)

    @property
    def scheduled(self) -> bool:
        return bool(self.begin) or self.follows

    def begins(self) -> int:
        return whole(self.begin or 0)

    def next_step(self, step: int) -> int | None:
        return self.begins() if step < self.begins() else None

    def refuses(self, layer, variable) -> str | None:
        if is_depthwise(layer, variable.name) and not self.depthwise:
            return "a depthwise kernel (pass depthwise=True to give it few values)"
        axes = self._channels(layer, variable.name)
        size = int(np.prod([n for i, n in enumerate(variable.shape) if i not in axes]))
        if size < len(self.codes):
            where = " in each channel" if axes else ""
            return f"with {size} weights{where}, fewer than the {len(self.codes)} values"
        return None

    def _channels(self, layer, weight: str) -> tuple[int, ...]:
        """The axes of a weight along which scales differ."""
        if self.per_channel is not None:
            axes = weight_axes(layer, weight)[1] if self.per_channel else ()
            return table_axes(self.target, layer, axes)
        single = self.two_scales or is_of(layer, {"Dense", "EinsumDense"})
        return () if single or weight != "kernel" else channel_axes(layer)

    def bind(self, layer, weight: str, before: Sequence[Technique] = ()) -> Codebook:
        pruning = [t for t in before if isinstance(t, Prune)]
        begin = self.begin
        if begin is None:
            begin = next((t.schedule.end or t.schedule.begin for t in pruning), 0)
        axes = self._channels(layer, weight)
        return dataclasses.replace(self, begin=begin, follows=bool(pruning), channels=axes)

    def initial_state(self, weight) -> dict[str, Any]:
        base = self._base(ops.convert_to_numpy(ops.cast(weight, "float32")))
        state = {"base": ops.convert_to_tensor(base), "factor": ops.ones(base.shape)}
        return {**state, "active": ops.zeros(())} if self.scheduled else state

    def update(self, weight, state, step: int) -> dict[str, Any]:
        if not self.scheduled or step < self.begins() or bool(state["active"] > 0):
            return state
        base = self._base(ops.convert_to_numpy(ops.cast(weight, "float32")))
        return {**state, "base": ops.convert_to_tensor(base), "active": ops.ones(())}

    def _base(self, weight: np.ndarray) -> np.ndarray:
        """The first scales: (1 or 2, then as the weight, with 1 along axes that share one)."""
        rows = by_channel(weight, self.channels)
        if self.two_scales:
            found = ternary_scales(rows, self.threshold)
        else:
            found = best_scale(rows, self._normalised())[None]
        shape = [n if i in self.channels else 1 for i, n in enumerate(weight.shape)]
        return found.reshape([len(found), *shape]).astype(np.float32)

    def _normalised(self) -> np.ndarray:
        codes = np.array(self.codes, np.float64)
        return (codes / np.abs(codes).max()).astype(np.float32)

    def apply(self, weight, state):
        full = ops.cast(weight, "float32")
        axes = tuple(i for i in range(len(weight.shape)) if i not in self.channels)
        active = state["active"] > 0 if self.scheduled else None
        given = (full, state["factor"], state["base"], axes, active)
        if self.two_scales:
            found = _on_ternary(*given, self.threshold)
        else:
            found = _on_values(*given, self._normalised())
        return ops.cast(found, weight.dtype)


def nearest_value(x: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The nearest of some sorted values; halfway between two the greater."""
    return values[np.searchsorted(_middles(values), x, side="right")]


def _middles(values: np.ndarray) -> np.ndarray:
    return (values[:-1] + values[1:]) / 2


# Weights further out than so many times the largest value get no gradient: LSQ has 1, beyond which
# none come back.
REACH = 1.5
# The search for a scale needs no more weights than this.
_SAMPLE = 2**16


def best_scale(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The scale of least squared error of each channel.

    Args:
        rows: float array (n, channels).
        values: sorted, the largest |value| is 1.

    Returns a float array (channels,), positive.
    """
    rows = rows[:: max(1, min(rows.size // _SAMPLE, len(rows) // 64))].astype(np.float64)
    largest = np.abs(rows).max(axis=0, initial=0.0)
    largest = np.where(largest > 0, largest, 1e-6)
    best, least = largest, np.full(largest.shape, np.inf)
    for share in np.geomspace(0.05, 1.25, 40):
        # The best scale for the values that one chooses.
        chosen = nearest_value(rows / (share * largest), values)
        power = np.square(chosen).sum(axis=0)
        scale = (rows * chosen).sum(axis=0) / np.where(power > 0, power, 1.0)
        scale = np.where(scale > 0, scale, share * largest)
        error = np.square(rows - scale * nearest_value(rows / scale, values)).sum(axis=0)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best


def ternary_scales(rows: np.ndarray, threshold: float) -> np.ndarray:
    """The mean |w| of the positive and of the negative weights beyond the threshold, (2, n)."""
    mean = np.abs(rows).mean(axis=0)
    found = []
    for side in (rows, -rows):
        beyond = side > threshold * mean
        sums, counts = np.where(beyond, side, 0.0).sum(axis=0), beyond.sum(axis=0)
        found.append(np.where(counts > 0, sums / np.maximum(counts, 1), mean))
    return np.maximum(np.stack(found), 1e-6)


def _share(axes: tuple[int, ...], shape: Sequence[int]) -> float:
    """What a scale takes of its gradient, so that it learns no faster than weights do."""
    return 1.0 / math.sqrt(math.prod(shape[axis] for axis in axes))


def _on_values(weight, factor, base, axes, active, values: np.ndarray):
    """Each weight as a scale times the nearest value, or itself while `active` is false."""
    share, middles = _share(axes, weight.shape), _middles(values)
    base = base[0]
    low, high = REACH * float(values[0]), REACH * float(values[-1])

    def forward(weight, factor):
        x = weight / (base * factor[0])
        index = ops.searchsorted(ops.convert_to_tensor(middles), ops.reshape(x, (-1,)), "right")
        return x, ops.reshape(ops.take(ops.convert_to_tensor(values), index), weight.shape)

    if keras.backend.backend() != "tensorflow":
        x, value = forward(ops.stop_gradient(weight), ops.stop_gradient(factor))
        inside = ops.logical_and(x >= low, x <= high)
        # The brackets are exactly 0 and carry the gradients.
        slope = value - ops.where(inside, x, 0.0)
        moved = base * (share * factor[0])
        learned = ops.stop_gradient(slope) * (moved - ops.stop_gradient(moved))
        passed = ops.where(inside, weight - ops.stop_gradient(weight), 0.0)
        found = ops.stop_gradient(base * factor[0]) * value + learned + passed
        return found if active is None else ops.where(active, found, weight)
    import tensorflow as tf

    @tf.custom_gradient
    def quantized(weight, factor):
        scale = base * factor[0]
        x = weight / scale
        index = tf.raw_ops.Bucketize(input=x, boundaries=middles.tolist())
        value = tf.gather(tf.constant(values), index)
        found = scale * value

        def gradient(upstream):
            kept = tf.clip_by_value(x, low, high)
            inside = tf.equal(kept, x)
            slope = value - tf.where(inside, x, 0.0)
            of_factor = share * base * tf.reduce_sum(upstream * slope, axes, keepdims=True)
            of_weight = tf.where(inside, upstream, 0.0)
            if active is not None:
                of_weight = tf.where(active, of_weight, upstream)
                of_factor = tf.where(active, of_factor, 0.0)
            return of_weight, of_factor[None]

        return found if active is None else tf.where(active, found, weight), gradient

    return quantized(weight, factor)


def _on_ternary(weight, factor, base, axes, active, threshold: float):
    """Weights beyond a threshold as a scale of their side, others as 0.

    Each scale gets the sum of its weights' gradients, times its share.
    """
    share = _share(axes, weight.shape)

    def sides(weight):
        limit = threshold * ops.mean(ops.abs(weight), axes, keepdims=True)
        return weight > limit, weight < -limit

    def taken(above, below, scales):
        return ops.where(above, scales[0], ops.where(below, -scales[1], 0.0))

    if keras.backend.backend() != "tensorflow":
        above, below = sides(ops.stop_gradient(weight))
        learned = share * factor
        scales = base * (ops.stop_gradient(factor) + (learned - ops.stop_gradient(learned)))
        passed = weight - ops.stop_gradient(weight)
        found = taken(above, below, scales) + passed
        return found if active is None else ops.where(active, found, weight)
    import tensorflow as tf

    @tf.custom_gradient
    def quantized(weight, factor):
        above, below = sides(weight)
        found = taken(above, below, base * factor)

        def gradient(upstream):
            of_sides = [
                tf.reduce_sum(tf.where(above, upstream, 0.0), axes, keepdims=True),
                -tf.reduce_sum(tf.where(below, upstream, 0.0), axes, keepdims=True),
            ]
            of_factor = share * base * tf.stack(of_sides)
            if active is not None:
                of_factor = tf.where(active, of_factor, 0.0)
            return upstream, of_factor

        return found if active is None else tf.where(active, found, weight), gradient

    return quantized(weight, factor)
