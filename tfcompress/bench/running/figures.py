"""What a file and its Keras model take: bytes, parameters, MACs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from tfcompress.tflite import flatbuffer


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


def layers(path: str | os.PathLike[str], model: Any, samples: np.ndarray) -> list[dict[str, Any]]:
    """Figures of each layer of a file, see `tfcompress.report.layers.layer_figures`.

    Args:
        path: the file.
        model: that it was made from.
        samples: float32 (count, *input shape), for signal-to-noise ratios.
    """
    from tfcompress.report.layers import layer_figures

    return layer_figures(path, keras_model=model, data=samples)
