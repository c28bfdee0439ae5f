"""What was chosen for each layer, what that costs, and a plot."""

from __future__ import annotations

import dataclasses
import glob
import os
from typing import TYPE_CHECKING, Any

import keras

from tfcompress.conversion.precisions import LAYER_PRECISIONS, USUAL
from tfcompress.recipe.findings import Sensitivity, drawn, empty_figure
from tfcompress.recipe.recipe import Recipe
from tfcompress.results import Result, Rows, plain, plain_fields, print_line, print_table
from tfcompress.techniques import Quantize
from tfcompress.techniques.rules import Rule

if TYPE_CHECKING:
    from rich.console import Console


@dataclasses.dataclass(frozen=True)
class LayerChoice:
    """What one layer got.

    Attributes:
        layer, precision: its name, and what it computes in.
        weights: how many numbers its kernel has.
        bytes: of its kernel in the file, about.
        loss: of the outputs with this layer alone in that precision, see `sensitivity`.
        latency: of the layer, in parts of that of the layer in int8; None if not measured.
    """

    layer: str
    precision: str
    weights: int
    bytes: int
    loss: float
    latency: float | None = None


@dataclasses.dataclass(frozen=True)
class FileCosts:
    """What a whole file costs.

    Attributes:
        bytes: of the .tflite file.
        loss: of its outputs on the data, against the float model, see `sensitivity`.
        ms: of one run; None if not measured.
    """

    bytes: int
    loss: float
    ms: float | None = None


