"""What Arm's Vela compiler says of int8 files, if it is installed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from tfcompress import environments
from tfcompress.acceptance.tools import vela

_NAME = "vela"
ACCELERATOR = "ethos-u55-128"


def is_ready() -> bool:
    """Whether Vela is installed already, in its environment in the cache."""
    return environments.python_environment_is_ready(_NAME, vela.PACKAGES)


def install() -> None:
    """Installs Vela into its environment in the cache.

    Raises:
        Unavailable: it cannot be had.
    """
    environments.python_environment(_NAME, vela.PACKAGES)


def vela_figures(paths: Sequence[str | os.PathLike[str]]) -> list[dict[str, Any] | None]:
    """What Vela counts for an Ethos-U55-128.

    Args:
        paths: .tflite files.

    Returns:
        For each {"cycles", "sram_kib", "flash_kib", "cpu_ops"}; None of a file without int8 inputs
        and outputs, as what an NPU is to run has, and of one that Vela does not compile. "flash" is
        what Vela keeps off the chip.
    """
    return [_figures(path) if _is_int8(path) else None for path in paths]


def _figures(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    from tfcompress.acceptance.accept import accept

    figures = accept(path, [_NAME], accelerator=ACCELERATOR).results[0].figures
    if "cycles" not in figures:
        return None
    names = {"cycles": "cycles", "sram_kib": "SRAM KiB", "flash_kib": "flash KiB"}
    return {ours: figures[theirs] for ours, theirs in {**names, "cpu_ops": "CPU ops"}.items()}


def _is_int8(path: str | os.PathLike[str]) -> bool:
    from tfcompress.tflite import flatbuffer
    from tfcompress.tflite.runner import ports

    inputs, outputs = ports(flatbuffer.read(path))
    return all(port.dtype == "int8" for port in inputs + outputs)
