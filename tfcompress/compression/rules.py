"""Whether the rules of a recipe have an effect on a model."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import keras

from tfcompress.graph.nodes import Graph, Node
from tfcompress.layers.compressed import target_variables, undeclared_weights, warn_undeclared
from tfcompress.techniques import Quantize, Technique
from tfcompress.techniques.rules import FIRST_AND_LAST, Rule, Rules, require_match


def refuse_shrink(recipe: Rules) -> None:
    """Raises if a recipe tells of surgery, which `compress` leaves to a step before it."""
    shrink = getattr(recipe, "shrink", None)
    if shrink is not None:
        raise ValueError(
            "compress takes recipes without a shrink, as the smaller model has to be trained "
            f"before its techniques begin; received {shrink}. Write small = "
            "recipe.shrink.apply(model), train it, then compress(small, recipe.rules); or use the "
            "command tfcompress compress, which does it all."
        )


def resolved(recipe: Rules, model: keras.Model) -> Rules:
    """A recipe whose rules for the first and the last layers are for those of a flat model."""
    if all(rule.layers != FIRST_AND_LAST for rule in recipe.rules):
        return recipe
    graph = Graph.of(model)
    found = _outermost(graph.nodes, "inputs", "outputs")
    found += _outermost(reversed(graph.nodes), "outputs", "inputs")
    rules = [
        # Not by their names, which `compress` takes from layers for what it puts behind them.
        dataclasses.replace(rule, layers=lambda layer: any(layer is each for each in found))
        if rule.layers == FIRST_AND_LAST
        else rule
        for rule in recipe.rules
    ]
    return dataclasses.replace(recipe, rules=rules)


def _outermost(nodes: Iterable[Node], taken: str, given: str) -> list[Any]:
    """The layers with kernels that no other such layer comes before."""
    found: list[Any] = []
    behind: set[int] = set()  # tensors on the other side of a kernel
    for node in nodes:
        layer = node.operation
        weighs = isinstance(layer, keras.Layer) and bool(target_variables(layer))
        beyond = any(id(tensor) in behind for tensor in getattr(node, taken))
        if weighs and not beyond:
            found.append(layer)
        if weighs or beyond:
            behind.update(id(tensor) for tensor in getattr(node, given))
    return found


def check_rules(recipe: Rules, model: keras.Model) -> None:
    """Raises unless every rule of a recipe has an effect on a model."""
    refuse_shrink(recipe)
    if not recipe.rules and getattr(recipe, "precision", None) is not None:
        raise ValueError(
            "the recipe has precisions alone, which are for the conversion of a trained model; "
            "expected at least one Rule to train under. Call convert(model, path, "
            "precision=recipe.precision, calibration=x), or tfcompress convert --precision FILE."
        )
    if not recipe.rules:
        raise ValueError(
            "the recipe has no rules, so that nothing would be compressed; expected at least one "
            "Rule. Add one; or train the model as it is, with recipe.distill.distiller(model, "
            "teacher) or the command tfcompress distill."
        )
    operations = list(model.operations)
    for rule in recipe.rules:
        matched = require_match(rule, operations, model)
        decided = [operation for operation in matched if recipe.rule_of(operation) is rule]
        if not decided:
            raise ValueError(
                f"{rule.words} has no effect: later rules, which overrule it, match all "
                "of its layers. Take it out, or put it after them."
            )
        for technique in rule.techniques:
            if not isinstance(technique, Quantize):  # which is meant for activations, too
                _check_takers(rule, technique, decided)


def _check_takers(rule: Rule, technique: Technique, operations: list[Any]) -> None:
    layers = [x for x in operations if isinstance(x, keras.Layer)]
    unknown = [name for layer in layers for name in undeclared_weights(layer)]
    found = [each for layer in layers for each in target_variables(layer)]
    reasons = {f"{o.name}/{v.name}": technique.refuses(o, v) for o, v in found}
    if any(reason is None for reason in reasons.values()):
        warn_undeclared(unknown, technique)
        return
    listed = "; ".join(f"{name} is {reason}" for name, reason in list(reasons.items())[:4])
    kind = type(technique).__name__
    mend = "Take it out of the rule, or mend its settings."
    if unknown:
        name = unknown[0].rpartition("/")[2]
        mend += f" Weights of your own layers are declared: @tfcompress.register_kernel({name!r})."
    raise ValueError(
        f"{kind} of {rule.words} finds no weight that it is meant for: received "
        f"{listed or 'layers without kernels'}. {mend}"
    )
