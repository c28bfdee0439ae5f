"""A recipe says which layers get which techniques."""

import dataclasses
import fnmatch
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras

from tfcompress.layers import target_variables
from tfcompress.techniques import Quantize, Technique


@dataclasses.dataclass(frozen=True)
class Rule:
    """The techniques of the layers that a pattern matches.

    Args:
        layers: a shell pattern matched against the name and the class of a layer ("*", "block_1*",
            "Dense"), or a predicate `f(layer) -> bool`.
        techniques: applied in this order; an empty list leaves the layers as they are.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if techniques come in an order in which one undoes another, or twice.
    """

    layers: str | Callable[[Any], bool]
    techniques: Sequence[Technique] = ()

    def __post_init__(self):
        if not isinstance(self.layers, str) and not callable(self.layers):
            raise TypeError(
                f"layers must be a pattern such as '*' or a predicate; received {self.layers!r}."
            )
        techniques = self.techniques
        if isinstance(techniques, Technique) or not isinstance(techniques, Sequence):
            raise TypeError(
                "techniques must be a list of techniques, such as [tfcompress.Quantize(bits=8)]; "
                f"received {techniques!r}."
            )
        for technique in techniques:
            if not isinstance(technique, Technique):
                raise TypeError(
                    "techniques must hold tfcompress techniques, such as Quantize(bits=8); "
                    f"received {technique!r}."
                )
        _check_order(techniques)
        object.__setattr__(self, "techniques", tuple(techniques))

    def matches(self, layer) -> bool:
        """Whether the rule is meant for a layer."""
        if not isinstance(self.layers, str):
            return bool(self.layers(layer))
        names = (layer.name, type(layer).__name__)
        return any(fnmatch.fnmatchcase(name, self.layers) for name in names)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Ordered rules; the last one that matches a layer decides.

    Args:
        rules: list of `Rule`; general ones first, exceptions after them.

    Raises:
        TypeError: if `rules` holds something else.
        ValueError: if there is no rule.

    Example:
        >>> recipe = Recipe([Rule("*", [Quantize(bits=8)]), Rule("head", [])])
    """

    rules: Sequence[Rule]

    def __post_init__(self):
        rules = [self.rules] if isinstance(self.rules, Rule) else list(self.rules)
        for rule in rules:
            if not isinstance(rule, Rule):
                raise TypeError(
                    "rules must be a list of Rule(layers, techniques); received an element "
                    f"{rule!r}."
                )
        if not rules:
            raise ValueError("a recipe must have at least one Rule; received none.")
        object.__setattr__(self, "rules", tuple(rules))

    def techniques_of(self, layer) -> tuple[Technique, ...]:
        """The techniques that the recipe gives a layer."""
        rule = self.rule_of(layer)
        return () if rule is None else tuple(rule.techniques)

    def rule_of(self, layer) -> Rule | None:
        """The rule that decides about a layer: the last one that matches."""
        return next((rule for rule in reversed(self.rules) if rule.matches(layer)), None)

    def get_config(self) -> dict[str, Any]:
        """The recipe as plain data; rules with predicates cannot be told so."""
        serialize = keras.saving.serialize_keras_object
        return {
            "rules": [
                {"layers": rule.layers, "techniques": [serialize(t) for t in rule.techniques]}
                for rule in self.rules
            ]
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Recipe":
        """The recipe that `get_config` told."""
        load = keras.saving.deserialize_keras_object
        return cls([Rule(r["layers"], [load(t) for t in r["techniques"]]) for r in config["rules"]])


def quantize_of(techniques: Sequence[Technique]) -> Quantize | None:
    """The Quantize among techniques, if there is one."""
    return next((t for t in techniques if isinstance(t, Quantize)), None)


def _check_order(techniques: Sequence[Technique]) -> None:
    names = [type(technique).__name__ for technique in techniques]
    for before, after in itertools.pairwise(techniques):
        if type(before) is type(after) and before.order > 0:
            raise ValueError(
                f"a rule must have each technique once; received {', '.join(names)}. "
                f"Keep one {type(after).__name__}."
            )
        if before.order > after.order:
            raise ValueError(
                f"techniques must come in the order Regularize, Prune, Cluster, Quantize; received "
                f"{', '.join(names)}. {type(after).__name__} would undo what "
                f"{type(before).__name__} did: put it first."
            )


def check_rules(recipe: Recipe, model: keras.Model) -> None:
    """Raises unless every rule of a recipe has an effect on a model.

    Args:
        recipe: the recipe.
        model: a flat model.

    Raises:
        ValueError: a rule matches no layer, later ones overrule it everywhere, or a technique of
            its finds no weight that it is meant for.
    """
    operations = list(model.operations)
    for rule in recipe.rules:
        matched = [operation for operation in operations if rule.matches(operation)]
        if not matched:
            names = ", ".join(layer.name for layer in model.layers[:8])
            more = ", ..." if len(model.layers) > 8 else ""
            raise ValueError(
                f"the rule {_name(rule)} must match a layer of model '{model.name}', whose layers "
                f"are {names}{more}; it matches none. Mend the pattern, or take the rule out."
            )
        decided = [operation for operation in matched if recipe.rule_of(operation) is rule]
        if not decided:
            raise ValueError(
                f"the rule {_name(rule)} has no effect: later rules, which overrule it, match all "
                "of its layers. Take it out, or put it after them."
            )
        for technique in rule.techniques:
            if not isinstance(technique, Quantize):  # which is meant for activations, too
                _check_takers(rule, technique, decided)


def _check_takers(rule: Rule, technique: Technique, operations: list[Any]) -> None:
    layers = [x for x in operations if isinstance(x, keras.Layer)]
    found = [each for layer in layers for each in target_variables(layer)]
    reasons = {f"{o.name}/{v.name}": technique.refuses(o, v) for o, v in found}
    if any(reason is None for reason in reasons.values()):
        return
    listed = "; ".join(f"{name} is {reason}" for name, reason in list(reasons.items())[:4])
    kind = type(technique).__name__
    raise ValueError(
        f"{kind} of the rule {_name(rule)} finds no weight that it is meant for: received "
        f"{listed or 'layers without kernels'}. Take it out of the rule, or mend its settings."
    )


def _name(rule: Rule) -> str:
    return repr(rule.layers) if isinstance(rule.layers, str) else "with a predicate"
