"""Which layer a tensor of a .tflite file comes from, with or without its Keras model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

# Where a converter fuses operations into one, the one with weights names the layer.
_WEIGHTED = re.compile(r"conv|depthwise|matmul|biasadd|dense|einsum", re.IGNORECASE)
_MAX = 60


def layer_names(tensors: Sequence[str], model: Any = None) -> list[str]:
    """Names the layers that make tensors.

    Args:
        tensors: names of the outputs of a file's operators.
        model: the `keras.Model` that it came from; None guesses by the form of the names.

    Returns:
        A name for each tensor: that of the layer where it can be told, else of the tensor.

    Example:
        >>> layer_names(["model/conv1/Relu;model/conv1/Conv2D"])
        ['conv1']
    """
    known = _Known(model)
    scopes = [_scope(tensor) for tensor in tensors]
    numbers = {match[1] for s in scopes if s and (match := re.search(r"_(\d+)$", s))}
    # Keras 3 exports a copy of the model, in which every layer has the same number behind it.
    copied = len(numbers) == 1 and all(s is None or re.search(r"_\d+$", s) for s in scopes)
    names = []
    for tensor, scope in zip(tensors, scopes, strict=True):
        guessed = re.sub(r"_\d+$", "", scope) if scope and copied else scope
        names.append((known.of(tensor) or _plain(guessed or tensor))[:_MAX])
    return names


class _Known:
    def __init__(self, model: Any):
        self.names: Any = None
        if model is not None:
            from tfcompress.tflite.layer_errors import LayerNames

            self.names = LayerNames(model)

    def of(self, tensor: str) -> str:
        return "" if self.names is None else self.names.of(tensor)


def _scope(tensor: str) -> str | None:
    """'model/conv1/Relu;model/conv1/Conv2D' -> 'conv1'; None if the name has no such form."""
    paths = [part.split("/") for part in tensor.split(";") if part.count("/")]
    if not paths:
        return None
    weighted = [path for path in paths if _WEIGHTED.search(path[-1])]
    path = (weighted or paths)[0]
    inner = path[1:-1] or path[:-1]
    return "/".join(inner)


def _plain(name: str) -> str:
    """Without what quantization-aware training puts around the names of layers."""
    name = name.split(";")[0]
    name = re.sub(r"(^|/)quant_", r"\1", name)
    return re.sub(r"_range$", "", name).rstrip("_")
