"""How a Keras model takes pixels, as far as the preprocessing in front of it tells."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from tfcompress import kinds
from tfcompress.files.pixels import Normalization, named, scaling_before
from tfcompress.graph.flatten import as_flat
from tfcompress.graph.nodes import Graph, Node

_PASSED_ON = (
    *("ZeroPadding2D", "Resizing", "CenterCrop", "Cropping2D"),
    *("Cast", "Reshape", "Permute", "FakeQuant"),
)


def normalization_in_front(model: Any) -> Normalization | None:
    """What a model of one input tells of the pixels that it takes; None if nothing."""
    if not isinstance(model, keras.Model):
        return None
    try:
        graph = Graph.of(as_flat(model))
    except Exception:  # What users' layers raise, where they cannot be looked into, is of any kind.
        return None
    inputs = keras.tree.flatten(graph.inputs)
    if len(inputs) != 1:
        return None
    if "int" in keras.backend.standardize_dtype(inputs[0].dtype):
        return named("none", "The model takes the pixels as they are, as integers.")
    factor, offset = _preprocessing(graph, inputs[0])
    if np.all(factor == 1) and np.all(offset == 0):
        return None
    found = scaling_before(factor, offset)
    return named(found, "The model has the preprocessing of its pixels inside.") if found else None


def _preprocessing(graph: Graph, tensor: Any) -> tuple[np.ndarray, np.ndarray]:
    """The factor and offset by channel of what stands in front."""
    factor, offset = np.ones(1), np.zeros(1)
    while (node := graph.only_consumer(tensor)) is not None:
        kind = type(node.operation).__name__
        if kind not in _PASSED_ON and not kinds.is_of(node.operation, kinds.TRANSPARENT):
            step = _affine(node)
            if step is None:
                break
            factor, offset = factor * step[0], offset * step[0] + step[1]
        tensor = node.outputs[0]
    return factor, offset


def _affine(node: Node) -> tuple[np.ndarray, np.ndarray] | None:
    """The factor and offset of an operation that is arithmetic of a tensor and constants."""
    operation, kind = node.operation, type(node.operation).__name__
    if isinstance(operation, layers.Rescaling):
        return _vector(operation.scale), _vector(operation.offset)
    if isinstance(operation, layers.Normalization):
        mean, variance = _vector(operation.mean), _vector(operation.variance)
        deviation = np.maximum(np.sqrt(variance), keras.backend.epsilon())
        return (deviation, mean) if operation.invert else (1 / deviation, -mean / deviation)
    if kind not in ("Add", "Subtract", "Multiply", "Divide", "TrueDivide") or len(node.args) != 2:
        return None
    first, second = (None if keras.backend.is_keras_tensor(x) else _vector(x) for x in node.args)
    constant = second if first is None else first
    if constant is None or constant.size > node.outputs[0].shape[-1]:
        return None
    if kind == "Multiply":
        return constant, np.zeros(1)
    if "Divide" in kind:
        return None if first is not None else (1 / constant, np.zeros(1))
    if first is not None and kind == "Subtract":
        return -np.ones(1), constant
    return np.ones(1), constant if kind == "Add" else -constant


def _vector(value: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(value), np.float64).ravel()
