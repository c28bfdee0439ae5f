"""Users' layers written in `keras.ops`, opened into their operations by running their code."""

from __future__ import annotations

import inspect
import warnings

import keras
from keras import layers, tree

from tfcompress.graph.copying import copy_operation, copy_weights
from tfcompress.graph.inputs import mask_of
from tfcompress.graph.nodes import has_own_call, tensors_in, unique
from tfcompress.graph.recording import parameter_of
from tfcompress.graph.tracing import trace


def is_simple_user_layer(layer) -> bool:
    """Whether a user's leaf layer may be opened without losing what it does in training."""
    if not isinstance(layer, keras.Layer) or isinstance(layer, keras.Model) or layer._layers:
        return False
    if not has_own_call(type(layer)) and type(layer) is not layers.Lambda:
        return False
    return len(layer.variables) == len(layer.weights)  # else it is random


def is_plain_code(layer) -> bool:
    """Whether a user's layer, and those that it is made of, do the same in training."""
    own = isinstance(layer, keras.Layer) and has_own_call(type(layer))
    parts = layer._flatten_layers() if own else ()
    return own and all(len(part.variables) == len(part.weights) for part in parts)


def open_user_layer(layer, *args, **kwargs):
    """A user's layer written in `keras.ops` -> its operations; as it is if it cannot be traced."""
    if _reads_mask(layer) and any(mask_of(x) is not None for x in tree.flatten((args, kwargs))):
        return layer(*args, **kwargs)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*computes something else if")
            inner = trace(layer, args, kwargs)
    except (ValueError, UserWarning):
        return layer(*args, **kwargs)
    tensors = unique(tensors_in((args, kwargs)))
    made: dict[int, object] = {}
    mine = {id(part) for part in layer._flatten_layers()}
    twins: dict[int, tuple] = {}

    def as_tensor(value):
        if not isinstance(value, keras.Variable):
            return value
        if id(value) not in made:
            made[id(value)] = parameter_of(value, layer)(tensors[0])
        return made[id(value)]

    def call(node, *a, **k):
        if node.is_input:
            return a[0]
        a, k = tree.map_structure(as_tensor, (a, k))
        operation = node.operation
        if id(operation) not in mine:
            return operation(*a, **k)
        if id(operation) not in twins:
            twins[id(operation)] = operation, copy_operation(operation)
        return twins[id(operation)][1](*a, **k)

    outputs = inner.run(tensors, call)
    copy_weights(list(twins.values()))
    return outputs


def _reads_mask(layer) -> bool:
    """Whether a user's layer does something of its own with masks."""
    own = type(layer).compute_mask is not keras.Layer.compute_mask
    parameters = inspect.signature(layer.call).parameters
    return own or any(name == "mask" or name.endswith("_mask") for name in parameters)
