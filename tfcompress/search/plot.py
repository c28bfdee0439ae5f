"""The plot of what `sensitivity` found."""

import io
import os
from pathlib import Path
from typing import Any

from tfcompress import files
from tfcompress.search.findings import Kind, Sensitivity

# Colours that stay apart, also for those who see fewer of them.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#332288")
_REST = "#b0b0b0"


def draw(found: Sensitivity, path: str | os.PathLike[str] | None = None) -> Any:
    """See `Sensitivity.plot`: one line per layer, the most sensitive ones named."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "the plot needs matplotlib, which is not installed. Run: pip install matplotlib"
        ) from error
    every: tuple[Kind, ...] = ("sparsity", "bits")
    kinds = [kind for kind in every if found.drops(kind)]
    figure = Figure(figsize=(6.4 * len(kinds), 4.8), layout="constrained")
    figure.suptitle(f"{found.model}: sensitivity of each layer")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        _panel(axes, found, kind)
    if path is not None:
        drawn = io.BytesIO()
        figure.savefig(drawn, format=Path(path).suffix[1:] or "png", dpi=150)
        files.atomic_write(path, drawn.getvalue())
    return figure


def _panel(axes, found: Sensitivity, kind: Kind) -> None:
    drops = found.drops(kind)
    worst = sorted(drops, key=lambda name: -max(drops[name].values()))[: len(_COLOURS)]
    lines = {}
    for name in sorted(drops, key=worst.__contains__):  # the named ones on top
        values = sorted(drops[name])
        colour = _COLOURS[worst.index(name)] if name in worst else _REST
        style = {"color": colour, "linewidth": 1.6 if name in worst else 0.8}
        (lines[name],) = axes.plot(values, [drops[name][v] for v in values], marker=".", **style)
    rest = [name for name in drops if name not in worst]
    shown = {name: lines[name] for name in worst}
    if rest:
        shown[f"{len(rest)} less sensitive"] = lines[rest[0]]
    axes.legend(shown.values(), shown, fontsize="small", title="most sensitive first")
    axes.set_xlabel("sparsity" if kind == "sparsity" else "bits of the weights")
    if kind == "bits":
        axes.set_xticks(sorted({v for each in drops.values() for v in each}))
        axes.invert_xaxis()  # more compression to the right, as in the other panel
    axes.set_ylabel("growth of the loss" if found.measure == "loss" else "drop of evaluate")
    axes.grid(alpha=0.3)
