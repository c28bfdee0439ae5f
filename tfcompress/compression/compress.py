"""compress and quantize_aware: a model in, a new model that trains under techniques out."""

import dataclasses
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, tree

from tfcompress.compression.rules import check_rules, resolved
from tfcompress.dispatch import is_legacy, legacy
from tfcompress.graph.flatten import flatten
from tfcompress.graph.front_end import WHY, front_end
from tfcompress.graph.nodes import Graph, Node
from tfcompress.kinds import FOLDING
from tfcompress.layers.batch_norm import FusedBatchNorm
from tfcompress.layers.compressed import Compressed, is_compressed, target_variables
from tfcompress.layers.step_rnn import StepRNN
from tfcompress.quantization.kernels import kind_of
from tfcompress.quantization.opening import (
    detach,
    name_outputs,
    open_with,
    spared_by,
    sparing,
)
from tfcompress.quantization.placement import Placement, place
from tfcompress.techniques import Prune, Quantize, Technique
from tfcompress.techniques.quantize import quantize_weight, round_activation
from tfcompress.techniques.rules import Rule, Rules, quantize_of

# Operations that take a constant as they take an activation, on a grid of its own.
_BY_VALUE = ("Add", "Subtract", "Multiply", "Divide", "TrueDivide")
# Layers whose weights are quantized: LiteRT has integer kernels for them.
_QUANTIZABLE_WEIGHTS = FOLDING | {"Embedding", "ReversibleEmbedding", "IntegerLSTM"}


def compress(model: keras.Model, recipe: Rules | Sequence[Rule], *, inputs=None) -> keras.Model:
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
        >>> small = compress(model, [Rule("*", [Quantize(bits=8)])])  # doctest: +SKIP
    """
    recipe = Rules.of(recipe)
    if is_legacy(model):
        return legacy("compress")(model, recipe)
    if is_compressed(model):
        raise ValueError(
            f"model '{model.name}' comes from compress already; expected a plain one. Pass the "
            "model that it was made from, with all techniques in one recipe."
        )
    flat = flatten(model, inputs=inputs)
    recipe = resolved(recipe, flat)
    check_rules(recipe, flat)
    recipe = _without_front_end(recipe, flat)
    _, graph, origin = open_with(flat, recipe)

    # Before layers give their names to what is put behind them.
    calls = _calls(graph)
    asked = _with_scores(recipe, [(node, origin(node)) for node in graph.nodes], calls)
    placement = place(graph, lambda node: quantize_of(asked[id(node)]))
    name_outputs(flat, graph, placement)
    return _wrapped(graph, placement, asked, calls)


def _calls(graph: Graph) -> Counter:
    """How often each operation is called; the inside of a loop more often than once."""
    calls = Counter(id(node.operation) for node in graph.nodes)
    for node in graph.nodes:
        if isinstance(node.operation, StepRNN):
            calls[id(node.operation)] += 1
    return calls


def _wrapped(graph: Graph, placement: Placement, asked: dict, calls: Counter) -> keras.Model:
    """The model of a graph with its operations under their techniques, and rounded between."""
    _warn_left_float(placement)
    wrapped: dict[int, Any] = {}
    for node in graph.nodes:
        if not node.is_input:
            _check_calls(node.operation, asked[id(node)], calls)
            detach(node.operation)

    exact: dict[int, tuple[Any, Any]] = {}  # id of a rounded tensor -> it, and what it was

    def call(node: Node, *args, **kwargs):
        if id(node) in placement.floats:
            args, kwargs = tree.map_structure(
                lambda x: exact[id(x)][1] if id(x) in exact else x, (args, kwargs)
            )
        technique = quantize_of(asked[id(node)])
        if technique and technique.activation_bits is not None:
            args = tuple(_on_grid(x, kind_of(node.operation), technique) for x in args)
        if node.is_input or id(node) in placement.absorbed:
            y = args[0]
        else:
            techniques = asked[id(node)]
            y = _wrap(node, techniques, placement, wrapped)(*args, **kwargs)
        return _quantize_outputs(node, y, placement, exact)

    return graph.rebuild(call)


def _wrapped_step(loop: StepRNN, techniques: tuple[Technique, ...]) -> StepRNN:
    """A loop whose step trains under techniques, its states on one grid from step to step."""
    graph = loop.graph
    asked = {id(node): techniques for node in graph.nodes}
    states = list(zip(loop.state_specs, tree.flatten(graph.outputs)[1:], strict=True))
    placement = place(graph, lambda node: quantize_of(techniques), states)
    calls = Counter({key: count + 1 for key, count in _calls(graph).items()})
    return loop.with_step(_wrapped(graph, placement, asked, calls))


def quantize_aware(
    model: keras.Model, *, skip: Iterable[str] = (), inputs=None, **settings
) -> keras.Model:
    """A copy of a model for quantization-aware training.

    Weights and activations are rounded in the forward pass as LiteRT's integer kernels do, and
    gradients pass straight through (Jacob et al. 2018, arXiv:1712.05877).

    Args:
        model: any Keras 3 model that `flatten` takes; it is left untouched.
        skip: names (or shell patterns) of layers to leave float. An input that only they read is
            not rounded while training; a file with integer inputs rounds it. What makes features
            of sound before the first weights stays float anyway, with a warning.
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
    return compress(model, rules, inputs=inputs)


