"""What `sensitivity` found: rows, a table, a plot and a file."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import keras

from tfcompress.files import configs, writing
from tfcompress.results import Result, Rows, plain_fields, print_table
from tfcompress.techniques import Prune

if TYPE_CHECKING:
    from rich.console import Console

Kind = Literal["sparsity", "bits", "precision"]


@dataclasses.dataclass(frozen=True)
class Row:
    """A layer compressed in one way, all others as they were.

    Attributes:
        layer: its name in the flat model, as rules name it.
        weights, size: the names of the weights that were compressed, and how many numbers they are.
        kind, value: "sparsity" and the fraction of zeros, "bits" and their number, or "precision"
            and its name.
        measured: the loss and the metrics, or what `evaluate` returned; of precisions what the
            outputs lose ("outputs", or "hessian" if that was estimated) and their "sqnr" in dB.
        drop: how much worse than the baseline: growth of the loss or fall of the user's measure;
            of precisions what the outputs lose; infinite where that is no finite number.
    """

    layer: str
    weights: tuple[str, ...]
    size: int
    kind: Kind
    value: float | str
    measured: dict[str, float]
    drop: float


@dataclasses.dataclass(frozen=True)
class Sensitivity(Result):
    """What each layer of a model loses by pruning and quantization.

    Attributes:
        model: its name.
        measure: "loss" or "evaluate": what drops by sparsities and bits are told in; "outputs" if
            there are only precisions.
        baseline: what was measured of the model as it is; of its outputs nothing.
        prune: the settings of pruning that were tried; its sparsity says nothing.
        rows: one `Row` for each layer and setting, in the order of the layers.
    """

    model: str
    measure: str
    baseline: dict[str, float]
    prune: Prune
    rows: tuple[Row, ...]

    def drops(self, kind: Kind = "sparsity") -> dict[str, dict[Any, float]]:
        """The drops by layer and value: {layer: {sparsity, bits or precision: drop}}."""
        found: dict[str, dict[Any, float]] = {}
        for row in self.rows:
            if row.kind == kind:
                found.setdefault(row.layer, {})[row.value] = row.drop
        return found

    def to_dict(self) -> dict[str, Any]:
        """The findings as JSON-ready data; None where a number is not finite."""
        return {**plain_fields(self), "prune": keras.saving.serialize_keras_object(self.prune)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Sensitivity:
        """The findings that `to_dict` told."""
        rows = [
            Row(
                **{
                    **row,
                    "weights": tuple(row["weights"]),
                    "measured": _or(row["measured"], math.nan),
                    "drop": math.inf if row["drop"] is None else row["drop"],
                }
            )
            for row in data["rows"]
        ]
        configs.check_keras(data["prune"], "the findings")
        prune = keras.saving.deserialize_keras_object(data["prune"])
        baseline = _or(data["baseline"], math.nan)
        return cls(data["model"], data["measure"], baseline, prune, tuple(rows))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the findings to a JSON file, whole or not at all."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        writing.atomic_write(path, f"{text}\n".encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Sensitivity:
        """The findings in a file that `save` wrote.

        Raises:
            ValueError: if the file is another one.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError, ValueError) as error:
            raise ValueError(
                f"{os.fspath(path)} must be a file that Sensitivity.save wrote; it is not: "
                f"{error!r}."
            ) from error

    def _print(self, console: Console) -> None:
        """Print the drop of each layer as one table of each kind."""
        known = ", ".join(f"{name} {value:.4g}" for name, value in self.baseline.items())
        for kind, unit in _UNITS.items():
            drops, what = self.drops(kind), _what(self, kind)
            values = _values(drops, kind)
            if not values:
                continue
            columns = ",".join(["layer", *(unit.format(v) + ">" for v in values)])
            rows: Rows = [
                (layer, *(_told(found[v], kind) if v in found else "" for v in values))
                for layer, found in drops.items()
            ]
            baseline = "" if kind == "precision" else f" (baseline: {known})"
            title = f"{self.model}: {what} by {kind} of each layer{baseline}"
            print_table(console, title, columns, rows)

    def plot(self, path: str | os.PathLike[str] | None = None):
        """Draws the drop of each layer over sparsity, over bits and over precisions.

        Args:
            path: the image file to write (.png, .svg, .pdf); None writes none.

        Returns:
            The matplotlib `Figure`.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        kinds = [kind for kind in _UNITS if self.drops(kind)]
        figure = empty_figure((6.4 * len(kinds), 4.8), f"{self.model}: sensitivity of each layer")
        for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
            _draw(axes, self, kind)
        return drawn(figure, path)


_FINEST_FIRST = ("float32", "float16", "int16x8", "int8", "int4_blockwise", "int4", "int2")
# Kinds, and how their values are written.
_UNITS: dict[Kind, str] = {"sparsity": "{:.4g}", "bits": "{} bits", "precision": "{}"}


def empty_figure(size: tuple[float, float], title: str):
    """A matplotlib `Figure` of a size in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "the plot needs matplotlib, which is not installed. Run: pip install matplotlib"
        ) from error
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title)
    return figure


