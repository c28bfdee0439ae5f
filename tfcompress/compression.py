"""compress and quantize_aware: a model in, a new model that trains under techniques out."""

import dataclasses
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any

import keras
from keras import KerasTensor, layers, tree

from tfcompress import primitives
from tfcompress.baking import is_compressed
from tfcompress.graph import Graph, Node, call_node, flatten
from tfcompress.layers import Compressed, FusedBatchNorm, target_variables
from tfcompress.legacy import is_legacy
from tfcompress.placement import LINEAR, Placement, kind_of, place
from tfcompress.recipe import Recipe, Rule, check_rules, quantize_of
from tfcompress.techniques import Quantize, Technique

# What the last layer of a compressed model is called after: the output that it gives.
OUTPUT_SUFFIX = "__output"

# Layers whose weights are quantized: LiteRT has integer kernels for them.
_QUANTIZABLE_WEIGHTS = LINEAR | {"Embedding"}


def compress(model: keras.Model, recipe: Recipe, *, inputs=None) -> keras.Model:
    """A copy of a model that trains under a recipe's techniques.

    Args:
        model: any Keras 3 model that `flatten` takes; it is left untouched. A tf_keras (Keras 2)
            model is compressed by TensorFlow Model Optimization, as far as that goes.
        recipe: a `Recipe`, or a list of `Rule`s. Its `distill` is left to the training: fit
            `recipe.distill.distiller(small, teacher)`.
        inputs: see `flatten`.

    Returns:
        A Functional `keras.Model` with the same inputs and outputs, not compiled. Train it with
        your own `compile` and `fit`, then `convert` it.

    Raises:
        TypeError, ValueError: if the model cannot be flattened, the recipe is not one, or one of
            its rules has no effect on the model.

    Example:
        >>> small = compress(model, Recipe([Rule("*", [Quantize(bits=8)])]))  # doctest: +SKIP
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe(recipe)
    if is_legacy(model):
        from tfcompress.legacy.compression import compress as by_tfmot

        return by_tfmot(model, recipe)
    if is_compressed(model):
        raise ValueError(
            f"model '{model.name}' comes from compress already; expected a plain one. Pass the "
            "model that it was made from, with all techniques in one recipe."
        )
    flat = flatten(model, inputs=inputs)
    check_rules(recipe, flat)
    _, graph, origin = _open_layers(flat, recipe)

    def technique_of(node: Node) -> Quantize | None:
        return quantize_of(recipe.techniques_of(origin(node)))

    placement = place(graph, technique_of)
    _name_outputs(flat, graph, placement)
    _warn_left_float(placement)
    wrapped: dict[int, Any] = {}
    calls = Counter(id(node.operation) for node in graph.nodes)
    for node in graph.nodes:
        if not node.is_input:
            _check_calls(node.operation, recipe.techniques_of(origin(node)), calls)
            _detach(node.operation)

    def call(node: Node, *args, **kwargs):
        if node.is_input or id(node) in placement.absorbed:
            y = args[0]
        else:
            techniques = recipe.techniques_of(origin(node))
            y = _wrap(node, techniques, placement, wrapped)(*args, **kwargs)
        return _quantize_outputs(node, y, placement)

    return graph.rebuild(call)


def quantize_aware(
    model: keras.Model, *, skip: Iterable[str] = (), inputs=None, **settings
) -> keras.Model:
    """A copy of a model for quantization-aware training.

    Weights and activations are rounded in the forward pass as LiteRT's integer kernels do, and
    gradients pass straight through (Jacob et al. 2018, arXiv:1712.05877).

    Args:
        model: any Keras 3 model that `flatten` takes; it is left untouched.
        skip: names (or shell patterns) of layers to leave float.
        inputs: see `flatten`.
        **settings: arguments of `Quantize`: bits, activation_bits, dense, momentum, delay, freeze.

    Returns:
        A Functional `keras.Model`, not compiled.

    Raises:
        TypeError, ValueError: as `compress` and `Quantize`.

    Example:
        >>> qat = quantize_aware(model)  # doctest: +SKIP
        >>> qat.compile("adam", "mse")  # doctest: +SKIP
        >>> qat.fit(x, y)  # doctest: +SKIP
    """
    names = [skip] if isinstance(skip, str) else list(skip)
    rules = [Rule("*", [Quantize(**settings)])] + [Rule(name, []) for name in names]
    return compress(model, Recipe(rules), inputs=inputs)


def open_layers(model: keras.Model) -> keras.Model:
    """A flat copy of a plain model, its layers opened into operations with integer kernels."""
    flat = flatten(model)
    opened, graph, _ = _open_layers(flat, Recipe([Rule("*", [Quantize()])]))
    _name_outputs(flat, graph, None)
    return opened


def _open_layers(flat: keras.Model, recipe: Recipe):
    """The model with layers opened where activations are quantized, its graph, and a function
    that tells from which layer of `flat` a node came.
    """
    origins: dict[int, Any] = {}
    opened: dict[int, Graph] = {}
    graph = Graph.of(flat)

    def call(node: Node, *args, **kwargs):
        operation = node.operation
        technique = quantize_of(recipe.techniques_of(operation))
        quantized = technique is not None and technique.activation_bits is not None
        function = primitives.opener(operation) if quantized else None
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
            _detach(node.operation)
    opened_model = graph.rebuild(call)
    starts = {id(node.operation) for node in graph.nodes}

    def origin(node: Node):
        operation = node.operation
        return operation if id(operation) in starts else origins.get(id(operation), operation)

    return opened_model, Graph.of(opened_model), origin


def _name_outputs(flat: keras.Model, graph: Graph, placement: Placement | None) -> None:
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


def _wrap(node: Node, techniques: tuple[Technique, ...], placement: Placement, wrapped: dict):
    """The layer that a node calls: wrapped once, however often it is called."""
    operation = node.operation
    if id(operation) in wrapped:
        return wrapped[id(operation)]
    new = operation
    if isinstance(operation, keras.Layer) and target_variables(operation):
        kept = []
        for technique in techniques:
            if isinstance(technique, Quantize):
                if kind_of(operation) not in _QUANTIZABLE_WEIGHTS:
                    continue
                if id(node) in placement.per_channel:
                    technique = dataclasses.replace(technique, dense="per_channel")
            if any(technique.refuses(*each) is None for each in target_variables(operation)):
                kept.append(technique)
        new = Compressed(operation, kept) if kept else operation
    elif type(operation) is layers.BatchNormalization and techniques:
        # Worth it without Quantize, too: the step of a small CNN takes a quarter less time.
        quantize = quantize_of(techniques)
        new = FusedBatchNorm(operation, quantize.freeze if quantize else None)
    wrapped[id(operation)] = new
    return new


def _check_calls(operation, techniques: tuple[Technique, ...], calls: Counter) -> None:
    """Raises if a state that each call would overwrite is asked of a layer with several calls."""
    taking = [t for t in techniques if t.overwritten_states]
    count = calls[id(operation)]
    if taking and count > 1 and isinstance(operation, keras.Layer) and operation.weights:
        raise ValueError(
            f"layer '{operation.name}' is called {count} times; received {taking[0]} for it, whose "
            "scores are averaged over one call a step. Give it another score in a Rule of its own, "
            "such as Prune(..., score='movement')."
        )


def _quantize_outputs(node: Node, outputs, placement: Placement):
    flat = tree.flatten(outputs)
    new = []
    for tensor, value in zip(node.outputs, flat, strict=True):
        quantizer, row = placement.quantizers.get(id(tensor), (None, None))
        new.append(value if quantizer is None else quantizer(value, source=row))
    return (
        tree.pack_sequence_as(outputs, new) if len(new) > 1 or tree.is_nested(outputs) else new[0]
    )


def _detach(operation) -> None:
    """Forgets the calls of an operation of ours in a graph that is being replaced."""
    operation._inbound_nodes.clear()
    operation._outbound_nodes.clear()


def _warn_left_float(placement: Placement) -> None:
    if not placement.left_float:
        return
    listed = ", ".join(f"'{name}' ({kind})" for name, kind in placement.left_float[:10])
    more = len(placement.left_float) - 10
    warnings.warn(
        f"these operations stay float, as LiteRT has no integer kernel for them: {listed}"
        f"{f' and {more} more' if more > 0 else ''}. Name them in skip= to silence this warning.",
        stacklevel=4,
    )
