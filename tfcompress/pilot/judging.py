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
# Parts of the samples, and how many samples one must have.
_PARTS, _LEAST = 10, 10
# Of metrics that do not tell their direction: better the lower.
_DOWN = ("loss", "error", "divergence", "mse", "mae", "perplexity", "hinge", "cross")


class Judge:
    """Measures outputs against labels.

    Args:
        model: the flat float model, which tells the shapes and names of its outputs.
        settings: how it is compiled.
        data: samples with their labels.
        metric: a function of the user's, the name of a metric that the model was compiled with,
            "loss", or None: the first such metric, and without one "accuracy" of a crossentropy
            and otherwise the loss.
    """

    def __init__(
        self, model: keras.Model, settings: Settings, data: Data, metric: Metric | str | None
    ):
        self.data = data
        self._model, self._settings, self._metric = model, settings, metric
        self._names = output_names(model)
        self._through: keras.Model | None = None

    def check(self) -> None:
        """Raises unless loss and metrics can be computed, and the one that was named is there."""
        if callable(self._metric):
            return
        few = dataclasses.replace(
            self.data,
            inputs=[array[:2] for array in self.data.inputs],
            labels=[array[:2] for array in self.data.labels],
        )
        given = keras.tree.flatten(self._model.predict_on_batch(few.take(slice(None))[0]))
        self.chosen(self._compiled(given, few.labels))

    def measures(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Loss and metrics of outputs, or what the user's function gives, by name."""
        given = [outputs[name] for name in self._names]
        if not callable(self._metric):
            return self._compiled(given, self.data.labels)
        labels = self.data.labels
        one = len(given) == 1
        value = self._metric(labels[0] if one else labels, given[0] if one else given)
        return {_name_of(self._metric): _number(value)}

    def parts(self, outputs: Mapping[str, np.ndarray]) -> list[float]:
        """The quality on parts of the samples, by which it scatters; none of a user's function."""
        if callable(self._metric) or len(self.data) < _PARTS * _LEAST:
            return []
        found = []
        for rows in np.array_split(np.arange(len(self.data)), _PARTS):
            given = [outputs[name][rows] for name in self._names]
            measures = self._compiled(given, [array[rows] for array in self.data.labels])
            found.append(measures[self.chosen(measures)[0]])
        return found

    def chosen(self, measures: Mapping[str, float]) -> tuple[str, bool]:
        """(the measure that is the quality, whether a higher one is better)."""
        names = list(measures)
        if callable(self._metric):
            return names[0], True
        if self._metric is not None:
            if self._metric not in names:
                raise ValueError(
                    f"unknown metric {self._metric!r}; {expected_one_of(self._metric, names)} "
                    "Compile the model with others before it is saved, or pass a function in "
                    "Python."
                )
            return self._metric, _is_up(self._metric)
        others = [name for name in names if not name.endswith("loss")]
        name = others[0] if others else "loss"
        return name, _is_up(name)

    def _compiled(self, outputs: list[np.ndarray], labels: list[np.ndarray]) -> dict[str, float]:
        """What Keras says of outputs: a model that hands them through is evaluated."""
        if self._through is None:
            self._through = self._handing_through([array.shape[1:] for array in outputs])
        packed = keras.tree.pack_sequence_as(self._model._outputs_struct, labels)
        found = self._through.evaluate(outputs, packed, batch_size=256, verbose=0, return_dict=True)
        return {name: float(value) for name, value in found.items() if np.ndim(value) == 0}

    def _handing_through(self, shapes: list[tuple[int, ...]]) -> keras.Model:
        """A model that gives what it is given, compiled as the user's."""
        inputs = [keras.Input(shape, name=f"given_{i}") for i, shape in enumerate(shapes)]
        through = [
            keras.layers.Identity(name=name)(x) for name, x in zip(self._names, inputs, strict=True)
        ]
        found = keras.Model(
            inputs, keras.tree.pack_sequence_as(self._model._outputs_struct, through)
        )
        how = self._settings.without_optimizer()
        if not how.get("metrics") and is_crossentropy(how.get("loss")):
            how["metrics"] = ["accuracy"]
        found.compile(**how)
        return found


def is_crossentropy(loss: Any) -> bool:
    """Whether a loss, by name, as a function or an object, is of classes."""
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
