"""TFLite Micro, the interpreter of microcontrollers, built for this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tfcompress.tflite import flatbuffer
from tfcompress.tflite.arena import activation_bytes
from tfcompress.tools.comparison import compare
from tfcompress.tools.driving import Answer, Outcome, drive
from tfcompress.tools.environments import python_environment
from tfcompress.tools.subject import Subject

TITLE = "TFLite Micro (2026-10-23)"
PACKAGES = ("tflite-micro==0.dev20261023182759", "flatbuffers==25.12.19", "numpy==2.2.6")


def run(file: Subject) -> Outcome:
    """Compare its outputs, which must equal LiteRT's reference kernels, and measure the arena."""
    found = compare(file, lambda f: _drive("run_tflm.py", f.data, f.inputs), lsb=0)
    return dataclasses.replace(
        found, figures={**found.figures, "arena bytes": arena_bytes(file.data)}
    )


def arena_bytes(data: bytes) -> int:
    """Return the smallest arena in which TFLite Micro plans and runs a file.

    Measured on a 64-bit machine: a microcontroller, whose pointers are smaller, takes a little
    less for what is not tensor data, and its own kernels may take other scratch buffers.

    Args:
        data: the bytes of a .tflite file.
    """
    return int(_drive("measure_tflm.py", data, ()).figures["arena bytes"])


def _drive(driver: str, data: bytes, inputs: Sequence[Mapping[str, np.ndarray]]) -> Answer:
    model = flatbuffer.read(data)
    # Room to plan in, several times what is needed.
    arena = min(8 * activation_bytes(model) + (16 << 20), 2**31 - 16) // 16 * 16
    graph = model.subgraphs[0]
    settings = {"arena": arena, "inputs": len(graph.inputs), "outputs": len(graph.outputs)}
    python = python_environment("tflm", PACKAGES)
    return drive([python], driver, data, inputs, what="TFLite Micro", settings=settings)
