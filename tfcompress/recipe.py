"""A recipe says which layers get which techniques."""

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras

from tfcompress.layers import target_variables
from tfcompress.rules import Rule, quantize_of
from tfcompress.schedules import Schedule
from tfcompress.techniques import Quantize, Technique

if TYPE_CHECKING:
    from tfcompress.distillation.settings import Distillation
    from tfcompress.search.findings import Sensitivity
    from tfcompress.surgery.settings import Shrink

__all__ = ["Recipe", "Rule", "check_rules", "matches_of", "quantize_of"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Ordered rules; the last one that matches a layer decides.

    Args:
        rules: list of `Rule`; general ones first, exceptions after them.
        distill: a `Distillation`, if the model is to learn from a teacher while it is compressed;
            a recipe may then be without rules. `compress` wraps the model as the rules say, and
            leaves training to you: fit `recipe.distill.distiller(small, teacher)`.
        shrink: a `Shrink`, if surgery is to make the model smaller before the techniques; a recipe
            may then be without rules, too. `tfcompress compress` does it all. In Python surgery is
            a step of its own: `small = recipe.shrink.apply(model)`, which you train, and then
            `compress(small, recipe.rules)`.

    Raises:
        TypeError: if `rules`, `distill` or `shrink` is something else.
        ValueError: if there is neither a rule nor a distillation nor a shrink.

    Example:
        >>> recipe = Recipe([Rule("*", [Quantize(bits=8)]), Rule("head", [])])
    """

    rules: Sequence[Rule] = ()
    distill: "Distillation | None" = None
    shrink: "Shrink | None" = None

    def __post_init__(self):
        rules = [self.rules] if isinstance(self.rules, Rule) else list(self.rules)
        for rule in rules:
            if not isinstance(rule, Rule):
                raise TypeError(
                    "rules must be a list of Rule(layers, techniques); received an element "
                    f"{rule!r}."
                )
        if self.distill is not None:
            _check_distillation(self.distill)
        if self.shrink is not None:
            _check_shrink(self.shrink)
        if not rules and self.distill is None and self.shrink is None:
            raise ValueError("a recipe must have at least one Rule; received none.")
        object.__setattr__(self, "rules", tuple(rules))

    @classmethod
    def load(cls, source: str | os.PathLike[str], steps: int | None = None) -> "Recipe":
        """Reads a recipe from a YAML file, or one of those that come with the package.

        Args:
            source: the path of a `.yaml` file, or "int8", "int4", "sparse50-int8",
                "sparse80-int8", "cluster16-int8", "sparse-cluster-int8" or "distill-int8".
            steps: optimizer steps of the whole training, epochs times batches, of which the file
                may name shares such as `end: 60%`.

        Returns:
            The `Recipe`.

        Raises:
            ValueError: if the file cannot be read or is no recipe; says the line and the key.

        Example:
            >>> Recipe.load("int8").rules[0].layers
            '*'
        """
        from tfcompress import recipe_file  # which needs this module

        return recipe_file.load(source, steps)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the recipe as a YAML file, which `load` reads again.

        Args:
            path: the `.yaml` file; it is written whole or not at all.

        Raises:
            OSError: if it cannot be written.
            ValueError: if YAML cannot tell it: a predicate, a type, a function as score, a
                regularizer, technique or loss of your own.

        Example:
            >>> Recipe.load("sparse50-int8", steps=1000).save("mine.yaml")  # doctest: +SKIP
        """
        from tfcompress import files, recipe_writing

        files.atomic_write(path, recipe_writing.to_yaml(self).encode())

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
            ],
            "distill": self.distill and self.distill.get_config(),
            "shrink": self.shrink and self.shrink.get_config(),
        }

    @classmethod
    def from_sensitivity(
        cls,
        found: "Sensitivity",
        sparsity: float = 0.8,
        *,
        max_sparsity: float = 0.95,
        schedule: Schedule | None = None,
        techniques_after: Sequence[Technique] = (),
    ) -> "Recipe":
        """A recipe that prunes each layer as far as it stands, for one overall sparsity.

        Of all ways to share it, the one whose predicted drops sum up to least is taken.

        Args:
            found: what `tfcompress.sensitivity` returned; its pattern and score are used.
            sparsity: fraction of zeros of all weights that were scanned together, exact but for the
                rounding of each layer to whole weights or groups of its pattern.
            max_sparsity: of any layer; none gets more than the largest sparsity scanned either.
            schedule: a curve of `tfcompress.schedules`, scaled so that it ends with the sparsity of
                each layer; None prunes from the start.
            techniques_after: what follows in each of these layers; `Quantize` in all of the model.

        Returns:
            A `Recipe` with a rule for each layer that was scanned.

        Raises:
            TypeError: if `found` or `schedule` is something else.
            ValueError: if the overall sparsity is out of reach, or no sparsities were scanned.

        Example:
            >>> curve = schedules.polynomial(0.0, 0.8, end=2000)  # doctest: +SKIP
            >>> Recipe.from_sensitivity(found, 0.8, schedule=curve)  # doctest: +SKIP
        """
        from tfcompress.search.allocation import recipe_of

        return recipe_of(found, sparsity, max_sparsity, schedule, techniques_after)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Recipe":
        """The recipe that `get_config` told."""
        load = keras.saving.deserialize_keras_object
        rules = [Rule(r["layers"], [load(t) for t in r["techniques"]]) for r in config["rules"]]
        distill = config.get("distill")
        if distill is not None:
            from tfcompress.distillation.settings import Distillation

            distill = Distillation.from_config(distill)
        shrink = config.get("shrink")
        if shrink is not None:
            from tfcompress.surgery.settings import Shrink

            shrink = Shrink.from_config(shrink)
        return cls(rules, distill, shrink)


