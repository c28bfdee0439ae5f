"""A recipe says which layers get which techniques."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfcompress.conversion.precisions import Precisions
from tfcompress.distillation.distiller import Distillation
from tfcompress.errors import check
from tfcompress.files import writing
from tfcompress.recipe import file
from tfcompress.recipe.allocation import allocate, scaled
from tfcompress.recipe.findings import Sensitivity
from tfcompress.schedules import Schedule
from tfcompress.surgery.shrink import Shrink
from tfcompress.techniques import Quantize, Technique
from tfcompress.techniques.masks import Pattern
from tfcompress.techniques.rules import Rule, Rules, quantize_of


@dataclasses.dataclass(frozen=True)
class Recipe(Rules):
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

        precision: {pattern: precision} of layers in the file, for a model that calibration data
            quantize after it was trained, see `convert`; a recipe may then be without rules.
            `convert(model, path, precision=recipe.precision, calibration=x)`, and `tfcompress
            compress` and `tfcompress convert --precision recipe.yaml`, follow it.

    Raises:
        TypeError: if `rules`, `distill`, `shrink` or `precision` is something else.
        ValueError: if there is neither a rule nor one of the others, if a precision is none, or is
            given beside a `Quantize`, whose bits the file has.

    Example:
        >>> recipe = Recipe([Rule("*", [Quantize(bits=8)]), Rule("head", [])])
        >>> recipe = Recipe(precision={"*": "int4", "head": "int8"})
    """

    distill: Distillation | None = None
    shrink: Shrink | None = None
    precision: Mapping[Any, str] | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.distill is not None and not isinstance(self.distill, Distillation):
            raise TypeError(
                "distill must be a tfcompress.distillation.Distillation; received "
                f"{self.distill!r}."
            )
        if self.shrink is not None and not isinstance(self.shrink, Shrink):
            raise TypeError(f"shrink must be a tfcompress.Shrink; received {self.shrink!r}.")
        if self.precision is None:
            return
        object.__setattr__(self, "precision", dict(Precisions.of(self.precision).rules))
        trained = next((r for r in self.rules if quantize_of(r.techniques) is not None), None)
        if trained is not None:
            raise ValueError(
                "precision is for layers that are quantized after training; received it beside "
                f"Quantize in {trained.words}. Keep one of them."
            )

    def _has_more(self) -> bool:
        return any(part is not None for part in (self.distill, self.shrink, self.precision))

    @classmethod
    def load(cls, source: str | os.PathLike[str], steps: int | None = None) -> Recipe:
        """Reads a recipe from a YAML file, or one of those that come with the package.

        Args:
            source: the path of a `.yaml` file, or "int8", "int4", "sparse50-int8",
                "sparse80-int8", "cluster16-int8", "sparse-cluster-int8" or "distill-int8".
            steps: optimizer steps of the whole training, epochs times batches, of which the file
                may name shares such as `end: 60%`; None leaves them to the beginning of `fit`.

        Returns:
            The `Recipe`.

        Raises:
            ValueError: if the file cannot be read or is no recipe; says the line and the key.

        Example:
            >>> Recipe.load("int8").rules[0].layers
            '*'
        """
        return cls(*file.load(source).parts(steps))

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
        writing.atomic_write(path, file.to_yaml(self).encode())

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
            "precision": self.precision,
        }

    @classmethod
    def from_sensitivity(
        cls,
        found: Sensitivity,
        sparsity: float = 0.8,
        *,
        max_sparsity: float = 0.95,
        schedule: Schedule | None = None,
        techniques_after: Sequence[Technique] = (),
    ) -> Recipe:
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
        if not isinstance(found, Sensitivity):
            raise TypeError(
                f"found must be what tfcompress.sensitivity returned; received {found!r}."
            )
        drops = found.drops("sparsity")
        check(bool(drops), "found", "a scan with sparsities", "one without", "Scan them, too.")
        free = Pattern.parse(found.prune.pattern).kind != "n:m"
        mend = "Choose the layers by their drops yourself."
        check(
            free, "the pattern of the scan", "one with a free sparsity", found.prune.pattern, mend
        )
        sizes = {row.layer: row.size for row in found.rows if row.kind == "sparsity"}
        shares = allocate(sizes, drops, sparsity, max_sparsity)
        after = list(techniques_after)
        # Layers without weights have activations to be quantized.
        everywhere = [t for t in after if isinstance(t, Quantize)]
        rules = [Rule("*", everywhere)] if everywhere else []
        for layer, share in shares.items():
            curve = scaled(schedule, share)
            pruning = [dataclasses.replace(found.prune, sparsity=curve, scope="layer")]
            rules.append(Rule(glob.escape(layer), [*(pruning if share else []), *after]))
        return cls(rules)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Recipe:
        """The recipe that `get_config` told."""
        load = keras.saving.deserialize_keras_object
        rules = [Rule(r["layers"], [load(t) for t in r["techniques"]]) for r in config["rules"]]
        distill, shrink = config.get("distill"), config.get("shrink")
        return cls(
            rules,
            distill and Distillation.from_config(distill),
            shrink and Shrink.from_config(shrink),
            config.get("precision"),
        )
