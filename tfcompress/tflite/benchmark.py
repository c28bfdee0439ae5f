"""How fast .tflite files run here, compared in pairs, and what they take."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfcompress.files import apart
from tfcompress.results import Result, print_table
from tfcompress.tflite import flatbuffer, work
from tfcompress.tflite.arena import activation_bytes
from tfcompress.tflite.run import cannot_run, line, ports, require_no_codes

if TYPE_CHECKING:
    from rich.console import Console

SEED = 0


@dataclasses.dataclass(frozen=True)
class FileBenchmark:
    """One file: latencies of one invocation in milliseconds, sizes in bytes."""

    path: str
    median_ms: float
    p90_ms: float
    min_ms: float
    ratio: float  # latency over the first file's: median of the rounds' paired ratios
    file_bytes: int
    zipped_bytes: int
    activation_bytes: int  # peak of live activations, a lower bound of the arena


@dataclasses.dataclass(frozen=True)
class Benchmark(Result):
    """What `benchmark` measured, in the order of the files."""

    files: tuple[FileBenchmark, ...]
    runs: int
    warmup: int
    threads: int
    rounds: int

    def _print(self, console: Console) -> None:
        rows: list[tuple[Any, ...]] = []
        for f in self.files:
            times = (f"{ms:.3f}" for ms in (f.median_ms, f.p90_ms, f.min_ms))
            sizes = (f.file_bytes, f.zipped_bytes, f.activation_bytes)
            rows.append((f.path, *times, f"{f.ratio:.2f}x", *sizes))
        columns = "file,median ms >,p90 ms >,min ms >,latency >,bytes >,zipped >,activations >"
        title = f"{self.rounds} rounds of {self.runs} runs, {self.threads} thread(s)"
        print_table(console, title, columns, rows)


def benchmark(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    runs: int = 50,
    warmup: int = 5,
    threads: int = 1,
    rounds: int = 5,
    data: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> Benchmark:
    """Measure latency and size of one or more .tflite files on this machine.

    The files take turns (A B C A B C ...), so that a busy or throttled moment hits all of them.
    LiteRT runs them with its default kernels, XNNPACK where it can.

    Args:
        paths: the files; the first is the one that the others are compared with.
        runs: timed invocations per file and round.
        warmup: invocations per file that are not timed, once at the start.
        threads: CPU threads of the interpreter.
        rounds: the ratio is the median over this many rounds.
        data: inputs for every file: an array, a list in the order of the inputs, or a dict by
            input name. Each has the input's shape, or more rows of which the first are taken;
            float values are quantized for files with integer inputs. None draws random values
            from a fixed seed: normal for floats, the full range for quantized integers, 0 or 1
            for other integers, which are mostly indices.
        progress: called as `progress(done, total)` after each turn of the files.

    Returns:
        A `Benchmark`: milliseconds, bytes, and the peak of live activations as a lower bound of
        the arena.

    Raises:
        ValueError: no file, a file that cannot be read or run, a count below 1, unfit data.

    Example:
        >>> print(benchmark(["float.tflite", "int8.tflite"], runs=20))  # doctest: +SKIP
    """
    files = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not files:
        raise ValueError("expected one or more .tflite files; received none. Name a file.")
    for name, value in (("runs", runs), ("rounds", rounds), ("threads", threads)):
        _check_count(name, value, 1)
    _check_count("warmup", warmup, 0)
    contents = [flatbuffer.load(file) for file in files]  # which refuses what is no file
    parsed = [
        flatbuffer.read(content, name=flatbuffer.describe(file))
        for content, file in zip(contents, files, strict=True)
    ]
    names = [os.fspath(file) for file in files]
    found = times_apart((names, threads, _arrays(data), runs, warmup, rounds), progress)
    medians = np.median(found, axis=2)  # (files, rounds)
    ratios = np.median(medians / medians[:1], axis=1)
    results = tuple(
        FileBenchmark(
            path=os.fspath(file),
            median_ms=float(np.median(found[i])),
            p90_ms=float(np.percentile(found[i], 90)),
            min_ms=float(found[i].min()),
            ratio=float(ratios[i]),
            file_bytes=len(contents[i]),
            zipped_bytes=flatbuffer.zipped_size(contents[i]),
            activation_bytes=activation_bytes(parsed[i]),
        )
        for i, file in enumerate(files)
    )
    return Benchmark(results, runs, warmup, threads, rounds)


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(
            f"{name} must be a whole number of at least {least}; received {value!r}. "
            f"Try {name}={max(least, 1)}."
        )


def times_apart(
    arguments: tuple[Any, ...], progress: Callable[[int, int], None] | None
) -> np.ndarray:
    """As `times` of these, in the process of LiteRT, which a file may end."""
    at = ""

    def tell(path: str, done: int, total: int) -> None:
        nonlocal at
        at = path
        if progress is not None and done:
            progress(done, total)

    try:
        return apart.ask(f"{__name__}:times", *arguments, tell=tell)
    except (apart.Died, MemoryError) as error:
        raise cannot_run(f"'{at}'", error) from error


def _arrays(data: Any) -> Any:
    """Data as NumPy's arrays, which another process can take."""
    if isinstance(data, Mapping):
        return {name: np.asarray(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [np.asarray(value) for value in data]
    return None if data is None else np.asarray(data)


class _Runner:
    """A file that is loaded and has its inputs at hand."""

    def __init__(self, path: str, threads: int, data: Any):
        from ai_edge_litert.interpreter import Interpreter

        self.path, content = path, flatbuffer.load(path)
        model = flatbuffer.read(content, name=flatbuffer.describe(path))
        self.seconds = work.seconds(content, threads)
        apart.allow(self.seconds)
        try:
            require_no_codes(content)
            self.interpreter = Interpreter(model_content=content, num_threads=threads)
            self.interpreter.allocate_tensors()
            details = self.interpreter.get_input_details()
        except (RuntimeError, ValueError) as error:
            raise cannot_run(f"'{path}'", error) from error
        names = {entry.index: entry.name for entry in ports(model)[0]}
        self.inputs = [
            (d["index"], _input(path, d, names.get(d["index"]), i, len(details), data))
            for i, d in enumerate(details)
        ]

    def run(self) -> float:
        """Invoke once; return the milliseconds that took."""
        apart.allow(self.seconds)
        # The arena reuses the memory of inputs; leftovers there could be slow denormals.
        for index, value in self.inputs:
            self.interpreter.set_tensor(index, value)
        start = time.perf_counter_ns()
        self.interpreter.invoke()
        return (time.perf_counter_ns() - start) / 1e6


def times(
    paths: Sequence[str],
    threads: int,
    data: Any,
    runs: int,
    warmup: int,
    rounds: int,
    tell: Callable[[str, int, int], None] = lambda path, done, total: None,
) -> np.ndarray:
    """Run files in turns, in this process.

    Args:
        tell: called with a path before its file is loaded and first run, and after each turn of
            the files with the last one's and how many turns of all are done.

    Returns milliseconds of shape (files, rounds, runs).
    """
    found = np.zeros((len(paths), rounds, runs))
    total = warmup + rounds * runs
    runners = []
    for path in paths:
        tell(path, 0, total)
        runners.append(_Runner(path, threads, data))
    for turn in range(total):
        for i, runner in enumerate(runners):
            if turn == 0:
                tell(runner.path, 0, total)
            try:
                elapsed = runner.run()
            except (RuntimeError, ValueError) as error:
                raise ValueError(
                    f"LiteRT failed on '{runner.path}': {line(error)}. Expected a model that runs "
                    "on the given inputs; pass fitting ones as `data`."
                ) from error
            if turn >= warmup:
                found[i, (turn - warmup) // runs, (turn - warmup) % runs] = elapsed
        tell(runners[-1].path, turn + 1, total)
    return found


times.tells = True  # type: ignore[attr-defined]


def _input(
    path: str, detail: dict[str, Any], name: str | None, position: int, count: int, data: Any
) -> np.ndarray:
    """Return the value of one input, of its shape and dtype."""
    if data is None:
        return _random(path, detail)
    where = f"input '{name or detail['name']}' of '{path}'"
    if isinstance(data, Mapping):
        key = name if name in data else detail["name"]
        if key not in data:
            raise ValueError(f"no data for {where}; received {sorted(data)}. Add it by that name.")
        value = data[key]
    elif isinstance(data, (list, tuple)):
        if len(data) != count:
            raise ValueError(
                f"'{path}' has {count} inputs; received {len(data)} arrays. Pass one per input."
            )
        value = data[position]
    elif count == 1:
        value = data
    else:
        raise ValueError(
            f"'{path}' has {count} inputs; received one array. Pass a list or a dict of arrays."
        )
    value, shape = np.asarray(value), tuple(map(int, detail["shape"]))
    if value.ndim != len(shape) or value.shape[1:] != shape[1:] or value.shape[:1] < shape[:1]:
        raise ValueError(f"{where} has shape {shape}; received {value.shape}. Reshape the data.")
    return _cast(where, value[: shape[0]] if shape else value, detail)


def _cast(where: str, value: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    dtype, (scale, zero_point) = np.dtype(detail["dtype"]), detail["quantization"]
    if value.dtype == dtype:
        return value
    if dtype.kind == "S" and value.dtype.kind in "SUO":  # texts, in Python's own form or bytes
        return np.array(
            [x.encode() if isinstance(x, str) else x for x in value.flat], object
        ).reshape(value.shape)
    if value.dtype.kind == "f" and dtype.kind in "iu" and scale:
        limits = np.iinfo(dtype)
        return np.clip(np.round(value / scale) + zero_point, limits.min, limits.max).astype(dtype)
    if not np.can_cast(value.dtype, dtype, "same_kind"):
        raise ValueError(f"{where} is {dtype}; received {value.dtype}. Convert the data first.")
    return value.astype(dtype)


def _random(path: str, detail: dict[str, Any]) -> np.ndarray:
    rng = np.random.default_rng(SEED)
    dtype, shape = np.dtype(detail["dtype"]), tuple(detail["shape"])
    if dtype.kind in "fc":
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind in "iu" and detail["quantization"][0]:
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    if dtype.kind in "iub":
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind == "S":
        return np.full(shape, b"", object)
    raise ValueError(
        f"input '{detail['name']}' of '{path}' is {dtype}; expected numbers. Pass it as `data`."
    )
