"""choose_precision: which layer gets how many bits, so that a file keeps within budgets."""

from __future__ import annotations

import dataclasses
import glob
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import tree

from tfcompress.conversion.convert import convert
from tfcompress.conversion.layer_names import LayerNames
from tfcompress.conversion.precisions import USUAL
from tfcompress.errors import check
from tfcompress.files import temporary
from tfcompress.graph.flatten import flatten
from tfcompress.layers.compressed import is_compressed
from tfcompress.recipe.findings import Row, Sensitivity
from tfcompress.search import scan
from tfcompress.search.assignment import assign, check_budgets, total
from tfcompress.search.choice import FileCosts, LayerChoice, PrecisionChoice
from tfcompress.search.layer_latency import NOISE, Clock, ms_of_layers
from tfcompress.search.outputs import BITS, BLOCK, Simulation, lost
from tfcompress.search.scan import PRECISIONS
from tfcompress.techniques import Prune
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.run import Runner

# How many files are converted at most.
_FILES = 8
_POINTS = 24  # of the curve

# What budgets are of, and the most that they may be.
UNITS = {
    "flash": ("bytes", math.inf),
    "latency": ("parts of int8's; 1.0 is never slower", math.inf),
    "quality": ("the most that the outputs lose", math.inf),
}

Progress = Callable[[str, int, int | None], Any]


def choose_precision(
    model: keras.Model,
    data: Any,
    *,
    flash: int | None = None,
    latency: float | None = None,
    quality: float | None = None,
    precisions: Sequence[str] = PRECISIONS,
    layers: str | Callable[[Any], bool] = "*",
    method: str = "outputs",
    accelerator: str | None = None,
    threads: int = 1,
    samples: int | None = 200,
    batch_size: int = 128,
    progress: Progress | None = None,
    **settings: Any,
) -> PrecisionChoice:
    """The best precision of each layer for a file that keeps within one or more budgets.

    Each layer is judged in each precision by what the outputs lose (see `sensitivity`), bytes and,
    where asked, measured time; an integer program shares the budgets out. Files are converted and
    measured until one meets all budgets itself, to the byte. Without `quality` the file is the one
    whose outputs lose least, with it the smallest one.

    Args:
        model: a float Keras 3 model.
        data: samples of the inputs, without labels, as `calibration` of `convert`; a few hundred.
        flash: the most bytes of the .tflite file.
        latency: the most time of one run, in parts of that of the int8 file: 1.0 is never slower.
            Measured layer by layer and of the whole file, on this machine or by Vela, and kept in
            the cache; it holds up to 2%, by which measurements differ.
        quality: the most that the outputs may lose against the float model on `data`: of
            probabilities the Kullback-Leibler divergence in nats, of others noise over
            what differs from sample to sample.
        precisions: that layers may get, "int8" and others of "int4", "int2", "int4_blockwise",
            "int16x8", "float16", "float32"; each where a layer can have it.
        layers: pattern or predicate as of `Rule`; others stay int8.
        method: how layers are judged, "outputs" or "hessian", see `sensitivity`.
        accelerator: "ethos-u55-128" or another that Vela knows, whose cycles tell latency; None
            measures on this machine.
        threads: CPU threads of LiteRT.
        samples: how many samples to use, the first ones; None uses all.
        batch_size: samples at a time while layers are judged.
        progress: called as `progress(stage, done, total)`.
        **settings: of `convert`, such as `io_dtype`, `target` or `tune`. What the corrections of
            `tune` mend is measured in the files; what layers lose alone is told without them.

    Returns:
        A `PrecisionChoice`: `recipe` to read, edit and save, the file's costs beside those of int8,
        what each layer got, the curve of loss over bytes, `plot()`.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if there is no budget, an argument or the data will not do, or no file meets
            the budgets; says how near one comes.

    Example:
        >>> found = choose_precision(model, x[:200], flash=100_000)  # doctest: +SKIP
        >>> report = convert(
        ...     model, "small.tflite", precision=found.precisions, calibration=x[:200]
        ... )  # doctest: +SKIP
        >>> found.recipe.save("recipe.yaml")  # doctest: +SKIP
    """
    given = {"flash": flash, "latency": latency, "quality": quality}
    budgets = check_budgets(given, UNITS)
    scan.check_scan(precisions, method)
    check(USUAL in precisions, "precisions", f"a list with '{USUAL}'", list(precisions))
    _check_settings(settings)
    clock = Clock(threads, accelerator) if latency is not None else None
    _check_plain(model)
    flat = flatten(model)
    kernels = scan.kernels_to_try(flat, layers, [p for p in precisions if p != USUAL])
    check(bool(kernels), "layers", "some that can have other precisions than int8", layers)
    inputs = scan.inputs_of(flat, data, samples)
    tell = progress or (lambda stage, done, total: None)
    count = sum(len(scan.able(kernel, precisions)) for kernel in kernels)
    observer = settings.get("weight_observer") or "max"
    simulation = Simulation(flat, kernels, inputs, batch_size, observer)
    rows = []
    for row in scan.rows_of(simulation, precisions, method):
        rows.append(row)
        tell("judge layers", len(rows), count)
    found = Sensitivity(model.name, "outputs", {}, Prune(0.5), tuple(rows))
    with temporary.folder() as folder:
        files = _Files(model, simulation, inputs, settings, clock, Path(folder), tell)
        search = _Search(files, rows, budgets)
        return search.best(model.name, found)


