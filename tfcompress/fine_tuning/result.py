"""What fine-tuning tells about the model that it wrote."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from tfcompress.tflite.tables import as_text, print_table
from tfcompress.weights import Weight

if TYPE_CHECKING:
    from rich.console import Console


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """What came out of a fine-tuning.

    Attributes:
        model, recipe, output: the files, or the name of a ready recipe.
        precision: of a .tflite file; None of a .keras file.
        epochs, steps: of the training; steps are batches.
        resumed: epochs that an interrupted training had done.
        judged_on: which samples `before` and `after` were measured on.
        before, after: loss and metrics.
        weights: one entry for each kernel.
        before_bytes, before_zipped: size of the original in the same format, in float32.
        bytes, zipped: size of the output, as it is and deflated.
        seconds: wall time.
    """

    model: str
    recipe: str
    output: str
    precision: str | None
    epochs: int
    steps: int
    resumed: int
    judged_on: str
    before: dict[str, float]
    after: dict[str, float]
    weights: tuple[Weight, ...]
    before_bytes: int
    before_zipped: int
    bytes: int
    zipped: int
    seconds: float

    @property
    def sparsity(self) -> float:
        """Fraction of zeros in all kernels."""
        total = sum(w.count for w in self.weights)
        return sum(w.sparsity * w.count for w in self.weights) / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-ready data."""
        return {**dataclasses.asdict(self), "sparsity": self.sparsity}

    def render(self, console: Console | None = None) -> None:
        """Prints the result as a table.

        Args:
            console: a rich console; standard output if None.
        """
        from rich.console import Console

        console = console or Console()
        rows: list[tuple[Any, ...]] = [
            (name, f"{value:.4f}", f"{self.after.get(name, float('nan')):.4f}")
            for name, value in self.before.items()
        ]
        rows += [
            ("bytes", self.before_bytes, self.bytes),
            ("bytes, zipped", self.before_zipped, self.zipped),
        ]
        kind = f", {self.precision}" if self.precision else ""
        title = f"{self.output}{kind}"
        print_table(console, title, "what,before >,after >", rows)
        for line in self._lines():
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _lines(self) -> list[str]:
        pruned = [w for w in self.weights if "Prune" in w.techniques]
        clustered = [w for w in self.weights if "Cluster" in w.techniques]
        lines = [
            f"{self.model} under the recipe {self.recipe}, measured on {self.judged_on}.",
        ]
        if pruned:
            count = sum(w.count for w in pruned)
            zeros = sum(round(w.sparsity * w.count) for w in pruned)
            lines.append(
                f"{zeros / count:.1%} of {count:,} weights in {len(pruned)} pruned kernels are "
                f"zero; {self.sparsity:.1%} of all."
            )
        if clustered:
            most = max(w.unique for w in clustered)
            lines.append(f"{len(clustered)} clustered kernels have {most} values each at most.")
        resumed = f", {self.resumed} of them before it was resumed" if self.resumed else ""
        trained = f"{self.epochs} epochs{resumed} ({self.steps} steps)"
        return [*lines, f"Trained {trained}; {self.seconds:.0f} seconds."]

    def __str__(self) -> str:
        return as_text(self.render)
