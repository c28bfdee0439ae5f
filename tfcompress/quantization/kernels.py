"""What LiteRT makes of an operation: its kind, the scale of what it gives, and why it stays float.

It fuses Conv + BatchNormalization + ReLU into one op, gives pooling, reshaping and concatenation
the scale of their inputs, and fixes the ranges of softmax, sigmoid and tanh (quantization
specification: https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec).
"""

import inspect

import keras
from keras import layers, tree

from tfcompress.graph.layers import FixedTraining
from tfcompress.graph.nodes import Graph, Node, has_own_call
from tfcompress.kinds import FILLING, FIXED_RANGES, INTEGER, KEEPING, ROUNDING, operator_of
from tfcompress.layers.batch_norm import FusedBatchNorm
from tfcompress.layers.compressed import Compressed
from tfcompress.layers.fake_quant import FakeQuant
from tfcompress.quantization.loops import is_loop, loop_reason

# The ranges of outputs that LiteRT fixes.
_FIXED = {
    "softmax": FIXED_RANGES["SOFTMAX"],
    "sigmoid": FIXED_RANGES["LOGISTIC"],
    "tanh": FIXED_RANGES["TANH"],
    "logsoftmax": FIXED_RANGES["LOG_SOFTMAX"],
}
_FIXED_16 = (-1.0, 32767 / 32768)
_ACTIVATIONS = set(
    "relu relu6 leaky_relu gelu hard_silu elu softmax log_softmax sigmoid tanh linear".split()
)


def kind_of(operation) -> str:
    """The name of an operation's kind: its class, or its activation for an Activation layer."""
    if isinstance(operation, FixedTraining):
        operation = operation.layer
    if isinstance(operation, layers.BatchNormalization):
        return "BatchNormalization"
    if isinstance(operation, layers.Activation):
        name = keras.activations.serialize(operation.activation)
        return f"Activation:{name}"
    return type(operation).__name__


def fixed_range(operation, bits: int = 8) -> tuple[float, float] | None:
    """The output range that LiteRT fixes for an operation, if it does."""
    name = kind_of(operation).removeprefix("Activation:").lower().replace("_", "")
    if bits == 16:  # there is no LOG_SOFTMAX of 16 bits
        return _FIXED_16 if name in _FIXED and name != "logsoftmax" else None
    return _FIXED.get(name)


def relu_name(operation) -> str | None:
    """'relu' or 'relu6' if the operation is that, None otherwise."""
    kind = kind_of(operation).removeprefix("Activation:").lower()
    if isinstance(operation, layers.ReLU):
        plain = operation.negative_slope == 0 and operation.threshold == 0
        known = {None: "relu", 6.0: "relu6"}
        return known.get(operation.max_value) if plain else None
    return kind if kind in ("relu", "relu6") else None


def has_kernel(operation) -> bool:
    """Whether LiteRT has an integer kernel for what the operation is lowered to."""
    kind = kind_of(operation)
    if kind.startswith("Activation:"):
        return kind.removeprefix("Activation:") in _ACTIVATIONS
    if isinstance(operation, layers.ReLU):
        leaky = operation.negative_slope != 0 and operation.max_value is not None
        return operation.threshold == 0 and operation.max_value in (None, 6.0) and not leaky
    return kind in INTEGER | KEEPING


def passes_through(operation) -> bool:
    """Whether an operation's output keeps the scale of its input."""
    kind = kind_of(operation)
    if isinstance(operation, layers.UpSampling2D | layers.UpSampling1D):
        return True
    return kind in KEEPING or kind == "Activation:linear"


def rounds(operation) -> bool:
    """Whether an operation keeps the scale but gives values between the steps of the grid."""
    if isinstance(operation, layers.UpSampling2D):
        return operation.interpolation != "nearest"
    return kind_of(operation) in ROUNDING


