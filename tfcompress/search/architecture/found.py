"""What `search_architecture` found: the candidates, the best of them, and how it got there."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras

from tfcompress.graph.flatten import as_flat
from tfcompress.recipe.findings import drawn, empty_figure
from tfcompress.results import Result, Rows, plain, print_line, print_table
from tfcompress.surgery.profile import profile

if TYPE_CHECKING:
    from rich.console import Console

TRAINED, REPEATED = "trained", "repeated"
OVER_BUDGET, BELOW_PROXY, DIVERGED = "over budget", "below proxy", "diverged"
_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Costs:
    """What an architecture costs, known without training.

    Attributes:
        macs: multiply-accumulate operations of one sample.
        params: numbers in all weights.
        peak_memory: the most bytes of int8 activations that are held at once.
        flash: bytes of its weights in an int8 file, about: kernels of 1 byte, biases of 4.
    """

    macs: int
    params: int
    peak_memory: int
    flash: int


COSTS = tuple(field.name for field in dataclasses.fields(Costs))


def costs_of(model: keras.Model) -> Costs:
    """What a model costs; BatchNormalization is one bias for each channel, as it is folded."""
    flat = as_flat(model)
    found = profile(flat, bytes_per_value=1)
    layers = [x for x in flat.layers if not isinstance(x, keras.layers.BatchNormalization)]
    biases = [x.moving_mean for x in flat.layers if x not in layers]
    shapes = [tuple(weight.shape) for layer in layers for weight in layer.weights]
    shapes += [tuple(bias.shape) for bias in biases]
    flash = sum(math.prod(shape) * (1 if len(shape) > 1 else 4) for shape in shapes)
    return Costs(found.macs, found.params, found.peak_bytes, flash)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One architecture that the engine asked for.

    Attributes:
        number: of the trial in the study.
        picks: {name of a choice: index of the option}, as `of_picks` takes them.
        options: {name of a choice: what was picked}.
        verdict: "trained", "repeated" (as one before, which cost nothing), "over budget",
            "below proxy" or "diverged".
        score: on held-out data, higher = better; None if it was not trained.
        costs: what it costs.
        proxy: what the proxy gave; None without one.
    """

    number: int
    picks: Mapping[str, int]
    options: Mapping[str, Any]
    verdict: str
    score: float | None
    costs: Costs
    proxy: float | None = None


@dataclasses.dataclass(frozen=True)
class ArchitectureSearch(Result):
    """What a search found; prints as a table of the best.

    Attributes:
        model: the best one, trained as long as all were, compiled.
        engine: the name of the engine.
        budget: what candidates may cost at most, by name.
        measure: what the score is.
        candidates: all, in the order in which they were asked for.
    """

    model: keras.Model
    engine: str
    budget: Mapping[str, float]
    measure: str
    candidates: tuple[Candidate, ...]

    @property
    def best(self) -> Candidate:
        """The one with the highest score."""
        return max(self._scored(), key=lambda each: each.score or 0.0)

    @property
    def curve(self) -> list[float]:
        """The best score so far, after each candidate that was trained."""
        scores = [each.score for each in self._scored() if each.score is not None]
        return list(itertools.accumulate(scores, max))

    def front(self, cost: str = "macs") -> list[Candidate]:
        """Those of which none is better and costs no more, cheapest first.

        Args:
            cost: "macs", "params", "peak_memory" or "flash".

        Returns:
            The Pareto front of score and cost.
        """
        pairs = [(getattr(each.costs, cost), -(each.score or 0.0)) for each in self._scored()]
        return [self._scored()[place] for place in front_of(pairs)]

    def to_dict(self) -> dict[str, Any]:
        """What was found as plain data, without the model."""
        return {
            "model": self.model.name,
            "engine": self.engine,
            "budget": plain(self.budget),
            "measure": self.measure,
            "best": self.best.number,
            "curve": self.curve,
            "front": [each.number for each in self.front()],
            "candidates": plain(self.candidates),
        }

    def _scored(self) -> list[Candidate]:
        return [each for each in self.candidates if each.verdict == TRAINED]

    def _print(self, console: Console) -> None:
        rows: Rows = []
        for each in sorted(self._scored(), key=lambda each: -(each.score or 0.0))[:_SHOWN]:
            told = ", ".join(f"{name} {option}" for name, option in each.options.items())
            costs = tuple(dataclasses.asdict(each.costs).values())
            rows.append((each.number, f"{each.score:.4f}", *costs, told))
        columns = "trial >,score >,MACs >,params >,peak bytes >,flash bytes >,choices"
        print_table(console, f"{self.engine}: the best by {self.measure}", columns, rows)
        counts = {name: sum(each.verdict == name for each in self.candidates) for name in
                  (TRAINED, REPEATED, OVER_BUDGET, BELOW_PROXY, DIVERGED)}  # fmt: skip
        print_line(console, ", ".join(f"{n} {name}" for name, n in counts.items() if n))

    def plot(self, path: str | os.PathLike[str] | None = None):
        """Draws the best score so far, and score over MACs with the Pareto front.

        Args:
            path: the image file to write (.png, .svg, .pdf); None writes none.

        Returns:
            The matplotlib `Figure`.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        figure = empty_figure((12.8, 4.8), f"search by {self.engine}")
        left, right = figure.subplots(1, 2)
        left.step(range(1, len(self.curve) + 1), self.curve, where="post", color="#0072b2")
        left.set_xlabel("candidates trained")
        left.set_ylabel(f"best {self.measure} so far")
        scored, front = self._scored(), self.front()
        right.scatter([c.costs.macs for c in scored], [c.score for c in scored], color="#b0b0b0")
        right.plot([c.costs.macs for c in front], [c.score for c in front], ".-", color="#d55e00")
        right.set_xlabel("MACs")
        right.set_ylabel(self.measure)
        for axes in (left, right):
            axes.grid(alpha=0.3)
        return drawn(figure, path)


def front_of(points: Iterable[Sequence[float]]) -> list[int]:
    """The places of the points of which no other is as small in both numbers, by the first one."""
    ordered = sorted((tuple(point), place) for place, point in enumerate(points))
    front, least = [], float("inf")
    for (_, second), place in ordered:
        if second < least:
            front.append(place)
            least = second
    return front
