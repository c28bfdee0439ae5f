"""Budgets: what a file may cost and must reach, in the words of its user."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from tfcompress.errors import expected_one_of
from tfcompress.files.quantities import parse_bytes, parse_count

# What a file costs -> (its unit in words, what an amount of it looks like, what reads it).
COSTS: dict[str, tuple[str, str, Any]] = {
    "flash": ("bytes", "48k", parse_bytes),
    "ram": ("bytes", "64k", parse_bytes),
    "latency": ("parts of the float file's time", "0.5x", None),
    "cycles": ("cycles by Vela", "1.5M", parse_count),
    "macs": ("multiply-accumulate operations", "2.5M", parse_count),
}
QUALITY = "quality"
NAMES = (*COSTS, QUALITY)
_POINT = 0.01
# By how much a quality that has no other scale may be missed to count as missed by 1.
_SCALE = 0.01
# By what part the quality decides between files that cost the same.
_TIE = 1e-4


@dataclasses.dataclass(frozen=True)
class Limit:
    """One budget.

    Attributes:
        name: of `NAMES`.
        value: the number.
        kind: "absolute"; "times" what the float file costs; of the quality "points" (hundredths)
            or "percent" that it may differ from the float file's, below 0 if it may be worse.
        text: as it was given.
    """

    name: str
    value: float
    kind: str
    text: str

    def bound(self, base: float, up: bool = True) -> float:
        """The number that must be kept: the most of a cost, the least (or most) of a quality.

        Args:
            base: what the float file has.
            up: whether a higher quality is better.
        """
        sign = 1.0 if up else -1.0
        if self.kind == "times":
            return self.value * base
        if self.kind == "points":
            return base + sign * self.value * _POINT
        if self.kind == "percent":
            return base + sign * self.value / 100 * abs(base)
        return self.value


@dataclasses.dataclass(frozen=True)
class Budget:
    """The budgets of a file.

    Args:
        limits: by name.
    """

    limits: Mapping[str, Limit]

    @classmethod
    def parse(cls, given: Any) -> Budget:
        """Budgets out of "flash=48k,quality=-0.5", or of a mapping of names to texts or numbers."""
        if isinstance(given, Budget):
            return given
        pairs = given.items() if isinstance(given, Mapping) else _split(given)
        limits: dict[str, Limit] = {}
        for name, value in pairs:
            if name not in NAMES:
                raise ValueError(f"unknown budget {name!r}; {expected_one_of(str(name), NAMES)}")
            if name in limits:
                raise ValueError(f"budget: received {name} twice. Give it once.")
            limits[name] = _limit(name, value)
        if not limits:
            raise ValueError(
                "a search needs a budget; received none. Give flash, ram, latency, cycles, macs or "
                "quality, as in flash=48k,quality=-0.5."
            )
        return cls(limits)

    @property
    def costs(self) -> list[str]:
        """The costs that have a budget."""
        return [name for name in COSTS if name in self.limits]

    @property
    def text(self) -> str:
        """The budgets as they were given."""
        return ",".join(f"{name}={limit.text}" for name, limit in self.limits.items())

    def bounds(self, base: Mapping[str, float], up: bool) -> dict[str, float]:
        """The numbers that must be kept, beside what the float file has.

        Raises:
            ValueError: if the quality cannot be told so.
        """
        limit = self.limits.get(QUALITY)
        if limit is not None and limit.kind == "points" and not (up and 0 <= base[QUALITY] <= 1):
            raise ValueError(
                f"quality={limit.text} are points of a measure from 0 to 1, such as accuracy; that "
                f"of the model is {base[QUALITY]:.4g}{'' if up else ' and better the lower it is'}."
                f" Give it in percent, quality={limit.text.rstrip('%')}%, or as a number to reach."
            )
        return {name: each.bound(base[name], up) for name, each in self.limits.items()}


def _split(given: Any) -> list[tuple[str, str]]:
    if not isinstance(given, str):
        raise TypeError(
            f"budget must be a text such as 'flash=48k,quality=-0.5' or a mapping; received "
            f"{given!r}."
        )
    pairs = []
    for part in filter(None, (part.strip() for part in given.split(","))):
        name, sign, value = (word.strip() for word in part.partition("="))
        if not sign:
            raise ValueError(
                f"budget must be NAME=AMOUNT with commas between, as in flash=48k,quality=-0.5; "
                f"received {part!r}."
            )
        pairs.append((name, value))
    return pairs


def _limit(name: str, value: Any) -> Limit:
    text = value.strip() if isinstance(value, str) else f"{value:g}" if _is_number(value) else ""
    found = _quality(text) if name == QUALITY else _cost(name, text)
    if found is None:
        if name == QUALITY:
            expected = (
                "-0.5 (points below the float file's), -1% (of it) or 0.9 (a number to reach)"
            )
        else:
            unit, example, read = COSTS[name]
            expected = f"{unit} such as {example}"
            expected += ", or 0.25x of the float file's" if read else ""
        raise ValueError(f"budget {name} must be {expected}; received {value!r}.")
    return Limit(name, *found, text)


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


_SIGNED = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"


def _cost(name: str, text: str) -> tuple[float, str] | None:
    """(number, kind) of a cost."""
    _, _, read = COSTS[name]
    match = re.fullmatch(rf"({_SIGNED})[x×]?", text)
    if match and (text[-1] in "x×" or read is None):
        value = float(match[1])
        return (value, "times") if value > 0 else None
    try:
        return (float(read(text)), "absolute") if read else None
    except ValueError:
        return None


def _quality(text: str) -> tuple[float, str] | None:
    """(number, kind) of a quality."""
    match = re.fullmatch(rf"({_SIGNED})(%?)", text)
    if match is None:
        return None
    value = float(match[1])
    if match[2]:
        return value if value <= 0 or text[0] == "+" else value - 100, "percent"
    relative = text[0] in "+-" or value == 0
    return value, "points" if relative else "absolute"


@dataclasses.dataclass(frozen=True)
class Goal:
    """How good a file is for its budgets, as one number: the lower, the better.

    Where a quality is asked for, the file that keeps it and costs least is best, otherwise the best
    one that costs no more than it may.

    Attributes:
        bounds: the numbers to keep, by name.
        base: what the float file has.
        up: whether a higher quality is better.
    """

    bounds: Mapping[str, float]
    base: Mapping[str, float]
    up: bool

    def missed(self, figures: Mapping[str, float], gain: float = 0.0) -> dict[str, float]:
        """The budgets that are not kept, and by what part of them.

        Args:
            gain: what is expected to be added to the quality yet.
        """
        found = {}
        for name, bound in self.bounds.items():
            if name == QUALITY:
                part = self._behind(figures[QUALITY] + gain) / self._scale
            else:
                part = figures[name] / bound - 1
            if not part <= 0:  # or not a number
                found[name] = part if math.isfinite(part) else math.inf
        return found

    def __call__(self, figures: Mapping[str, float], gain: float = 0.0) -> float:
        """The number; above `MISSES` if a budget is missed."""
        missed = self.missed(figures, gain)
        if missed:
            return MISSES + min(sum(missed.values()), MISSES)
        behind = self.base[QUALITY] - figures[QUALITY] - gain
        behind = math.tanh((behind if self.up else -behind) / (self._scale * 10))
        if QUALITY not in self.bounds:
            return behind
        costs = [name for name in self.bounds if name != QUALITY] or ["flash"]
        parts = [figures[name] / (self.bounds.get(name) or self.base[name]) for name in costs]
        mean = math.fsum(math.log(max(part, 1e-9)) for part in parts) / len(parts)
        return mean / 10 + _TIE * behind

    def _behind(self, quality: float) -> float:
        """How far a quality is behind the one asked for."""
        behind = self.bounds[QUALITY] - quality
        return behind if self.up else -behind

    @property
    def _scale(self) -> float:
        """A difference in quality that matters as much as the whole of a cost."""
        allowed = abs(self.bounds.get(QUALITY, self.base[QUALITY]) - self.base[QUALITY])
        return max(allowed, _SCALE * abs(self.base[QUALITY]), 1e-9) * 10


# Of a file that misses a budget the goal is between this and twice as much.
MISSES = 10.0
