"""What each layer loses in each precision that it can have, one layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from keras import tree

from tfcompress.conversion.precisions import LAYER_PRECISIONS, may_be
from tfcompress.errors import check, expected_one_of
from tfcompress.files import samples as samples_of
from tfcompress.graph.nodes import Graph
from tfcompress.post_training.kernels import Kernel, kernels_of
from tfcompress.recipe.findings import Row
from tfcompress.search.outputs import Simulation
from tfcompress.techniques.rules import Rule

PRECISIONS = ("int8", "int4", "int2")
METHODS = ("outputs", "hessian")


class Steps:
    """Tells after each step how many of all are done."""

    def __init__(self, progress: Callable[[int, int], Any] | None, total: int):
        self._progress, self._done, self._total = progress, 0, total

    def step(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


def check_scan(precisions: Sequence[str], method: str) -> None:
    """Raises unless these are precisions that layers can have, and a way to judge them."""
    check(method in METHODS, "method", f"one of {', '.join(METHODS)}", method)
    if isinstance(precisions, str):
        raise TypeError(f"precisions must be a list of names; received {precisions!r}.")
    for name in precisions:
        if name not in LAYER_PRECISIONS:
            raise ValueError(
                f"unknown precision {name!r}; {expected_one_of(str(name), LAYER_PRECISIONS)}"
            )


def able(kernel: Kernel, precisions: Sequence[str]) -> list[str]:
    """The precisions that the layer of a kernel can have."""
    return [each for each in precisions if may_be(kernel.layer, each)]


def kernels_to_try(
    flat, layers: str | Callable[[Any], bool], precisions: Sequence[str]
) -> list[Kernel]:
    """The kernels of the layers that are meant and can have one of some precisions."""
    rule = Rule(layers)
    found = [k for k in kernels_of(Graph.of(flat)) if rule.matches(k.layer)]
    return [kernel for kernel in found if able(kernel, precisions)]


def inputs_of(flat, calibration: Any, samples: int | None) -> list[np.ndarray]:
    """Calibration samples by input, in the order of the model's inputs."""
    tensors = tree.flatten(flat.inputs)
    rows = list(samples_of.batches(calibration, tensors, limit=samples))
    return [np.concatenate([row[t.name] for row in rows]) for t in tensors]


def rows_of(simulation: Simulation, precisions: Sequence[str], method: str) -> Iterator[Row]:
    """What the outputs lose with one layer at a time in other precisions."""
    curvature = simulation.curvature() if method == "hessian" else {}
    for name, kernel in simulation.kernels.items():
        for precision in able(kernel, precisions):
            if curvature:
                new = simulation.rounded(name, precision).astype(np.float64)
                change = np.square(new - kernel.value)
                measured = {"hessian": float(np.sum(change * curvature[name]))}
            else:
                measured = simulation.lost({name: precision})
            drop = next(iter(measured.values()))
            drop = drop if np.isfinite(drop) else float("inf")
            names = (kernel.variable.name,)
            yield Row(name, names, kernel.value.size, "precision", precision, measured, drop)
