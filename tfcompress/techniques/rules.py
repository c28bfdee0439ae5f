"""A rule says which techniques the layers that it matches get."""

import dataclasses
import fnmatch
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras

from tfcompress.techniques import TECHNIQUES, Cluster, Codebook, Quantize, Technique

# For layers that `compress` finds in the model.
FIRST_AND_LAST = "first_and_last"


@dataclasses.dataclass(frozen=True)
class Rule:
    """The techniques of the layers that a pattern matches.

    Args:
        layers: a shell pattern matched against the name and the class of a layer ("*", "block_1*",
            "Dense"), a type such as `keras.layers.Dense`, which takes in its subclasses, a
            predicate `f(layer) -> bool`, or "first_and_last": the layers with kernels before or
            after which there are no others, which lose most by few bits.
        techniques: applied in this order; an empty list leaves the layers as they are.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if techniques come in an order in which one undoes another, or twice.
    """

    layers: str | type | Callable[[Any], bool]
    techniques: Sequence[Technique] = ()

    def __post_init__(self):
        if not isinstance(self.layers, str) and not callable(self.layers):
            raise TypeError(
                f"layers must be a pattern such as '*' or a predicate; received {self.layers!r}."
            )
        if isinstance(self.layers, type) and not issubclass(self.layers, keras.Operation):
            raise TypeError(
                "layers must be a type of layers such as keras.layers.Dense; received "
                f"{self.layers!r}."
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
        _check_values(techniques)
        object.__setattr__(self, "techniques", tuple(techniques))

    def matches(self, layer) -> bool:
        """Whether the rule is meant for a layer."""
        if isinstance(self.layers, type):
            return isinstance(layer, self.layers)
        if not isinstance(self.layers, str):
            return bool(self.layers(layer))
        names = (layer.name, type(layer).__name__)
        return any(fnmatch.fnmatchcase(name, self.layers) for name in names)

    @property
    def words(self) -> str:
        """What the rule is called in messages."""
        if isinstance(self.layers, type):
            return f"the rule for {self.layers.__name__}"
        named = isinstance(self.layers, str)
        return f"the rule {self.layers!r}" if named else "the rule with a predicate"


@dataclasses.dataclass(frozen=True)
class Rules:
    """Ordered rules; the last one that matches a layer decides. See `tfcompress.Recipe`."""

    rules: Sequence[Rule] = ()

    def __post_init__(self):
        rules = [self.rules] if isinstance(self.rules, Rule) else list(self.rules)
        for rule in rules:
            if not isinstance(rule, Rule):
                raise TypeError(
                    "rules must be a list of Rule(layers, techniques); received an element "
                    f"{rule!r}."
                )
        if not rules and not self._has_more():
            raise ValueError("a recipe must have at least one Rule; received none.")
        object.__setattr__(self, "rules", tuple(rules))

    @classmethod
    def of(cls, recipe: "Rules | Sequence[Rule]") -> "Rules":
        """A recipe as it is, or one of a list of rules."""
        return recipe if isinstance(recipe, Rules) else Rules(recipe)

    def rule_of(self, layer) -> Rule | None:
        """The rule that decides about a layer: the last one that matches."""
        return next((rule for rule in reversed(self.rules) if rule.matches(layer)), None)

    def techniques_of(self, layer) -> tuple[Technique, ...]:
        """The techniques that a layer gets."""
        rule = self.rule_of(layer)
        return () if rule is None else tuple(rule.techniques)

    def _has_more(self) -> bool:
        """Whether there is something beside rules, without which there must be one."""
        return False


def quantize_of(techniques: Sequence[Technique]) -> Quantize | None:
    """The Quantize among techniques, if there is one."""
    return next((t for t in techniques if isinstance(t, Quantize)), None)


def require_match(rule: Rule, candidates: Iterable[Any], model: keras.Model) -> list[Any]:
    """The layers and operations of a model that a rule matches; raises if there are none."""
    matched = [candidate for candidate in candidates if rule.matches(candidate)]
    if not matched:
        names = ", ".join(layer.name for layer in model.layers[:8])
        more = ", ..." if len(model.layers) > 8 else ""
        raise ValueError(
            f"{rule.words} must match a layer of model '{model.name}', whose layers "
            f"are {names}{more}; it matches none. Mend the pattern, or take the rule out."
        )
    return matched


def _check_order(techniques: Sequence[Technique]) -> None:
    names = [type(technique).__name__ for technique in techniques]
    for before, after in itertools.pairwise(techniques):
        if type(before) is type(after) and before.order > 0:
            raise ValueError(
                f"a rule must have each technique once; received {', '.join(names)}. "
                f"Keep one {type(after).__name__}."
            )
        if before.order > after.order:
            order = ["Regularize", *(cls.__name__ for cls in TECHNIQUES.values())]
            raise ValueError(
                f"techniques must come in the order {', '.join(order)}; received "
                f"{', '.join(names)}. {type(after).__name__} would undo what "
                f"{type(before).__name__} did: put it first."
            )


def _check_values(techniques: Sequence[Technique]) -> None:
    """Raises unless weights are given few values once, which the bits after that hold."""
    codebook = next((t for t in techniques if isinstance(t, Codebook)), None)
    if codebook is None:
        return
    if any(isinstance(t, Cluster) for t in techniques):
        raise ValueError(
            "a rule must give weights few values once; received Cluster and Codebook. Keep Cluster "
            "for values that are trained, or Codebook for given ones."
        )
    quantize, least = quantize_of(techniques), codebook.code_bits
    if quantize is not None and quantize.bits < least:
        mend = f"Write Quantize(bits={least})"
        if codebook.two_scales:
            mend += ", or Codebook('ternary', symmetric=True), whose one scale 2 bits hold"
        raise ValueError(
            f"the values of Codebook({codebook.values!r}) need codes of {least} bits; received "
            f"Quantize(bits={quantize.bits}). {mend}."
        )
