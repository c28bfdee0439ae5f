"""ONNX Runtime, on the file as tf2onnx brings it to ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tfcompress.tflite import flatbuffer
from tfcompress.tools.comparison import compare
from tfcompress.tools.driving import Answer, Outcome, drive
from tfcompress.tools.environments import python_environment
from tfcompress.tools.subject import Subject

TITLE = "ONNX Runtime 1.31.1, by tf2onnx 1.17.0"

# tf2onnx imports TensorFlow.
PACKAGES = (
    "tf2onnx==1.17.0",
    "onnx==1.23.2",
    "onnxruntime==1.31.1",
    "tensorflow==2.21.0",
    "numpy==2.2.6",
)

OPSET = 18


def run(file: Subject) -> Outcome:
    """Convert it and compare the outputs."""
    return compare(file, lambda f: onnx(f.data, f.inputs), lsb=1)


def onnx(data: bytes, inputs: Sequence[Mapping[str, np.ndarray]]) -> Answer:
    """Convert a file to ONNX and run that.

    Args:
        data: the bytes of the .tflite file.
    """
    return drive(
        [python_environment("onnx", PACKAGES)],
        "run_onnx.py",
        data,
        inputs,
        what="tf2onnx and ONNX Runtime",
        settings={"opset": OPSET, "half": _has_halves(data)},
        files=["model.onnx"],
    )


def _has_halves(data: bytes) -> bool:
    graph = flatbuffer.read(data).subgraphs[0]
    return any(flatbuffer.dtype_name(tensor) == "float16" for tensor in graph.tensors)
