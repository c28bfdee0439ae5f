"""How good outputs are: by the user's own function, or by loss and metrics of the saved model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from tfcompress.errors import expected_one_of
from tfcompress.fine_tuning.data import Data
from tfcompress.fine_tuning.options import Settings
from tfcompress.graph.inputs import output_names

# Called with labels and outputs as arrays, or lists of them if there are several.
Metric = Callable[[Any, Any], float]
# Of metrics that do not tell their direction: better the lower.
_DOWN = ("loss", "error", "divergence", "mse", "mae", "perplexity", "hinge", "cross")


@dataclasses.dataclass(frozen=True)
class Judge:
    """Measures outputs against labels.

    Args:
        model: the flat float model, which tells the shapes and names of its outputs.
        settings: how it is compiled.
        metric: a function of the user's, the name of a metric that the model was compiled with,
            "loss", or None: the first such metric, and without one "accuracy" of a crossentropy
            and otherwise the loss.
    """

    model: keras.Model
    settings: Settings
    metric: Metric | str | None = None

    def measures(self, outputs: Mapping[str, np.ndarray], data: Data) -> dict[str, float]:
        """Loss and metrics of outputs, or what the user's function gives, by name."""
        names = output_names(self.model)
        given = [outputs[name] for name in names]
        if callable(self.metric):
            one = len(names) == 1
            value = self.metric(data.labels[0] if one else data.labels, given[0] if one else given)
            return {_name_of(self.metric): _number(value)}
        return self._compiled(given, data)

    def chosen(self, measures: Mapping[str, float]) -> tuple[str, bool]:
        """(the measure that is the quality, whether a higher one is better)."""
        names = list(measures)
        if callable(self.metric):
            return names[0], True
        if self.metric is not None:
            if self.metric not in names:
                raise ValueError(
                    f"unknown metric {self.metric!r}; {expected_one_of(self.metric, names)} "
                    "Compile the model with others before it is saved, or pass a function in "
                    "Python."
                )
            return self.metric, _is_up(self.metric)
        others = [name for name in names if not name.endswith("loss")]
        name = others[0] if others else "loss"
        return name, _is_up(name)

    def _compiled(self, outputs: list[np.ndarray], data: Data) -> dict[str, float]:
        """What Keras says of outputs: a model that hands them through is evaluated."""
        names = output_names(self.model)
        inputs = [
            keras.Input(array.shape[1:], name=f"given_{i}") for i, array in enumerate(outputs)
        ]
        through = [
            keras.layers.Identity(name=name)(x) for name, x in zip(names, inputs, strict=True)
        ]
        structure = keras.tree.pack_sequence_as(self.model._outputs_struct, through)
        judge = keras.Model(inputs, structure)
        how = self.settings.without_optimizer()
        if not how.get("metrics") and _is_crossentropy(how.get("loss")):
            how["metrics"] = ["accuracy"]
        judge.compile(**how)
        labels = keras.tree.pack_sequence_as(self.model._outputs_struct, data.labels)
        found = judge.evaluate(outputs, labels, batch_size=256, verbose=0, return_dict=True)
        return {name: float(value) for name, value in found.items() if np.ndim(value) == 0}


def _is_crossentropy(loss: Any) -> bool:
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    return "crossentropy" in name.lower().replace("_", "")


def _is_up(name: str) -> bool:
    """Whether more of a metric is better, by its name as Keras guesses it."""
    return not any(word in name.lower() for word in _DOWN)


def _name_of(metric: Any) -> str:
    return getattr(metric, "__name__", type(metric).__name__)


def _number(value: Any) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(
            f"metric must return a finite number, higher is better; received {value!r}."
        )
    return found
