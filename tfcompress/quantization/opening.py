"""Layers of a model opened into operations that have integer kernels."""

import dataclasses
import functools
from typing import Any

import keras
from keras import KerasTensor, layers, ops, tree

from tfcompress.graph.flatten import flatten
from tfcompress.graph.front_end import FrontEnd
from tfcompress.graph.inputs import mask_of
from tfcompress.graph.layers import KeepMask
from tfcompress.graph.nodes import Graph, Node, call_node, spec_of, tensors_in
from tfcompress.graph.tracing import same
from tfcompress.kinds import LINEAR, is_exactly, is_of
from tfcompress.quantization import openers
from tfcompress.quantization.attention import is_matrix_einsum
from tfcompress.quantization.functions import numbers_of
from tfcompress.quantization.kernels import relu_name
from tfcompress.quantization.placement import Placement
from tfcompress.quantization.unrolling import has_loops, unrolled
from tfcompress.techniques import Quantize
from tfcompress.techniques.rules import Rule, Rules, quantize_of

# What the last layer of a compressed model is called after: the output that it gives.
OUTPUT_SUFFIX = "__output"

# Activations of all layers are quantized.
EVERYWHERE = Rules([Rule("*", [Quantize()])])

# Layers whose pieces are the same for every shape.
_ANY_SHAPE = LINEAR - {"EinsumDense"} | {"LayerNormalization", "RMSNormalization"}


def open_layers(model: keras.Model) -> keras.Model:
    """A flat copy of a plain model, its layers opened into operations with integer kernels."""
    return opened_by(model, EVERYWHERE)[0]


def sparing(rules: Rules, front: FrontEnd | None) -> Rules:
    """Rules that leave the front-end of sound float, but for what a rule of its own is for."""
    spared = spared_by(rules, front)
    if not spared:
        return rules
    rule = Rule(lambda operation: operation.name in spared, [])
    return dataclasses.replace(rules, rules=(*rules.rules, rule))


def spared_by(rules: Rules, front: FrontEnd | None) -> set[str]:
    """The names of the operations of a front-end that no rule but one for all layers matches."""
    own = [rule for rule in rules.rules if rule.layers != "*"]
    nodes = () if front is None else front.nodes
    return {n.name for n in nodes if not any(rule.matches(n.operation) for rule in own)}


def opened_by(model: keras.Model, rules: Rules) -> tuple[keras.Model, dict[int, str]]:
    """A flat copy with layers opened where rules quantize activations, and the name of the layer
    that each of its operations came from, by ids.
    """
    flat = flatten(model)
    opened, graph, origin = open_with(flat, rules)
    origins = {id(node.operation): origin(node).name for node in graph.nodes}
    if has_loops(opened):
        opened, sources = unrolled(opened)
        graph = Graph.of(opened)
        origins = {key: origins.get(id(source), source.name) for key, source in sources.items()}
    name_outputs(flat, graph, None)
    return opened, origins


def open_with(flat: keras.Model, rules: Rules):
    """The model with layers opened where activations are quantized, its graph, and a function
    that tells from which layer of `flat` a node came.
    """
    origins: dict[int, Any] = {}
    opened: dict[tuple, Graph] = {}
    first: dict[int, Graph] = {}
    graph = Graph.of(flat)
    ways, numbers = _ways(graph), numbers_of(graph)

    def call(node: Node, *args, **kwargs):
        operation = node.operation
        if id(node) in numbers:
            return numbers[id(node)]
        technique = quantize_of(rules.techniques_of(operation))
        quantized = technique is not None and technique.activation_bits is not None
        opens = quantized and id(node) in ways
        function = openers.opener(operation, args, technique) if opens else None
        if node.is_input or not quantized or not (function or _is_fused(operation)):
            return call_node(node, *args, **kwargs)
        if function and isinstance(operation, keras.Layer) and not operation.supports_masking:
            args, kwargs = tree.map_structure(_without_mask, (args, kwargs))
        tensors, masked = openers.with_masks(tensors_in((args, kwargs)))
        way = id(operation), ways.get(id(node)), masked
        if way in opened:  # a shared layer: the same pieces on other tensors
            outputs = opened[way].run(tensors, call_node)
        else:
            outputs = _regularized(operation, function, args, kwargs)
            pieces = Graph(tensors, outputs)
            if twins := _twins(first.setdefault(id(operation), pieces), pieces):
                outputs = pieces.run(tensors, functools.partial(_call_twin, twins))
                pieces = Graph(tensors, outputs)
            opened[way] = pieces
            origins.update({id(part.operation): operation for part in pieces.nodes})
        return _masked_as(node, outputs, args)

    for node in graph.nodes:
        if not node.is_input:
            detach(node.operation)
    opened_model = graph.rebuild(call)
    starts = {id(node.operation) for node in graph.nodes}

    def origin(node: Node):
        operation = node.operation
        return operation if id(operation) in starts else origins.get(id(operation), operation)

    return opened_model, Graph.of(opened_model), origin