def _check_plain(model: Any) -> None:
    if isinstance(model, keras.Model) and is_compressed(model):
        raise ValueError(
            f"model '{model.name}' comes from compress; expected the plain one. What it was "
            "trained for decides its precisions: convert it as it is."
        )


def _check_settings(settings: Mapping[str, Any]) -> None:
    ours = {"precision": "precisions", "calibration": "data", "format": None, "metadata": None}
    for name in settings.keys() & ours.keys():
        mend = f"It is given by {ours[name]}." if ours[name] else "Give it to convert."
        raise ValueError(f"choose_precision takes no {name}; received {settings[name]!r}. {mend}")


class _Files:
    """Files with precisions by layer, converted and measured.

    Args:
        simulation: which knows the outputs of the float model.
        inputs: samples by input of the model.
    """

    def __init__(self, model, simulation: Simulation, inputs, settings, clock, folder: Path, tell):
        self.model, self.simulation, self.clock = model, simulation, clock
        self.inputs = dict(zip([t.name for t in tree.flatten(model.inputs)], inputs, strict=True))
        self._settings, self._folder, self.tell = settings, folder, tell
        self.made = 0

    def content(self, precisions: Mapping[str, str], **settings: Any) -> bytes:
        """The bytes of the file with these precisions of layers, and other settings if given."""
        self.tell("convert", self.made, None)
        self.made += 1
        path = self._folder / f"{self.made}.tflite"
        rules: Any = {glob.escape(name): precision for name, precision in precisions.items()}
        if set(precisions.values()) == {USUAL}:
            rules = USUAL
        convert(self.model, path, precision=rules, calibration=self.inputs, samples=None,
                **{**self._settings, **settings})  # fmt: skip
        return path.read_bytes()

    def loss(self, content: bytes) -> float:
        """What the outputs of a file lose."""
        file = flatbuffer.read(content)
        runner = Runner(file, content, "the file", reference=False)
        rows = range(len(next(iter(self.inputs.values()))))
        each = [runner.run({k: x[i : i + 1] for k, x in self.inputs.items()}) for i in rows]
        found = [np.concatenate(parts).astype(np.float64) for parts in zip(*each, strict=True)]
        return lost(self.simulation.reference, found)["outputs"]

    def costs(self, content: bytes, base: bytes | None = None) -> FileCosts:
        """What a file costs; its time beside that of the int8 file."""
        ms = None
        if self.clock is not None and base is not None:
            first, ratios = self.clock.measured(self._folder, [base, content], whole=True)
            ms = first * ratios[0]
        return FileCosts(len(content), self.loss(content), ms)


