"""Multiply-accumulate operations (MACs) of layers and models.

Counted is what linear layers and products of matrices multiply, as is usual: convolutions, Dense
and EinsumDense, projections, scores and values of attention, input and recurrent kernels of RNNs,
`keras.ops` products. Biases, activations, normalization, pooling and all else that works on single
values count 0. Padding counts as values do, and a transposed convolution applies its whole kernel
to every value of its input.
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import KerasTensor

from tfcompress.graph.nodes import Graph, has_own_call
from tfcompress.graph.tracing import trace
from tfcompress.surgery.shapes import (
    Shape,
    Specs,
    graph_to_read,
    input_shapes,
    own_shape,
    positions,
    size,
    specs_of,
)


def macs_of(operation, shape_of: ShapeOf, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    """MACs of one call of one operation; 0 if they are not known, see `known_macs_of`.

    Args:
        shape_of: variable -> shape, such as `lambda v: tuple(v.shape)`; another one tells what
            would be left with other weights.
        inputs: shapes of the tensors and arrays that it is called with, see `input_shapes`. What
            is None, as the batch, counts as 1.
        outputs: shapes of the tensors that it gives.
    """
    return known_macs_of(operation, shape_of, inputs, outputs) or 0


def known_macs_of(
    operation, shape_of: ShapeOf, inputs: Sequence[Shape], outputs: Sequence[Shape]
) -> int | None:
    """See `macs_of`; None if it is not known what the operation computes."""
    call = Call(operation, shape_of, list(inputs), list(outputs), known_macs_of)
    if isinstance(operation, keras.Model) and not has_own_call(type(operation)):
        return _of_model(call)
    if has_own_call(type(operation)) or isinstance(operation, keras.layers.Lambda):
        return _of_user_code(call)
    rule = rule_of(operation)
    return 0 if rule is None else rule(call)


def count(model: keras.Model) -> tuple[int, int]:
    """MACs of one sample and parameters of a model.

    Args:
        model: any built Keras 3 model; axes of unknown size count as 1. A batch size that an
            operation of the model writes down, as in reshape(x, (8, 12)), counts as it is.

    Returns (MACs, numbers in all weights). Weights that the outputs do not depend on are left out.
    """
    graph = graph_to_read(model)
    seen: set[int] = set()
    params = sum(params_of(node.operation, seen) for node in graph.nodes)
    macs = [known for _, known in macs_by_node(graph, specs_of(graph))]
    return sum(known or 0 for known in macs), params


def params_of(operation, seen: set[int]) -> int:
    """Numbers in the weights of an operation that are not in `seen`, to which they are added."""
    if type(operation).__name__ == "FakeQuant":  # its ranges are no weights of the model
        return 0
    if type(operation).__name__ == "StepRNN":
        return sum(params_of(part, seen) for part in operation.step.operations)
    if type(operation).__name__ in ("Compressed", "FusedBatchNorm"):
        operation = operation.layer
    new = {id(v): size(v.shape) for v in getattr(operation, "weights", ()) if id(v) not in seen}
    seen.update(new)
    return sum(new.values())


def macs_by_node(graph: Graph, specs: Specs, shape_of: ShapeOf | None = None) -> list:
    """(node, its MACs or None if they are not known) for every node of a graph."""

    def shape(tensor) -> Shape:
        return tuple(specs[id(tensor)].shape)

    def macs(node) -> int | None:
        if node.is_input:
            return 0
        outputs = [shape(tensor) for tensor in node.outputs]
        inputs = input_shapes(node, shape)
        return known_macs_of(node.operation, shape_of or own_shape, inputs, outputs)

    return [(node, macs(node)) for node in graph.nodes]


def _of_model(call: Call) -> int | None:
    """A model inside of a layer, such as TimeDistributed."""
    graph = graph_to_read(call.layer)
    return _of_graph(graph, specs_of(graph, call.inputs), call.shape_of)


def _of_graph(graph: Graph, specs: Specs, shape_of: ShapeOf) -> int | None:
    return total(known for _, known in macs_by_node(graph, specs, shape_of))


def _of_user_code(call: Call) -> int | None:
    """A user's layer or function of tensors, if Keras can trace it."""
    if not isinstance(call.layer, keras.Layer) or call.layer._layers:
        return None
    tensors = [KerasTensor(shape, call.layer.input_dtype) for shape in call.inputs]
    parameters = inspect.signature(call.layer.call).parameters.values()
    wanted = [p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    as_list = len(wanted) == 1 and len(tensors) > 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = trace(call.layer, (tensors,) if as_list else tuple(tensors), {})
            specs = specs_of(graph, call.inputs)
    except Exception:
        return None
    return _of_graph(graph, specs, call.shape_of)


ShapeOf = Callable[[Any], Shape]
Rule = Callable[["Call"], int | None]


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of an operation.

    Attributes:
        layer: it, a layer or an operation of keras.ops.
        shape_of: variable -> shape.
        inputs, outputs: shapes, see `macs_of`.
        count: `known_macs_of`, for the layers inside.
    """

    layer: Any
    shape_of: ShapeOf
    inputs: list[Shape]
    outputs: list[Shape]
    count: Callable[..., int | None]

    def weight(self, layer, *names: str) -> int:
        """Numbers in the weights of a layer. A kernel with LoRA is no variable but `_kernel` is."""
        return sum(size(self.shape_of(_variable(layer, name))) for name in names)

    def of(self, layer, inputs=None, outputs=None) -> int | None:
        """MACs of a layer inside of this one."""
        inputs = self.inputs if inputs is None else inputs
        outputs = self.outputs if outputs is None else outputs
        return self.count(layer, self.shape_of, inputs, outputs)


def _variable(layer, name: str):
    return getattr(layer, name if getattr(layer, f"_{name}", None) is None else f"_{name}")


def total(parts) -> int | None:
    parts = list(parts)
    return None if None in parts else sum(parts)


def rule_of(operation) -> Rule | None:
    """The function that counts for a layer or operation of Keras; None if it takes no MACs."""
    table = _LAYERS if isinstance(operation, keras.Layer) else _OPERATIONS
    for kind in type(operation).__mro__:
        if kind.__name__ in table and kind.__module__.startswith(("keras.", "tfcompress.")):
            return table[kind.__name__]
    return _unknown if type(operation).__module__.endswith("ops.linalg") else None


def _dense(call: Call) -> int:
    return call.weight(call.layer, "kernel") * size(call.outputs[0][:-1])


def _einsum_dense(call: Call) -> int:
    layer = call.layer
    kernel = call.shape_of(_variable(layer, "kernel"))
    return _of_einsum(layer.equation, [call.inputs[0], kernel])


def _reversible_embedding(call: Call) -> int:
    """Looking up costs nothing; the way back is a product with all embeddings."""
    if len(call.outputs[0]) != len(call.inputs[0]):
        return 0
    name = "embeddings" if call.layer.tie_weights else "reverse_embeddings"
    return call.weight(call.layer, name) * size(call.outputs[0][:-1])


def _convolution(*names: str) -> Rule:
    def macs(call: Call) -> int:
        places = positions(call.outputs[0], call.layer.data_format)
        return call.weight(call.layer, *names) * places

    return macs


def _transposed(call: Call) -> int:
    return call.weight(call.layer, "kernel") * positions(call.inputs[0], call.layer.data_format)


def _attention_heads(call: Call) -> int:
    """Projections of queries, keys, values, outputs (and the gate); scores, and sums of values."""
    layer, (query, value) = call.layer, call.inputs[:2]
    axes = getattr(layer, "attention_axes", None) or (1,)
    to_query, to_key, to_value, to_output = (
        call.shape_of(_variable(getattr(layer, f"_{name}_dense"), "kernel"))
        for name in ("query", "key", "value", "output")
    )
    gate = call.weight(layer._gate_dense, "kernel") if getattr(layer, "_gate_dense", None) else 0
    ours, theirs = size(query[:-1]), size(value[:-1])
    projected = ours * (size(to_query) + size(to_output) + gate)
    projected += theirs * (size(to_key) + size(to_value))
    attended = size(value[axis] for axis in axes)
    return projected + ours * attended * (size(to_query[1:]) + size(to_output[:2]))


def _attention(call: Call) -> int:
    query, value = call.inputs[:2]
    score = size(query[-1:]) if call.layer.score_mode == "dot" else 0
    return size(query[:-1]) * size(value[-2:-1]) * (score + size(value[-1:]))


def _additive_attention(call: Call) -> int:
    """The scores are no product, the sums of values are."""
    query, value = call.inputs[:2]
    return size(query[:-1]) * size(value[-2:])


def _rnn(call: Call) -> int | None:
    cell = call.layer.cell
    cells = getattr(cell, "cells", [cell])
    if not all(type(c).__name__ in ("LSTMCell", "GRUCell", "SimpleRNNCell") for c in cells):
        return None
    steps = size(call.inputs[0][:2])
    return steps * sum(call.weight(cell, "kernel", "recurrent_kernel") for cell in cells)


def _integer_lstm(call: Call) -> int:
    return size(call.inputs[0][:2]) * call.weight(call.layer, "kernel", "recurrent_kernel")


def _conv_lstm(call: Call) -> int:
    """Both convolutions of a step give as many places; the states keep the padding "same"."""
    layer = call.layer
    image = call.outputs[0][-layer.cell.rank - 1 :]  # without batch and time
    places = positions((1, *image), layer.cell.data_format)
    steps = size(call.inputs[0][:2])
    return steps * places * call.weight(layer.cell, "kernel", "recurrent_kernel")


def _steps(call: Call) -> int | None:
    """What a step multiplies, as often as there are frames."""
    loop, (length, *_) = call.layer, call.inputs[0][1:]
    frames = [(shape[0], *shape[2:]) for shape in call.inputs[: loop.sequences]]
    states = [tuple(state.shape) for state in loop.state_specs]
    once = call.of(loop.step, [*frames, *states], [])
    return None if once is None else size([length]) * once


def _bidirectional(call: Call) -> int | None:
    return total(call.of(layer) for layer in (call.layer.forward_layer, call.layer.backward_layer))


def _time_distributed(call: Call) -> int | None:
    """Every step is one more sample."""
    samples = size(call.inputs[0][:2])
    inputs = [(samples, *shape[2:]) for shape in call.inputs[:1]]
    return call.of(call.layer.layer, inputs, [(samples, *shape[2:]) for shape in call.outputs])


def _wrapper(call: Call) -> int | None:
    return call.of(call.layer.layer)


def _dot_layer(call: Call) -> int:
    axes = call.layer.axes
    axis = axes if isinstance(axes, int) else axes[0]
    return size(call.outputs[0]) * size([call.inputs[0][axis]])


def _matmul(call: Call) -> int | None:
    """What is contracted is the last axis of the first tensor, if that is no scalar."""
    if len(call.inputs) < 2:
        return None
    scalar = not all(call.inputs[:2])
    return 0 if scalar else size(call.outputs[0]) * size(call.inputs[0][-1:])


def _tensordot(call: Call) -> int:
    first, axes = call.inputs[0], call.layer.axes
    gone = range(len(first) - axes, len(first)) if isinstance(axes, int) else axes[0]
    gone = [gone] if isinstance(gone, int) else gone
    return size(call.outputs[0]) * size(first[axis] for axis in gone)


def _of_einsum(subscripts: str, shapes: list[Shape]) -> int:
    """Of two operands all that their indices run over; more are contracted from left to right."""
    left, _, right = subscripts.replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    operands = []
    for labels, shape in zip(left.split(","), shapes, strict=True):
        more = len(shape) - len(labels.replace("...", ""))
        dots = "".join(chr(0xE000 + place) for place in reversed(range(more)))
        operands.append(labels.replace("...", dots))
        for label, axis in zip(operands[-1], shape, strict=True):
            sizes[label] = axis if axis not in (None, 1) else sizes.get(label, 1)
    counts = "".join(operands)
    kept = {x for x in sizes if x in right or x >= chr(0xE000)}
    if "->" not in subscripts:
        kept |= {x for x in sizes if counts.count(x) == 1}
    macs, current = 0, set(operands[0])
    for place, labels in enumerate(operands[1:], 2):
        current |= set(labels)
        macs += size(sizes[label] for label in current)
        current &= kept.union(*operands[place:])
    return macs


def _einsum(call: Call) -> int | None:
    operands = call.layer.subscripts.partition("->")[0].count(",") + 1
    if len(call.inputs) < operands:
        return None
    return _of_einsum(call.layer.subscripts, call.inputs[:operands])


def _product_of_kernels(call: Call) -> int | None:
    """`keras.ops` convolutions: all their kernels are applied at every place of the output."""
    if len(call.inputs) < 2:
        return None
    places = positions(call.outputs[0], call.layer.data_format)
    return places * sum(map(size, call.inputs[1:]))


def _transposed_operation(call: Call) -> int | None:
    if len(call.inputs) < 2:
        return None
    return positions(call.inputs[0], call.layer.data_format) * size(call.inputs[1])


def _scaled_attention(call: Call) -> int:
    query, key, value = call.inputs[:3]
    return size(query[:-1]) * size(key[1:2]) * (size(query[-1:]) + size(value[-1:]))


def _unknown(call: Call) -> None:
    return None


def _named(handlers: dict[str, Any]) -> dict[str, Rule]:
    return {name: handler for names, handler in handlers.items() for name in names.split()}


# By the names of classes. What Keras has beside these works on single values, or on none.
_LAYERS = _named(
    {
        "Dense": _dense,
        "EinsumDense": _einsum_dense,
        "ReversibleEmbedding": _reversible_embedding,
        "BaseConv BaseDepthwiseConv": _convolution("kernel"),
        "BaseConvTranspose": _transposed,
        "BaseSeparableConv": _convolution("depthwise_kernel", "pointwise_kernel"),
        "MultiHeadAttention GroupedQueryAttention": _attention_heads,
        "Attention": _attention,
        "AdditiveAttention": _additive_attention,
        "ConvLSTM": _conv_lstm,
        "RNN": _rnn,
        "IntegerLSTM": _integer_lstm,
        "StepRNN": _steps,
        "Bidirectional": _bidirectional,
        "TimeDistributed": _time_distributed,
        "FixedTraining SpectralNormalization Compressed FusedBatchNorm": _wrapper,
        "Dot": _dot_layer,
        "STFTSpectrogram MelSpectrogram Pipeline FeatureSpace": _unknown,
    }
)

_OPERATIONS = _named(
    {
        "Matmul Dot Inner Vdot": _matmul,
        "Tensordot": _tensordot,
        "Einsum": _einsum,
        "Conv DepthwiseConv SeparableConv": _product_of_kernels,
        "ConvTranspose": _transposed_operation,
        "DotProductAttention": _scaled_attention,
        "FFT FFT2 IFFT2 RFFT IRFFT STFT ISTFT Correlate": _unknown,
    }
)
