"""How many channels groups can lose, and how far that is from a target."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Mapping

from tfcompress.errors import check, require_share
from tfcompress.surgery.pruning.groups import ChannelGroup, Structure

# How many channels stay, by the name of a group.
Sizes = dict[str, int]

# Shares that differ by less are the same.
_SAME = 1e-9


@dataclasses.dataclass(frozen=True)
class Limits:
    """How many channels of a group can stay.

    Attributes:
        size: all.
        least: the fewest.
        step: in multiples of which they stay, but for all.
    """

    size: int
    least: int
    step: int

    @classmethod
    def of(
        cls, group: ChannelGroup, round_to: int, max_sparsity: float | Mapping[str, float]
    ) -> Limits:
        step = 1
        if group.unit == "channels":
            step = round_to // math.gcd(round_to, group.repeats)
        if isinstance(max_sparsity, Mapping):
            max_sparsity = max_sparsity.get(group.name, 0.0)
        least = max(1, math.ceil(group.size * (1 - max_sparsity) - 1e-9))
        return cls(group.size, min(group.size, math.ceil(least / step) * step), step)

    def rounded(self, count: float) -> int:
        """The nearest number of channels that can stay; of two the larger."""
        low = max(self.least, math.floor(count / self.step) * self.step)
        high = max(self.least, min(self.size, low + self.step))
        return low if count <= low or count - low < high - count else high

    def larger(self, count: int, largest: int) -> int:
        """One step more channels, but no more than the largest number."""
        return self.rounded(min(largest, count + self.step))


@dataclasses.dataclass(frozen=True)
class Reach:
    """How far sizes of groups are from a target.

    Attributes:
        structure: of the model.
        target: macs, params or sparsity.
        limits: of the groups that can lose channels, by name.
    """

    structure: Structure
    target: Target
    limits: Mapping[str, Limits]

    @classmethod
    def of(
        cls,
        structure: Structure,
        target: Target,
        groups: Mapping[str, ChannelGroup],
        round_to: int,
        max_sparsity: float | Mapping[str, float],
    ) -> Reach:
        """Of numbers of channels that are multiples of `round_to`.

        Where the target is out of reach so, as in narrow models, of its half, a quarter and so on,
        with a warning.

        Raises:
            ValueError: the target is out of reach with any numbers.
        """
        step = round_to
        while True:
            limits = {name: Limits.of(g, step, max_sparsity) for name, g in groups.items()}
            reach = cls(structure, target, limits)
            if step == 1 or reach.met(reach.least):
                break
            step //= 2
        reach.require()
        if step < round_to:
            warnings.warn(
                f"{target.name}={target.value:g} is out of reach with numbers of channels that are "
                f"multiples of {round_to}: they are multiples of {step}, which kernels may fill "
                f"less well. Pass round_to={step}, or want less.",
                stacklevel=2,
            )
        return reach

    @property
    def least(self) -> Sizes:
        """The fewest channels that each group can keep."""
        return {name: limit.least for name, limit in self.limits.items()}

    @property
    def wanted(self) -> float:
        """The share of MACs, parameters or channels that may remain."""
        value = self.target.value
        return 1 - value if self.target.name == "sparsity" else value

    def cost(self, sizes: Mapping[str, int]) -> int:
        """MACs, or parameters if these are the target; groups that are not there stay whole."""
        numbers = {self.structure.numbers[name]: size for name, size in sizes.items()}
        macs, params = self.structure.cost(numbers)
        return params if self.target.name == "params" else macs

    @functools.cached_property
    def whole(self) -> int:
        """The cost of the model as it is."""
        return self.cost({})

    def left(self, sizes: Mapping[str, int]) -> float:
        """The share that remains, if all groups that can lose channels have these sizes."""
        if self.target.name == "sparsity":
            return sum(sizes.values()) / sum(limit.size for limit in self.limits.values())
        return self.cost(sizes) / self.whole if self.whole else 1.0

    def met(self, sizes: Mapping[str, int]) -> bool:
        """Whether no more remains than may."""
        return self.left(sizes) <= self.wanted + _SAME

    def require(self) -> None:
        """Raises a ValueError unless the target is met once all groups are as small as can be."""
        if self.met(self.least):
            return
        name, left = self.target.name, self.left(self.least)
        # Rounded so that what is told can be had.
        best = math.ceil(1000 * (left - _SAME)) / 1000
        word, best = ("most", round(1 - best, 3)) if name == "sparsity" else ("least", best)
        mend = f"Pass {name}={best:g}, raise" if 0 < best < 1 else "Raise"
        raise ValueError(
            f"{name}={self.target.value:g} is out of reach: {len(self.limits)} groups of channels "
            f"can be cut, which leaves {name} at {word} {best:g}. {mend} max_sparsity, or keep "
            "fewer layers."
        )


@dataclasses.dataclass(frozen=True)
class Target:
    """How small a model is to become; exactly one of these.

    Attributes:
        macs, params: the share that may remain, in (0, 1).
        sparsity: the fraction of channels that go, in (0, 1).
        per_layer: {name of a layer: fraction of its channels that go}.

    Raises:
        ValueError: there is none or more than one, or a number is out of its range.
    """

    macs: float | None = None
    params: float | None = None
    sparsity: float | None = None
    per_layer: Mapping[str, float] | None = None

    def __post_init__(self):
        given = [name for name in _NAMES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"exactly one of {', '.join(_NAMES)} must be given; received "
                f"{', '.join(given) or 'none'}. macs=0.5 leaves half of the MACs."
            )
        shares = {given[0]: getattr(self, given[0])}
        if self.per_layer is not None:
            check(bool(self.per_layer), "per_layer", "{layer: sparsity}", self.per_layer)
            shares = {f"per_layer[{key!r}]": value for key, value in self.per_layer.items()}
        for name, value in shares.items():
            require_share(name, value)

    @property
    def name(self) -> str:
        """Which of the four it is."""
        return next(name for name in _NAMES if getattr(self, name) is not None)

    @property
    def value(self) -> float:
        """Its number; not of `per_layer`."""
        return getattr(self, self.name)

    def changed(self, left: Callable[[float], float]) -> Target:
        """The target that leaves `left(share)` where this one leaves a share."""
        if self.per_layer is not None:
            return Target(per_layer={name: 1 - left(1 - x) for name, x in self.per_layer.items()})
        if self.sparsity is not None:
            return Target(sparsity=1 - left(1 - self.sparsity))
        return Target(**{self.name: left(self.value)})  # type: ignore[arg-type]


_NAMES = tuple(field.name for field in dataclasses.fields(Target))
