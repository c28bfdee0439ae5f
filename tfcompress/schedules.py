"""Schedules: how a value, such as the sparsity, changes with the optimizer's step.

>>> round(polynomial(0.2, 0.8, begin=100, end=110)(102), 4)
0.4928

Steps may be shares of the training, which `fit` makes steps of when it begins:

>>> polynomial(0.0, 0.8, end="60%").over(0, 1000).end
600
"""

import dataclasses
import itertools
import math
import numbers
import re
from collections.abc import Sequence
from typing import Any, Literal

import keras

Curve = Literal["polynomial", "cosine", "points"]
# A number of optimizer steps, or a share of the training such as "60%".
Step = int | str

_SHARE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?%")


@keras.saving.register_keras_serializable("tfcompress")
@dataclasses.dataclass(frozen=True)
class Schedule:
    """A value as a function of the step; made by the functions of this module.

    Attributes:
        curve: "polynomial", "cosine" or "points" (which hold until the next one).
        initial, final: values at `begin` and from `end` on.
        begin: the first step at which the value counts; it is 0.0 before.
        end: the step of the last update; None goes on for ever.
        frequency: steps between updates. The last one is at `end` even if that is no multiple.
            None is for shares alone: 100, or fewer so that there are ten updates.
        power: of a polynomial curve.
        points: (step, value) pairs of a curve of points, by step.

    Calling it with a step gives the value of the curve there; `at` gives the value of the latest
    update. Steps may be shares of the training, such as "60%": `UpdateCompression`,
    `PruneCallback` and `ChannelPruning` call `over` when the first `fit` begins, by its epochs and
    their batches, and what is saved has the steps.
    """

    curve: Curve
    initial: float
    final: float
    begin: Any = 0
    end: Any = None
    frequency: Any = 100
    power: float = 3.0
    points: tuple[tuple[Any, float], ...] = ()

    def __post_init__(self):
        pairs = tuple((step_of("the step of a point", s, 0), float(v)) for s, v in self.points)
        object.__setattr__(self, "points", pairs)
        for name in ("initial", "final", "power"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        for name, least in (("begin", 0), ("frequency", 1), ("end", 0)):
            if getattr(self, name) is not None or name == "begin":
                object.__setattr__(self, name, step_of(name, getattr(self, name), least))
        if self.frequency is None and not self.has_shares:
            raise TypeError("frequency must be a number of steps; received None. 100 is usual.")
        if comes_before(self.end, self.begin):
            raise ValueError(
                f"end must not come before begin={self.begin}; received end={self.end}. "
                "Both are optimizer steps: steps per epoch times epochs."
            )

    @property
    def has_shares(self) -> bool:
        """Whether steps are shares of a training that has not begun."""
        given = (self.begin, self.end, self.frequency, *(step for step, _ in self.points))
        return any(is_share(step) for step in given)

    def over(self, first: int, steps: int) -> "Schedule":
        """This schedule for a training of so many steps, of which `first` is the first.

        Args:
            first: the optimizer step before which shares of 0% are.
            steps: of the whole training.

        Returns:
            A `Schedule` of whole steps; the same one if it has no shares.

        Raises:
            ValueError: if its end comes before its beginning in a training of this length.

        Example:
            >>> linear(0.0, 0.5, begin="10%", end="60%").over(0, 200).begin
            20
        """
        if not self.has_shares:
            return self
        # A beginning that is not given is that of the training.
        begin = first if self.begin == 0 else steps_of(self.begin, first, steps)
        end = steps_of(self.end, first, steps)
        if self.curve == "points":
            return points([(steps_of(step, first, steps), value) for step, value in self.points])
        often = steps_of(self.frequency, 0, steps, least=1)
        often = _often(often, begin, end)
        return dataclasses.replace(self, begin=begin, end=end, frequency=often)

    def _require_steps(self) -> None:
        if self.has_shares:
            raise ValueError(
                "a schedule must have whole steps where it is followed; received shares of a "
                f"training that has not begun: {self}. Train with fit and callbacks="
                "[tfcompress.UpdateCompression()], or call schedule.over(0, steps) with its steps."
            )

    def __call__(self, step: int) -> float:
        self._require_steps()
        if step < self.begin:
            return 0.0
        if self.curve == "points":
            return [value for start, value in self.points if start <= step][-1]
        if self.end is None or step >= self.end:
            return self.final if self.end is not None else self.initial
        done = (step - self.begin) / (self.end - self.begin)
        if self.curve == "cosine":
            left = (1 + math.cos(math.pi * done)) / 2
        else:
            left = (1 - done) ** self.power
        return self.final + (self.initial - self.final) * left

    def at(self, step: int) -> float:
        """The value of the latest update at or before a step; 0.0 before the first."""
        self._require_steps()
        if step < self.begin:
            return 0.0
        if self.end is not None and step >= self.end:
            return self(self.end)
        if self.curve == "points":
            return self(step)
        return self(step - (step - self.begin) % self.frequency)

    def next_update(self, step: int) -> int | None:
        """The first update after a step; None if there is none."""
        self._require_steps()
        if step < self.begin:
            return self.begin
        if self.end is not None and step >= self.end:
            return None
        if self.curve == "points":
            return next(start for start, _ in self.points if start > step)
        following = step + self.frequency - (step - self.begin) % self.frequency
        return following if self.end is None else min(following, self.end)

    def get_config(self) -> dict[str, Any]:
        config = dataclasses.asdict(self)
        return {**config, "points": [list(point) for point in self.points]}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Schedule":
        return cls(**config)


def constant(
    value: float, *, begin: Step = 0, end: Step | None = None, frequency: Step = 100
) -> Schedule:
    """The same value from `begin` on, applied anew every `frequency` steps until `end`.

    Args:
        value: the value, such as a sparsity in [0, 1).
        begin: the first step, or a share of the training such as "10%", as all steps may be.
        end: the step of the last update; None goes on for ever.
        frequency: steps between updates, as weights change and others become the smallest.

    Returns:
        A `Schedule`.

    Raises:
        TypeError, ValueError: if steps are no whole numbers, or in the wrong order.

    Example:
        >>> constant(0.5, begin=100)(99), constant(0.5, begin=100)(100)
        (0.0, 0.5)
    """
    return Schedule("polynomial", value, value, begin, end, frequency)


def polynomial(
    initial: float,
    final: float,
    *,
    end: Step,
    begin: Step = 0,
    power: float = 3.0,
    frequency: Step | None = None,
) -> Schedule:
    """From `initial` to `final`, fast at first (Zhu and Gupta 2017, arXiv:1710.01878).

    Args:
        initial, final: values at `begin` and at `end`.
        end: the step of the last update, or a share of the training such as "60%", as all steps
            may be.
        begin: the first step.
        power: 3 as in the paper; 1 is linear.
        frequency: steps between updates; None takes 100, or fewer so that there are ten updates.

    Returns:
        A `Schedule`: final + (initial - final) * (1 - done) ** power.

    Raises:
        TypeError, ValueError: if steps are no whole numbers, or in the wrong order.

    Example:
        >>> round(polynomial(0.2, 0.8, begin=100, end=110)(105), 4)
        0.725
        >>> polynomial(0.0, 0.8, end="60%", frequency="2%").over(0, 500).frequency
        10
    """
    return Schedule("polynomial", initial, final, begin, end, _often(frequency, begin, end), power)


def linear(
    initial: float, final: float, *, end: Step, begin: Step = 0, frequency: Step | None = None
) -> Schedule:
    """From `initial` to `final` in equal steps; arguments as of `polynomial`.

    Example:
        >>> linear(0.0, 0.5, end=1000)(500)
        0.25
    """
    return Schedule("polynomial", initial, final, begin, end, _often(frequency, begin, end), 1.0)


def cosine(
    initial: float, final: float, *, end: Step, begin: Step = 0, frequency: Step | None = None
) -> Schedule:
    """From `initial` to `final` along half a cosine, slow at both ends; see `polynomial`.

    Example:
        >>> round(cosine(0.0, 0.8, end=1000)(500), 6)
        0.4
    """
    return Schedule("cosine", initial, final, begin, end, _often(frequency, begin, end))


def one_shot(value: float, *, step: Step = 0) -> Schedule:
    """One update, at `step`; what it sets stays.

    Example:
        >>> one_shot(0.5, step=200).next_update(200) is None
        True
    """
    return Schedule("polynomial", value, value, step, step)


def points(points: Sequence[tuple[Step, float]]) -> Schedule:
    """A value at each of some steps, which holds until the next one (iterative pruning).

    Args:
        points: (step, value) pairs in the order of the steps.

    Returns:
        A `Schedule`.

    Raises:
        TypeError, ValueError: if there is no point, or their steps do not grow.

    Example:
        >>> points([(0, 0.3), (500, 0.6), (1000, 0.8)])(700)
        0.6
    """
    try:
        pairs = [(step, value) for step, value in points]
    except TypeError as error:
        raise TypeError(
            f"points must be (step, value) pairs, such as [(0, 0.3), (500, 0.6)]; received "
            f"{points!r}."
        ) from error
    if not pairs:
        raise ValueError("points must hold at least one (step, value) pair; received none.")
    pairs = [
        (step_of("the step of a point", step, 0), _number("the value of a point", value))
        for step, value in pairs
    ]
    steps = [step for step, _ in pairs]
    if any(later == step or comes_before(later, step) for step, later in itertools.pairwise(steps)):
        raise ValueError(f"the steps of points must grow; received {steps}. Sort them.")
    first, last = pairs[0], pairs[-1]
    return Schedule("points", first[1], last[1], first[0], last[0], points=tuple(pairs))


def alternating(value: float, *, end: Step, begin: Step = 0, phases: int = 4) -> Schedule:
    """A value and 0 in turns, so that all weights train between (AC/DC, arXiv:2106.12379).

    Each phase is as long as the others, but for the last one: what `end` sets stays. Weights of
    `Prune` come back with the values that they went with.

    Args:
        value: such as a sparsity in [0, 1).
        end: the step from which the last phase with the value goes on, or a share of the training.
        begin: the first step with the value.
        phases: how many there are with the value, 2 or more.

    Returns:
        A `Schedule` of points.

    Raises:
        TypeError, ValueError: if there are too few phases, or steps are in the wrong order.

    Example:
        >>> alternating(0.8, end=600, phases=3).points
        ((0, 0.8), (150, 0.0), (300, 0.8), (450, 0.0), (600, 0.8))
    """
    if isinstance(phases, bool) or not isinstance(phases, numbers.Integral) or phases < 2:
        raise ValueError(f"phases must be a whole number of 2 or more; received {phases!r}.")
    begin, end = step_of("begin", begin, 0), step_of("end", end, 0)
    if is_share(begin) != is_share(end) and begin != 0:
        raise ValueError(
            f"begin and end must both be steps or shares; received begin={begin!r} and "
            f"end={end!r}. Write both as shares, such as '10%'."
        )
    if comes_before(end, begin):
        raise ValueError(f"end must not come before begin={begin}; received end={end}.")
    low, high = (float(str(step).rstrip("%")) for step in (begin, end))
    turns = 2 * int(phases) - 2
    places = [low + (high - low) * turn / turns for turn in range(turns + 1)]
    steps = [f"{place:.6g}%" if is_share(end) else round(place) for place in places]
    return points([(step, value * (turn % 2 == 0)) for turn, step in enumerate(steps)])


def _often(frequency: Any, begin: Any, end: Any) -> Any:
    """Steps between updates where none are given: 100 as in TFMOT, but ten updates at least."""
    if frequency is not None or is_share(begin) or is_share(end):
        return frequency  # None until the length of the training is known
    if not all(isinstance(n, numbers.Integral) for n in (begin, end)):
        return 100
    return int(min(100, max(1, (end - begin) // 10)))


def is_share(step: Any) -> bool:
    """Whether a step is a share of the training."""
    return isinstance(step, str)


def whole(step: Step) -> int:
    """A step that is no share of a training which has not begun."""
    if isinstance(step, str):
        raise ValueError(
            f"a step must be a whole number where it is reached; received {step} of a training "
            "that has not begun. Train with fit and callbacks=[tfcompress.UpdateCompression()]."
        )
    return step


def comes_before(a: Any, b: Any) -> bool:
    """Whether a step is before another one; shares and whole steps cannot be compared."""
    if a is None or b is None or is_share(a) != is_share(b):
        return False
    return float(str(a).rstrip("%")) < float(str(b).rstrip("%"))


def steps_of(step: Any, first: int, steps: int, least: int = 0) -> Any:
    """A step of a training of so many steps from `first` on; what is no share stays as it is."""
    if not is_share(step):
        return step
    return first + max(least, round(steps * float(step.rstrip("%")) / 100))


def step_of(name: str, step: Any, least: int) -> Any:
    """A step as an int, which NumPy's integers become, too, or a share such as "60%"."""
    if isinstance(step, str) and (share := _SHARE.fullmatch(step)):
        if float(share[1]) > 100:
            raise ValueError(f"{name} must be 0% to 100% of the training; received {step}.")
        return f"{float(share[1]):g}%"
    if isinstance(step, bool) or not isinstance(step, numbers.Integral):
        raise TypeError(
            f"{name} must be a whole number of optimizer steps; received {step!r}. "
            "A step is one batch: steps per epoch times epochs gives the whole training, of which "
            "'60%' is a share."
        )
    if step < least:
        raise ValueError(f"{name} must be {least} or more optimizer steps; received {step}.")
    return int(step)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise TypeError(f"{name} must be a finite number; received {value!r}.")
    return float(value)
