"""Which activation functions compute each value from that value alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import KerasTensor, layers, tree

from tfcompress.nodes import Graph

# By the names of classes, of layers and of the operations of keras.ops alike.
POINTWISE = set(
    (
        "Activation ReLU LeakyReLU ELU Dropout SpatialDropout1D SpatialDropout2D "
        "SpatialDropout3D GaussianDropout GaussianNoise AlphaDropout ActivityRegularization "
        "Identity Rescaling FakeQuant Add Subtract Multiply Divide TrueDivide Maximum Minimum "
        "Average Power SquaredDifference Where Relu Relu6 LeakyRelu Elu Selu Celu Gelu Silu "
        "HardSilu HardSigmoid HardTanh HardShrink SoftShrink Softplus Softsign LogSigmoid Sigmoid "
        "Tanh TanhShrink Threshold Squareplus SparseSigmoid Exp Expm1 Log Log1p Sqrt Rsqrt Square "
        "Abs Absolute Negative Sign Round Floor Ceil Sin Cos Erf Clip Reciprocal Cast StopGradient "
        "Copy ConvertToTensor Greater GreaterEqual Less LessEqual LogicalAnd LogicalOr LogicalNot "
        "Equal NotEqual NanToNum"
    ).split()
)
# Functions and operations that make each channel of all of them, though channels stay what they
# are.
_MIXING = {"softmax", "log_softmax", "sparsemax"}
_MIXING_KINDS = ("Softmax", "LogSoftmax", "Sparsemax")
# Names that functions have beside those of operations.
_NAMES = {name.lower() for name in POINTWISE}
_NAMES |= {"linear", "exponential", "swish", "hardswish", "mish", "sparseplus"}
_HOMES = ("keras.", "tensorflow.", "jax.", "torch.")


def mixes_channels(operation) -> bool:
    """Whether an operation, or an activation of a layer, computes each value from several."""
    if type(operation).__name__ in _MIXING_KINDS:
        return True
    return not all(map(is_pointwise, _activations(operation)))


def has_clear_activations(operation) -> bool:
    """Whether each activation of a layer is known to leave channels what they are."""
    return all(_is_mixing(f) or is_pointwise(f) for f in _activations(operation))


def is_pointwise(function: Any) -> bool:
    """Whether a function is known to compute each value of its result from that value alone.

    Args:
        function: of a tensor, or a layer.

    Example:
        >>> is_pointwise(keras.activations.silu), is_pointwise(keras.activations.softmax)
        (True, False)
        >>> is_pointwise(lambda x: x * 2), is_pointwise(lambda x: x - keras.ops.mean(x))
        (True, False)
    """
    if isinstance(function, keras.Layer):
        return not function.weights and _all_pointwise([function])
    name = getattr(function, "__name__", "").replace("_", "").lower()
    home = getattr(function, "__module__", None) or ""
    return (home.startswith(_HOMES) and name in _NAMES) or _traces_pointwise(function)


def _is_mixing(function: Any) -> bool:
    home = getattr(function, "__module__", None) or ""
    return home.startswith("keras.") and getattr(function, "__name__", "") in _MIXING


def _activations(operation) -> list[Any]:
    if isinstance(operation, layers.Bidirectional):
        return [
            *_activations(operation.forward_layer),
            *_activations(operation.backward_layer),
        ]
    names = ("activation", "recurrent_activation")
    found = [getattr(operation, name, None) for name in names]
    return [function for function in found if callable(function)]


def _all_pointwise(operations: list[Any]) -> bool:
    kinds = {type(operation).__name__ for operation in operations}
    return kinds <= POINTWISE and not any(map(mixes_channels, operations))


def _traces_pointwise(function: Callable) -> bool:
    """Whether a user's function is made of operations that are pointwise."""
    x = keras.Input((7,))
    try:
        y = function(x)
        graph = Graph([x], y)
    except Exception:
        return False
    nodes = [node for node in graph.nodes if not node.is_input]
    leaves = tree.flatten([(node.args, node.kwargs) for node in nodes])
    constants = [leaf for leaf in leaves if not isinstance(leaf, KerasTensor)]
    plain = not any(getattr(leaf, "shape", ()) for leaf in constants)
    return plain and _all_pointwise([node.operation for node in nodes])