@dataclasses.dataclass(frozen=True)
class _Attempt:
    """A file that was measured, and the options that its layers have."""

    picks: list[int]
    costs: FileCosts


class _Search:
    """Files one after the other, each for what those before have shown of the predictions.

    Bytes and milliseconds of a file are the sums over layers and a constant; what outputs lose
    beyond the int8 file is the sum over layers, times what corrections and chance make of it.
    """

    def __init__(self, files: _Files, rows: Sequence[Row], budgets: Mapping[str, float]):
        self.files, self.budgets = files, budgets
        self.rows: dict[str, list[Row]] = {}
        for row in rows:
            self.rows.setdefault(row.layer, []).append(row)
        self.options = {name: [str(r.value) for r in each] for name, each in self.rows.items()}
        self.usual = [each.index(USUAL) for each in self.options.values()]
        self._content = files.content(self._named(self.usual))
        self.base = files.costs(self._content, self._content)
        self.costs: dict[str, list[list[float]]] = {
            "loss": [[row.drop for row in each] for each in self.rows.values()],
            "bytes": [[float(_bytes(row)) for row in each] for each in self.rows.values()],
        }
        self.ratios: dict[str, dict[str, float]] = {}
        if files.clock is not None:
            self.costs["ms"] = self._timed(files.clock)
        self._offsets = {
            n: self._actual(n, self.base) - self._sum(n, self.usual) for n in self.costs
        }
        self._factor = 1.0
        self.attempts = [_Attempt(self.usual, self.base)]

    def best(self, name: str, found: Sensitivity) -> PrecisionChoice:
        """The best file that meets all budgets."""
        least = "bytes" if "quality" in self.budgets else "loss"
        while len(self.attempts) <= _FILES:
            picks, _ = assign(self.costs, least, self._limits(self.budgets))
            if any(picks == attempt.picks for attempt in self.attempts):
                break
            content = self.files.content(self._named(picks))
            attempt = _Attempt(picks, self.files.costs(content, self._content))
            self.attempts.append(attempt)
            self._learn(attempt)
        met = [each for each in self.attempts if self._missed(each) == 0]
        if not met:
            raise self._unmet(name)
        best = min(met, key=lambda each: self._actual(least, each.costs))
        return PrecisionChoice(
            model=name,
            budgets=dict(self.budgets),
            file=best.costs,
            int8=self.base,
            layers=tuple(self._layer(*pair) for pair in zip(self.rows, best.picks, strict=True)),
            curve=self._curve(),
            sensitivity=found,
        )

    def _named(self, picks: Sequence[int]) -> dict[str, str]:
        pairs = zip(self.options.items(), picks, strict=True)
        return {name: options[pick] for (name, options), pick in pairs}

    def _layer(self, name: str, pick: int) -> LayerChoice:
        row = self.rows[name][pick]
        precision, ratios = str(row.value), self.ratios.get(name)
        latency = None if ratios is None else ratios.get(precision, 1.0)
        return LayerChoice(name, precision, row.size, _bytes(row), row.drop, latency)

    def _timed(self, clock: Clock) -> list[list[float]]:
        """Milliseconds of each layer in each of its precisions."""
        names = LayerNames(self.files.model)
        every = dict.fromkeys(p for each in self.options.values() for p in each if p != USUAL)
        contents = {USUAL: self._content}
        for precision in every:
            rules = {n: precision if precision in o else USUAL for n, o in self.options.items()}
            contents[precision] = self.files.content(rules, tune="none")
        found = []
        timed = ms_of_layers(clock, names, contents, self.options, self.files.tell)
        for name, (ms, ratios) in timed.items():
            self.ratios[name] = ratios
            found.append([ms * ratios.get(p, 1.0) for p in self.options[name]])
        return found

    def _limits(self, budgets: Mapping[str, float]) -> dict[str, float]:
        """The most that sums over layers may be, so that the file keeps within budgets."""
        found = {}
        if "flash" in budgets:
            found["bytes"] = budgets["flash"] - self._offsets["bytes"]
        if "latency" in budgets:
            found["ms"] = budgets["latency"] * (self.base.ms or 0.0) - self._offsets["ms"]
        if "quality" in budgets:
            left = (budgets["quality"] - self.base.loss) / self._factor
            found["loss"] = self._sum("loss", self.usual) + left
        return found

    def _learn(self, attempt: _Attempt) -> None:
        """Takes the predictions for what a file shows; what failed once is not tried again."""
        failed = self._missed(attempt) > 0
        for name in ("bytes", "ms"):
            if name in self.costs:
                seen = self._actual(name, attempt.costs) - self._sum(name, attempt.picks)
                self._offsets[name] = max(seen, self._offsets[name]) if failed else seen
        more = self._sum("loss", attempt.picks) - self._sum("loss", self.usual)
        if more > 0:
            seen = max((attempt.costs.loss - self.base.loss) / more, 0.05)
            self._factor = max(seen, self._factor) if failed else seen

    def _sum(self, name: str, picks: Sequence[int]) -> float:
        return total(self.costs[name], picks)

    def _actual(self, name: str, file: FileCosts) -> float:
        return float(getattr(file, name))

    def _missed(self, attempt: _Attempt) -> float:
        """By how much a file misses the budgets, in parts of them."""
        file, most = attempt.costs, dict(self.budgets)
        found = 0.0
        if "flash" in most:
            found += max(file.bytes / most["flash"] - 1, 0.0)
        if "quality" in most:
            found += max(file.loss / most["quality"] - 1, 0.0)
        if "latency" in most:
            ratio = (file.ms or 0.0) / (self.base.ms or 1.0)
            found += max(ratio / most["latency"] - 1 - NOISE, 0.0)
        return found

    def _unmet(self, name: str) -> ValueError:
        near = min(self.attempts, key=self._missed).costs
        told = [f"{near.bytes:,} bytes", f"a loss of {near.loss:.3g}"]
        if near.ms is not None and self.base.ms:
            told.append(f"{near.ms / self.base.ms:.2f} of int8's latency")
        asked = ", ".join(f"{key}={value:,g}" for key, value in self.budgets.items())
        every = dict.fromkeys(p for each in self.options.values() for p in each)
        return ValueError(
            f"no file of model '{name}' with layers in {', '.join(every)} meets {asked}; the "
            f"closest one has {', '.join(told)}. Raise the budget to that, or allow more "
            "precisions."
        )

    def _curve(self) -> tuple[tuple[int, float], ...]:
        """(bytes, loss) of the best files of other sizes, as far as latency allows."""
        sums = [
            [min(each) for each in self.costs["bytes"]],
            [max(each) for each in self.costs["bytes"]],
        ]
        low, high = (math.fsum(each) for each in sums)
        others = {n: v for n, v in self.budgets.items() if n == "latency"}
        found: dict[int, float] = {}
        for limit in np.linspace(low, high, _POINTS):
            limits = {**self._limits(others), "bytes": float(limit)}
            picks, holds = assign(self.costs, "loss", limits)
            if holds:
                size = round(self._sum("bytes", picks) + self._offsets["bytes"])
                more = self._sum("loss", picks) - self._sum("loss", self.usual)
                found[size] = self.base.loss + self._factor * more
        return tuple(sorted(found.items()))


def _bytes(row: Row) -> int:
    """Of a kernel in a file, about."""
    precision = str(row.value)
    if precision == "int4_blockwise":
        return math.ceil(row.size / 2) + 2 * math.ceil(row.size / BLOCK)
    widths = {"float16": 16, "float32": 32}
    bits = widths.get(precision) or BITS[precision][0] or 32
    return math.ceil(row.size * bits / 8)
