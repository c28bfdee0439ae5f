"""What a file and its Keras model take: bytes, parameters, MACs, cycles of an NPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from tfcompress import environments
from tfcompress.acceptance.tools import vela
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.runner import ports

_VELA = "vela"
ACCELERATOR = "ethos-u55-128"


def sizes(path: str | os.PathLike[str]) -> dict[str, int]:
    """Bytes of a file, and of a zip file with it."""
    content = Path(path).read_bytes()
    return {"bytes": len(content), "zipped": flatbuffer.zipped_size(content)}


def counts(model: Any, plain: Any) -> dict[str, int | None]:
    """Parameters and MACs of the layers that a model has.

    Args:
        model: in Keras 3, or in tf_keras: there TFMOT only wraps the layers of `plain`.
        plain: the float model in Keras 3.

    Returns:
        {"params", "macs"}, None where they cannot be told.
    """
    import keras

    import tfcompress as tfc

    try:
        found = tfc.profile(tfc.finalize(model) if isinstance(model, keras.Model) else plain)
    except (ValueError, TypeError):
        return {"params": None, "macs": None}
    unknown = any(row.macs is None for row in found.rows)
    # Ranges of activations are none of the model's own parameters.
    params = sum(row.params for row in found.rows if row.kind != "FakeQuant")
    return {"params": params, "macs": None if unknown else found.macs}


def vela_is_ready() -> bool:
    """Whether Vela is installed already, in its environment in the cache."""
    return environments.python_environment_is_ready(_VELA, vela.PACKAGES)


def install_vela() -> None:
    """Installs Vela into its environment in the cache.

    Raises:
        Unavailable: it cannot be had.
    """
    environments.python_environment(_VELA, vela.PACKAGES)


def vela_figures(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What Vela counts for an Ethos-U55-128.

    Args:
        path: an int8 file.

    Returns:
        {"cycles", "sram_kib", "flash_kib", "cpu_ops"}; None if Vela does not compile it. "flash"
        is what Vela keeps off the chip.
    """
    from tfcompress.acceptance.accept import accept

    figures = accept(path, [_VELA], accelerator=ACCELERATOR).results[0].figures
    if "cycles" not in figures:
        return None
    names = {"cycles": "cycles", "sram_kib": "SRAM KiB", "flash_kib": "flash KiB"}
    return {ours: figures[theirs] for ours, theirs in {**names, "cpu_ops": "CPU ops"}.items()}


def is_int8(path: str | os.PathLike[str]) -> bool:
    """Whether a file takes and gives int8, as what an NPU is to run does."""
    inputs, outputs = ports(flatbuffer.read(Path(path).read_bytes()))
    return all(port.dtype == "int8" for port in inputs + outputs)


def layers(path: str | os.PathLike[str], model: Any, samples: np.ndarray) -> list[dict[str, Any]]:
    """Figures of each layer of a file, see `tfcompress.report.layers.layer_figures`.

    Args:
        path: the file.
        model: that it was made from.
        samples: float32 (count, *input shape), for signal-to-noise ratios.
    """
    from tfcompress.report.layers import layer_figures

    return layer_figures(path, keras_model=model, data=samples)