def is_idle(node: Node) -> bool:
    """Whether a user's layer gives back its input in inference, as one that drops paths does."""
    layer = node.operation
    if not isinstance(layer, keras.Layer) or not has_own_call(type(layer)) or layer.weights:
        return False
    if len(node.inputs) != 1 or "training" not in inspect.signature(layer.call).parameters:
        return False
    x = keras.KerasTensor(node.inputs[0].shape, node.inputs[0].dtype)
    args, kwargs = tree.map_structure(
        lambda value: x if isinstance(value, keras.KerasTensor) else value,
        (node.args, node.kwargs),
    )
    try:
        return layer.call(*args, **{**kwargs, "training": False}) is x
    except Exception:
        return False


def float_reason(node: Node) -> str:
    """Why an operation that was asked to be quantized stays float, as "it ..." goes on."""
    operation = inner_layer(node.operation)
    sized = not any(None in t.shape[1:] for t in node.inputs)
    if is_loop(operation) and (reason := loop_reason(operation)):
        return reason
    if sized and any(getattr(t, "_keras_mask", None) is not None for t in node.inputs):
        return "reads masks"
    if isinstance(operation, keras.Layer) and has_own_call(type(operation)):
        random = len(operation.variables) != len(operation.weights)
        takes = "training" in inspect.signature(operation.call).parameters
        if random or takes:
            return "does something else in training"
    if isinstance(operation, keras.Layer) and not sized:
        return "reads tensors of no fixed size: pass inputs= of the size that the file is for"
    if isinstance(operation, keras.Layer) and has_own_call(type(operation)):
        return "has a call() that is no graph of Keras layers and keras.ops"
    named = operator_of(kind_of(operation))
    has_none = "has no integer kernel in LiteRT"
    return f"is {named}, which {has_none}" if named else has_none


def reasons_of(graph: Graph) -> dict[str, str]:
    """Why operations of a compressed model would stay float, by their names."""
    found = {}
    for node in graph.nodes:
        operation = node.operation
        if node.is_input or isinstance(operation, FakeQuant):
            continue
        if not has_kernel(inner_layer(operation)):
            found[node.name] = float_reason(node)
    return found


def inner_layer(operation):
    """A layer without our wrapper."""
    return operation.layer if isinstance(operation, Compressed | FusedBatchNorm) else operation


def fills(node: Node) -> bool:
    """Whether a node that keeps the scale of its inputs puts constants among their values."""
    leaves = tree.flatten((node.args, node.kwargs))
    known = (keras.KerasTensor, str, bool, type(None))
    return kind_of(node.operation) in FILLING and not all(isinstance(x, known) for x in leaves)


def is_foldable(node: Node) -> bool:
    """Whether a node is a BatchNormalization over the last axis, as the converter folds it."""
    operation = node.operation
    if not isinstance(operation, layers.BatchNormalization):
        return False
    rank = len(node.outputs[0].shape)
    return operation.axis in (-1, rank - 1)


def selected(node: Node):
    """The constant that a node selects where it does not select values of a tensor, if so."""
    if kind_of(node.operation) != "Where":
        return None
    values = tree.flatten((node.args, node.kwargs))[1:]
    known = [x for x in values if not isinstance(x, keras.KerasTensor)]
    return known[0] if len(values) == 2 and len(known) == 1 else None


def has_own_grid(node: Node) -> bool:
    """Whether a node rounds what it gives by itself, be it under techniques or not."""
    return kind_of(getattr(node.operation, "layer", node.operation)) in ("IntegerLSTM", "StepRNN")


def looks_up(node: Node) -> bool:
    """Whether a node gives rows of a table of weights, be it under techniques or not."""
    kind = kind_of(getattr(node.operation, "layer", node.operation))
    if kind == "ReversibleEmbedding":
        return not (node.kwargs.get("reverse") or any(x is True for x in node.args))
    return kind == "Embedding"


def is_float(tensor) -> bool:
    return "float" in str(tensor.dtype)
