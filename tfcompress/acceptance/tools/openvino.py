"""OpenVINO, Intel's runtime for servers and desktops, which reads .tflite files itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tfcompress.acceptance.comparison import compare
from tfcompress.acceptance.driving import Answer, drive
from tfcompress.acceptance.outcome import Outcome
from tfcompress.acceptance.subject import Subject
from tfcompress.environments import python_environment

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
        inputs: samples in its own types.
        save: run it as it is saved; the answer then holds the files `model.xml` and `model.bin`.

    Returns:
        An `Answer`.

    Raises:
        Unavailable, Refused: see `drive`.
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
