"""OpenVINO, Intel's runtime for servers and desktops, which reads .tflite files itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tfcompress.tools.comparison import compare
from tfcompress.tools.driving import Answer, Outcome, drive
from tfcompress.tools.environments import python_environment
from tfcompress.tools.subject import Subject

TITLE = "OpenVINO 2026.4.1"
PACKAGES = ("openvino==2026.4.1", "numpy==2.2.6")


def run(file: Subject) -> Outcome:
    """Compare its outputs, computed in float32 between fake-quantizations."""
    return compare(file, lambda f: openvino(f.data, f.inputs), lsb=1)


def openvino(
    data: bytes, inputs: Sequence[Mapping[str, np.ndarray]], *, save: bool = False
) -> Answer:
    """Run a file with OpenVINO.

    Args:
        data: the bytes of the .tflite file.
    """
    return drive(
        [python_environment("openvino", PACKAGES)],
        "run_openvino.py",
        data,
        inputs,
        what="OpenVINO",
        settings={"save": save},
        files=["model.xml", "model.bin"] if save else [],
    )