def drawn(figure, path: str | os.PathLike[str] | None):
    """The figure, which is also written as an image file if there is a path."""
    if path is not None:
        image = io.BytesIO()
        figure.savefig(image, format=Path(path).suffix[1:] or "png", dpi=150)
        writing.atomic_write(path, image.getvalue())
    return figure


def _what(found: Sensitivity, kind: Kind) -> str:
    """What drops of a kind are, in words."""
    if kind == "precision":
        return "loss of the outputs"
    return "growth of the loss" if found.measure == "loss" else "drop of evaluate"


def _values(drops: dict[str, dict[Any, float]], kind: Kind) -> list[Any]:
    """The values of a kind in their order."""
    every = {v for layer in drops.values() for v in layer}
    if kind != "precision":
        return sorted(every)
    return sorted(every, key=_FINEST_FIRST.index)


def _or(numbers: dict[str, float | None], missing: float) -> dict[str, float]:
    return {name: missing if value is None else value for name, value in numbers.items()}


def _short(value: float) -> str:
    """A number in five characters, so that nine columns fit on a narrow screen."""
    return (
        f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 10 else f"{value:.3g}"
    )


def _told(value: float, kind: Kind) -> str:
    """A drop in a table; what outputs lose is of any size."""
    return f"{value:.1e}" if kind == "precision" else _short(value)


# Colours that stay apart, also for those who see fewer of them.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#332288")
_REST = "#b0b0b0"


def _draw(axes, found: Sensitivity, kind: Kind) -> None:
    """One line per layer, the most sensitive ones named."""
    drops = found.drops(kind)
    worst = sorted(drops, key=lambda name: -max(drops[name].values()))[: len(_COLOURS)]
    lines = {}
    every = _values(drops, kind)
    places = {v: i if kind == "precision" else v for i, v in enumerate(every)}
    for name in sorted(drops, key=worst.__contains__):  # the named ones on top
        values = [v for v in every if v in drops[name]]
        colour = _COLOURS[worst.index(name)] if name in worst else _REST
        style = {"color": colour, "linewidth": 1.6 if name in worst else 0.8}
        (lines[name],) = axes.plot(
            [places[v] for v in values], [drops[name][v] for v in values], marker=".", **style
        )
    rest = [name for name in drops if name not in worst]
    shown = {name: lines[name] for name in worst}
    if rest:
        shown[f"{len(rest)} less sensitive"] = lines[rest[0]]
    axes.legend(shown.values(), shown, fontsize="small", title="most sensitive first")
    axes.set_xlabel("bits of the weights" if kind == "bits" else kind)
    if kind == "bits":
        axes.set_xticks(every)
        axes.invert_xaxis()  # more compression to the right, as in the other panel
    if kind == "precision":
        axes.set_xticks(range(len(every)), every)
        axes.set_yscale("log")
    axes.set_ylabel(_what(found, kind))
    axes.grid(alpha=0.3)
