"""What layers that wrap a layer need: calling it with other weights, and weights of their own."""

from typing import Any

import keras
from keras import ops

from tfcompress.techniques.quantize import as_tensor


def call_with(layer, values: dict[int, Any], *args, **kwargs):
    """Calls a layer with other values in some of its variables.

    Args:
        layer: a built layer.
        values: id of a variable -> tensor.

    Returns:
        The outputs, (variable, new value) of what the layer assigned, and the losses it added.
    """
    mapping = [(v, values[id(v)] if id(v) in values else as_tensor(v)) for v in layer.variables]
    with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
        before = [scope.get_current_value(v) for v, _ in mapping]
        outputs = layer(*args, **kwargs)
    after = [scope.get_current_value(v) for v, _ in mapping]
    updates = [
        (v, new) for (v, _), old, new in zip(mapping, before, after, strict=True) if new is not old
    ]
    return outputs, updates, scope.losses


def add_last_step(layer):
    """Adds the weight that keeps the optimizer step a scheduled layer was last told."""
    make = {"shape": (), "dtype": "int32", "initializer": constant(-1), "trainable": False}
    return layer.add_weight(name="last_step", **make)


def constant(value):
    """An initializer that gives one value, which may be a tensor."""
    return lambda shape, dtype=None: ops.broadcast_to(ops.cast(value, dtype or "float32"), shape)
