"""Runtimes in Python environments of their own: ONNX Runtime, OpenVINO and TFLite Micro."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tfcompress.tflite import flatbuffer
from tfcompress.tflite.arena import activation_bytes
from tfcompress.tools.comparison import compare
from tfcompress.tools.driving import Answer, Library, Outcome, Tool
from tfcompress.tools.environments import python_environment
from tfcompress.tools.subject import Subject

Inputs = Sequence[Mapping[str, np.ndarray]]

OPSET = 18
ONNX_LIBRARY = Library(
    "onnx",
    "tf2onnx and ONNX Runtime",
    (
        "tf2onnx==1.17.0",
        "onnx==1.23.2",
        "onnxruntime==1.31.1",
        "tensorflow==2.21.0",  # tf2onnx imports it.
        "numpy==2.2.6",
    ),
)


def onnx(data: bytes, inputs: Inputs) -> Answer:
    """Convert a file to ONNX by tf2onnx, and run that with ONNX Runtime."""
    tensors = flatbuffer.read(data).subgraphs[0].tensors
    half = any(flatbuffer.dtype_name(tensor) == "float16" for tensor in tensors)
    settings = {"opset": OPSET, "half": half}
    return ONNX_LIBRARY.drive("run_onnx", data, inputs, settings=settings, files=["model.onnx"])


def _run_onnx(file: Subject) -> Outcome:
    return compare(file, lambda f: onnx(f.data, f.inputs), lsb=1)


ONNXRUNTIME = Tool("ONNX Runtime 1.31.1, by tf2onnx 1.17.0", _run_onnx)

OPENVINO_LIBRARY = Library("openvino", "OpenVINO", ("openvino==2026.4.1", "numpy==2.2.6"))


def openvino(data: bytes, inputs: Inputs, *, save: bool = False) -> Answer:
    """Run a file with OpenVINO, Intel's runtime for servers and desktops, in float32."""
    files = ["model.xml", "model.bin"] if save else []
    return OPENVINO_LIBRARY.drive(
        "run_openvino", data, inputs, settings={"save": save}, files=files
    )


def _run_openvino(file: Subject) -> Outcome:
    return compare(file, lambda f: openvino(f.data, f.inputs), lsb=1)


OPENVINO = Tool("OpenVINO 2026.4.1", _run_openvino)

_TFLM_PACKAGES = ("tflite-micro==0.dev20261023182759", "flatbuffers==25.12.19", "numpy==2.2.6")
TFLM_LIBRARY = Library("tflm", "TFLite Micro", _TFLM_PACKAGES)


def arena_bytes(data: bytes) -> int:
    """Return the smallest arena in which TFLite Micro plans and runs a file.

    Measured on a 64-bit machine: a microcontroller, whose pointers are smaller, takes a little
    less for what is not tensor data, and its own kernels may take other scratch buffers.
    """
    return int(_drive_tflm("measure_tflm", data, ()).figures["arena bytes"])


def tflm_outputs(data: bytes, inputs: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]]:
    """What TFLite Micro gives for each of some inputs, which are codes in the order of the file."""
    samples = [{str(place): value for place, value in enumerate(given)} for given in inputs]
    return _drive_tflm("run_tflm", data, samples).outputs


def require_tflm() -> None:
    """Raises an `Unavailable` if TFLite Micro cannot be had here."""
    python_environment(TFLM_LIBRARY.name, TFLM_LIBRARY.packages)


def _drive_tflm(driver: str, data: bytes, inputs: Inputs) -> Answer:
    model = flatbuffer.read(data)
    # Room to plan in, several times what is needed.
    arena = min(8 * activation_bytes(model) + (16 << 20), 2**31 - 16) // 16 * 16
    graph = model.subgraphs[0]
    settings = {"arena": arena, "inputs": len(graph.inputs), "outputs": len(graph.outputs)}
    return TFLM_LIBRARY.drive(driver, data, inputs, settings=settings)


def _run_tflm(file: Subject) -> Outcome:
    """Compare its outputs, which must equal LiteRT's reference kernels, and measure the arena.

    Its LSTM looks sigmoid and tanh up in tables, which LiteRT's does not.
    """
    model = flatbuffer.read(file.data)
    names = {flatbuffer.op_name(model, op) for op in model.subgraphs[0].operators}
    lsb = 1 if "UNIDIRECTIONAL_SEQUENCE_LSTM" in names else 0
    found = compare(file, lambda f: _drive_tflm("run_tflm", f.data, f.inputs), lsb=lsb)
    return dataclasses.replace(
        found, figures={**found.figures, "arena bytes": arena_bytes(file.data)}
    )


TFLM = Tool("TFLite Micro (2026-10-23)", _run_tflm, costs=("arena bytes",), decodes=True)
