"""A recipe says which layers get which techniques."""

import dataclasses
import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

import keras

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
        for rule in reversed(self.rules):
            if rule.matches(layer):
                return tuple(rule.techniques)
        return ()

    def unmatched(self, layers) -> list[Rule]:
        """The rules that match none of the layers, as a misspelt name does."""
        return [rule for rule in self.rules if not any(rule.matches(x) for x in layers)]

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
