"""How fast files run beside one another: in turns, on one thread and on all cores.

The benchmark runs it as a process of its own, as TensorFlow asks for AMX when it is imported:

    python -m tfcompress.bench.running.latency [--no-amx] THREADS[,THREADS] FILE [FILE ...]

It prints a JSON list for each number of threads: for each file [milliseconds, ratio to the first].
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfcompress.files import children
from tfcompress.files.processes import Failed
from tfcompress.tflite import flatbuffer, machine
from tfcompress.tflite.benchmark import times
from tfcompress.tflite.run import ports
from tfcompress.tools import environments, vela
from tfcompress.tools.accept import accept

Pairs = list[tuple[float, float]]

# The ratio of two files is the median over rounds. In each files are loaded anew and take turns in
# another order, as where they lie in memory and what runs before them make some percent; they take
# so many turns that all rounds together last about so long.
_ROUNDS, _WARMUP = 9, 5
_LEAST_RUNS, _MOST_RUNS = 10, 500
_MILLISECONDS = 4000.0
_SECONDS = 900.0


def latencies(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Latency of files, the first of which the others are compared with.

    Returns for each what a line of results has: {"ms", "ratio", "threads", "no_amx"}. "no_amx" is
    None where the processor has no AMX, or where it cannot be done without.
    """
    cores = machine.cores()
    one, *many = _measured(paths, [1, cores] if cores > 1 else [1])
    plain = _without_amx(paths) if machine.has_amx() else None
    return [
        {
            **_named(one[i]),
            "threads": {"count": cores, **_named(many[0][i] if many else one[i])},
            "no_amx": _named(plain[i]) if plain else None,
        }
        for i in range(len(paths))
    ]


def _without_amx(paths: Sequence[Path]) -> Pairs | None:
    """On one thread without AMX; None, with a warning, if that fails, as the rest is good."""
    try:
        return _measured(paths, [1], "--no-amx")[0]
    except Failed as error:
        warnings.warn(f"without AMX {error}; the other latencies are kept", stacklevel=3)
        return None


def _named(pair: tuple[float, float]) -> dict[str, float]:
    return {"ms": pair[0], "ratio": pair[1]}


def _measured(paths: Sequence[Path], threads: Sequence[int], *options: str) -> list[Pairs]:
    command = [sys.executable, "-m", __name__, *options, ",".join(map(str, threads))]
    try:
        done = children.finished(
            [*command, *map(str, paths)],
            _SECONDS,
            text=True,
            errors="replace",
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"latency was not measured within {_SECONDS:.0f} s") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise Failed(f"latency cannot be measured: {said[-1][:300]}")
    return json.loads(done.stdout.splitlines()[-1])


def interleaved(paths: Sequence[str], threads: int) -> Pairs:
    """For each file the milliseconds of one invocation, and its ratio to the first file."""
    import numpy as np

    def timed(order: np.ndarray, runs: int) -> np.ndarray:
        # In this process, which is one of its own already, and may do without AMX.
        found = times([paths[i] for i in order], threads, None, runs, _WARMUP, rounds=1)
        return np.median(found, axis=(1, 2))[np.argsort(order)]

    turn = timed(np.arange(len(paths)), 5).sum()
    runs = int(min(max(_MILLISECONDS / _ROUNDS / turn, _LEAST_RUNS), _MOST_RUNS))
    random = np.random.default_rng(0)
    found = np.array([timed(random.permutation(len(paths)), runs) for _ in range(_ROUNDS)])
    ratios = np.median(found / found[:, :1], axis=0)
    return list(zip(np.median(found, axis=0).tolist(), ratios.tolist(), strict=True))


# Linux: arch_prctl, its request for a feature of the CPU, and the tiles of AMX.
_ARCH_PRCTL, _REQUEST, _TILES = 158, 0x1023, 18
# Of bytes: less than the tiles take.
_SMALL = 2048


class _Stack(ctypes.Structure):
    """stack_t of sigaltstack."""

    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def refuse_amx() -> ctypes.Array:
    """Makes Linux refuse AMX to this process, so that XNNPACK takes its other kernels.

    It does so for as long as there is a stack for signals that could not hold the tiles.
    """
    libc = ctypes.CDLL(None)
    memory = ctypes.create_string_buffer(_SMALL)
    libc.sigaltstack(ctypes.byref(_Stack(ctypes.addressof(memory), 0, _SMALL)), None)
    if libc.syscall(_ARCH_PRCTL, _REQUEST, _TILES) == 0:
        raise RuntimeError("expected Linux to refuse AMX to this process; it has it")
    return memory


_NAME = "vela"
ACCELERATOR = "ethos-u55-128"


def is_ready() -> bool:
    """Whether Vela is installed already, in its environment in the cache."""
    return environments.python_environment_is_ready(_NAME, vela.PACKAGES)


def install() -> None:
    """Installs Vela into its environment in the cache."""
    environments.python_environment(_NAME, vela.PACKAGES)


def vela_figures(paths: Sequence[str | os.PathLike[str]]) -> list[dict[str, Any] | None]:
    """What Vela counts for an Ethos-U55-128."""
    return [_figures(path) if _is_int8(path) else None for path in paths]


def _figures(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    figures = accept(path, [_NAME], accelerator=ACCELERATOR).results[0].figures
    if "cycles" not in figures:
        return None
    names = {"cycles": "cycles", "sram_kib": "SRAM KiB", "flash_kib": "flash KiB"}
    return {ours: figures[theirs] for ours, theirs in {**names, "cpu_ops": "CPU ops"}.items()}


def _is_int8(path: str | os.PathLike[str]) -> bool:
    inputs, outputs = ports(flatbuffer.read(path))
    return all(port.dtype == "int8" for port in inputs + outputs)


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[0] == "--no-amx":
        stack, words = refuse_amx(), words[1:]
    print(json.dumps([interleaved(words[1:], int(count)) for count in words[0].split(",")]))
