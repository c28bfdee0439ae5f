"""The float model that a file is seen beside: its weights, and the float32 file made of them."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

import keras

from tfcompress.baking import is_compressed, rebuild_copy
from tfcompress.graph import copy_operation, copy_weights, flatten
from tfcompress.layers import Compressed, FakeQuant, FusedBatchNorm
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.convert import convert
from tfcompress.tflite.layer_errors import float_twin

# What the weights are, and what the file is, in words. Masks only hide weights while a model
# trains; what `finalize` baked in is in the weights themselves.
_PLAIN = "the float model", "float32 file of the same model"
_LEFT_OUT = (
    "the float weights that the model holds, its techniques not applied",
    "float32 file without the techniques",
)
_APPLIED = (
    "the float model with its techniques applied",
    "float32 file with the techniques applied",
)


@dataclasses.dataclass(frozen=True)
class FloatFiles:
    """Float files of a model, as bytes.

    Attributes:
        twin: operations in the forms of the .tflite file, techniques applied: what the file is to
            compute.
        before: the same before techniques: what its weights were made of.
        float32: what `convert` writes of the latter: what the file is shipped instead of.
        weights: what the weights of `before` are, in words.
        title: what `float32` is, in words.
    """

    twin: bytes
    before: bytes
    float32: bytes
    weights: str
    title: str


def float_files(model: Any, tflite_path: str | os.PathLike[str]) -> FloatFiles:
    """The float files that a .tflite file is seen beside.

    Args:
        model: the `keras.Model` that was converted.
        tflite_path: the file that was made of it.

    Returns:
        See `FloatFiles`. Where the model cannot be rebuilt without its techniques or converted to
        float32, the twin stands in for the others.
    """
    file = flatbuffer.read(tflite_path)
    twin = flatbuffer.write(float_twin(model, file))
    compressed = is_compressed(model)
    try:
        if not compressed:
            return FloatFiles(twin, twin, _float32(model, file), *_PLAIN)
        plain = _without_techniques(model)
        before = flatbuffer.write(float_twin(plain, file))
        return FloatFiles(twin, before, _float32(plain, file), *_LEFT_OUT)
    except (TypeError, ValueError):
        return FloatFiles(twin, twin, twin, *(_APPLIED if compressed else _PLAIN))


def _without_techniques(model: keras.Model) -> keras.Model:
    plain = rebuild_copy(flatten(model), _plain)
    if is_compressed(plain):
        raise ValueError("the model holds techniques inside of other layers")
    return plain


def _plain(operation: Any) -> Any:
    """What stands for an operation where there are no techniques, as `rebuild_copy` takes it."""
    if isinstance(operation, FakeQuant):
        activation = keras.layers.Activation(operation.activation or "linear", name=operation.name)
        # It is called with the row of its range, too.
        return (lambda x, **_: activation(x)), lambda: None
    if not isinstance(operation, (Compressed, FusedBatchNorm)):
        return None
    twin = copy_operation(operation.layer)
    return twin, lambda: copy_weights([(operation.layer, twin)])


def _float32(model: keras.Model, file: Any) -> bytes:
    graph = file.subgraphs[0]
    batch_size = int(graph.tensors[graph.inputs[0]].shape[0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "float32.tflite")
        convert(model, path, precision="float32", batch_size=batch_size)
        return path.read_bytes()
