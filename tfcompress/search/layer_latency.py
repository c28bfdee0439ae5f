"""How long each layer of a file takes: its operators cut out and timed beside those of another.

What was measured is kept in the cache, by machine, version of LiteRT and shapes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.conversion.layer_names import LayerNames
from tfcompress.conversion.precisions import USUAL
from tfcompress.files import temporary, writing
from tfcompress.results import plain
from tfcompress.tflite import flatbuffer, machine
from tfcompress.tflite.benchmark import times_apart
from tfcompress.tflite.flatbuffer import changed, op_name
from tfcompress.tflite.inspect import side_tensors
from tfcompress.tools import vela
from tfcompress.tools.accept import accept
from tfcompress.tools.environments import cache_folder

_RUNS, _WARMUP, _ROUNDS = 40, 5, 7
# Two measurements of one latency differ by as much.
NOISE = 0.02


def parts_of(content: bytes, names: LayerNames, layers: Iterable[str]) -> dict[str, bytes]:
    """By layer a file of its operators alone."""
    file = flatbuffer.read(content)
    graph, wanted = file.subgraphs[0], set(layers)
    operators: dict[str, list[int]] = {}
    for number, op in enumerate(graph.operators):
        name = names.of(flatbuffer.text(graph.tensors[op.outputs[0]].name))
        if name in wanted:
            operators.setdefault(name, []).append(number)
    return {name: flatbuffer.write(_cut(file, numbers)) for name, numbers in operators.items()}


def _cut(file: Any, numbers: Sequence[int]) -> Any:
    """The `ModelT` of some operators alone."""
    graph = file.subgraphs[0]
    operators = [graph.operators[i] for i in numbers]
    others = [op for i, op in enumerate(graph.operators) if i not in set(numbers)]
    read = {int(i) for op in operators for i in op.inputs if i >= 0}
    made = {int(i) for op in operators for i in op.outputs}
    left = {int(i) for op in others for i in op.inputs} | {int(i) for i in graph.outputs}
    inner = {i for op in operators for i in op.inputs}
    used = {j for i in read for j in (i, *side_tensors(graph, graph.tensors[i].quantization))}
    held = {graph.tensors[i].buffer for i in used}
    buffers = [b if i in held else schema.BufferT() for i, b in enumerate(file.buffers)]
    given = [i for i in sorted(read - made) if not flatbuffer.is_constant(file, graph.tensors[i])]
    outputs = [i for i in sorted(made) if i in left or i not in inner]
    alone = changed(graph, operators=operators, inputs=given, outputs=outputs)
    none: dict[str, Any] = {"signatureDefs": [], "metadata": [], "metadataBuffer": None}
    return changed(file, subgraphs=[alone], buffers=buffers, **none)


def ms_of_layers(
    clock: Clock,
    names: LayerNames,
    files: Mapping[str, bytes],
    options: Mapping[str, Sequence[str]],
    tell: Callable[[str, int, int | None], Any],
) -> dict[str, tuple[float, dict[str, float]]]:
    """How long each layer takes in int8, and how many times as long in its other precisions.

    Args:
        files: {precision: a file with all layers in it that can be}, "int8" among them.
        options: {layer: its precisions}.
        tell: called as `tell(stage, done, total)`.

    Returns {layer: (milliseconds, {precision: ratio})}; infinite where a layer does not run.
    """
    parts = {precision: parts_of(content, names, options) for precision, content in files.items()}
    found = {}
    for done, (name, wanted) in enumerate(options.items(), 1):
        others = {p: parts[p][name] for p in wanted if p != USUAL and name in parts[p]}
        ms, ratios = 0.0, dict[str, float]()
        if name in parts[USUAL]:
            ms, ratios = clock.compared(parts[USUAL][name], others)
        found[name] = ms, {USUAL: 1.0, **{p: _plain_ratio(r) for p, r in ratios.items()}}
        tell("measure latency", done, len(options))
    return found


def _plain_ratio(ratio: float) -> float:
    """A ratio of latencies; 1 where it differs by no more than two measurements do."""
    return 1.0 if abs(ratio - 1) < 2 * NOISE else ratio


class Clock:
    """Latency on this machine, or by Vela on an Ethos-U.

    Args:
        threads: CPU threads of LiteRT.
        accelerator: an Ethos-U, as Vela names it; None for this machine.
    """

    def __init__(self, threads: int = 1, accelerator: str | None = None):
        if accelerator is not None:
            vela.check_accelerator(accelerator)
        self._threads, self._accelerator = threads, accelerator
        on = machine.describe()
        where = [on["cpu"], on["amx"], on["versions"]["ai-edge-litert"], threads]
        where = [accelerator, *vela.PACKAGES] if accelerator else where
        self._path = cache_folder() / "latency" / f"{_digest(where)}.json"
        self._known = _load(self._path)

    def compared(self, base: bytes, others: Mapping[str, bytes]) -> tuple[float, dict[str, float]]:
        """Milliseconds of a file, and the ratios to it of others.

        Measured in turns, so that a busy moment hits all of them; infinite if one does not run.
        """
        keys = {name: _digest([_words(base), _words(other)]) for name, other in others.items()}
        own = _digest(_words(base))
        if own not in self._known or any(key not in self._known for key in keys.values()):
            with temporary.folder() as folder:
                ms, ratios = self.measured(Path(folder), [base, *others.values()])
            self._known = _load(self._path)  # with what others measured meanwhile
            self._known |= {own: ms, **dict(zip(keys.values(), ratios, strict=True))}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            told = {key: plain(value) for key, value in self._known.items()}
            writing.atomic_write(self._path, json.dumps(told).encode())
        return self._known[own], {
            name: _or_infinite(self._known[key]) for name, key in keys.items()
        }

    def measured(
        self, folder: Path, contents: Sequence[bytes], whole: bool = False
    ) -> tuple[float, list[float]]:
        """As `compared`, without the cache.

        Args:
            whole: whether they are whole files, whose floats at the edges no NPU computes.
        """
        paths = [folder / f"{i}.tflite" for i in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        if self._accelerator is not None:
            first, *ms = [self._by_vela(path, whole) for path in paths]
            known = math.isfinite(first)
            return (first, [x / first for x in ms]) if known else (0.0, [math.inf] * len(ms))
        given = ([str(path) for path in paths], self._threads, None, _RUNS, _WARMUP, _ROUNDS)
        medians = np.median(times_apart(given, None), axis=2)
        ratios = np.median(medians / medians[:1], axis=1)
        return float(np.median(medians[0])), ratios[1:].tolist()

    def _by_vela(self, path: Path, whole: bool) -> float:
        found = accept(path, ["vela"], accelerator=self._accelerator).results[0]
        if found.status == "not run":
            raise ValueError(f"latency on {self._accelerator} needs Vela: {found.reason}")
        runs = found.status == "passed" or (whole and "ms" in found.figures)
        return float(found.figures["ms"]) if runs else math.inf


def _or_infinite(ratio: float | None) -> float:
    return math.inf if ratio is None else ratio


def _digest(said: Any) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:20]


def _load(path: Path) -> dict[str, float]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _words(content: bytes) -> list[Any]:
    """What the latency of a file depends on: its operators, their options, types and shapes."""
    file = flatbuffer.read(content)
    graph = file.subgraphs[0]

    def tensor(index: int) -> list[Any]:
        if index < 0:
            return []
        t = graph.tensors[index]
        scales = len(flatbuffer.scales_of(t)[0])
        shape = [int(n) for n in t.shape]
        return [shape, flatbuffer.dtype_name(t), flatbuffer.is_constant(file, t), scales]

    def options(op: Any) -> list[Any]:
        found = getattr(op, "builtinOptions", None)
        return [type(found).__name__, str(sorted(vars(found).items())) if found else ""]

    return [
        [op_name(file, op), options(op), *map(tensor, op.inputs), *map(tensor, op.outputs)]
        for op in graph.operators
    ]