def _check_distillation(distill: Any) -> None:
    from tfcompress.distillation.settings import Distillation  # which needs this module in the end

    if not isinstance(distill, Distillation):
        raise TypeError(
            f"distill must be a tfcompress.distillation.Distillation; received {distill!r}."
        )


def _check_shrink(shrink: Any) -> None:
    from tfcompress.surgery.settings import Shrink

    if not isinstance(shrink, Shrink):
        raise TypeError(
            f"shrink must be a tfcompress.surgery.settings.Shrink; received {shrink!r}."
        )


def refuse_shrink(recipe: Recipe) -> None:
    """Raises if a recipe tells of surgery, which `compress` leaves to a step before it."""
    if recipe.shrink is not None:
        raise ValueError(
            "compress takes recipes without a shrink, as the smaller model has to be trained "
            f"before its techniques begin; received {recipe.shrink}. Write small = "
            "recipe.shrink.apply(model), train it, then compress(small, recipe.rules); or use the "
            "command tfcompress compress, which does it all."
        )


def check_rules(recipe: Recipe, model: keras.Model) -> None:
    """Raises unless every rule of a recipe has an effect on a model.

    Args:
        recipe: the recipe.
        model: a flat model.

    Raises:
        ValueError: there are none, a rule matches no layer, later ones overrule it everywhere, or a
            technique of its finds no weight that it is meant for; or the recipe has a shrink.
    """
    refuse_shrink(recipe)
    if not recipe.rules:
        raise ValueError(
            "the recipe has no rules, so that nothing would be compressed; expected at least one "
            "Rule. Add one; or train the model as it is, with recipe.distill.distiller(model, "
            "teacher) or the command tfcompress distill."
        )
    operations = list(model.operations)
    for rule in recipe.rules:
        matched = matches_of(rule, operations, model)
        decided = [operation for operation in matched if recipe.rule_of(operation) is rule]
        if not decided:
            raise ValueError(
                f"the rule {_name(rule)} has no effect: later rules, which overrule it, match all "
                "of its layers. Take it out, or put it after them."
            )
        for technique in rule.techniques:
            if not isinstance(technique, Quantize):  # which is meant for activations, too
                _check_takers(rule, technique, decided)


def matches_of(rule: Rule, candidates: Sequence[Any], model) -> list[Any]:
    """The layers and operations of a model that a rule matches.

    Raises:
        ValueError: if there are none.
    """
    matched = [candidate for candidate in candidates if rule.matches(candidate)]
    if not matched:
        names = ", ".join(layer.name for layer in model.layers[:8])
        more = ", ..." if len(model.layers) > 8 else ""
        raise ValueError(
            f"the rule {_name(rule)} must match a layer of model '{model.name}', whose layers "
            f"are {names}{more}; it matches none. Mend the pattern, or take the rule out."
        )
    return matched


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
    if isinstance(rule.layers, type):
        return f"for {rule.layers.__name__}"
    return repr(rule.layers) if isinstance(rule.layers, str) else "with a predicate"