@dataclasses.dataclass(frozen=True)
class PrecisionChoice(Result):
    """The precisions that `choose_precision` chose.

    Attributes:
        model: its name.
        budgets: what was asked for, by name.
        file, int8: what the file of the choice costs, measured, and that of int8 everywhere.
        layers: what each layer got, in the order of the model.
        curve: (bytes, loss) of the best files of other sizes, predicted.
        sensitivity: what each layer loses in each precision.
    """

    model: str
    budgets: dict[str, float]
    file: FileCosts
    int8: FileCosts
    layers: tuple[LayerChoice, ...]
    curve: tuple[tuple[int, float], ...]
    sensitivity: Sensitivity

    @property
    def precisions(self) -> dict[str, str]:
        """The precision of each layer, as `convert(precision=...)` takes it."""
        return {row.layer: row.precision for row in self.layers}

    @property
    def recipe(self) -> Recipe:
        """A recipe with the precision of each layer, to read, edit and `save`."""
        return Recipe(precision={glob.escape(k): v for k, v in self.precisions.items()})

    def to_dict(self) -> dict[str, Any]:
        """What was found as JSON-ready data."""
        return {**plain_fields(self), "precisions": self.precisions}

    def _print(self, console: Console) -> None:
        timed = any(row.latency is not None for row in self.layers)
        rows: Rows = [
            (row.layer, row.precision, row.weights, row.bytes, f"{row.loss:.1e}")
            + ((_ratio(row.latency),) if timed else ())
            for row in self.layers
        ]
        columns = "layer,precision,weights >,bytes >,loss >" + (",latency >" if timed else "")
        asked = ", ".join(f"{name} {value:,g}" for name, value in self.budgets.items())
        print_table(console, f"{self.model}: precisions for {asked}", columns, rows)
        for name, file in (("int8", self.int8), ("chosen", self.file)):
            ms = "" if file.ms is None else f", {file.ms:.3f} ms"
            line = f"{name}: {file.bytes:,} bytes, loss of the outputs {file.loss:.2g}{ms}"
            print_line(console, line)

    def plot(self, path: str | os.PathLike[str] | None = None):
        """Draws the loss over bytes with the chosen point, and what each layer got.

        Args:
            path: the image file to write (.png, .svg, .pdf); None writes none.

        Returns:
            The matplotlib `Figure`.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        height = max(4.8, 1.4 + 0.22 * len(self.layers))
        figure = empty_figure((12.8, min(height, 40.0)), f"{self.model}: precision of each layer")
        left, right = figure.subplots(1, 2)
        _draw_curve(left, self)
        _draw_layers(right, self)
        return drawn(figure, path)


@dataclasses.dataclass(frozen=True)
class ChosenLayer:
    """What one layer got.

    Attributes:
        layer: its name.
        channels: how many it makes, before and after.
        bits: of its weights.
        weights: how many numbers its kernel has now.
        bytes: of its kernel in the file.
    """

    layer: str
    channels: tuple[int, int]
    bits: int
    weights: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class ChannelsAndBits(Result):
    """The channels and bits that `choose_channels_and_bits` chose.

    Attributes:
        model: with the channels that stay, in floats, not compiled; its `surgery_report` tells what
            went.
        budgets: what was asked for, by name.
        layers: what each layer got, in the order of the model.
        file, int8: what the file of the choice costs, and that of the whole model in int8: "bytes"
            and "macs"; "latency" in parts of that of int8 where it was asked for.
    """

    model: keras.Model
    budgets: dict[str, float]
    layers: tuple[ChosenLayer, ...]
    file: dict[str, float]
    int8: dict[str, float]

    @property
    def precisions(self) -> dict[str, str]:
        """The precision of each layer, as `convert(found.model, precision=...)` takes it."""
        return {row.layer: f"int{row.bits}" for row in self.layers}

    @property
    def recipe(self) -> Recipe:
        """A recipe that trains `model` with these bits, to read, edit and `save`."""
        few = [
            Rule(glob.escape(row.layer), [Quantize(bits=row.bits, step="learned")])
            for row in self.layers
            if row.bits != 8
        ]
        return Recipe([Rule("*", [Quantize()]), *few])

    def to_dict(self) -> dict[str, Any]:
        """What was found as JSON-ready data, without the weights."""
        told = {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)[1:]}
        return {"model": self.model.name, **told, "precisions": self.precisions}

    def _print(self, console: Console) -> None:
        rows: Rows = [
            (row.layer, " -> ".join(map(str, dict.fromkeys(row.channels))), row.bits, row.weights,
             row.bytes) for row in self.layers
        ]  # fmt: skip
        asked = ", ".join(f"{name} {value:,g}" for name, value in self.budgets.items())
        columns = "layer,channels >,bits >,weights >,bytes >"
        print_table(console, f"{self.model.name}: channels and bits for {asked}", columns, rows)
        for name, file in (("int8", self.int8), ("chosen", self.file)):
            told = [f"{file['bytes']:,.0f} bytes", f"{file['macs']:,.0f} MACs"]
            told += [f"{file['latency']:.2f} of int8's latency"] if "latency" in file else []
            print_line(console, f"{name}: {', '.join(told)}")


def _ratio(latency: float | None) -> str:
    return "" if latency is None else f"{latency:.2f}x"


# Colours that stay apart, also for those who see fewer of them.
_COLOURS = ("#0072b2", "#d55e00", "#cc79a7", "#e69f00", "#009e73", "#56b4e9", "#b0b0b0")
_OF = dict(zip(LAYER_PRECISIONS, _COLOURS, strict=True))


def _draw_curve(axes: Any, found: PrecisionChoice) -> None:
    sizes, losses = zip(*found.curve, strict=True) if found.curve else ((), ())
    axes.plot(sizes, losses, marker=".", color="#b0b0b0", label="best of each size, predicted")
    for name, file, mark in (("int8", found.int8, "s"), ("chosen", found.file, "o")):
        colour = _OF[USUAL] if name == "int8" else "#d55e00"
        label = f"{name}: {file.bytes:,} bytes"
        axes.plot([file.bytes], [file.loss], mark, color=colour, markersize=8, label=label)
    for name, draw in (("flash", axes.axvline), ("quality", axes.axhline)):
        if name in found.budgets:
            draw(found.budgets[name], linestyle=":", color="#333333", label=f"budget of {name}")
    axes.set_yscale("log")
    axes.set_xlabel("bytes of the file")
    axes.set_ylabel("loss of the outputs")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _draw_layers(axes: Any, found: PrecisionChoice) -> None:
    """A bar for the bytes of each layer, in the colour of its precision."""
    shown = [p for p in LAYER_PRECISIONS if p in found.precisions.values()]
    places = {row.layer: i for i, row in enumerate(found.layers)}
    for precision in shown:
        rows = [row for row in found.layers if row.precision == precision]
        where = [places[row.layer] for row in rows]
        axes.barh(where, [row.bytes for row in rows], color=_OF[precision], label=precision)
    axes.set_yticks(range(len(places)), list(places), fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel("bytes of the kernel")
    axes.grid(alpha=0.3, axis="x")
    axes.legend(fontsize="small", title="precision")