def _without_front_end(recipe: Rules, flat: keras.Model) -> Rules:
    """The recipe that leaves float what makes features of sound, which a warning tells."""
    front = front_end(Graph.of(flat))
    spared = spared_by(recipe, front)
    quantized = [
        node
        for node in (() if front is None else front.nodes)
        if node.name in spared and quantize_of(recipe.techniques_of(node.operation)) is not None
    ]
    if front is None or not quantized:
        return recipe
    warnings.warn(
        f"the front-end of sound, {front.words}, stays float, as {WHY}. Split it off for what "
        "takes integers alone: front, rest, hint = tfcompress.split(model). Name its layers in "
        "skip= to silence this warning, or in a Rule of their own to quantize them.",
        stacklevel=4,
    )
    return sparing(recipe, front)


def _wrap(node: Node, techniques: tuple[Technique, ...], placement: Placement, wrapped: dict):
    """The layer that a node calls: wrapped once, however often it is called."""
    operation = node.operation
    if id(operation) in wrapped:
        return wrapped[id(operation)]
    new = operation
    if isinstance(operation, StepRNN):
        new = _wrapped_step(operation, techniques)
    elif isinstance(operation, keras.Layer) and target_variables(operation):
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
    elif _is_plain_batch_norm(operation) and techniques:
        # Worth it without Quantize, too: the step of a small CNN takes a quarter less time.
        quantize = quantize_of(techniques)
        new = FusedBatchNorm(operation, quantize.freeze if quantize else None)
    wrapped[id(operation)] = new
    return new


def _is_plain_batch_norm(operation) -> bool:
    known = type(operation) is layers.BatchNormalization
    return known and operation.activity_regularizer is None


def _on_grid(value, kind: str, technique: Quantize):
    """A constant that an operation reads, rounded to the grid that the file gives it."""
    shape = getattr(value, "shape", ())
    if isinstance(value, keras.KerasTensor) or math.prod(shape) < 2:
        return value
    if kind == "Matmul":
        return quantize_weight(value, technique.bits)
    if kind not in _BY_VALUE or not keras.backend.is_float_dtype(value.dtype):
        return value
    values = keras.ops.convert_to_numpy(value)
    if len(np.unique(values[values != 0])) < 2:  # such as a mask, which may be infinite
        return value
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    return (
        round_activation(value, low, high, technique.activation_bits or 8) if high > low else value
    )


def _with_scores(recipe: Rules, nodes: list[tuple[Node, Any]], calls: Counter) -> dict[int, Any]:
    """The techniques of each node; pruning gets the same score in all of them, to be ranked by."""
    asked = {id(node): recipe.techniques_of(origin) for node, origin in nodes}
    pruned = [n.operation for n, _ in nodes if any(isinstance(t, Prune) for t in asked[id(n)])]
    layers = [x for x in pruned if isinstance(x, keras.Layer) and x.weights]
    # Taylor's are averaged over one call a step, and there are none without gradients.
    taylor = all(layer.trainable and calls[id(layer)] == 1 for layer in layers)
    return {
        key: tuple(t.scored(taylor) if isinstance(t, Prune) else t for t in techniques)
        for key, techniques in asked.items()
    }


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


def _quantize_outputs(node: Node, outputs, placement: Placement, exact: dict):
    flat = tree.flatten(outputs)
    new = []
    for tensor, value in zip(node.outputs, flat, strict=True):
        quantizer, row = placement.quantizers.get(id(tensor), (None, None))
        new.append(value if quantizer is None else quantizer(value, source=row))
        if id(tensor) in placement.exact:
            exact[id(new[-1])] = new[-1], value
    return (
        tree.pack_sequence_as(outputs, new) if len(new) > 1 or tree.is_nested(outputs) else new[0]
    )


def _warn_left_float(placement: Placement) -> None:
    if not placement.left_float:
        return
    by_reason: dict[str, list[str]] = {}
    for name, kind, reason in placement.left_float:
        by_reason.setdefault(reason, []).append(f"'{name}' ({kind})")
    listed = [
        f"{', '.join(named[:10])}{f' and {len(named) - 10} more' if len(named) > 10 else ''}"
        f", {'each ' if len(named) > 1 else ''}as it {reason}"
        for reason, named in by_reason.items()
    ]
    warnings.warn(
        f"these operations stay float: {'; '.join(listed)}. Name them in skip= to silence this "
        "warning.",
        stacklevel=4,
    )
