"""A layer of tf_keras as the layer of Keras 3 of the same name and configuration."""

import inspect
import itertools
from typing import Any

import keras
from keras import ops

from tfcompress.legacy.rebuild import plain_activations

# Settings of tf_keras that change nothing in what a layer computes, or are known from its input.
_IDLE = frozenset(
    "batch_input_shape input_length implementation sparse ragged fused "
    "query_shape key_shape value_shape input_shape".split()
)
# Settings that Keras 3 lacks, with the value that means the same as lacking them.
_ABSENT = {"groups": 1, "time_major": False, "softmax_robust_masking": False}
_RENAMED = {"LeakyReLU": {"alpha": "negative_slope"}}
_BASE = frozenset(["name", "trainable", "dtype", "activity_regularizer"])


def _binary(function):
    return lambda x, y: function(x, y)


def _unary(function):
    return lambda x: function(x)


# TensorFlow functions called in a Functional model, by TensorFlow's names for them and arguments.
_FUNCTIONS = {
    "__operators__.add": _binary(ops.add),
    "__operators__.getitem": lambda x, slice_spec: x[slice_spec],
    "clip_by_value": lambda t, clip_value_min, clip_value_max: ops.clip(
        t, clip_value_min, clip_value_max
    ),
    "expand_dims": lambda input, axis: ops.expand_dims(input, axis),
    "math.add": _binary(ops.add),
    "math.divide": _binary(ops.true_divide),
    "math.exp": _unary(ops.exp),
    "math.maximum": _binary(ops.maximum),
    "math.minimum": _binary(ops.minimum),
    "math.multiply": _binary(ops.multiply),
    "math.negative": _unary(ops.negative),
    "math.reduce_max": lambda x, axis=None, keepdims=False: ops.max(x, axis, keepdims),
    "math.reduce_mean": lambda x, axis=None, keepdims=False: ops.mean(x, axis, keepdims),
    "math.reduce_sum": lambda x, axis=None, keepdims=False: ops.sum(x, axis, keepdims),
    "math.sigmoid": _unary(ops.sigmoid),
    "math.sqrt": _unary(ops.sqrt),
    "math.square": _unary(ops.square),
    "math.subtract": _binary(ops.subtract),
    "math.tanh": _unary(ops.tanh),
    "math.truediv": _binary(ops.true_divide),
    "nn.relu": _unary(ops.relu),
    "nn.relu6": _unary(ops.relu6),
    "nn.softmax": lambda logits, axis=-1: ops.softmax(logits, axis),
    "reshape": lambda tensor, shape: ops.reshape(tensor, shape),
    "squeeze": lambda input, axis=None: ops.squeeze(input, axis),
    "transpose": lambda a, perm=None: ops.transpose(a, perm),
}


def layer_of(layer) -> Any:
    """The Keras 3 layer for a plain tf_keras layer; a function for TensorFlow's own operations.

    Args:
        layer: a layer of tf_keras, without a TFMOT wrapper.

    Returns:
        A new, unbuilt `keras.Layer`, or a function of `keras.ops`.

    Raises:
        ValueError: if Keras 3 has no such layer, or not with these settings.
    """
    kind = type(layer).__name__
    if kind in ("TFOpLambda", "SlicingOpLambda"):
        return _function_of(layer)
    if not type(layer).__module__.startswith("tf_keras."):
        raise ValueError(
            f"layer '{layer.name}' is of the class '{kind}', which is your own; expected layers of "
            "tf_keras. Port the class to Keras 3, build the model there and load its weights."
        )
    config = plain_activations(layer.get_config())
    config["dtype"] = layer.dtype_policy.name if hasattr(layer, "dtype_policy") else layer.dtype
    return _from_config(kind, config)


def name_of(name: str) -> str:
    """A name that Keras 3 allows."""
    return name.replace("/", "_")


def _function_of(layer):
    symbol = layer.symbol if hasattr(layer, "symbol") else layer.get_config().get("function")
    if symbol not in _FUNCTIONS:
        raise ValueError(
            f"layer '{layer.name}' calls TensorFlow's tf.{symbol}, for which no function of Keras "
            "3 is known here. Replace it in the tf_keras model by a layer, and save that."
        )
    function, names = _FUNCTIONS[symbol], itertools.count()

    def call(*args, name=None, **kwargs):
        y = function(*args, **kwargs)
        # Else Keras would choose names, which the layers may have already.
        number = next(names)
        y._keras_history.operation.name = f"{layer.name}_{number}" if number else layer.name
        return y

    return call


def _from_config(kind: str, config: dict[str, Any]):
    cls = getattr(keras.layers, kind, None)
    if cls is None or kind == "Lambda":
        raise ValueError(
            f"layer '{config.get('name')}' is a {kind}, which cannot be brought over to Keras 3. "
            "Replace it in the tf_keras model by other layers, and save that."
        )
    known = _arguments_of(cls)
    new = {}
    for key, value in config.items():
        key = _RENAMED.get(kind, {}).get(key, key)
        if key in known:
            new[key] = _value_of(key, value)
        elif key not in _IDLE | _BASE and value != _ABSENT.get(key) and "initializer" not in key:
            raise ValueError(
                f"layer '{config.get('name')}' ({kind}) sets {key}={value!r}, which Keras 3 does "
                "not have. Replace the layer in the tf_keras model, and save that."
            )
    return cls(**new)


def _arguments_of(cls) -> set[str]:
    """The names that a class's __init__ takes."""
    parameters = inspect.signature(cls.__init__).parameters.values()
    names = {p.name for p in parameters} - {"self"}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        names |= _BASE
    return names


def _value_of(key: str, value):
    if key == "name":
        return name_of(value)
    if key == "axis" and isinstance(value, (list, tuple)) and len(value) == 1:
        return value[0]
    if key == "cells" or (isinstance(value, list) and value and _is_layer(value[0])):
        return [_value_of("", part) for part in value]
    if _is_layer(value):
        return _from_config(value["class_name"], value["config"])
    return value


def _is_layer(value) -> bool:
    if not isinstance(value, dict) or "class_name" not in value or "config" not in value:
        return False
    known = getattr(keras.layers, str(value["class_name"]), None)
    return inspect.isclass(known) and isinstance(value["config"], dict)
