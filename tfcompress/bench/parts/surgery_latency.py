"""How many times as fast the second of two files is, with or without the tiles of AMX.

`surgery_quality` runs it as a process of its own, as TensorFlow asks for AMX when it is imported:

    python surgery_latency.py [--no-amx] FILE SMALLER_FILE [FILE SMALLER_FILE ...]

It prints a JSON list: a number for each pair.
"""

import ctypes
import json
import sys

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


def speedups(paths: list[str]) -> list[float]:
    """The latency of each first file divided by that of the one after it, from paired runs."""
    from tfcompress.tflite.benchmark import benchmark

    pairs = zip(paths[::2], paths[1::2], strict=True)
    return [1 / benchmark(pair, runs=100, rounds=9).files[1].ratio for pair in pairs]


if __name__ == "__main__":
    files = sys.argv[1:]
    if files[0] == "--no-amx":
        stack, files = refuse_amx(), files[1:]
    print(json.dumps(speedups(files)))
