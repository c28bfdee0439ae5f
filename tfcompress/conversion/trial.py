"""One run of a file before it is written: LiteRT takes it, and it gives what was asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfcompress.tflite import flatbuffer, run
from tfcompress.tflite.flatbuffer import op_name

# Calibration samples that the float and the integer file are compared on.
_COMPARED = 8

# Below, an integer file has little to do with the float one. In dB.
_LOST = 10.0

_NODE = re.compile(r"Node number (\d+) \((\w+)\) failed to (\w+)")


class Trial:
    """What a float file gave for a few samples, and whether the integer file gives it, too."""

    def __init__(self) -> None:
        self._batches: list[dict[str, np.ndarray]] = []
        self._wanted: dict[str, list[np.ndarray]] = {}
        self.sqnr: dict[str, float] = {}  # in dB, by output

    def remember(self, model: Any, content: bytes, batches: list[dict[str, np.ndarray]]) -> None:
        """Keeps what a float file gives for the first samples."""
        self._batches = batches[:_COMPARED]
        runner = run.Runner(model, content, "the float file", reference=False)
        self._wanted = _outputs(runner, self._batches)

    def expect(self, give: Callable[[Sequence[dict]], dict[str, list[np.ndarray]]]) -> None:
        """Takes what another model gives for these samples as what the file should give."""
        self._wanted = give(self._batches)

    def codes(self, model: Any) -> list[list[np.ndarray]]:
        """The first samples as an integer file takes them, in the order of its inputs."""
        order = model.subgraphs[0].inputs
        places = sorted(run.ports(model)[0], key=lambda port: order.index(port.index))
        return [[port.quantize(batch[port.name]) for port in places] for batch in self._batches]

    def passed_by(self, model: Any, content: bytes) -> list[str]:
        """Runs a file that is to be written.

        Returns notes on what it loses.

        Raises:
            ValueError: if LiteRT does not take it.
        """
        if any(op_name(model, op) in ("CUSTOM", "") for g in model.subgraphs for op in g.operators):
            return []  # what LiteRT alone does not know
        try:
            runner = run.Runner(model, content, "the file", reference=False)
            outputs = _outputs(runner, self._batches or [_ones(runner)])
        except ValueError as error:
            refused = _NODE.search(str(error))
            if not self._batches and refused is not None and refused[3] == "invoke":
                return []  # ones need not be data that the model bears
            raise ValueError(_refusal(model, error, refused)) from error
        pairs = {name: (self._wanted[name], outputs[name]) for name in self._wanted}
        found = {name: _decibels(*pair) for name, pair in pairs.items()}
        self.sqnr = {name: ratio for name, ratio in found.items() if ratio is not None}
        return [_lost(name, ratio) for name, ratio in self.sqnr.items() if ratio < _LOST]


def _outputs(runner: run.Runner, batches) -> dict[str, list[np.ndarray]]:
    results = [runner.run(batch) for batch in batches]
    columns = zip(*results, strict=True)
    return {p.name: list(values) for p, values in zip(runner.outputs, columns, strict=True)}


def _ones(runner: run.Runner) -> dict[str, np.ndarray]:
    """One where a number is asked for; for a text none."""
    shapes = {p.name: [abs(n) for n in p.shape] for p in runner.inputs}
    texts = {p.name for p in runner.inputs if p.dtype == "string"}
    return {
        name: np.full(shape, b"", object) if name in texts else np.ones(shape, np.float32)
        for name, shape in shapes.items()
    }


def _decibels(wanted: list[np.ndarray], given: list[np.ndarray]) -> float | None:
    """Signal to quantization noise of an output, at most 200; None of what is no signal."""
    a, b = (np.concatenate([v.ravel() for v in values]) for values in (wanted, given))
    if not np.issubdtype(a.dtype, np.floating) or not np.isfinite(a).all() or not a.any():
        return None
    signal, noise = (float(np.square(x, dtype=np.float64).mean()) for x in (a, a - b))
    return round(10 * float(np.log10(signal / max(noise, 1e-20 * signal))), 1)


def _lost(name: str, ratio: float) -> str:
    """What is to be said of an output that has little to do with the float one."""
    return (
        f"output '{name}' is far from that of the float model on the calibration samples (SQNR "
        f"{ratio:.1f} dB): convert with precision='int16x8', train with quantize_aware, or let "
        "verify(layers=True) show where it is lost"
    )


def _refusal(model: Any, error: ValueError, refused: re.Match[str] | None) -> str:
    said = str(error)
    if refused is None:
        return f"{said} Nothing was written."
    graph, number = model.subgraphs[0], int(refused[1])
    named = f"operator {number} ({refused[2]})"
    if number < len(graph.operators) and op_name(model, graph.operators[number]) == refused[2]:
        tensor = graph.tensors[graph.operators[number].outputs[0]]
        named += f", which gives '{flatbuffer.text(tensor.name)}'"
    why = said.split(": ", 1)[-1][:200].rstrip(".")
    return (
        f"LiteRT refuses the file that was made at {named}: {why}. "
        "Replace the layer that it comes from, leave it float (skip= of quantize_aware), or "
        "convert with another precision. Nothing was written."
    )
