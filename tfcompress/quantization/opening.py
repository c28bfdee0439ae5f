"""Layers of a model opened into operations that have integer kernels."""

from typing import Any

import keras
from keras import KerasTensor, tree

from tfcompress.graph.flatten import flatten
from tfcompress.graph.nodes import Graph, Node, call_node
from tfcompress.quantization import openers
from tfcompress.quantization.placement import Placement
from tfcompress.techniques import Quantize
from tfcompress.techniques.rules import Rule, Rules, quantize_of

# What the last layer of a compressed model is called after: the output that it gives.
OUTPUT_SUFFIX = "__output"


def open_layers(model: keras.Model) -> keras.Model:
    """A flat copy of a plain model, its layers opened into operations with integer kernels."""
    flat = flatten(model)
    opened, graph, _ = open_with(flat, Rules([Rule("*", [Quantize()])]))
    name_outputs(flat, graph, None)
    return opened


def open_with(flat: keras.Model, rules: Rules):
    """The model with layers opened where activations are quantized, its graph, and a function
    that tells from which layer of `flat` a node came.
    """
    origins: dict[int, Any] = {}
    opened: dict[int, Graph] = {}
    graph = Graph.of(flat)

    def call(node: Node, *args, **kwargs):
        operation = node.operation
        technique = quantize_of(rules.techniques_of(operation))
        quantized = technique is not None and technique.activation_bits is not None
        function = openers.opener(operation) if quantized else None
        if node.is_input or function is None:
            return call_node(node, *args, **kwargs)
        tensors = [x for x in tree.flatten((args, kwargs)) if isinstance(x, KerasTensor)]
        if id(operation) in opened:  # a shared layer: the same pieces on other tensors
            return opened[id(operation)].run(tensors, call_node)
        outputs = function(operation, *args, **kwargs)
        opened[id(operation)] = pieces = Graph(tensors, outputs)
        origins.update({id(part.operation): operation for part in pieces.nodes})
        return outputs

    for node in graph.nodes:
        if not node.is_input:
            detach(node.operation)
    opened_model = graph.rebuild(call)
    starts = {id(node.operation) for node in graph.nodes}

    def origin(node: Node):
        operation = node.operation
        return operation if id(operation) in starts else origins.get(id(operation), operation)

    return opened_model, Graph.of(opened_model), origin


def name_outputs(flat: keras.Model, graph: Graph, placement: Placement | None) -> None:
    """Keeps the names of the outputs: the last operation of each is called after it.

    Keras names the outputs of a model after their last layers, and losses refer to these names
    where there are several; so there the last layer takes the name and the user's gives way.
    """
    struct = flat._outputs_struct
    if isinstance(struct, dict) and not any(tree.is_nested(x) for x in struct.values()):
        return
    old = [t._keras_history.operation for t in tree.flatten(flat._outputs_struct)]
    several, renamed = len(old) > 1, set()
    named = {node.operation.name: node.operation for node in graph.nodes}
    for operation, tensor in zip(old, tree.flatten(graph.outputs), strict=True):
        last = tensor._keras_history.operation
        if placement is not None and id(tensor) in placement.quantizers:
            last = placement.quantizers[id(tensor)][0]
        if last is operation or last.name == operation.name or id(last) in renamed:
            continue
        renamed.add(id(last))
        name = operation.name
        if several and name in named:
            named[name].name = f"{name}__layer"
        last.name = name if several else f"{name}{OUTPUT_SUFFIX}"


def detach(operation) -> None:
    """Forgets the calls of an operation of ours in a graph that is being replaced."""
    operation._inbound_nodes.clear()
    operation._outbound_nodes.clear()
