"""What the outputs of a model are: logits, probabilities of classes, or of yes and no."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops, tree

from tfcompress.fake_quant import FakeQuant
from tfcompress.model_inputs import inputs_of
from tfcompress.nodes import Graph

# Below it float32 has no normal numbers.
_TINY = 1e-37
# What may stand behind an activation and change nothing that matters here.
_PASSING = (FakeQuant, layers.Identity, layers.Reshape, layers.Dropout)
# How far probabilities may be from 1 together: those of an int8 model are rounded.
_TOLERANCE = 0.03


def activation_of(model: keras.Model, index: int) -> tuple[str | None, Any]:
    """The activation behind an output, as far as the structure of a model tells.

    Args:
        model: any model.
        index: of the output, flattened.

    Returns:
        ("softmax", "sigmoid", "linear" or None if that is not known; the operation that computes
        the activation from logits alone, or None if a layer computes logits and activation).
    """
    functional = getattr(model, "_functional", None) or model
    if getattr(functional, "_outputs_struct", None) is None:
        return None, None
    graph = Graph.of(functional)
    tensor = tree.flatten(graph.outputs)[index]
    node = graph.producer(tensor)
    shape = tuple(tensor.shape)
    while node is not None and isinstance(node.operation, _PASSING) and node.inputs:
        tensor = node.inputs[0]
        node = graph.producer(tensor)
    if tuple(tensor.shape)[-1] != shape[-1]:
        return None, None
    if node is None or node.is_input:
        return None, None
    if isinstance(node.operation, keras.Model):
        position = [id(t) for t in node.outputs].index(id(tensor))
        kind, operation = activation_of(node.operation, position)
    else:
        kind, operation = of_operation(node.operation)
    # What is given to an activation before a Reshape has another shape than the output.
    return kind, operation if tuple(tensor.shape) == shape else None


def of_operation(operation: Any) -> tuple[str | None, Any]:
    """The activation of a layer, and the layer if it does nothing else; see `activation_of`."""
    inner = getattr(operation, "layer", operation)  # of Compressed, TimeDistributed
    kind = type(inner).__name__.lower()
    if kind in ("softmax", "sigmoid"):
        last = getattr(inner, "axis", -1) in (-1, None)
        return (kind, operation) if last else (None, None)
    function = getattr(inner, "activation", None)
    if function is None:
        return None, None
    name = getattr(function, "__name__", type(function).__name__).lower()
    if name not in ("softmax", "sigmoid", "linear"):
        return None, None
    alone = isinstance(inner, layers.Activation) and name != "linear"
    return name, operation if alone else None


def looks_like_probabilities(values: np.ndarray) -> bool:
    """Whether numbers are distributions along their last axis: from 0 to 1, with the sum 1.

    Example:
        >>> looks_like_probabilities(np.array([[0.2, 0.8]]))
        True
    """
    if values.shape[-1] < 2 or values.min() < 0 or values.max() > 1 + _TOLERANCE:
        return False
    return bool(np.abs(values.sum(-1) - 1).max() < _TOLERANCE)


def try_out(model: Callable[[Any], Any], inputs: Any) -> list[np.ndarray]:
    """The outputs of a model for a few samples of noise, to see what they look like.

    Args:
        model: gives the outputs for inputs.
        inputs: the structure of its symbolic inputs.

    Returns:
        A list of arrays.
    """
    random = np.random.default_rng(0)

    def sample(tensor):
        shape = [8, *(64 if size is None else size for size in tensor.shape[1:])]
        if "float" in tensor.dtype:
            return ops.convert_to_tensor(random.normal(size=shape), dtype=tensor.dtype)
        return ops.zeros(shape, dtype=tensor.dtype)  # the one index that each table has

    outputs = model(tree.map_structure(sample, inputs))
    return [ops.convert_to_numpy(x).astype("float32") for x in tree.flatten(outputs)]


def symbolic_inputs(model: keras.Model) -> Any:
    """The structure of symbolic tensors that a built model is called with."""
    return inputs_of(model)[0]


def to_logits(values: Any, kind: str) -> Any:
    """Logits of probabilities; softmax and sigmoid of them give the same probabilities.

    Args:
        values: tensor of probabilities.
        kind: "softmax" or "sigmoid".
    """
    known = getattr(values, "_keras_logits", None)  # which Keras leaves there on TensorFlow
    if known is not None:
        return known
    values = ops.cast(values, "float32")
    log = ops.log(ops.maximum(values, _TINY))
    return log if kind == "softmax" else log - ops.log(ops.maximum(1 - values, _TINY))