def _ways(graph: Graph) -> dict[int, int]:
    """A number for each way in which an operation is called: by what is no tensor, and by shapes.

    Of a layer with weights that is called in several ways there is none, as its pieces in each
    might have other weights, but for those whose pieces differ in the shapes of reshapes alone.
    """
    found: dict[int, int] = {}
    known: dict[int, list] = {}
    for node in graph.nodes:
        way = [spec_of(x) for x in tree.flatten((node.args, node.kwargs))]
        if is_exactly(node.operation, _ANY_SHAPE):
            way = [None if isinstance(x, tuple) else x for x in way]
        others = known.setdefault(id(node.operation), [])
        number = next((i for i, other in enumerate(others) if same(way, other)), len(others))
        if number == len(others):
            others.append(way)
        found[id(node)] = number
    several = {key for key, others in known.items() if len(others) > 1}
    several -= {id(n.operation) for n in graph.nodes if is_matrix_einsum(n.operation)} - {
        id(n.operation) for n in graph.nodes if any(None in x.shape[1:] for x in n.inputs)
    }
    return {
        id(node): found[id(node)]
        for node in graph.nodes
        if id(node.operation) not in several or not getattr(node.operation, "weights", ())
    }


def _twins(first: Graph, pieces: Graph) -> dict[int, Any]:
    """By the pieces with weights of a layer: those of its first call, where they are alike."""
    if first is pieces:
        return {}
    olds, news = (
        [x.operation for x in graph.nodes if getattr(x.operation, "weights", ())]
        for graph in (first, pieces)
    )
    shapes = ([[type(x), *(w.shape for w in x.weights)] for x in found] for found in (olds, news))
    return dict(zip(map(id, news), olds, strict=True)) if same(*shapes) else {}


def _call_twin(twins: dict[int, Any], node: Node, *args, **kwargs):
    twin = twins.get(id(node.operation))
    return call_node(node, *args, **kwargs) if twin is None else twin(*args, **kwargs)


def _is_fused(operation) -> bool:
    """Whether an operation has an activity regularizer and may become a part of another."""
    fused = relu_name(operation) or isinstance(operation, layers.BatchNormalization)
    return bool(fused) and getattr(operation, "activity_regularizer", None) is not None


def _regularized(operation, function, args, kwargs):
    """What an opened layer gives, with its activity regularizer on what is given in the end."""
    regularizer = getattr(operation, "activity_regularizer", None)
    if regularizer is not None:
        operation.activity_regularizer = None
    outputs = (
        operation(*args, **kwargs) if function is None else function(operation, *args, **kwargs)
    )
    if regularizer is None:
        return outputs

    def regularize(x):
        last = x._keras_history.operation
        if is_of(last, LINEAR) and len(last._inbound_nodes) == 1:  # which may be folded into
            last.activity_regularizer = regularizer
            return x
        settings = {"name": f"{operation.name}_activity", "dtype": operation.dtype_policy}
        return layers.Identity(activity_regularizer=regularizer, **settings)(x)

    return tree.map_structure(regularize, outputs)


def _without_mask(x):
    """A tensor whose mask ends here, as it does at a layer that supports none."""
    return ops.copy(x) if isinstance(x, KerasTensor) and mask_of(x) is not None else x


def _masked_as(node: Node, outputs, args):
    """The outputs of an opened layer, with its input's mask where the layer hands that on."""
    source = next((x for x in tensors_in(args) if mask_of(x) is not None), None)
    new = []
    for before, after in zip(node.outputs, tree.flatten(outputs), strict=True):
        if source is not None and mask_of(before) is not None and mask_of(after) is None:
            after = KeepMask(name=f"{node.name}_mask", dtype=after.dtype)([after, source])
        new.append(after)
    return tree.pack_sequence_as(outputs, new) if tree.is_nested(outputs) else new[0]


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


def output_names(model: keras.Model) -> list[str]:
    """The names of a model's outputs: dict keys, or the user's own output layers."""
    struct = model._outputs_struct
    if isinstance(struct, dict) and not any(tree.is_nested(x) for x in struct.values()):
        return [str(key) for key in sorted(struct)]
    names = []
    for tensor in tree.flatten(struct):
        operation = tensor._keras_history.operation
        name = operation.name.removesuffix(OUTPUT_SUFFIX)
        while name in names:
            name = f"{name}_1"
        names.append(name)
    return names


def detach(operation) -> None:
    """Forgets the calls of an operation of ours in a graph that is being replaced."""
    operation._inbound_nodes.clear()
    operation._outbound_nodes.clear()
